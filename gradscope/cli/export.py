"""`gradscope export`: the recorded numbers for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradscope.cli.options import RunArgument, load, tell
from gradscope.errors import UsageError


def export_command(
    run: RunArgument = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="x.parquet, x.csv or x.json: a row a step, a column a layer.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="tensorboard or wandb.")] = None,
) -> None:
    """Export a run's steps, a row a step and a column a layer."""
    from gradscope.report import export

    recorded = load(run)
    if to is not None:
        tell(f"wrote {export.to_tracker(recorded, to)}")
    elif output is not None:
        export.to_file(recorded, output)
        tell(f"wrote {output}")
    else:
        raise UsageError("say where to: gradscope export -o run.parquet, or --to tensorboard")
