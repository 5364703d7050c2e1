"""The line to paste into one's own training, for every framework that can clip this way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradscope.errors import UsageError
from gradscope.recommendation.model import Recommendation
from gradscope.recommendation.snippets import FORMS, snippet
from gradscope.report.model import Report


@dataclass(frozen=True)
class Paste:
    """What to paste for one framework."""

    framework: str
    code: str


def pastes(report: Report) -> list[Paste]:
    """The lines for every framework, the one that trained or recorded the run first; nothing without a recommendation."""
    recommendation = report.recommendation
    if recommendation is None:
        return []
    own = report.run.header.framework or report.run.header.recorded_by
    names = sorted(FORMS, key=lambda name: name != own)
    return [Paste(name, _unscaled(report, name, code)) for name in names if (code := _snippet(name, recommendation))]


def _unscaled(report: Report, framework: str, code: str) -> str:
    """In plain PyTorch gradients are to be unscaled before they are clipped, where a gradient scaler is in use."""
    run = report.run
    scaled = run.header.plan.precision == "fp16" or bool(np.isfinite(run.loss_scale).any())
    if framework != "pytorch" or not scaled or report.recommendation is None or report.recommendation.max_norm is None:
        return code
    return f"scaler.unscale_(optimizer)  # once a step, before clipping\n{code}"


def paste_line(report: Report) -> str | None:
    """The line for the framework that trained or recorded the run, else for plain PyTorch."""
    lines = pastes(report)
    return lines[0].code if lines else None


def _snippet(framework: str, recommendation: Recommendation) -> str | None:
    try:
        return snippet(framework, recommendation)
    except UsageError:
        return None
