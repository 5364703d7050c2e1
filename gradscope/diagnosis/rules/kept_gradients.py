"""GS412 kept-gradients: gradients that are never zeroed.

What it detects
    Steps whose gradients were added to those that an earlier step had used already.
Why it matters
    The sum over all steps so far takes the place of the gradient: it grows with every step, like a momentum without decay.
How it decides
    The recorder saw that the gradients an optimizer had used were still there, unchanged and not zero, when the next
    backward pass began, and that they were used in the next step. No unit.
Known problems
    None known.
What to do
    Call `optimizer.zero_grad()` once a step, before the backward pass or right after the step.
References
    PyTorch, torch.optim.Optimizer.zero_grad.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.noted import noted, told
from gradscope.runs import events
from gradscope.runs.run import Run

CODE, NAME = "GS412", "kept-gradients"


def check(run: Run) -> Iterator[Finding]:
    """One finding for all such steps."""
    if seen := noted(run, events.GRADIENTS_KEPT):
        message = f"Gradients are not zeroed between steps, {seen.times}: those of the step before are added to them."
        yield from told((CODE, NAME), "warning", seen, message, "Call optimizer.zero_grad() once a step.")


RULE = Rule(CODE, NAME, check)
