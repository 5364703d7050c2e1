"""GS212 hot-start: a first gradient far above all that follow.

What it detects
    A gradient norm in one of the first three steps that is more than 1,000 times the median of the later ones.
Why it matters
    One such step, or the update that led to it, can undo the initial weights: units die, a recurrence breaks, and the calm
    that follows is that of a damaged network. A threshold from the later steps would have kept it small; a percentile that
    includes it is none.
How it decides
    The largest of the first three norms over the median of those after them, 20 at least. Unit: times. Limit: 1,000. A
    warning where the training explodes, or will, loses what it learned or learns nothing; else an information.
Known problems
    A loss that begins very high and falls at once, as a likelihood's, looks the same and may be well.
What to do
    Clip from the first step on, warm up, or look at the initial weights and the scale of inputs and targets.
References
    Measured on some 750 small trainings: of those that do not explode, one in a hundred is above.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.series import finding, median, number, pre_clip_norms
from gradscope.diagnosis.severity import severity_of
from gradscope.runs.run import Run

CODE, NAME = "GS212", "hot-start"
FIRST, LEAST, LIMIT = 3, 20, 1000.0
ADVICE = "Clip from the first step on, warm up, or look at the initial weights and at the scale of inputs and targets."


def check(run: Run) -> Iterator[Finding]:
    """One finding for the largest of the first norms."""
    steps, norms = pre_clip_norms(run, FIRST + LEAST)
    row, usual = int(np.argmax(norms[:FIRST])), median(norms[FIRST:])
    times = float(norms[row]) / usual
    if steps[row] >= FIRST or times <= LIMIT:
        return
    yield finding(
        CODE,
        NAME,
        severity_of(run),
        f"The gradient norm (pre-clip) of step {steps[row]} is {number(float(norms[row]))}, {number(times)} × the median of "
        f"the steps after the first three, {number(usual)}.",
        ADVICE,
        steps=(int(steps[row]), int(steps[row])),
        value=times,
        limit=LIMIT,
        unit="times",
    )


RULE = Rule(CODE, NAME, check)
