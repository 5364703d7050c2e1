"""The report as Markdown, for issues, pull requests and notebooks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from gradscope.report.answers import answers
from gradscope.report.model import Report
from gradscope.report.paste import cure, paste_line
from gradscope.report.ranks import RANK_COLUMNS, rank_cells, ranks_said
from gradscope.report.rows import layer_rows, trial_rows
from gradscope.report.text import number, plural, share, steps_range, times, visible
from gradscope.report.titles import SEVERITIES, title
from gradscope.report.which_layer import without_subject


def render(report: Report) -> str:
    """Verdict, evidence, findings, layers, trials, remedies and caveats."""
    symbol, word = title(report)
    parts = [f"# {symbol} {escape(report.run.header.name)}: {word}", *_answers(report), *_paste(report)]
    parts += [*_caveats(report), *_findings(report), *_layers(report), *_candidates(report), *_rehearsals(report)]
    return "\n\n".join([*parts, *_remedies(report), *_ranks(report), _origin(report)]) + "\n"


def escape(text: str) -> str:
    """Text that Markdown and HTML leave alone, on one line."""
    written = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", written)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A pipe table; cells are already escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _answers(report: Report) -> list[str]:
    told = []
    for answer in answers(report):
        details = "".join(f"\n  - {escape(line)}" for line in answer.details)
        told.append(f"- **{answer.question}** {escape(answer.answer)}{details}")
    return ["\n".join(told)]


def _paste(report: Report) -> list[str]:
    remedy, line = cure(report), paste_line(report)
    found = [f"What held best: {escape(remedy.name)}", f"```python\n{remedy.snippet}\n```"] if remedy else []
    return [*found, *(["Or clip:"] if found and line else []), *([f"```python\n{line}\n```"] if line else [])]


def _caveats(report: Report) -> list[str]:
    return ["## What this cannot know", "\n".join(f"- {escape(c)}" for c in report.caveats)] if report.caveats else []


def _findings(report: Report) -> list[str]:
    findings = report.diagnosis.findings
    if not findings:
        return ["## Findings", "None."]
    rows = [
        (
            f"{SEVERITIES[f.severity][0]} {f.severity}",
            f"{f.code} {f.rule}",
            escape(f.subject) if f.subject is not None else "whole network",
            steps_range(f.first_step, f.last_step),
            escape(f"{without_subject(f.message, f.subject)} {f.advice}".strip()),
        )
        for f in findings
    ]
    return ["## Findings", table(("Severity", "Rule", "Where", "Steps", "What"), rows)]


def _layers(report: Report) -> list[str]:
    head = ("#", "Layer", "Type", "Level", "Factor", "Median grad_norm", "Largest", "Nonfinite steps", "Why")
    rows = [
        (
            str(row.place),
            escape(row.name),
            escape(row.type),
            row.level or "not ranked",
            times(row.factor),
            number(row.median),
            number(row.maximum),
            str(row.nonfinite_steps),
            escape(without_subject(row.message, row.name)) if row.message else "",
        )
        for row in layer_rows(report)
    ]
    return ["## Layers", table(head, rows)] if rows else []


def _candidates(report: Report) -> list[str]:
    tried = report.recommendation.candidates if report.recommendation else ()
    rows = [
        (
            "no clipping" if c.max_norm is None else number(c.max_norm),
            escape(c.origin),
            "diverged" if c.diverged else number(c.loss),
            share(c.clipped_fraction),
            "chosen" if c.chosen else "",
        )
        for c in tried
    ]
    head = ("max_norm", "From", "Loss at the end", "Clipped steps", "")
    return ["## Thresholds tried", table(head, rows)] if rows else []


def _rehearsals(report: Report) -> list[str]:
    rows = [
        (escape(r.title), str(r.steps), number(r.loss), number(r.norm), r.outcome)
        for r in trial_rows(report, "rehearsal", "replay")
    ]
    head = ("Rehearsal", "Steps", "Loss at the end", "Largest norm", "Outcome")
    return ["## Rehearsals", table(head, rows)] if rows else []


def _remedies(report: Report) -> list[str]:
    rows = [(escape(r.name), r.outcome, r.length, number(r.loss), "best" if r.best else "") for r in report.remedies]
    best = [f"```python\n{r.snippet}\n```" for r in report.remedies if r.best and r.snippet]
    return (
        ["## Remedies tried", table(("Change", "Outcome", "Steps", "Loss at the end", ""), rows), *best] if rows else []
    )


def _ranks(report: Report) -> list[str]:
    rows = rank_cells(report.ranks)
    return ["## Ranks", escape(ranks_said(report.ranks, report.diagnosis)), table(RANK_COLUMNS, rows)] if rows else []


def _origin(report: Report) -> str:
    header = report.run.header
    command = escape(" ".join(header.command))
    seed = "no seed" if header.seed is None else f"seed {header.seed}"
    return f"Run {escape(report.run.id)}: {plural(len(report.run.step), 'step')}, {seed}, by {command}"
