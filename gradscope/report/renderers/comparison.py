"""Two runs side by side, for a terminal and as a page."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from gradscope.report.compare import Change, Comparison
from gradscope.report.renderers.console import heading, plain_table, to_text
from gradscope.report.terminal import Terminal
from gradscope.report.text import elide, number, plural, sparkline, times, visible
from gradscope.report.titles import title, tone


def render_text(comparison: Comparison, terminal: Terminal) -> str:
    """The answers and numbers of both, their norms on one scale, the layers that changed most."""
    return to_text(_parts(comparison, terminal), terminal)


def _parts(comparison: Comparison, terminal: Terminal) -> Iterator[RenderableType]:
    a, b = comparison.a.run, comparison.b.run
    yield Text.assemble(("A ", "bold"), visible(a.id), overflow="fold")
    yield Text.assemble(("B ", "bold"), visible(b.id), overflow="fold")
    yield Text("")
    table = plain_table("", "A", "B", "")
    for question, before, after, differs in comparison.facts:
        style = "bold" if differs else "dim"
        table.add_row(Text(question), Text(before), Text(after), Text("≠" if differs else "="), style=style)
    yield table
    yield heading("Global norm, both on one log scale")
    width = min((terminal.width or 80) - 4, 120)
    norms = np.concatenate([run.global_norm[run.measured & (run.global_norm > 0)] for run in (a, b)])
    limits = (float(norms.min()), float(norms.max())) if len(norms) else None
    for name, run in (("A", a), ("B", b)):
        line = sparkline(list(run.global_norm), width, limits=limits, unicode=terminal.unicode)
        yield Text(f"{name} {line}", no_wrap=True)
    yield from _layers(comparison, terminal)


def _layers(comparison: Comparison, terminal: Terminal) -> Iterator[RenderableType]:
    if not comparison.layers:
        yield heading("Layers")
        yield Text("No layer changed its level, nor its median gradient norm by more than 1 %.")
        return
    yield heading("Layers that changed most: median gradient norm and level")
    name_width = terminal.width and max(12, terminal.width - 52)
    table = plain_table("Layer", ("A", "right"), ("B", "right"), ("B / A", "right"), "Level A → B")
    for change in comparison.layers:
        values = (elide(visible(change.name), name_width), number(change.before), number(change.after))
        table.add_row(*(Text(value) for value in (*values, times(change.factor), _levels(change))))
    yield table
    if comparison.unchanged:
        yield Text(f"… and {plural(comparison.unchanged, 'more layer')} changed less, or not at all")


def _levels(change: Change) -> str:
    if (change.before is None) != (change.after is None):
        return "only in B" if change.before is None else "only in A"
    same = change.level_before == change.level_after
    return change.level_before if same else f"{change.level_before} → {change.level_after}"


def render_html(comparison: Comparison) -> str:
    """One self-contained page, byte for byte the same for the same two reports."""
    from gradscope.report.curves import compared
    from gradscope.report.page import render_page
    from gradscope.report.svg import inline_both

    draw = partial(compared, comparison.a, comparison.b)
    return render_page(
        "compare.html.j2",
        sides=[_side("A", comparison.a), _side("B", comparison.b)],
        facts=comparison.facts,
        figures={"compared": inline_both(draw, "compared", "Global norms of A and B")},
        layers=[vars(change) | {"factor": change.factor, "levels": _levels(change)} for change in comparison.layers],
        unchanged=comparison.unchanged,
    )


def _side(letter: str, report: Any) -> dict[str, str]:
    verdict = tone(report.run, report.diagnosis.verdict)
    symbol, word = title(report)
    run = {"id": visible(report.run.id), "name": visible(report.run.header.name)}
    return {"letter": letter, "verdict": verdict, "symbol": symbol, "word": word, **run}
