"""GS407 clip-subset: some parameters are stepped unclipped.

What it detects
    Clipping calls that leave out parameters the optimizer updates.
Why it matters
    What is left out is not protected, and the norm that is compared with the threshold is not the global one.
How it decides
    Before a step, parameters with a gradient that the optimizer holds were in no clipping call of that step. One step is
    enough. Unit: parameters left out.
Known problems
    Leaving some out may be meant, such as the temperature of a contrastive loss.
What to do
    Clip `model.parameters()`, or what the optimizer holds.
References
    torch.nn.utils.clip_grad_norm_.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.noted import noted, told
from gradscope.diagnosis.series import count
from gradscope.runs import events
from gradscope.runs.run import Run

CODE, NAME = "GS407", "clip-subset"


def check(run: Run) -> Iterator[Finding]:
    """One finding for each kind that the recorder noted."""
    if seen := noted(run, events.CLIP_SUBSET):
        left = count(int(seen.value), "parameter")
        message = f"Clipping leaves out {left} that the optimizer updates, such as {seen.subject}, {seen.times}."
        advice = "Clip all parameters that the optimizer holds, unless these are meant to go free."
        yield from told((CODE, NAME), "warning", seen, message, advice, "parameters left out")


RULE = Rule(CODE, NAME, check)
