"""Single steps whose gradient norm stands out, in the window and in the rehearsals, and whose batches to suspect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.rehearsals import planned, rehearsed
from gradscope.diagnosis.series import Bools, Indexes, deviation, median, running_median, unscaled_norms, usable
from gradscope.diagnosis.window import Explosion
from gradscope.runs.run import Floats, Run

WIDTH, NEAR, LEAST, FIRST = 50, 11, 10, 3
FACTOR, Z, FLOOR = 3.0, 6.0, 0.05
LONGEST = 5
LOOKED = 1.0
"""Decades from which on a batch is looked at, however much the norms vary."""


@dataclass(frozen=True)
class Spikes:
    """(n,) by spike: the step of the plan, its norm, and how many times that is the median of up to 11 steps before it."""

    steps: Indexes
    norms: Floats
    factors: Floats

    @property
    def largest(self) -> int:
        """Which of them stands out most."""
        return int(np.argmax(self.factors))


def spikes_of(steps: Indexes, norms: Floats, longest: float = LONGEST) -> Spikes:
    """The steps, at most `longest` in a row, whose norm is far above those before it, whatever the norms' trend.

    In log10: a step's distance d from the median of up to 11 steps before it, held against up to 50 such distances before,
    must have z = (d − median) / (1.4826·MAD + .05) > 6, and d be above log10(3). At least 10 steps must come before. 11 of
    them, since a new level moves their median after 6 steps and so is longer than a spike.
    """
    distance = _distance(norms)
    far = np.zeros(len(norms), bool)
    for i in np.flatnonzero(distance > np.log10(FACTOR)):
        if i >= LEAST:
            others = distance[max(FIRST, i - WIDTH) : i]
            center = median(others)
            far[i] = (distance[i] - center) / (deviation(others - center) + FLOOR) > Z
    rows = np.flatnonzero(_short(far, longest))
    return Spikes(steps[rows], norms[rows], 10 ** distance[rows])


def _distance(norms: Floats) -> Floats:
    """Decades from the median of up to 11 steps before; NaN where fewer than 3 are."""
    logs = np.log10(norms)
    return np.asarray(logs - running_median(logs, NEAR, FIRST))


def _short(far: Bools, longest: float) -> Bools:
    """`far` without its longer unbroken stretches."""
    edges: Indexes = np.flatnonzero(np.diff(np.concatenate([[0], far.astype(np.int8), [0]])))
    kept = far.copy()
    for begin, end in edges.reshape(-1, 2):
        kept[begin:end] = end - begin <= longest
    return kept


def suspects(run: Run, seen: Explosion | None) -> list[int]:
    """Steps of the plan whose batches may be to blame: the one that stands out most in the window and in the longest
    rehearsal at the planned learning rate, or where these explode, what first stands out there and what is nonfinite first.
    `seen`: the explosion that the window shows.
    """
    near = planned(rehearsed(run))
    found = [seen.first_step, *_first(run, run.step)] if seen else []
    found += _farthest(run, run.step) or _largest_spike(run)
    if near and not seen:
        one = max(near, key=lambda one: one.length)
        trial = run.trials[one.name]
        assert trial.header.trial is not None
        steps = np.asarray(trial.header.trial.indexes, np.int64)[: len(trial.step)]
        found += _first(trial, steps) if one.failed else _farthest(trial, steps)
    return list(dict.fromkeys(found))


def _usable(run: Run, steps: Indexes) -> tuple[Indexes, Floats]:
    keep = usable(run)
    return steps[keep], unscaled_norms(run)[keep]


def _farthest(run: Run, steps: Indexes) -> list[int]:
    """The step farthest above those before it, if ten-fold at least."""
    kept, norms = _usable(run, steps)
    distance = np.nan_to_num(_distance(norms)[LEAST:], nan=-1.0)
    return [int(kept[LEAST + np.argmax(distance)])] if distance.max(initial=0.0) >= LOOKED else []


def _largest_spike(run: Run) -> list[int]:
    spikes = spikes_of(*_usable(run, run.step))
    return [int(spikes.steps[spikes.largest])] if len(spikes.steps) else []


def _first(run: Run, steps: Indexes) -> list[int]:
    far = spikes_of(*_usable(run, steps), np.inf).steps[:1]
    nonfinite = steps[~(np.isfinite(run.loss) & np.isfinite(run.global_norm))][:1]
    return [int(step) for step in (*far, *nonfinite)]
