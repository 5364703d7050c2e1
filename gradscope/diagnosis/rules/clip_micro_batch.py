"""GS405 clip-micro-batch: each micro-batch is clipped, not the step.

What it detects
    A clipping call followed by another backward pass before the step.
Why it matters
    The parts are clipped one by one and then added to what was clipped before, so the sum has another direction than the
    gradient, and a norm that may be larger than the threshold.
How it decides
    The recorder saw a clip, then more gradients, then the step. One such step is enough. Unit: the micro-step clipped.
Known problems
    Clipping each sample on purpose, as in private training, looks the same.
What to do
    Clip once a step, after the last backward pass of the accumulation.
References
    Lightning and Accelerate clip only where gradients are synchronised.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.noted import noted, told
from gradscope.runs import events
from gradscope.runs.run import Run

CODE, NAME = "GS405", "clip-micro-batch"


def check(run: Run) -> Iterator[Finding]:
    """One finding for each kind that the recorder noted."""
    if seen := noted(run, events.CLIP_MICRO_BATCH):
        message = f"Gradients are clipped within an accumulation, a micro-batch at a time, {seen.times}."
        yield from told((CODE, NAME), "warning", seen, message, "Clip once, after the last backward() before the step.")


RULE = Rule(CODE, NAME, check)
