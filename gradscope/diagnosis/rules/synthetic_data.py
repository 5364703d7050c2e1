"""GS503 synthetic-data: the run was made on random inputs, not on your data.

What it detects
    A run whose batches were invented from an input shape.
Why it matters
    Gradient norms depend on the data: their scale, their outliers, their labels. Random inputs show whether the network can
    be stepped at all, not what your training will do.
How it decides
    The run's header says `synthetic_data`. No limit.
Known problems
    None: it only repeats the header.
What to do
    Give the spec file its data (`train_loader`, `data`, …) or use `--data FILE --target COLUMN`.
References
    In the family of rare outliers, rehearsals foresaw .85 of the explosions with the own data and .58 with other batches.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.series import finding
from gradscope.runs.run import Run

CODE, NAME = "GS503", "synthetic-data"


def check(run: Run) -> Iterator[Finding]:
    """One finding when the header says so."""
    if run.header.synthetic_data:
        yield finding(
            CODE,
            NAME,
            "warning",
            "This run used random inputs of the given shape, not your data; its threshold is not one for your training.",
            "Give the spec file its data (train_loader, data, …) or pass --data FILE --target COLUMN.",
        )


RULE = Rule(CODE, NAME, check)
