"""`gradscope init`: a starter spec to fill in."""

from __future__ import annotations

import shlex
import sys
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

    if path.suffix != ".py" or not path.stem.isidentifier() or path.stem in sys.stdlib_module_names:
        raise UsageError(f"{path}: Python could not import it; name it like a module: gradscope init spec.py")
    if path.exists():
        raise UsageError(f"{path} is there already; name another: gradscope init spec.py")
    emit(SPEC_TEMPLATE, path)
    typer.echo(f"next: gradscope analyze {shlex.quote(str(path))}", err=True)
