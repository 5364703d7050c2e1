"""`gradscope show`: the report of a run in the terminal, or in another format."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gradscope.cli.options import FormatOption, OutputOption, RunArgument, emit, fails, known_severity, load, tell
from gradscope.errors import UsageError


def show_command(
    run: RunArgument = None,
    output_format: FormatOption = None,
    output: OutputOption = None,
    fail_on: Annotated[
        str | None, typer.Option("--fail-on", help="Exit 1 on a finding of this severity: info, warning or critical.")
    ] = None,
) -> None:
    """Show the report of a run: verdict, layers at risk, threshold, findings."""
    from gradscope.report.build import build_report

    fail_on = known_severity(fail_on)
    report = build_report(load(run))
    emit(rendered(report, output_format, output), output)
    tell(f"from {report.run.path}\nas a page: gradscope report {shlex.quote(run or report.run.id)} --open")
    if fails(report, fail_on):
        raise typer.Exit(1)


def known_output(output_format: str | None, output: Path | None) -> None:
    """Before anything is run.

    Raises:
        UsageError: no such format, or a file that cannot be written.
    """
    from gradscope.report.renderers import format_of, renderer

    renderer(format_of(output_format, output))
    if output is not None and (output.is_dir() or not os.access(output.parent, os.W_OK)):
        why = errno.EISDIR if output.is_dir() else errno.EACCES if output.parent.is_dir() else errno.ENOENT
        raise UsageError(f"cannot write {output}: {os.strerror(why)}")


def rendered(report: Any, output_format: str | None, output: Path | None) -> str:
    """The report in the format asked for, or by the file's suffix, or as a table."""
    from gradscope.report.renderers import format_of, renderer

    chosen = format_of(output_format, output)
    if chosen == "table" and output is None:
        from gradscope.report.renderers import console
        from gradscope.report.terminal import terminal_of

        return console.render(report, terminal_of(sys.stdout))
    return renderer(chosen)(report)
