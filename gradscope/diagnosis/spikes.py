"""Single steps whose gradient norm stands out, in the window and in the rehearsals, and the samples behind them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.rehearsals import planned, rehearsed
from gradscope.diagnosis.series import Bools, Indexes, deviation, median, running_median, unscaled_norms, usable
from gradscope.runs.run import Floats, Run

WIDTH, NEAR, LEAST, FIRST = 50, 11, 10, 3
FACTOR, Z, FLOOR = 3.0, 6.0, 0.05
LONGEST = 5


@dataclass(frozen=True)
class Spikes:
    """(n,) by spike: the step of the plan, its norm, and the median norm of up to 11 steps before it."""

    steps: Indexes
    norms: Floats
    before: Floats

    @property
    def factors(self) -> Floats:
        """How far each stands out."""
        return self.norms / self.before


def spikes_of(steps: Indexes, norms: Floats) -> Spikes:
    """The steps, at most 5 in a row, whose norm is far above those before it, whatever the norms' trend.

    In log10: a step's distance d from the median of up to 11 steps before it, held against up to 50 such distances before,
    must have z = (d − median) / (1.4826·MAD + .05) > 6, and d be above log10(3). At least 10 steps must come before. 11 of
    them, since a new level moves their median after 6 steps and so is longer than a spike.
    """
    logs = np.log10(norms)
    near = running_median(logs, NEAR, FIRST)
    distance = logs - near
    far = np.zeros(len(norms), bool)
    for i in np.flatnonzero(distance > np.log10(FACTOR)):
        if i >= LEAST:
            others = distance[max(FIRST, i - WIDTH) : i]
            center = median(others)
            far[i] = (distance[i] - center) / (deviation(others - center) + FLOOR) > Z
    rows = np.flatnonzero(_short(far))
    return Spikes(steps[rows], norms[rows], 10 ** near[rows])


def _short(far: Bools) -> Bools:
    """`far` without its unbroken stretches longer than a spike."""
    edges: Indexes = np.flatnonzero(np.diff(np.concatenate([[0], far.astype(np.int8), [0]])))
    kept = far.copy()
    for begin, end in edges.reshape(-1, 2):
        kept[begin:end] = end - begin <= LONGEST
    return kept


def in_window(run: Run) -> Spikes:
    """Those of the recorded steps."""
    keep = usable(run)
    return spikes_of(run.step[keep], unscaled_norms(run)[keep])


def ahead(run: Run) -> Spikes:
    """Those of the longest rehearsal at the planned learning rate that held."""
    held = [one for one in planned(rehearsed(run)) if not one.failed]
    if not held:
        return spikes_of(run.step[:0], run.global_norm[:0])
    trial = run.trials[max(held, key=lambda one: one.steps).name]
    made = trial.header.trial
    assert made is not None
    keep = usable(trial)
    steps = np.asarray(made.indexes, np.int64)[: len(keep)]
    return spikes_of(steps[keep], unscaled_norms(trial)[keep])
