"""GS403 clip-order: clipping happens where there is nothing to clip.

What it detects
    A clipping call before the backward pass of a step, or after the step that used its gradients.
Why it matters
    The gradients that the optimizer uses are not clipped at all: an explosion goes straight through.
How it decides
    The recorder saw a clipping call with no gradient computed since the last step: before the backward pass where the
    gradients were zero or absent, after the step where they were those just used. One call is enough. No unit.
Known problems
    A loop that clips once more after its last step is told too.
What to do
    Order a step so: backward, unscale if there is a scaler, clip, step, zero the gradients.
References
    awslabs/graphstorm#1366 clips after the step.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.noted import noted, told
from gradscope.runs import events
from gradscope.runs.run import Run

CODE, NAME = "GS403", "clip-order"


def check(run: Run) -> Iterator[Finding]:
    """One finding for each kind that the recorder noted."""
    for event, when in (
        (events.CLIP_BEFORE_BACKWARD, "before the backward pass"),
        (events.CLIP_AFTER_STEP, "after the step"),
    ):
        if seen := noted(run, event):
            message = f"The gradients are clipped {when}, {seen.times}: what the optimizer uses is not clipped."
            yield from told((CODE, NAME), "critical", seen, message, "Clip between backward() and step().")


RULE = Rule(CODE, NAME, check)
