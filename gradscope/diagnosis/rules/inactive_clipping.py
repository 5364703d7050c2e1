"""GS402 inactive-clipping: the threshold in force never clips.

What it detects
    A `max_norm` above every recorded gradient norm.
Why it matters
    Nothing is wrong with a safety net that was not needed; but far above every norm it would let an explosion through.
How it decides
    No usable step of at least 20 has a norm above the threshold in force. An information; a warning when the threshold is
    more than 10 × the largest norm. Unit: multiples of the largest norm.
Known problems
    Rare spikes may simply not have come yet: 20 steps without one say little about one step in a hundred.
What to do
    Leave it if it is meant as a safety net and near the largest norms; else take a percentile of the recorded norms.
References
    google-research/flood-forecasting#298 asks how often clipping engages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradscope.diagnosis.clipping import clipped_steps
from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.series import count, finding, number
from gradscope.runs.run import Run

CODE, NAME = "GS402", "inactive-clipping"


@dataclass(frozen=True)
class Settings:
    """`factor` of the largest norm above which an unused threshold is a warning; `least` usable steps."""

    factor: float = 10.0
    least: int = 20


DEFAULTS = Settings()


def check(run: Run, settings: Settings = DEFAULTS) -> Iterator[Finding]:
    """One finding when no step is clipped."""
    seen = clipped_steps(run, settings.least)
    if seen.clipped.any():
        return
    factor = float((seen.limits / seen.norms.max()).min())
    yield finding(
        CODE,
        NAME,
        "warning" if factor > settings.factor else "info",
        f"max_norm {number(float(seen.limits.min()))} clips none of {count(len(seen.steps), 'step')}: "
        f"it is {number(factor)} × the largest norm, {number(float(seen.norms.max()))}.",
        "As a safety net this is right when it lies near the largest norms; far above them, take a percentile of the norms.",
        steps=(int(seen.steps[0]), int(seen.steps[-1])),
        value=factor,
        limit=settings.factor,
        unit="times the largest norm",
    )


RULE = Rule(CODE, NAME, check)
