"""GS409 clip-raises: the first nonfinite gradient ends the training.

What it detects
    Clipping with `error_if_nonfinite=True`.
Why it matters
    One nonfinite gradient, which a gradient scaler would skip, ends the run with an exception.
How it decides
    The recorder saw such a call. Unit: none.
Known problems
    It may be meant, as an alarm.
What to do
    Leave it where the training should stop; else drop it, and let a scaler or a rule of your own skip such steps.
References
    torch.nn.utils.clip_grad_norm_.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.noted import noted, told
from gradscope.runs import events
from gradscope.runs.run import Run

CODE, NAME = "GS409", "clip-raises"


def check(run: Run) -> Iterator[Finding]:
    """One finding for each kind that the recorder noted."""
    if seen := noted(run, events.CLIP_RAISES):
        message = "Clipping raises at the first nonfinite gradient (error_if_nonfinite=True)."
        yield from told((CODE, NAME), "info", seen, message, "Keep it as an alarm, or drop it and skip such steps.")


RULE = Rule(CODE, NAME, check)
