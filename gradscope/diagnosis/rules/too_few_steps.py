"""GS501 too-few-steps: the run is too short for its numbers to mean much.

What it detects
    Fewer than 20 steps with a finite gradient norm.
Why it matters
    The 95th percentile of 12 norms is little more than their maximum, and spikes, growth and explosion cannot be judged.
How it decides
    Counts steps that were taken and have a finite norm. Fires below 20; an information where the recorded steps explode,
    since more of them would say no more. Unit: steps. For orientation: an upper 95 % confidence bound on the 95th
    percentile needs 59.
Known problems
    None: it only counts.
What to do
    Record more steps: `gradscope analyze --steps 100`, or more of the script.
References
    Order statistics: .95^59 < .05.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradscope.diagnosis.model import Finding, Rule
from gradscope.diagnosis.series import count, finding
from gradscope.diagnosis.window import explosion
from gradscope.runs.run import Run

CODE, NAME = "GS501", "too-few-steps"


@dataclass(frozen=True)
class Settings:
    """`least` steps with a finite norm that are enough."""

    least: int = 20


DEFAULTS = Settings()


def check(run: Run, settings: Settings = DEFAULTS) -> Iterator[Finding]:
    """One finding when there are fewer steps than `least`."""
    measured = int(run.measured.sum())
    if measured >= settings.least:
        return
    exploded = explosion(run) is not None
    total = f" of {len(run.step)} recorded" if measured < len(run.step) else ""
    yield finding(
        CODE,
        NAME,
        "info" if exploded else "warning",
        f"Only {count(measured, 'step')}{total} with a finite gradient norm; {settings.least} are needed for a judgement.",
        "What is said of the steps before the explosion rests on these few."
        if exploded
        else "Record more steps: analyze with --steps 100, or more of the script (with a larger --max-rows, if it has one).",
        value=measured,
        limit=float(settings.least),
        unit="steps",
    )


RULE = Rule(CODE, NAME, check)
