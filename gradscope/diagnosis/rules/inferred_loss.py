"""GS504 inferred-loss: the loss function was guessed.

What it detects
    A run whose loss was inferred from the type and shape of the targets.
Why it matters
    Another loss has other gradients: a mean against a sum changes every norm by the size of the batch.
How it decides
    The run's header says `inferred_loss`. No limit.
Known problems
    None: it only repeats the header.
What to do
    Define `loss` or `training_step` in the spec file.
References
    None.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.series import finding
from gradscope.runs.run import Run

CODE, NAME = "GS504", "inferred-loss"


def check(run: Run) -> Iterator[Finding]:
    """One finding when the header says so."""
    if not run.header.inferred_loss:
        return
    piece = run.header.piece("loss")
    which = f" as {piece.value}" if piece else ""
    yield finding(
        CODE,
        NAME,
        "info",
        f"The loss was inferred{which} from the targets; with another loss every norm here would be another.",
        "Define loss or training_step in the spec file if this is not the loss you train with.",
    )


RULE = Rule(CODE, NAME, check)
