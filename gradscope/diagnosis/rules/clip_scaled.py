"""GS404 clip-scaled: the loss scale is still in the gradients when they are clipped.

What it detects
    A clipping call on gradients that a gradient scaler has not divided by its scale yet.
Why it matters
    The threshold is compared with norms that are thousands of times too large, so every step is clipped to almost nothing,
    and by another factor whenever the scale changes.
How it decides
    The recorder saw a clipping call between the backward pass of a scaled loss and `scaler.unscale_`. One call is enough.
    Unit: the loss scale.
Known problems
    None known.
What to do
    Call `scaler.unscale_(optimizer)` before clipping.
References
    PyTorch, Automatic Mixed Precision examples: working with unscaled gradients.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.noted import noted, told
from gradscope.diagnosis.series import number
from gradscope.runs import events
from gradscope.runs.run import Run

CODE, NAME = "GS404", "clip-scaled"


def check(run: Run) -> Iterator[Finding]:
    """One finding for each kind that the recorder noted."""
    if seen := noted(run, events.CLIP_SCALED):
        message = f"Gradients are clipped while they still hold the loss scale {number(seen.value)}, {seen.times}."
        yield from told(
            (CODE, NAME), "critical", seen, message, "Call scaler.unscale_(optimizer) before clipping.", "loss scale"
        )


RULE = Rule(CODE, NAME, check)
