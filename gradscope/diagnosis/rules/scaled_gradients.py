"""GS103 scaled-gradients: the norms still hold the loss scale of mixed precision.

What it detects
    A run whose gradients were read before the gradient scaler divided the loss scale out.
Why it matters
    Such norms are up to 65536 times too large, and jump whenever the scale changes. A threshold taken from them clips
    nothing.
How it decides
    The run's header says `gradients_are: scaled`. Where the scale of each step was recorded, gradscope divides it out and
    only informs; where it was not, the numbers cannot be used. Unit: loss scale. No limit.
Known problems
    A gradient that overflowed while scaled cannot be recovered by dividing.
What to do
    Call `scaler.unscale_(optimizer)` before clipping and before measuring.
References
    PyTorch notes, "Automatic Mixed Precision examples", gradient clipping; wandb/wandb#4369.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.series import finding, median, number
from gradscope.runs.run import Run

CODE, NAME = "GS103", "scaled-gradients"


def check(run: Run) -> Iterator[Finding]:
    """One finding when the header says that gradients were read scaled."""
    if run.header.gradients_are != "scaled":
        return
    scale = median(run.loss_scale)
    known = np.isfinite(scale)
    told = (
        f"the scale (median {number(scale)}) was recorded and is divided out here"
        if known
        else "the scale was not recorded, so no norm of this run can be used as a threshold"
    )
    yield finding(
        CODE,
        NAME,
        "info" if known else "warning",
        f"The gradients were read before unscaling: {told}.",
        "Call scaler.unscale_(optimizer) before clipping.",
        value=scale,
        unit="loss scale",
    )


RULE = Rule(CODE, NAME, check)
