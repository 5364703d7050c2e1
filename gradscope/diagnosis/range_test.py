"""A learning-rate range test at the start of a run: the rate rises at every step, far beyond what training can bear, then
falls back. Its explosion is the purpose of it, and no sign of how the training behind it will go.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from gradscope.diagnosis.series import Indexes, highest_rates, number
from gradscope.runs.run import Floats, Run

LEAST, RISES, FALLS = 20, 100.0, 3.0
"""Steps that it takes at least; how many times it raises the rate at least, and how far the rate falls back after it."""


def training_of(run: Run) -> Run:
    """A recorded run without the range tests it begins with, and a note of them; the run itself where there is none."""
    if run.header.recorded_by == "analyze":
        return run
    rates = highest_rates(run)
    tests = range_tests(rates)
    if not len(tests):
        return run
    begin = int(tests[-1])
    first, tested = int(run.step[begin]), rates[:begin]
    note = (
        f"Steps {int(run.step[0])} to {first - 1} are a learning-rate range test, where the rate rises "
        f"{number(float(tested.max() / tested.min()))} × and falls back: left out."
    )
    header, seen = run.header, run.header.first_nonfinite
    if seen is not None and seen.step < first:
        header = dataclasses.replace(header, first_nonfinite=None)
    return dataclasses.replace(run.since(begin), header=header, notes=(*run.notes, note))


def range_tests(rates: Floats) -> Indexes:
    """The rows at which range tests end, that follow each other from the first row on."""
    ends = [0]
    for row in np.flatnonzero(rates[1:] * FALLS < rates[:-1]) + 1:
        part = rates[ends[-1] : row]
        if len(part) < LEAST or not (np.diff(part) > 0).all() or not part[-1] >= RISES * part[0] > 0:
            break
        ends.append(int(row))
    return np.array(ends[1:], np.int64)
