"""Which rehearsals to run next: a pure function of the run on disk, asked again until it wants nothing more.

First ×1, ×2 and ×4. A remainder of the plan up to 400 steps, or up to 20,000 where that takes at most half of the time
allowed, is rehearsed at ×1 in full. A longer one is compressed: step k of N uses the batch and the planned learning rate of
step i_k, evenly spread over the rest of the plan, with the worst coming batches (of a sweep, forward only, unless the model
makes its data: then ×1 is the first to draw them, as the training would be) each at its own time. An alarm at ×1 or ×2, or
a loss that creeps upwards at both, is looked at again: in full where the time allows it; else by the next 20 steps
uncompressed and two longer draws. If only ×4 failed, ×2 is looked at once more. None of them clips; then, what failed or
unlearned is gone through again as the plan clips today, if it does. Last, a plan that failed in full is gone through twice
more from weights changed by one part in 10,000,000: where these hold, it fails by chance.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gradscope.diagnosis.as_today import as_clipped_today, clipped_again
from gradscope.diagnosis.learning import rehearsal, unlearned
from gradscope.diagnosis.rehearsals import Rehearsed, horizon, in_full, planned, rehearsed
from gradscope.diagnosis.series import Indexes, deviation, median
from gradscope.diagnosis.window import of_the_plan, seen_in_window
from gradscope.runs.run import Floats, Run
from gradscope.runs.schema import Trial

EXACT, AFFORDED = 400, 20_000
"""The longest remainder that is rehearsed in full: at once where it fits, and where it is cheap or confirms an alarm."""
CHEAP = 1 / 2
"""Of the time allowed."""
X1, X2, X4, X2_LONG, X1_LONG, NEXT = 80, 80, 40, 160, 400, 20
SWEEP, WORST = 400, 10
"""Coming batches looked at; one in so many rehearsed batches is among the worst of them."""
PEAK = 1.5
"""A learning rate so many times that of all rehearsed steps is not to be missed."""
LEAST = 20
"""A rehearsal is not made shorter than this."""
SWEEP_COST = 1 / 3
"""A forward pass against a whole training step."""
CREEP_NOISE, CREEP_LEAST = 4.0, 8
PERTURBED, PERTURBATIONS = 1e-7, 2


def next_rehearsals(run: Run, allowed: float = float("inf")) -> tuple[Trial, ...]:
    """The next trials (kinds sweep and rehearsal) within `allowed` training steps; empty when nothing more is needed.

    Left out first when time is short: ×4, then length, then the sweep and ×2.
    """
    start, stop = len(run.step), horizon(run)
    if stop <= start or seen_in_window(run):
        return ()
    if "x1" in run.trials:
        return _again(run, start, stop, allowed) or _as_clipped_today(run, allowed) or _perturbed(run, allowed)
    swept = int(min(SWEEP, allowed / 4 / SWEEP_COST))
    if "sweep" not in run.trials and not run.header.on_policy and swept >= LEAST:
        spread = even(start, stop, swept)
        return (Trial("sweep", "sweep", indexes=_ints(spread)),)
    return _first(run, start, stop, allowed)


def _first(run: Run, start: int, stop: int, allowed: float) -> tuple[Trial, ...]:
    rest = stop - start
    full = rest + X2 <= allowed and (rest <= EXACT or rest <= min(AFFORDED, CHEAP * allowed))
    first = rest if full else X1
    four = first + X2 + X4 <= allowed
    shrink = 1.0 if full else min(1.0, allowed / (X1 + X2))

    def length(steps: int) -> int:
        return max(LEAST, int(shrink * steps))

    wanted = [_exact("x1", start, stop) if full else _compressed(run, "x1", 1.0, length(X1))]
    if allowed >= 2 * LEAST:
        wanted.append(_compressed(run, "x2", 2.0, length(X2)))
    return tuple(wanted + ([_compressed(run, "x4", 4.0, X4)] if four else []))


def _again(run: Run, start: int, stop: int, allowed: float) -> tuple[Trial, ...]:
    """What an alarm asks for."""
    seen = rehearsed(run)
    if any(one.full for one in seen) or allowed < X1:
        return ()
    names = set(run.trials)
    if "x1-long" not in names and alarming(run, seen):
        return _confirmation(run, start, stop, allowed)
    only_at_four = "x1-long" not in names and "x2-long" not in names and any(one.failed for one in seen)
    return (_compressed(run, "x2-long", 2.0, int(min(X2_LONG, allowed))),) if only_at_four else ()


def _as_clipped_today(run: Run, allowed: float) -> tuple[Trial, ...]:
    """What failed, or lost what it had learned, once more, clipped as the plan is; nothing where not all of that fits, for
    then it decides nothing.
    """
    failed = {one.name for one in rehearsed(run) if one.failed}
    lost = rehearsal(run) if unlearned(run) else None
    if lost is not None and of_the_plan(lost) and lost.header.trial:
        failed.add(lost.header.trial.name)
    made = [run.trials[name].header.trial for name in sorted(failed)]
    again = [clipped for one in made if one and (clipped := clipped_again(run, one))]
    wanted = tuple(one for one in again if one.name not in run.trials)
    return wanted if sum(len(one.indexes) for one in wanted) <= allowed else ()


def _perturbed(run: Run, allowed: float) -> tuple[Trial, ...]:
    """The plan in full once more, as it failed, from weights changed by no more than another machine's rounding would."""
    seen = rehearsed(run)
    deciding = as_clipped_today(run, seen) if run.header.plan.max_norm else seen
    own = next(iter(in_full(deciding or [])), None)
    made = run.trials[own.name].header.trial if own and own.failed else None
    if made is None or run.header.on_policy:
        return ()
    draws = range(1, PERTURBATIONS + 1)
    wanted = [replace(made, name=f"{made.name}-perturbed-{k}", draw=k, perturbed=PERTURBED) for k in draws]
    left = [one for one in wanted if one.name not in run.trials]
    return tuple(left[: int(min(allowed, 1e9) / len(made.indexes))])


