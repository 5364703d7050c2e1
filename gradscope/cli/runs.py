"""`gradscope runs`: the recorded runs, newest last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gradscope.cli.options import emit, tell
from gradscope.errors import RunFormatError, UsageError
from gradscope.runs.catalogue import home, is_gone, list_runs


def runs_command(
    output_format: Annotated[str, typer.Option("--format", "-f", help="table, json or jsonl.")] = "table",
) -> None:
    """List the recorded runs, newest last."""
    rows = [_row(path) for path in list_runs()]
    if output_format == "json":
        typer.echo(json.dumps(rows, indent=1))
    elif output_format == "jsonl":
        typer.echo("\n".join(json.dumps(row) for row in rows))
    elif output_format != "table":
        raise UsageError(f"--format {output_format!r}: write table, json or jsonl")
    elif rows:
        emit("\n".join(f"{row['id']}  {row['ended']:<24}  {row['source']}" for row in rows), None)
    else:
        tell(f"no runs in {home()}; record one with: gradscope analyze model.py")


def _row(path: Path) -> dict[str, Any]:
    from gradscope.runs.reader import read_header

    try:
        header = read_header(path)
    except RunFormatError:
        return {"id": path.name, "path": str(path), "ended": "unreadable", "source": "", "created": ""}
    how = "killed" if not header.ending.known and is_gone(header.pid) else header.ending.how
    at = f" at step {header.ending.step}" if header.ending.step is not None else ""
    return {
        "id": path.name,
        "path": str(path),
        "ended": f"{how}{at}",
        "source": header.source,
        "created": header.created,
    }
