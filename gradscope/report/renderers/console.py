"""The report for a terminal. Every name is plain text, never markup; what it shows fits the terminal's width."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gradscope.diagnosis.model import Finding
from gradscope.report.answers import answers
from gradscope.report.model import Answer, Report
from gradscope.report.paste import cure, paste_line
from gradscope.report.ranks import RANK_COLUMNS, apart, rank_cells, ranks_said
from gradscope.report.rows import LayerRow, layer_rows, trial_rows
from gradscope.report.terminal import PIPE, Terminal
from gradscope.report.text import (
    bar,
    elide,
    number,
    plural,
    share,
    sparkline,
    steps_range,
    times,
    visible,
)
from gradscope.report.titles import LEVELS, SEVERITIES, TITLES, title, tone
from gradscope.report.which_layer import without_subject

SHOWN_LAYERS, MOST_LAYERS, SHOWN_RANKS = 10, 30, 8
WIDE = 120
STYLES = {
    "exploding": "bold red",
    "will-explode": "bold red",
    "thin-headroom": "bold yellow",
    "stable": "bold green",
    "unknown": "bold",
    "critical": "red",
    "warning": "yellow",
    "info": "",
    "high": "red",
    "medium": "yellow",
    "low": "",
}


def render(report: Report, terminal: Terminal = PIPE) -> str:
    """Verdict, layer, threshold and the line to paste first; then findings, layers, trials and caveats."""
    return to_text(_parts(report, terminal), terminal)


def to_text(parts: Iterable[RenderableType], terminal: Terminal) -> str:
    """Draw renderables for a terminal; a pipe gets lines as long as they need to be."""
    file = io.StringIO()
    console = Console(
        file=file,
        width=terminal.width or 100_000,
        height=25,
        force_terminal=terminal.color,
        color_system="standard" if terminal.color else None,
        no_color=not terminal.color,
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=False,
        _environ={},
    )
    for part in parts:
        console.print(part)
    text = "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
    return text if terminal.unicode else ascii_only(text)


def ascii_only(text: str) -> str:
    """Every character that a terminal without Unicode cannot show, replaced by one that it can."""
    signs = {"×": "x", "–": "-", "…": "...", "∞": "inf", "·": "-", "→": "->", "≥": ">=", "√": "sqrt", "σ": "sigma"}
    signs |= {"≠": "!=", "≤": "<=", "÷": "/", "‖": "||", "∂": "d", "✕": "x", "−": "-", "█": "#"}
    signs |= {"′": "'", "²": "^2", "μ": "mu", "Σ": "sum "}
    signs |= {unicode: plain for table in (TITLES, LEVELS, SEVERITIES) for unicode, plain, *_ in table.values()}
    written = "".join(signs.get(c, c) for c in text)
    return written.encode("ascii", "backslashreplace").decode("ascii")


def heading(text: str) -> Text:
    """A section's heading, with a blank line above."""
    return Text(f"\n{text}", style="bold")


def _parts(report: Report, terminal: Terminal) -> Iterator[RenderableType]:
    yield _title(report)
    yield _answers(report)
    yield from _paste(report, terminal)
    yield from _norms(report, terminal)
    yield from _findings(report)
    yield from _layers(report, terminal)
    yield from _rehearsals(report)
    yield from _candidates(report)
    yield from _remedies(report)
    yield from _ranks(report)
    yield from _caveats(report)


def _title(report: Report) -> Text:
    header, style = report.run.header, STYLES[tone(report.run, report.diagnosis.verdict)]
    symbol, word = title(report)
    planned = f" of {header.plan.total_steps:,} planned" if header.plan.total_steps else ""
    told = f"  {visible(header.name)}: {plural(len(report.run.step), 'step')} recorded{planned}"
    return Text.assemble((f"{symbol} {word.upper()}", style), told, overflow="fold")


