"""What a rehearsal shows: how far loss and norm rose against the window, and whether it failed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.series import median, unscaled_norms, usable
from gradscope.diagnosis.window import (
    EARLY_LOSSES,
    NOT_RECOVERED,
    at_planned_rate,
    is_nonfinite,
    late_loss,
    stable_prefix,
)
from gradscope.runs.run import Run, once
from gradscope.runs.schema import Plan, Trial

REFERENCE = 20
UNKNOWN = 400
LEAST, MOST = -3.0, 12.0
LOSS_FAILS, NORM_FAILS, NORM_BLOWN = 10.0, 30.0, 1000.0
FALLEN = 3.0
"""A late loss this many times as deep below zero as the window's largest is high is as bad as one at its own level."""


@dataclass(frozen=True)
class Reference:
    """The window's own scale.

    `loss`: the median |loss| of its last 20 steps, but at least a tenth of the first and at least their spread (p90 − p10);
    `first_loss`: the median |loss| of its first 5; `largest_loss`: its largest |loss| before an explosion, which ends where
    numbers end; `norm`: its median norm. NaN where nothing was measured. `depth`: how deep below zero a loss is as bad as
    one at `loss`: three times `largest_loss`, and what the window's losses moved, had they gone on so at the rates to come.
    """

    loss: float
    first_loss: float
    largest_loss: float
    norm: float
    depth: float


@dataclass(frozen=True)
class Rehearsed:
    """One rehearsal against the window. `loss`: where it ended; `loss_rise` and `norm_rise` are log10, within [−3, 12];
    nonfinite is 12.

    `max_norm`: what it clipped at, None for nothing. `full`: every step left in the plan, in turn. `next`: only the first of
    them, in turn. `perturbed`: from slightly other weights. `length`: steps it was to take, of which `steps` were taken.
    `compression`: plan steps for each of them.
    """

    name: str
    kind: str
    lr_factor: float
    draw: int
    steps: int
    length: int
    full: bool
    next: bool
    compression: float
    loss: float
    loss_rise: float
    norm_rise: float
    failed: bool
    nonfinite: bool
    max_norm: float | None = None
    perturbed: bool = False


@once
def reference(run: Run) -> Reference:
    """The scale that rehearsals of `run` are compared with."""
    losses = run.loss[np.isfinite(run.loss)]
    tail, first = losses[-REFERENCE:], median(np.abs(losses[:EARLY_LOSSES]))
    spread = float(np.subtract(*np.percentile(tail, [90, 10]))) if len(tail) else float("nan")
    loss = float(np.fmax.reduce([median(np.abs(tail)), first / 10, spread]))
    calm = run.loss[: max(EARLY_LOSSES, stable_prefix(run))]
    calm = calm[np.isfinite(calm)]
    largest = float(np.abs(calm).max(initial=0.0))
    moved = float(np.ptp(calm)) if len(calm) else 0.0
    depth = max(FALLEN * largest, moved * _rates_to_come(run))
    return Reference(loss, first, largest, median(unscaled_norms(run)[usable(run)]), depth)


def _rates_to_come(run: Run) -> float:
    """The sum of the learning rates of the plan ÷ that of the window; steps where the rates are not known."""
    done, length = len(run.step), horizon(run)
    before = _sum_of_rates(run.header.plan, done)
    return _sum_of_rates(run.header.plan, length) / before if before > 0 else length / max(1, done)


def _sum_of_rates(plan: Plan, stop: int) -> float:
    """The sum of the highest rates of steps 0 to `stop` − 1, which lie on straight lines between the planned samples; a rate
    of 1 where the plan has none.
    """
    if stop < 1 or not plan.lr:
        return float(stop)
    steps = np.array([0, *(step for step in plan.lr_steps if 0 < step < stop - 1), stop - 1])
    rates = np.interp(steps, plan.lr_steps, [max(row) for row in plan.lr])
    return float(np.diff(steps) @ (rates[1:] + rates[:-1]) + rates[0] + rates[-1]) / 2


def size(late: float, base: Reference) -> float:
    """A late loss as a size to hold against `base.loss`. Below zero a loss may fall and be well, as likelihoods do."""
    return -late * base.loss / base.depth if late < 0 < base.depth else abs(late)


@once
def bottomless(run: Run) -> bool:
    """Whether a loss of the run, or of a trial, falls far deeper below zero than it would have by going on as it began."""
    limit = -LOSS_FAILS * reference(run).depth
    return any(bool((one.loss < limit).any()) for one in (run, *run.trials.values()))


def played(run: Run) -> list[Rehearsed]:
    """Every rehearsal and replay, clipped or not, that came to its end or failed on its way, by name."""
    base = reference(run)
    about = {name: trial.header.trial for name, trial in sorted(run.trials.items()) if len(trial.step)}
    found = [
        judged(run, run.trials[name], base, made)
        for name, made in about.items()
        if made and made.kind in ("rehearsal", "replay") and ended(run.trials[name])
    ]
    return [one for one in found if one.failed or not broken_off(run.trials[one.name])]


