"""GS408 clip-unreached: a clipping call that is never made.

What it detects
    A script that mentions a clipping function and never calls it.
Why it matters
    The training runs without the protection that its author believes in.
How it decides
    The names in the script's own file hold a clipping function of torch, and no clipping call was seen in the whole run.
    No unit.
Known problems
    Only the script's own file is looked at, not the modules it imports.
What to do
    Look at the condition around the call, or at the option that switches it on.
References
    None.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.noted import noted, told
from gradscope.runs import events
from gradscope.runs.run import Run

CODE, NAME = "GS408", "clip-unreached"


def check(run: Run) -> Iterator[Finding]:
    """One finding for each kind that the recorder noted."""
    if seen := noted(run, events.CLIP_UNREACHED):
        message = f"The script mentions {seen.subject} and never calls it."
        yield from told((CODE, NAME), "warning", seen, message, "See under which condition the call stands.")


RULE = Rule(CODE, NAME, check)
