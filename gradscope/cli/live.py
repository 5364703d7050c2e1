"""Progress on stderr while steps run: a live display on a terminal, else a plain line every ten seconds."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from typing import IO, TYPE_CHECKING, Any

from gradscope.cli.options import showable, tell
from gradscope.cli.training import pieces_table
from gradscope.report.terminal import terminal_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gradscope.capture.loop import StepSeen
    from gradscope.workload.model import Workload

PLAIN_SECONDS = 10.0
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.:-=+*#"


class Live:
    """Watches an analysis. `with Live() as live: analyze(..., watcher=live)`."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=60)
        self._last_line = self._started = time.monotonic()
        self._stage, self._total, self._done = "", 0, 0
        self._leading: list[tuple[str, float]] = []
        self._layers: list[str] = []
        self._display: Any = None
        self._progress: Any = None

    def __enter__(self) -> Live:
        if _is_terminal():
            from rich.console import Console
            from rich.live import Live as Display
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, TextColumn("{task.fields[rate]}"))
            console = Console(stderr=True)
            self._display = Display(get_renderable=self._picture, console=console, refresh_per_second=5, transient=True)
            self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._display is not None:
            self._display.stop()

    def read(self, workload: Workload) -> None:
        """The spec was read: say how."""
        from gradscope.capture.describe import describe

        self._layers = [parameter.layer for parameter in describe(workload.model, workload.optimizers).parameters]
        self.say(pieces_table(workload.pieces))

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._display is not None:
            self._display.console.print(showable(text, sys.stderr), markup=False, highlight=False, soft_wrap=True)
        else:
            tell(text)

    def stage(self, name: str, steps: int) -> None:
        """A stage of so many steps begins."""
        self._stage, self._total, self._done = name, steps, 0
        self._started = time.monotonic()
        if self._progress is not None:
            for task in list(self._progress.task_ids):
                self._progress.remove_task(task)
            self._progress.add_task(name, total=steps, rate="")

    def step(self, seen: StepSeen) -> None:
        """One optimizer step was taken."""
        self._done += 1
        self._norms.append(seen.global_norm)
        self._leading = self._largest(seen) if self._display is not None else []
        rate = self._done / max(time.monotonic() - self._started, 1e-9)
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[-1], advance=1, rate=f"{rate:.3g} steps/s")
        elif time.monotonic() - self._last_line >= PLAIN_SECONDS:
            self._last_line = time.monotonic()
            left = (self._total - self._done) / rate
            tell(f"{self._stage}: step {self._done} of {self._total}, {left:.0f} s left, norm {seen.global_norm:.3g}")

    def _largest(self, seen: StepSeen) -> list[tuple[str, float]]:
        """The three layers with the largest gradient norm."""
        squares: dict[str, float] = {}
        norms = seen.reading.norms.norm if seen.reading is not None else ()
        for layer, norm in zip(self._layers, norms, strict=False):
            squares[layer] = squares.get(layer, 0.0) + (0.0 if math.isnan(norm) else float(norm) ** 2)
        return sorted(((name, math.sqrt(square)) for name, square in squares.items()), key=lambda one: -one[1])[:3]

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        lines = (
            [Text(f"norm {self._norms[-1]:<10.3g} {sparkline(list(self._norms), sys.stderr)}")] if self._norms else []
        )
        lines += [Text(f"  {norm:<10.3g} {name}", overflow="ellipsis", no_wrap=True) for name, norm in self._leading]
        return Group(self._progress, *lines)


def sparkline(values: list[float], stream: IO[str]) -> str:
    """Positive numbers as bars in log10, as `stream` can show them; `!` where one is not finite."""
    bars = BARS if terminal_of(stream).unicode else PLAIN_BARS
    logs = [math.log10(v) if 0 < v < math.inf else None for v in values]
    seen = [v for v in logs if v is not None]
    low, span = min(seen, default=0.0), max(seen, default=0.0) - min(seen, default=0.0)
    scale = (len(bars) - 1) / span if span > 1e-9 else 0.0
    return "".join("!" if v is None else bars[round((v - low) * scale)] for v in logs)


def _is_terminal() -> bool:
    return sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"