def rehearsed(run: Run) -> list[Rehearsed]:
    """Those of `played` that did not clip."""
    return [one for one in played(run) if one.max_norm is None]


def stretch(trial: Trial) -> float:
    """√(H/N) of a compressed trial from the initial state; 1 where nothing is compressed."""
    if not trial.indexes or trial.start != "initial":
        return 1.0
    return math.sqrt((trial.indexes[-1] + 1) / len(trial.indexes))


def recommended(trial: Trial) -> float | None:
    """The threshold that a candidate trial stands for."""
    return None if trial.max_norm is None else trial.max_norm / stretch(trial)


def broken_off(trial: Run) -> bool:
    """Whether a trial took fewer steps than it was to take, though nothing became nonfinite."""
    made = trial.header.trial
    return made is not None and len(trial.step) < len(made.indexes) and not is_nonfinite(trial)


def raised(trial: Run) -> tuple[int, str] | None:
    """The step of the plan at which the training's own code raised in a rehearsal at the planned learning rate, and what."""
    ending, made = trial.header.ending, trial.header.trial
    if ending.how != "failed" or made is None or ending.step is None or not at_planned_rate(trial):
        return None
    return made.indexes[min(ending.step, len(made.indexes) - 1)], ending.message or "an error"


def planned(trials: list[Rehearsed]) -> list[Rehearsed]:
    """The rehearsals of the plan at its own learning rate: the first draw first, the shortest of a draw first."""
    chosen = [one for one in trials if one.kind == "rehearsal" and one.lr_factor == 1.0 and not one.next]
    return sorted(chosen, key=lambda one: (one.draw, one.length))


def in_full(trials: list[Rehearsed]) -> list[Rehearsed]:
    """Those of `planned` that take the whole rest of the plan, its own steps first, then from slightly other weights."""
    return [one for one in planned(trials) if one.full]


def in_other_orders(run: Run) -> list[Run]:
    """The trainings of the plan as it is, with its batches in other orders; none where it clips."""
    tried = [(one, one.header.trial) for _, one in sorted(run.trials.items())]
    as_planned = [
        one for one, made in tried if made and made.shuffled and made.kind == "candidate" and not made.max_norm
    ]
    return as_planned if run.header.plan.max_norm is None else []


def horizon(run: Run) -> int:
    """The planned number of optimizer steps; where it is not known, 400 after the window."""
    return run.header.plan.total_steps or len(run.step) + UNKNOWN


def ended(trial: Run) -> bool:
    """Whether it came to its end, or to a nonfinite step."""
    return trial.header.ending.how in ("finished", "nonfinite") or is_nonfinite(trial)


def judged(run: Run, trial: Run, base: Reference, made: Trial) -> Rehearsed:
    """A trial of `run` against its window."""
    nonfinite = is_nonfinite(trial)
    end = np.inf if nonfinite else late_loss(trial)
    late = size(end, base)
    peak = np.inf if nonfinite else float(unscaled_norms(trial)[usable(trial)].max(initial=0.0))
    grew = late > LOSS_FAILS * base.loss > 0 and peak > NORM_FAILS * base.norm > 0
    learned = end <= NOT_RECOVERED * base.first_loss
    blown = peak > NORM_BLOWN * base.norm > 0 and not learned
    indexes = made.indexes
    covered = indexes[-1] - indexes[0] + 1 if indexes else len(trial.step)
    in_turn = bool(indexes) and covered == len(indexes)
    return Rehearsed(
        name=made.name,
        kind=made.kind,
        lr_factor=made.lr_factor,
        draw=made.draw,
        steps=len(trial.step),
        length=len(indexes) or len(trial.step),
        full=in_turn and indexes[0] <= len(run.step) and indexes[-1] >= horizon(run) - 1,
        next=in_turn and indexes[-1] < horizon(run) - 1,
        compression=covered / max(1, len(indexes) or len(trial.step)),
        loss=end,
        loss_rise=_rise(late, base.loss),
        norm_rise=_rise(peak, base.norm),
        failed=nonfinite or grew or blown,
        nonfinite=nonfinite,
        max_norm=made.max_norm,
        perturbed=made.perturbed > 0,
    )


def _rise(value: float, scale: float) -> float:
    """log10(value / scale) within [−3, 12]; 0 where there is nothing to measure against."""
    if value == np.inf:
        return MOST
    if not (np.isfinite(value) and scale > 0):
        return 0.0
    return float(np.clip(np.log10(value) - np.log10(scale), LEAST, MOST)) if value > 0 else LEAST
