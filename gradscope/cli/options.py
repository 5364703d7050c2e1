"""Options and small helpers that several commands share."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from gradscope.errors import UsageError

RunArgument = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="A path, an id or its prefix, or latest (the default).")
]
TargetArgument = Annotated[
    str, typer.Argument(metavar="TARGET", help="path/model.py, path/model.py:NAME or pkg.module[:NAME].")
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format", "-f", help="table, json, jsonl, csv, markdown, html, github or sarif; else by -o's suffix."
    ),
]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file, not to stdout.")]

BLAS_THREADS = "OPENBLAS_NUM_THREADS"
SEVERITIES = ("info", "warning", "critical")


def seconds(text: str) -> float:
    """`90`, `90s`, `5m` or `1h` as seconds.

    Raises:
        UsageError: anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    if not match:
        raise UsageError(f"--budget {text!r}: write seconds, or a number with s, m or h, such as 5m")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def emit(text: str, output: Path | None) -> None:
    """Write an answer to `output`, or to stdout.

    Raises:
        UsageError: the file cannot be written.
    """
    if output is None:
        sys.stdout.write(showable(text if text.endswith("\n") else text + "\n", sys.stdout))
        sys.stdout.flush()
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from error
    tell(f"wrote {output}")


def showable(text: str, stream: IO[str]) -> str:
    """A text as `stream` can write it: where its encoding lacks a sign, in plain ones."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        from gradscope.report.renderers.console import ascii_only

        return ascii_only(text)
    return text


def tell(text: str) -> None:
    """A line of progress or advice, on stderr: stdout is the answer alone."""
    sys.stderr.write(showable(text, sys.stderr) + "\n")


def load(reference: str | None, *, trains: bool = False) -> Any:
    """The Run that a RUN argument names. `trains`: the command will also run the user's code."""
    with nullcontext() if trains else _without_blas_threads():
        from gradscope.runs.catalogue import find_run
        from gradscope.runs.reader import load_run

    return load_run(find_run(reference))


@contextmanager
def _without_blas_threads() -> Iterator[None]:
    """Where numpy is first imported here it starts no threads for linear algebra: reading a run needs none, and they cost
    as much CPU time as the rest of the start-up.
    """
    known = os.environ.get(BLAS_THREADS)
    os.environ[BLAS_THREADS] = known or "1"
    try:
        yield
    finally:
        if known is None:
            del os.environ[BLAS_THREADS]


def known_severity(text: str | None) -> str | None:
    """For `--fail-on`, before anything is run.

    Raises:
        UsageError: no such severity.
    """
    if text is None or text == "none":
        return None
    if text not in SEVERITIES:
        raise UsageError(f"--fail-on {text!r}: write none, {', '.join(SEVERITIES)}")
    return text


def fails(report: Any, fail_on: str | None) -> bool:
    """Whether a finding is at or above the severity."""
    if fail_on is None:
        return False
    least = SEVERITIES.index(fail_on)
    return any(SEVERITIES.index(finding.severity) >= least for finding in report.diagnosis.findings)
