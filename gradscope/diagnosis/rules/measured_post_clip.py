"""GS502 measured-post-clip: the gradient norms were read after clipping.

What it detects
    A run whose norms are those that clipping left.
Why it matters
    They cannot exceed the threshold in force, so no percentile of them says where a threshold should be, and no explosion
    shows in them.
How it decides
    The run's header says `measured_at: post_clip`. No limit.
Known problems
    None: it only repeats the header.
What to do
    Measure inside the clipping call or before it: `gradscope record` does, `gradscope.clip_grad_norm_` does.
References
    huggingface/transformers `on_pre_optimizer_step` and optimizer hooks see the gradient after clipping.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.series import finding, median, number
from gradscope.runs.run import Run

CODE, NAME = "GS502", "measured-post-clip"


def check(run: Run) -> Iterator[Finding]:
    """One finding when the header says so."""
    if run.header.measured_at != "post_clip":
        return
    limit = median(run.max_norm)
    cap = f" and cannot exceed max_norm {number(limit)}" if np.isfinite(limit) else ""
    yield finding(
        CODE,
        NAME,
        "warning",
        f"All norms of this run were read after clipping{cap}; they say nothing about larger gradients.",
        "Measure before clipping: gradscope record, or gradscope.clip_grad_norm_ in place of torch's.",
        value=limit,
        unit="max_norm",
    )


RULE = Rule(CODE, NAME, check)