def _answers(report: Report) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for answer in answers(report):
        grid.add_row(Text(answer.question), _answer(answer))
    return grid


def _answer(answer: Answer) -> Group:
    return Group(Text(answer.answer, style="bold"), *(Text(line) for line in answer.details))


def _paste(report: Report, terminal: Terminal) -> Iterator[RenderableType]:
    """What held best, and the line that clips; where that does not fit, its remark goes above it, so it can be pasted."""
    remedy, line = cure(report), paste_line(report)
    if remedy:
        yield Text(f"Paste what held best: {visible(remedy.name)}")
        yield from (Text(f"  {visible(line)}", style="bold", overflow="fold") for line in remedy.snippet.splitlines())
    if line:
        yield Text("Or clip" if remedy else "Paste")
        for part in (part for whole in line.splitlines() for part in _fitting(whole, terminal)):
            yield Text(f"  {part}", style="bold", overflow="fold", no_wrap=False)


def _fitting(line: str, terminal: Terminal) -> tuple[str, ...]:
    code, mark, remark = line.partition("  # ")
    fits = terminal.width is None or len(line) + 2 <= terminal.width
    indent = " " * (len(code) - len(code.lstrip()))
    return (line,) if fits or not mark else (f"{indent}# {remark}", code)


def _norms(report: Report, terminal: Terminal) -> Iterator[RenderableType]:
    norms = report.run.global_norm
    if not len(norms):
        return
    width = min((terminal.width or 80) - 4, 120)
    finite = norms[report.run.measured]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (None, None)
    yield heading(f"Global norm, on a log scale, {number(low)} to {number(high)}")
    yield Text(f"  {sparkline(list(norms), width, unicode=terminal.unicode)}", no_wrap=True)


def _findings(report: Report) -> Iterator[RenderableType]:
    findings = report.diagnosis.findings
    yield heading(f"Findings: {len(findings) or 'none'}")
    for finding in findings:
        where = visible(finding.subject) if finding.subject is not None else "whole network"
        steps = steps_range(finding.first_step, finding.last_step)
        symbol = SEVERITIES[finding.severity][0]
        head = Text.assemble((f"{symbol} {finding.severity} {finding.code} {finding.rule}", STYLES[finding.severity]))
        head.append(f" · {where}{f' · step {steps}' if steps else ''}")
        yield Padding(Group(head, *(Text(f"  {t}") for t in _said(finding))), (0, 0, 0, 2))


def _said(finding: Finding) -> list[str]:
    """What was seen and what to do, without the subject that the line above names."""
    said = (without_subject(finding.message, finding.subject), finding.advice)
    return [visible(text) for text in said if text]


def _layers(report: Report, terminal: Terminal) -> Iterator[RenderableType]:
    rows = layer_rows(report)
    if not rows:
        return
    shown = [row for row in rows[:MOST_LAYERS] if row.place <= SHOWN_LAYERS or row.level not in ("low", None)]
    wide = (terminal.width or WIDE) >= WIDE
    yield heading("Layers" if report.unranked else "Layers, most at risk first")
    if report.unranked:
        yield Text(f"Not ranked: {report.unranked}.")
    yield _layer_table(shown, terminal, wide)
    if len(shown) < len(rows):
        yield Text(f"  … and {plural(len(rows) - len(shown), 'more layer')}, in the page and in the CSV")


