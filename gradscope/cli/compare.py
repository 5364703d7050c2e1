"""`gradscope compare A B`: two runs side by side, before and after a fix."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gradscope.cli.options import OutputOption, emit, load

RunOne = Annotated[str, typer.Argument(metavar="A", help="A path, an id or its prefix, or latest.")]
RunTwo = Annotated[str, typer.Argument(metavar="B", help="The run to set beside it.")]


def compare_command(first: RunOne, second: RunTwo, output: OutputOption = None) -> None:
    """Compare two runs: verdicts, thresholds, norms, the layers that changed most."""
    from gradscope.report.build import build_report
    from gradscope.report.compare import compare_html, compare_text
    from gradscope.report.terminal import PIPE, terminal_of

    a, b = build_report(load(first)), build_report(load(second))
    page = output is not None and output.suffix in (".html", ".htm")
    terminal = terminal_of(sys.stdout) if output is None else PIPE
    emit(compare_html(a, b) if page else compare_text(a, b, terminal), output)
