"""`gradscope explain CODE`: what a rule detects, how it decides, and what to do."""

from __future__ import annotations

from typing import Annotated

import typer

from gradscope.cli.options import emit


def explain_command(
    code: Annotated[str, typer.Argument(metavar="CODE", help="A code such as GS201, or a name.")],
) -> None:
    """Explain a rule: what it detects, how it decides, what to do."""
    from gradscope.diagnosis.explain import explain

    emit(explain(code), None)
