"""Two runs side by side, before and after a change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradscope.report.answers import answers
from gradscope.report.model import Report
from gradscope.report.terminal import PIPE, Terminal
from gradscope.report.text import number, plural, share
from gradscope.report.titles import title

CHANGED = 15
SAME = 0.005
"""Powers of ten, 1 %: a median that moved less has not changed."""


@dataclass(frozen=True)
class Change:
    """One layer in both runs. `before`, `after`: median gradient norms; None where it is not in that run."""

    name: str
    before: float | None
    after: float | None
    level_before: str
    level_after: str

    @property
    def factor(self) -> float | None:
        """after / before; None where either is absent or zero."""
        return self.after / self.before if self.before and self.after else None


@dataclass(frozen=True)
class Comparison:
    """`facts`: (question, answer of a, answer of b, whether they differ). `layers`: those that changed most, first;
    `unchanged`: how many are not among them.
    """

    a: Report
    b: Report
    facts: tuple[tuple[str, str, str, bool], ...]
    layers: tuple[Change, ...]
    unchanged: int


def compare(a: Report, b: Report) -> Comparison:
    """What differs between two reports: the answers, and the layers, most changed first."""
    rows = [*_answers(a, b), *_numbers(a, b)]
    every = _changes(a, b)
    changes = sorted((change for change in every if _size(change) > (False, False, SAME)), key=_size, reverse=True)
    facts = tuple((question, before, after, before != after) for question, before, after in rows)
    return Comparison(a, b, facts, tuple(changes[:CHANGED]), len(every) - len(changes[:CHANGED]))


def compare_text(a: Report, b: Report, terminal: Terminal = PIPE) -> str:
    """The comparison for a terminal."""
    from gradscope.report.renderers.comparison import render_text

    return render_text(compare(a, b), terminal)


def compare_html(a: Report, b: Report) -> str:
    """The comparison as one self-contained page."""
    from gradscope.report.renderers.comparison import render_html

    return render_html(compare(a, b))


def _answers(a: Report, b: Report) -> list[tuple[str, str, str]]:
    pairs = zip(answers(a), answers(b), strict=True)
    words = ("Verdict", title(a)[1], title(b)[1])
    return [words, *((first.question, first.answer, second.answer) for first, second in pairs)]


def _numbers(a: Report, b: Report) -> list[tuple[str, str, str]]:
    both = (_summary(a), _summary(b))
    return [(title, both[0][title], both[1][title]) for title in both[0]]


def _summary(report: Report) -> dict[str, str]:
    run, recommendation = report.run, report.recommendation
    norms = run.global_norm[run.measured]
    return {
        "Steps": plural(len(run.step), "step"),
        "Median global norm": number(float(np.median(norms)) if len(norms) else None),
        "Largest global norm": number(float(norms.max()) if len(norms) else None),
        "Nonfinite steps": str(int((~np.isfinite(run.global_norm)).sum())),
        "First loss": number(float(run.loss[0]) if len(run.loss) else None),
        "Last loss": number(float(run.loss[-1]) if len(run.loss) else None),
        "Steps the threshold would clip": share(recommendation.clipped_fraction if recommendation else None),
        "Explosion score": number(report.diagnosis.verdict.explosion_score),
        "Findings": str(len(report.diagnosis.findings)),
    }


def _changes(a: Report, b: Report) -> list[Change]:
    before, after = _medians(a), _medians(b)
    names = list(dict.fromkeys([*before, *after]))
    return [Change(n, before.get(n), after.get(n), _level(a, n), _level(b, n)) for n in names]


def _medians(report: Report) -> dict[str, float | None]:
    values = zip(report.run.layers, report.cells.median, strict=True)
    return {layer.name: None if np.isnan(median) else float(median) for layer, median in values}


def _level(report: Report, name: str) -> str:
    risk = report.risk(name)
    return risk.level if risk else "–"


def _size(change: Change) -> tuple[bool, bool, float]:
    """Layers whose level changed first, then those in one run only, then by how many powers of ten."""
    factor = change.factor
    alone = (change.before is None) != (change.after is None)
    return change.level_before != change.level_after, alone, abs(np.log10(factor)) if factor else 0.0
