"""Which rehearsals to run next: a pure function of the run on disk, asked again until it wants nothing more.

A remainder of the plan up to 400 steps is rehearsed in full. A longer one is compressed: step k of N uses the batch and the
planned learning rate of step i_k, evenly spread over the rest of the plan, with the worst coming batches (of a sweep,
forward only) each at its own time. An alarm of a compressed rehearsal is looked at again with a longer one, and where the
two disagree with one that draws other batches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnosis.rehearsals import Rehearsed, rehearsed
from gradscope.diagnosis.window import explosion
from gradscope.runs.run import Run
from gradscope.runs.schema import Trial

EXACT = 400
"""The longest remainder of a plan that is rehearsed in full, and the horizon where the plan is not known."""
SHORT, SHORTEST, LONG = 80, 40, 400
REPLAY, REPLAY_AT = 26, 5
SWEEP = 400
LEAST = 20
"""A rehearsal is not made shorter than this."""
SWEEP_COST = 1 / 3
"""A forward pass against a whole training step."""

Indexes = NDArray[np.int64]


def next_rehearsals(run: Run, allowed: float = float("inf")) -> tuple[Trial, ...]:
    """The next trials (kinds sweep, rehearsal, replay) within `allowed` training steps; empty when nothing more is needed.

    Left out first when time is short: the replay, then ×4, then length.
    """
    start, stop = len(run.step), horizon(run)
    if stop <= start or explosion(run):
        return ()
    if "sweep" not in run.trials and "x1" not in run.trials:
        spread = even(start, stop, min(SWEEP, max(int(allowed / 4 / SWEEP_COST), LEAST)))
        return (Trial("sweep", "sweep", indexes=_ints(spread)),)
    if "x1" not in run.trials:
        return _first(run, start, stop, allowed)
    return _confirming(run, start, stop, allowed)


def horizon(run: Run) -> int:
    """The planned number of optimizer steps; where it is not known, 400 after the window."""
    return run.header.plan.total_steps or len(run.step) + EXACT


def _first(run: Run, start: int, stop: int, allowed: float) -> tuple[Trial, ...]:
    rest = stop - start
    full = rest <= EXACT and rest + SHORT <= allowed
    replay = even(start, stop, REPLAY)
    worst = _sweep(run)
    if len(replay) > REPLAY_AT and len(worst):
        replay[REPLAY_AT] = worst[0]
    wanted = [
        _trial("x1", 1.0, np.arange(start, stop) if full else _draw(run, start, stop, SHORT)),
        _trial("x2", 2.0, _draw(run, start, stop, SHORT)),
        _trial("x4", 4.0, _draw(run, start, stop, SHORTEST)),
        Trial("replay", "replay", indexes=_ints(replay), lr_at="peak"),
    ]
    while len(wanted) > 2 and _steps(wanted) > allowed:
        wanted.pop()
    if _steps(wanted) > allowed:
        shorter = max(LEAST, int(allowed / len(wanted)))
        wanted = [_trial(t.name, t.lr_factor, _draw(run, start, stop, shorter)) for t in wanted]
    return tuple(wanted)


def _confirming(run: Run, start: int, stop: int, allowed: float) -> tuple[Trial, ...]:
    seen = {one.name: one for one in rehearsed(run)}
    exact = "x1" in run.trials and len(_indexes(run.trials["x1"])) == stop - start
    if exact or allowed < SHORT or "x1-second" in run.trials:
        return ()
    long = int(min(LONG, allowed))
    if "x1-long" not in run.trials:
        if any(suspicious(one) for one in seen.values()):
            return (_trial("x1-long", 1.0, _draw(run, start, stop, long)),)
        return ()
    if "x1" in seen and "x1-long" in seen and seen["x1"].failed != seen["x1-long"].failed:
        return (_trial("x1-second", 1.0, between(start, stop, long), draw=1),)
    return ()


def suspicious(one: Rehearsed) -> bool:
    """Worth a longer look: failed, or half-way there, at up to twice the planned learning rate."""
    return one.lr_factor <= 2 and (one.failed or one.loss_rise > 0.5 or one.norm_rise > 2)


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


def _draw(run: Run, start: int, stop: int, count: int) -> Indexes:
    return with_worst(even(start, stop, count), _sweep(run)[: max(2, count // 10)])


def _sweep(run: Run) -> Indexes:
    """The swept steps of the plan, the worst loss first; a nonfinite one is the worst."""
    if "sweep" not in run.trials:
        return np.zeros(0, np.int64)
    sweep = run.trials["sweep"]
    badness = np.where(np.isfinite(sweep.loss), np.abs(sweep.loss), np.inf)
    return _indexes(sweep)[: len(badness)][np.argsort(-badness, kind="stable")]


def _indexes(trial: Run) -> Indexes:
    return np.asarray(trial.header.trial.indexes if trial.header.trial else (), np.int64)


def _trial(name: str, lr_factor: float, indexes: Indexes, draw: int = 0) -> Trial:
    return Trial("rehearsal", name, lr_factor=lr_factor, indexes=_ints(indexes), draw=draw)


def _steps(trials: list[Trial]) -> int:
    return sum(len(trial.indexes) for trial in trials)


def _ints(indexes: Indexes) -> tuple[int, ...]:
    return tuple(int(i) for i in indexes)
