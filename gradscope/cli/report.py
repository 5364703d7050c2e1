"""`gradscope report`: one self-contained page of a run, or its figures."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from gradscope.cli.options import FormatOption, RunArgument, emit, load, tell
from gradscope.cli.show import rendered
from gradscope.errors import UsageError


def report_command(
    run: RunArgument = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="report.html, .json, .md, …")] = Path("report.html"),
    output_format: FormatOption = None,
    figures: Annotated[Path | None, typer.Option("--figures", help="Write the figures to this folder instead.")] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option("--compare", metavar="A B", help="Two runs side by side instead.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Write the report of a run to a file: a page by default."""
    from gradscope.report.build import build_report

    if compare is not None:
        from gradscope.report.compare import compare_html

        if run is not None:
            raise UsageError(f"report takes RUN or --compare A B, not both: {run!r} is too many")
        emit(compare_html(*(build_report(load(one)) for one in compare)), output)
    elif figures is not None:
        from gradscope.report.figures import save_figures

        for path in save_figures(build_report(load(run)), figures, output_format or "svg"):
            tell(f"wrote {path}")
        return
    else:
        emit(rendered(build_report(load(run)), output_format, output), output)
    if open_page:
        webbrowser.open(output.resolve().as_uri())
