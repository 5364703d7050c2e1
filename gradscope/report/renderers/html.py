"""The report as one self-contained page: no request leaves it, every name in it is inert text."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import partial
from typing import Any

from markupsafe import Markup

from gradscope.diagnosis.explain import explain
from gradscope.diagnosis.model import Finding
from gradscope.errors import UsageError
from gradscope.recommendation.model import Threshold
from gradscope.report import charts
from gradscope.report.answers import answers, interval, name_of
from gradscope.report.facts import environment, measured
from gradscope.report.heatmap import make_heatmap
from gradscope.report.model import Report
from gradscope.report.page import render_page, script_json
from gradscope.report.paste import cure, pastes
from gradscope.report.plotting import COLORS
from gradscope.report.ranks import RANK_COLUMNS, apart, rank_cells, ranks_said
from gradscope.report.rows import layer_rows, trial_rows
from gradscope.report.svg import inline_both
from gradscope.report.text import number, ordinal, share, steps_range, visible
from gradscope.report.titles import LEVELS, SEVERITIES, title, tone
from gradscope.report.which_layer import without_subject

RANKS = {"high": 2, "medium": 1, "low": 0, None: -1}
MODULES = 200
COLUMNS = (
    ("#", "n"), ("Layer", ""), ("Type", ""), ("Level", ""), ("Factor", "n"), ("Median norm", "n"),
    ("Largest norm", "n"), ("Last norm", "n"), ("Nonfinite steps", "n"), ("Own threshold", "n"), ("Why", ""),
    ("Elements", "n"), ("Order", "n"),
)  # fmt: skip


def render(report: Report) -> str:
    """The page, byte for byte the same for the same report."""
    run, heat, rank = report.run, make_heatmap(report), apart(report.diagnosis)
    symbol, word = title(report)
    return render_page(
        "report.html.j2",
        verdict={"verdict": tone(run, report.diagnosis.verdict), "symbol": symbol, "word": word},
        header=run.header,
        run_id=run.id,
        steps=len(run.step),
        answers=answers(report),
        cure=cure(report),
        pastes=pastes(report),
        measured=measured(report),
        pieces=run.header.pieces,
        caveats=report.caveats,
        findings=[_finding(finding) for finding in report.diagnosis.findings],
        unable=report.diagnosis.unable,
        heatmap=heat,
        heatmap_json=script_json(heat.data) if heat else "",
        modules=modules([layer.name for layer in run.layers]),
        figures=figures(report),
        pooled=report.cells.pooled,
        culprit=charts.culprit(report) is not None,
        rehearsals=trial_rows(report, "rehearsal", "replay"),
        candidates=report.recommendation.candidates if report.recommendation else (),
        remedies=report.remedies,
        ranks=rank_cells(report.ranks),
        rank_columns=RANK_COLUMNS,
        ranks_said=ranks_said(report.ranks, report.diagnosis),
        accused_rank=rank.subject if rank else None,
        colors=len(COLORS),
        layers=_layers(report),
        unranked=report.unranked,
        columns=COLUMNS,
        environment=environment(report),
        **_slider(report),
    )


def figures(report: Report) -> dict[str, Markup]:
    """Every chart but the heatmap as inline SVG by name; an empty one has nothing to draw."""
    return {
        chart.name: inline_both(partial(charts.draw, chart, report), chart.name, chart.title)
        for chart in charts.CHARTS[1:]
    }


def modules(names: list[str]) -> list[str]:
    """The module paths that hold more than one layer, the largest first: what one can zoom to."""
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        found.update(".".join(parts[:i]) for i in range(1, len(parts)))
    return [visible(path) for path, count in found.most_common(MODULES) if 1 < count < len(names) and len(path) < 200]


def _finding(finding: Finding) -> dict[str, Any]:
    limit = f" (limit {number(finding.limit)})" if finding.limit is not None else ""
    measure = f"{number(finding.value)} {finding.unit or ''}".strip() + limit if finding.value is not None else ""
    return {
        **dataclasses.asdict(finding),
        "symbol": SEVERITIES[finding.severity][0],
        "steps": steps_range(finding.first_step, finding.last_step),
        "measure": measure,
        "message": without_subject(finding.message, finding.subject),
        "explanation": _explanation(finding.code),
    }


def _explanation(code: str) -> str:
    try:
        return explain(code)
    except UsageError:
        return ""


def _layers(report: Report) -> list[dict[str, Any]]:
    limits = {own.layer: own.max_norm for own in report.recommendation.layers} if report.recommendation else {}
    unmeasured = report.run.header.unmeasured
    rows = []
    for row in layer_rows(report):
        why = [without_subject(row.message, row.name), row.advice if row.level != "low" else ""]
        why.append(f"Not probed: {unmeasured[row.name]}." if row.name in unmeasured else "")
        rows.append(
            vars(row)
            | {
                "symbol": LEVELS[row.level][0] if row.level else "",
                "rank": RANKS[row.level],
                "threshold": limits.get(row.name),
                "why": visible(" ".join(part for part in why if part) or "–"),
            }
        )
    return rows


def _slider(report: Report) -> dict[str, Any]:
    recommendation = report.recommendation
    if recommendation is None or not report.ladder:
        return {"ladder": [], "ladder_json": "", "ladder_at": 0, "threshold_name": "max_norm", "used": 0}
    rungs = [_rung(rung, recommendation.steps_used) for rung in report.ladder]
    asked = recommendation.percentile
    places = [i for i, rung in enumerate(report.ladder) if asked is not None and rung.percentile <= asked]
    return {
        "ladder": rungs,
        "ladder_json": script_json({"name": name_of(recommendation), "rungs": rungs}),
        "ladder_at": places[-1] if places else 0,
        "threshold_name": name_of(recommendation),
        "used": recommendation.steps_used,
    }


def _rung(rung: Threshold, used: int) -> dict[str, Any]:
    clipped = round(rung.clipped_fraction * used)
    return {
        "percentile": ordinal(rung.percentile),
        "max_norm": number(rung.max_norm),
        "interval": interval(rung),
        "clips": f"{clipped} of {used} steps ({share(rung.clipped_fraction)})",
        "retained": share(rung.mean_retained_step),
        "mode": rung.mode,
        "value": rung.max_norm,
    }
