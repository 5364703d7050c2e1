"""`gradscope watch [RUN]`: follow a run that is being written by another process."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradscope.cli.live import sparkline
from gradscope.cli.options import RunArgument, emit, tell
from gradscope.runs.catalogue import find_run, is_gone

if TYPE_CHECKING:
    from gradscope.diagnosis.model import Finding
    from gradscope.runs.follow import Follower, Rows

SHARE = 0.1
"""How much of the time may go into judging the run anew."""


def watch_command(
    run: RunArgument = None,
    interval: Annotated[
        float, typer.Option("--interval", min=0.05, envvar="GRADSCOPE_INTERVAL", help="Seconds between two looks.")
    ] = 1.0,
) -> None:
    """Follow a run that is being recorded: loss, global norm, leading layers, findings as they appear. Ctrl-C ends it."""
    from gradscope.runs.follow import Follower

    path = find_run(run)
    tell(f"watching {path}")
    watcher = Watcher(Follower(path))
    with suppress(KeyboardInterrupt):
        while not watcher.look():
            time.sleep(interval)
    tell(f"next: gradscope show {shlex.quote(run or path.name)}")


class Watcher:
    """What was seen of a run so far; `look` prints what is new, and says whether the run is over."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._norms: deque[float] = deque(maxlen=40)
        self._told: set[tuple[str, str | None]] = set()
        self._judge_at = 0.0

    def look(self) -> bool:
        """Print what is new. True once nothing more can come."""
        gone = is_gone(self._follower.header.pid)
        rows = self._follower.poll()
        ending = self._follower.header.ending
        over = ending.known or gone
        if rows is not None:
            self._norms.extend(rows.global_norm.tolist())
            emit(line(rows, self._layers(rows), self._norms), None)
        if rows is not None or over:
            self._judge(over)
        if over:
            how = f"{ending.how} at step {ending.step}" if ending.known else "its process is gone"
            emit(f"the run is over: {how}{f' ({ending.message})' if ending.message else ''}", None)
        return over

    def _layers(self, rows: Rows) -> list[tuple[str, float]]:
        """The layers with the largest gradients of the last row."""
        squares: dict[str, float] = {}
        broken = not math.isfinite(rows.global_norm[-1])  # a NaN is then no missing gradient
        for parameter, norm in zip(self._follower.header.parameters, rows.grad_norm[-1].tolist(), strict=True):
            squares[parameter.layer] = squares.get(parameter.layer, 0.0) + (
                norm * norm if norm == norm or broken else 0.0
            )
        sizes = ((name, value**0.5) for name, value in squares.items())
        return sorted(sizes, key=lambda item: -item[1] if item[1] == item[1] else -math.inf)[:3]

    def _judge(self, now: bool) -> None:
        """Print findings that were not there before; as often as a small share of the time allows, and at the end."""
        if not now and time.monotonic() < self._judge_at:
            return
        begun = time.monotonic()
        for finding in findings(self._follower.directory):
            if (finding.code, finding.subject) not in self._told:
                self._told.add((finding.code, finding.subject))
                emit(f"{finding.severity}: {finding.code} {finding.message}", None)
        spent = time.monotonic() - begun
        self._judge_at = time.monotonic() + spent * (1 / SHARE - 1)


def findings(run: Path) -> tuple[Finding, ...]:
    """What the rules find in the run as far as it is written."""
    from gradscope.diagnosis.diagnose import diagnose
    from gradscope.runs.reader import load_run

    return diagnose(load_run(run)).findings


def line(rows: Rows, layers: list[tuple[str, float]], norms: Any) -> str:
    """One line about the newest step."""
    leading = ", ".join(f"{name or '(the model)'} {norm:.3g}" for name, norm in layers)
    spark = f"  {sparkline(list(norms), sys.stdout)}" if sys.stdout.isatty() else ""
    return f"step {rows.step[-1]}  loss {rows.loss[-1]:.4g}  norm {rows.global_norm[-1]:.4g}{spark}  leading: {leading}"
