"""Runs the command line as a user does, in this process."""

from __future__ import annotations

import sys
from typing import NamedTuple

import pytest

from gradscope.cli import main


class Result(NamedTuple):
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


def gradscope(capsys: pytest.CaptureFixture[str], *args: str) -> Result:
    """`gradscope ARGS`."""
    before = sys.argv
    sys.argv = ["gradscope", *args]
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return Result(code, captured.out, captured.err)
