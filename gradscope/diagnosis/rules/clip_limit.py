"""GS406 clip-limit: a threshold that cannot clip.

What it detects
    A `max_norm` that is zero, negative or not a number.
Why it matters
    Zero silently sets every gradient to zero, a negative threshold turns the gradients around, NaN makes them NaN.
How it decides
    The threshold of a clipping call is not above zero. One call is enough. Unit: max_norm.
Known problems
    None known: torch itself accepts such values without a word.
What to do
    Leave the clipping call out where nothing is to be clipped, or give it a positive threshold.
References
    torch.nn.utils.clip_grad_norm_: grad · min(1, max_norm / (norm + 1e-6)).
"""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.noted import noted, told
from gradscope.diagnosis.series import number
from gradscope.runs import events
from gradscope.runs.run import Run

CODE, NAME = "GS406", "clip-limit"


def check(run: Run) -> Iterator[Finding]:
    """One finding for each kind that the recorder noted."""
    if seen := noted(run, events.CLIP_LIMIT):
        effect = "makes every gradient NaN"
        if seen.value == seen.value:
            effect = "turns the gradients around" if seen.value < 0 else "sets every gradient to zero"
        message = f"max_norm is {number(seen.value)}, {seen.times}: it {effect}."
        yield from told(
            (CODE, NAME), "critical", seen, message, "Give a positive max_norm, or do not clip.", "max_norm"
        )


RULE = Rule(CODE, NAME, check)
