"""GS410 unusual-clipping: gradients are limited by other means than an L2 norm.

What it detects
    Clipping by value, by a norm other than L2, in parts, or by the script's own hand; gradients that the script changed
    otherwise, or may change in hooks.
Why it matters
    A recommended `max_norm` is an L2 threshold: it does not replace such a limit number for number.
How it decides
    The recorder saw the call; or the gradients of a step were smaller, or different, before the step than after the backward
    pass, without a clipping function of torch. Unit: the limit, or after ÷ before.
Known problems
    Only two gradients are watched between backward and step: a change that spares both is not seen. Where gradients were
    changed otherwise than by shrinking or dividing them, and where they are divided by a number that varies and clipped by
    hand, norms are those at the step. A division that never comes without a clip by hand is taken for a part of it.
What to do
    Compare the recorded norms with your limit before you replace it.
References
    None.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.noted import noted, told
from gradscope.diagnosis.series import number
from gradscope.runs import events
from gradscope.runs.run import Run

CODE, NAME = "GS410", "unusual-clipping"

KINDS = (
    (events.CLIP_BY_VALUE, "Gradients are clipped by value at {value}", "value"),
    (
        events.CLIP_OTHER_NORM,
        "Gradients are clipped at {subject} by their norm of order {value}, not by the L2 norm",
        "order",
    ),
    (
        events.CLIP_BY_HAND,
        "The script shrinks the gradients itself between backward and step, at first one of them to {value} times",
        "after / before",
    ),
    (
        events.GRADIENTS_CHANGED,
        "The script changes the gradients itself before the step: from then on norms are those at the step, clipped or not",
        "after / before",
    ),
    (
        events.DIVIDED_LATE,
        "The script divides gradients before it clips them by hand; earlier norms may be {value} times too large, seen",
        "divisor",
    ),
    (
        events.GRADIENTS_SET,
        "The script sets the gradients itself, without backward(), and norms are those at the step, clipped or not",
        "",
    ),
    (
        events.GRADIENT_HOOKS,
        "Hooks that the script registered get the gradients of {value} parameters as they are computed, and norms are what "
        "they leave, clipped or not",
        "parameters",
    ),
    (
        events.CLIP_PARTS,
        "Gradients are clipped in {value} parts, each by a norm of its own, so that no one threshold is in use",
        "parts",
    ),
)
SAMPLED = (events.CLIP_BY_HAND, events.GRADIENTS_CHANGED)
"""What the recorder does not look for at every step."""


def check(run: Run) -> Iterator[Finding]:
    """One finding for each kind that the recorder noted."""
    for event, text, unit in KINDS:
        if seen := noted(run, event):
            looked = ", of those looked at" if event in SAMPLED and len(seen.steps) > 1 else ""
            message = text.format(value=number(seen.value), subject=seen.subject) + f", {seen.times}{looked}."
            advice = "The recorded norms are L2 norms; see that your own limit means the same before you replace it."
            yield from told((CODE, NAME), "info", seen, message, advice, unit)


RULE = Rule(CODE, NAME, check)
