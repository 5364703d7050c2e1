"""GS505 unrecorded-steps: not every optimizer step was recorded.

What it detects
    Runs recorded with `--every k`, and gaps in the numbers of the steps.
Why it matters
    Between two recorded steps anything may have happened: a spike that lasted one step is seen with a chance of one in k.
How it decides
    The header's `every` above 1, or recorded steps fewer than the range of their numbers. Unit: share of steps recorded
    (0–1). Default limit: 1.
Known problems
    None: it only counts.
What to do
    Record every step (`--every 1`) where spikes or first offenders matter.
References
    None.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.series import finding, percent
from gradscope.runs.run import Run

CODE, NAME = "GS505", "unrecorded-steps"


@dataclass(frozen=True)
class Settings:
    """`share` of the steps (0–1) that must be recorded."""

    share: float = 1.0


DEFAULTS = Settings()


def check(run: Run, settings: Settings = DEFAULTS) -> Iterator[Finding]:
    """One finding when steps are missing."""
    if not len(run.step):
        return
    covered = max(int(run.step[-1]) + 1, run.header.ending.step or 0) - int(run.step[0])
    share = min(len(run.step) / covered, 1 / max(1, run.header.every))
    if share >= settings.share:
        return
    why = f", since 1 of {run.header.every} steps is recorded" if run.header.every > 1 else ""
    yield finding(
        CODE,
        NAME,
        "info",
        f"{len(run.step)} of {covered} steps were recorded ({percent(share)}){why}; a spike between them is not seen.",
        f"Record every step ({'--every 1' if run.header.every > 1 else 'a larger --max-rows'}) where single steps matter.",
        steps=(int(run.step[0]), int(run.step[-1])),
        value=share,
        limit=settings.share,
        unit="share of steps",
    )


RULE = Rule(CODE, NAME, check)
