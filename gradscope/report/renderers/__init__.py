"""The renderers by name. Each is one pure function from a Report to text, imported when it is chosen."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from gradscope.errors import UsageError

if TYPE_CHECKING:
    from gradscope.report.model import Report

    Renderer = Callable[[Report], str]

RENDERERS = {
    "table": "gradscope.report.renderers.console:render",
    "html": "gradscope.report.renderers.html:render",
    "json": "gradscope.report.renderers.json:render",
    "jsonl": "gradscope.report.renderers.jsonl:render",
    "csv": "gradscope.report.renderers.csv:render",
    "markdown": "gradscope.report.renderers.markdown:render",
    "github": "gradscope.report.renderers.github:render",
    "sarif": "gradscope.report.renderers.sarif:render",
}
SUFFIXES = {
    ".html": "html",
    ".htm": "html",
    ".json": "json",
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".md": "markdown",
    ".sarif": "sarif",
    ".txt": "table",
}


def renderer(name: str) -> Renderer:
    """The renderer called `name`.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in RENDERERS:
        near = difflib.get_close_matches(name, RENDERERS, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UsageError(f"no format {name!r}{hint} There are: {', '.join(RENDERERS)}")
    module, function = RENDERERS[name].split(":")
    found: Renderer = getattr(import_module(module), function)
    return found


def format_of(name: str | None, path: Path | None) -> str:
    """The format asked for by name, else by the file's suffix, else a table.

    Raises:
        UsageError: the suffix names none.
    """
    if name or path is None:
        return name or "table"
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: no format has the suffix {path.suffix!r}; there are: {', '.join(SUFFIXES)}")
    return SUFFIXES[path.suffix.lower()]
