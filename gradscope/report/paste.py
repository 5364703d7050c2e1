"""The line to paste into one's own training, for every framework that can clip this way."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from gradscope.errors import UsageError
from gradscope.recommendation.changes import CLIP
from gradscope.recommendation.model import Recommendation
from gradscope.recommendation.remedies import WHOLE
from gradscope.recommendation.snippets import FORMS, snippet_for
from gradscope.report.facts import in_use
from gradscope.report.model import Remedy, Report
from gradscope.runs.run import Run

SATURATED, PILED_UP = "GS401", "GS412"
"""The rules that tell that nearly every step is clipped, and that gradients of several steps pile up."""


@dataclass(frozen=True)
class Paste:
    """What to paste for one framework."""

    framework: str
    code: str


def cure(report: Report) -> Remedy | None:
    """The remedy that held best, where it changes more than the threshold."""
    return next((one for one in report.remedies if one.best and not _clips(one)), None)


def clip_fails(report: Report) -> bool:
    """Whether clipping alone was tried as a remedy and did not hold."""
    return any(_clips(one) and not one.held for one in report.remedies)


def _clips(remedy: Remedy) -> bool:
    return remedy.trial in (CLIP, CLIP + WHOLE)


def unreliable(report: Report) -> bool:
    """Whether the threshold is taken from steps that explode, and was not tried."""
    recommendation = report.recommendation
    exploded = report.diagnosis.verdict.verdict == "exploding"
    return exploded and recommendation is not None and not recommendation.verified


def by_degrees(report: Report) -> float | None:
    """The threshold in use, where it clips nearly every step, a larger one is recommended and none was tried."""
    recommendation, today = report.recommendation, in_use(report.run)
    if recommendation is None or not today or recommendation.verified or unreliable(report):
        return None
    larger = recommendation.max_norm is not None and recommendation.max_norm > 2 * today
    return today if larger and report.found(SATURATED) else None


def pastes(report: Report) -> list[Paste]:
    """The lines that clip, for every framework, the one that trained or recorded the run first; nothing without a
    recommendation, where clipping was tried as a remedy and did not hold, where something else held and it does not help, or
    where the threshold rests on steps that explode or whose gradients pile up. One that is to be raised by degrees is twice
    the one in use.
    """
    recommendation = report.recommendation
    if recommendation is None or clip_fails(report) or (cure(report) and recommendation.max_norm is None):
        return []
    if unreliable(report) or report.found(PILED_UP):
        return []
    if today := by_degrees(report):
        recommendation = dataclasses.replace(recommendation, max_norm=2 * today)
    own = report.run.header.framework or report.run.header.recorded_by
    names = sorted(FORMS, key=lambda name: name != own)
    return [Paste(name, code) for name in names if (code := _snippet(name, recommendation, report.run))]


def paste_line(report: Report) -> str | None:
    """The line for the framework that trained or recorded the run, else for plain PyTorch."""
    lines = pastes(report)
    return lines[0].code if lines else None


def _snippet(framework: str, recommendation: Recommendation, run: Run) -> str | None:
    try:
        return snippet_for(run, framework, recommendation.max_norm, recommendation.by)
    except UsageError:
        return None
