"""`gradscope init`: a starter spec to fill in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradscope.cli.options import emit
from gradscope.errors import UsageError


def init_command(
    path: Annotated[Path, typer.Argument(metavar="[FILE]", help="The file to write.")] = Path("model.py"),
) -> None:
    """Write a starter spec that runs as it stands."""
    from gradscope.workload.template import SPEC_TEMPLATE

    if path.exists():
        raise UsageError(f"{path} is there already; name another: gradscope init spec.py")
    emit(SPEC_TEMPLATE, path)
    typer.echo(f"next: gradscope analyze {path}", err=True)
