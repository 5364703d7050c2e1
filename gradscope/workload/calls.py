"""Calling the user's code: what it needs, and what it says when it fails."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from gradscope.errors import GradscopeError, UserCodeError
from gradscope.workload.model import DataEndedError

T = TypeVar("T")
_NOT_THEIRS = (Path(__file__).resolve().parents[1], Path(inspect.__file__).parent)
"""gradscope itself and Python's own library."""


def call_user(function: Callable[[], T], what: str, near: Path, keep: tuple[type[BaseException], ...] = ()) -> T:
    """`function()`; whatever it raises becomes a UserCodeError that names the line in the user's file.

    `what` begins the message ("importing model.py"). `near` is the spec file: the line named is the last one in its
    folder. Exceptions in `keep` pass.
    """
    try:
        return function()
    except (GradscopeError, DataEndedError):
        raise
    except keep:
        raise
    except SystemExit as error:
        raise UserCodeError(
            f"{what} called sys.exit({error.code!r}){_at(error, near)}; put what is not for import under "
            '`if __name__ == "__main__":`'
        ) from error
    except Exception as error:
        raise UserCodeError(f"{what} raised {type(error).__name__}{_at(error, near)}: {error}") from error


def _at(error: BaseException, near: Path) -> str:
    line = user_line(error, near)
    return f" at {line}" if line else ""


def user_line(error: BaseException, near: Path) -> str | None:
    """`model.py:17`: the innermost line of the traceback in the user's own code, nearest to the spec file."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    theirs = [
        f for f in frames if "site-packages" not in f.filename and not {*_NOT_THEIRS} & {*Path(f.filename).parents}
    ]
    theirs = [f for f in theirs if near.resolve().parent in Path(f.filename).parents] or theirs
    return f"{Path(theirs[-1].filename).name}:{theirs[-1].lineno}" if theirs else None


def required(function: Any) -> list[inspect.Parameter] | None:
    """The parameters that must be given, or None where the signature cannot be read."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p for p in parameters if p.default is p.empty and p.kind not in variadic]


def positional(function: Any) -> list[inspect.Parameter]:
    """The parameters that may be given by position, without `*args`."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def title(value: Any) -> str:
    """How a function, class or object is called in a sentence."""
    inner = getattr(value, "func", value)
    return str(getattr(inner, "__name__", None) or type(value).__name__)