def _confirmation(run: Run, start: int, stop: int, allowed: float) -> tuple[Trial, ...]:
    if stop - start <= min(AFFORDED, allowed):
        return (_exact("x1-long", start, stop),)
    length = int(min(X1_LONG, max(X1, (allowed - NEXT) / 2)))
    second = Trial("rehearsal", "x1-second", indexes=_ints(between(start, stop, length)), draw=1)
    return (_exact("next", start, min(stop, start + NEXT)), _compressed(run, "x1-long", 1.0, length), second)


def alarming(run: Run, seen: list[Rehearsed]) -> bool:
    """Whether a rehearsal at ×1 or ×2 failed, or the first at both of them creeps upwards."""
    if any(one.failed for one in seen if one.lr_factor <= 2):
        return True
    first = [*planned(seen)[:1], *(one for one in seen if one.lr_factor == 2)]
    return len(first) > 1 and all(creeps(run.trials[one.name].loss, horizon(run) - len(run.step)) for one in first)


def creeps(losses: Floats, remaining: int) -> bool:
    """A small but certain growth of the loss that would be ten-fold by the end of the plan: compression hides it."""
    sizes = np.abs(losses[np.isfinite(losses) & (losses != 0)])
    logs = np.log10(sizes)
    third = len(logs) // 3
    if third < CREEP_LEAST:
        return False
    first, middle, last = logs[:third], logs[third : 2 * third], logs[-third:]
    grown = median(last) - median(first)
    noise = 1.25 * float(np.hypot(_spread(first), _spread(last))) / np.sqrt(third)
    rises = median(first) < median(middle) < median(last)
    return bool(rises and grown > CREEP_NOISE * noise and grown / (2 * third) * remaining > 1)


def even(start: int, stop: int, count: int) -> Indexes:
    """At most `count` steps evenly from `start` to `stop` − 1."""
    return np.linspace(start, stop - 1, min(count, stop - start)).astype(np.int64)


def between(start: int, stop: int, count: int) -> Indexes:
    """Another draw: the middles of `count` equal parts."""
    parts = min(count, stop - start)
    return (start + (np.arange(parts) + 0.5) * (stop - start) / parts).astype(np.int64)


def with_worst(indexes: Indexes, worst: Indexes) -> Indexes:
    """The draw with each of the `worst` steps in place of the nearest one that is still free."""
    drawn, taken = indexes.copy(), np.zeros(len(indexes), bool)
    for step in worst[: len(indexes)]:
        nearest = np.where(taken, np.inf, np.abs(indexes - step)).argmin()
        taken[nearest] = True
        drawn[nearest] = step
    return np.sort(drawn)


def _exact(name: str, start: int, stop: int) -> Trial:
    return Trial("rehearsal", name, indexes=tuple(range(start, stop)))


def _compressed(run: Run, name: str, factor: float, length: int) -> Trial:
    spread = even(len(run.step), horizon(run), length)
    worst = _sweep(run)[: max(2, len(spread) // WORST)]
    drawn = with_worst(spread, np.concatenate([_missed_peak(run, spread), worst]))
    return Trial("rehearsal", name, lr_factor=factor, indexes=_ints(drawn))


def _missed_peak(run: Run, indexes: Indexes) -> Indexes:
    """The step of the highest planned learning rate to come, where the draw stays far below it."""
    plan, start = run.header.plan, len(run.step)
    to_come = [step for step in plan.lr_steps if start <= step < horizon(run)]
    peak = max(to_come, key=lambda step: max(plan.rates_at(step)), default=None)
    if peak is None or max(plan.rates_at(peak)) <= PEAK * max(max(plan.rates_at(int(step))) for step in indexes):
        return np.zeros(0, np.int64)
    return np.array([peak], np.int64)


def _sweep(run: Run) -> Indexes:
    """The swept steps of the plan, the worst |loss| first; a nonfinite one is the worst."""
    trial = run.trials.get("sweep")
    made = trial.header.trial if trial else None
    if trial is None or made is None:
        return np.zeros(0, np.int64)
    badness = np.where(np.isfinite(trial.loss), np.abs(trial.loss), np.inf)
    return np.asarray(made.indexes, np.int64)[: len(badness)][np.argsort(-badness, kind="stable")]


def _spread(values: Floats) -> float:
    return deviation(values - median(values))


def _ints(indexes: Indexes) -> tuple[int, ...]:
    return tuple(int(i) for i in indexes)
