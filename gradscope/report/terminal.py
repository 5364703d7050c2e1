"""What a terminal can show."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO


@dataclass(frozen=True)
class Terminal:
    """`width` in characters, None for a pipe or a file, where nothing is ever cut; whether colour and Unicode show."""

    width: int | None = None
    color: bool = False
    unicode: bool = True


PIPE = Terminal()


def terminal_of(stream: IO[str], environ: Mapping[str, str] | None = None) -> Terminal:
    """Read a stream and its environment: `NO_COLOR`, `FORCE_COLOR`, `TERM=dumb`, its encoding and its width."""
    env = os.environ if environ is None else environ
    dumb = env.get("TERM", "") == "dumb"
    interactive = stream.isatty()
    color = ((interactive and not dumb and _reads_escapes(env)) or bool(env.get("FORCE_COLOR"))) and not env.get(
        "NO_COLOR"
    )
    width = _width(env) if interactive else None
    return Terminal(width, color, _shows_unicode(getattr(stream, "encoding", None) or "ascii"))


def _reads_escapes(env: Mapping[str, str]) -> bool:
    """An old console of Windows prints escapes as they are; newer ones say what they are."""
    return sys.platform != "win32" or any(env.get(name) for name in ("WT_SESSION", "TERM", "ANSICON", "ConEmuANSI"))


def _width(env: Mapping[str, str]) -> int:
    columns = env.get("COLUMNS", "")
    return max(40, int(columns) if columns.isdigit() else shutil.get_terminal_size().columns)


def _shows_unicode(encoding: str) -> bool:
    try:
        "▁█✕×–…▲".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
