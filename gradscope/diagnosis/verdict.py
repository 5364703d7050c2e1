"""Will it explode? From the window what it shows, from rehearsals what it foresees.

The score sums the rise of loss and norm, in decades, over the rehearsals; the nearer a rehearsal is to the plan, the more it
counts. A failure at the planned learning rate is "will-explode" when nothing was compressed or a second rehearsal confirms
it; a failure at a multiple only, or an unconfirmed one, is thin headroom. "exploding" is also an explosion within the next
20 steps, uncompressed.
"""

from __future__ import annotations

import numpy as np

from gradscope.diagnosis.model import Verdict
from gradscope.diagnosis.rehearsals import MOST, Rehearsed, rehearsed
from gradscope.diagnosis.series import count, median, number, read_at
from gradscope.diagnosis.window import (
    EARLY_LOSSES,
    GUARD,
    LATE,
    LOSS_FACTOR,
    enough,
    explosion,
    nonfinite_losses,
    nonfinite_steps,
)
from gradscope.runs.run import Run

NEXT = 20
"""Steps of an uncompressed rehearsal that still belong to the window."""
SURE = 4 * MOST
EXPLODING = 2 * SURE
"""The top of the scale."""
PLANNED, LONG, FIRST, OTHER_DRAW = 3.0, 2.0, 1.0, 1.0
WEIGHTS = {2.0: 1.0, 4.0: 0.5}
REPLAY = 0.25
TESTED = 50.0
CANNOT_FORESEE = "recorded steps alone cannot foresee an explosion that comes later; rehearsals can"


def judge(run: Run) -> Verdict:
    """The verdict on a run from its recorded steps and its trials."""
    seen = explosion(run)
    if seen:
        return Verdict("exploding", EXPLODING, None, seen.first_step, (seen.reason,))
    trials = rehearsed(run)
    planned = _planned(trials)
    if planned and planned[0].exact and (soon := _seen_next(run, run.trials[planned[0].name])):
        return Verdict("exploding", EXPLODING, _headroom(trials), None, (soon,))
    if not enough(run):
        return Verdict("unknown", None, None, None, ("too few steps with a finite loss or gradient norm to judge",))
    if not planned:
        nothing = f"no explosion in the {count(len(run.step), 'recorded step')} (norms read {read_at(run)})"
        return Verdict("unknown", None, None, None, (nothing, CANNOT_FORESEE))
    return _from_trials(run, trials, planned)


def explosion_score(trials: list[Rehearsed]) -> float:
    """The weighted sum of rises. ×1 counts 3 when exact or alone, else its longest 2 and another draw 1; replay ¼."""
    planned = _planned(trials)
    weights = {one.name: WEIGHTS.get(one.lr_factor, 0.0) for one in trials if one.kind == "rehearsal"}
    weights |= {one.name: REPLAY for one in trials if one.kind == "replay"}
    weights |= {one.name: FIRST if one.draw == 0 else OTHER_DRAW for one in planned}
    same_draw = [one for one in planned if one.draw == 0] or planned
    weights[same_draw[-1].name] = PLANNED if len(same_draw) == 1 else LONG
    return float(sum(weights[one.name] * (one.loss_rise + one.norm_rise) for one in trials))


def _planned(trials: list[Rehearsed]) -> list[Rehearsed]:
    """The rehearsals at the planned learning rate: first draw first, the shortest of a draw first."""
    chosen = [one for one in trials if one.kind == "rehearsal" and one.lr_factor == 1.0]
    return sorted(chosen, key=lambda one: (one.draw, one.steps))


def _headroom(trials: list[Rehearsed]) -> float | None:
    return min((one.lr_factor for one in trials if one.kind == "rehearsal" and one.failed), default=None)


def _seen_next(run: Run, trial: Run) -> str | None:
    """Whether the next steps after the window, taken as planned, explode."""
    bad = nonfinite_steps(trial)[:NEXT] | nonfinite_losses(trial)[:NEXT]
    if bad.any():
        return f"{count(int(np.argmax(bad)) + 1, 'step')} after the window the training is nonfinite"
    size = np.abs(run.loss)
    first = np.fmax(median(size[:EARLY_LOSSES]), GUARD * median(size))
    if len(trial.loss) >= NEXT and median(np.abs(trial.loss[NEXT - LATE : NEXT])) > LOSS_FACTOR * first:
        return f"within {NEXT} steps after the window the loss rises above {LOSS_FACTOR:.0f} × its beginning"
    return None


def _from_trials(run: Run, trials: list[Rehearsed], planned: list[Rehearsed]) -> Verdict:
    failures = [one for one in planned if one.failed]
    sure = bool(failures) and (planned[0].exact or len(failures) > 1)
    score = explosion_score(trials) + (SURE if sure else 0.0)
    told = [_say(one) for one in sorted(trials, key=lambda one: (one.kind, one.lr_factor, one.draw, one.steps))]
    told += _limits(run, planned)
    if sure:
        return Verdict("will-explode", score, 1.0, None, tuple(told))
    if failures:
        told.append("a rehearsal at the planned learning rate failed, but no second one confirms it")
    failed_factors = [one.lr_factor for one in trials if one.failed]
    if failed_factors:
        return Verdict("thin-headroom", score, max(2.0, min(failed_factors)), None, tuple(told))
    return Verdict("stable", score, None, None, tuple(told))


def _limits(run: Run, planned: list[Rehearsed]) -> list[str]:
    """What the rehearsals cannot know."""
    said = []
    if run.header.plan.total_steps is None:
        said.append(
            f"the length of the plan is not known: judged for {count(planned[-1].steps, 'step')} after the window"
        )
    compression = min(one.compression for one in planned)
    if compression > TESTED:
        said.append(f"the rehearsals compress the plan {compression:.0f} ×; this was tested up to {TESTED:.0f} ×")
    return said


def _say(one: Rehearsed) -> str:
    what = "replay of the worst batch" if one.kind == "replay" else "rehearsal"
    end = "nonfinite" if one.nonfinite else f"loss at {number(10**one.loss_rise)} × the window's"
    state = "failed" if one.failed else "held"
    return f"{what} at {number(one.lr_factor)} × the planned learning rate, {count(one.steps, 'step')}: {state} ({end})"