def _layer_table(rows: list[LayerRow], terminal: Terminal, wide: bool) -> Table:
    known = [row.median for row in rows if row.median]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    table = plain_table(("#", "right"), "Layer", "Level", ("Factor", "right"), ("Median norm", "right"), "log10")
    if wide:
        table.add_column("Type", overflow="fold")
        table.add_column("Why", overflow="fold")
    name_width = terminal.width and max(12, terminal.width - 50 if not wide else terminal.width // 4)
    for row in rows:
        level = f"{LEVELS[row.level][0]} {row.level}" if row.level else "not ranked"
        cells = [Text(str(row.place)), Text(elide(visible(row.name), name_width))]
        cells += [Text(level, style=STYLES[row.level] if row.level else ""), Text(times(row.factor))]
        cells += [Text(number(row.median)), Text(bar(row.median, low, high, 10, unicode=terminal.unicode))]
        why = visible(without_subject(row.message, row.name)) if row.message else ""
        table.add_row(*cells, *([Text(visible(row.type)), Text(why)] if wide else []))
    return table


def plain_table(*columns: str | tuple[str, str]) -> Table:
    """A table without lines; a column is a title, or (title, "right")."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for column in columns:
        title, side = (column, "left") if isinstance(column, str) else column
        table.add_column(title, justify="right" if side == "right" else "left", overflow="fold")
    return table


def _indent(table: Table) -> Padding:
    return Padding(table, (0, 0, 0, 2))


def _rehearsals(report: Report) -> Iterator[RenderableType]:
    rows = trial_rows(report, "rehearsal", "replay")
    if rows:
        table = plain_table(
            "Rehearsal", ("Steps", "right"), ("Loss at the end", "right"), ("Largest norm", "right"), "Outcome"
        )
        for row in rows:
            values = (visible(row.title), str(row.steps), number(row.loss), number(row.norm), row.outcome)
            table.add_row(*(Text(value) for value in values))
        yield heading("Rehearsals of the planned training")
        yield _indent(table)


def _candidates(report: Report) -> Iterator[RenderableType]:
    tried = report.recommendation.candidates if report.recommendation else ()
    if tried:
        table = plain_table(
            ("max_norm", "right"), "From", ("Steps", "right"), ("Loss at the end", "right"), ("Clips", "right"), ""
        )
        for candidate in tried:
            limit = "no clipping" if candidate.max_norm is None else number(candidate.max_norm)
            loss = "✖ diverged" if candidate.diverged else number(candidate.loss)
            chosen = "chosen" if candidate.chosen else ""
            steps = str(candidate.steps or "–")
            values = (limit, visible(candidate.origin), steps, loss, share(candidate.clipped_fraction), chosen)
            table.add_row(*(Text(value) for value in values), style="bold" if candidate.chosen else "")
        yield heading("Thresholds tried")
        yield _indent(table)


def _remedies(report: Report) -> Iterator[RenderableType]:
    if report.remedies:
        table = plain_table("Change", "Outcome", "Steps", ("Loss at the end", "right"), "")
        for remedy in report.remedies:
            values = (
                visible(remedy.name),
                remedy.outcome,
                remedy.length,
                number(remedy.loss),
                "best" if remedy.best else "",
            )
            table.add_row(*(Text(value) for value in values), style="bold" if remedy.best else "")
        yield heading("Remedies tried")
        yield _indent(table)


def _ranks(report: Report) -> Iterator[RenderableType]:
    rows, found = rank_cells(report.ranks), apart(report.diagnosis)
    if rows:
        table = plain_table(*((title, "right") for title in RANK_COLUMNS))
        for place, row in enumerate(rows):
            accused = found is not None and found.subject == f"rank {row[0]}"
            if place < SHOWN_RANKS or accused:
                table.add_row(*(Text(cell) for cell in row), style="bold" if accused else "")
        yield heading("Ranks")
        yield Padding(Text(ranks_said(report.ranks, report.diagnosis)), (0, 0, 0, 2))
        yield _indent(table)
        if table.row_count < len(rows):
            yield Text(f"  … and {plural(len(rows) - table.row_count, 'more rank')}, in the page")


def _caveats(report: Report) -> Iterator[RenderableType]:
    if report.caveats:
        yield heading("What this cannot know")
        for caveat in report.caveats:
            grid = Table.grid(padding=(0, 1, 0, 0))
            grid.add_row(Text("  ·"), Text(caveat, overflow="fold"))
            yield grid
