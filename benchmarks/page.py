"""What the page costs at two sizes: python -m benchmarks.page [--large-only]

Runs written by hand, of layers with a weight each, probed on some steps and rehearsed. `gradscope report` in a process of
its own: wall-clock seconds from its start, its peak resident memory, the size of the page, and how long a chromium takes
to load it (median of 5).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gradscope.runs.schema import Ending, Trial
from gradscope.runs.writer import RunWriter
from tests.browser.chromium import chromium
from tests.builders import make_header

SIZES = {(300, 200): (None, None, 1.0, 0.5), (1000, 100_000): (15.0, 600.0, 5.0, 2.0)}
"""(layers, steps): what is allowed, in seconds, MB, MB and seconds."""
COMMAND = [sys.executable, "-c", "from gradscope.cli import main; main()", "report"]
BLOCK = 1000


def write_run(folder: Path, layers: int, steps: int) -> Path:
    """A run whose norms wander, spike now and then, and grow with depth."""
    names = [f"stages.{i // 50}.blocks.{i % 50}.linear" for i in range(layers)]
    writer = RunWriter(folder / f"run-{layers}x{steps}", make_header(names))
    rng = np.random.default_rng(0)
    _steps(writer, rng, layers, steps)
    for step in (0, 1, 2, 5, *range(10, 50, 10)):
        for probe in ("forward_gain", "backward_gain", "init_scale"):
            writer.probe(step, probe, names, np.exp(0.1 * rng.standard_normal(layers)))
    for factor in (1.0, 2.0, 4.0):
        planned = tuple(range(400))
        child = writer.trial(Trial("rehearsal", f"rehearsal-x{factor:g}", factor, indexes=planned))
        _steps(child, rng, layers, len(planned))
        child.close(Ending("finished", len(planned)))
    writer.close(Ending("finished", steps))
    return writer.directory


def _steps(writer: RunWriter, rng: np.random.Generator, layers: int, steps: int) -> None:
    depth = np.linspace(0, 2, layers, dtype=np.float32)
    for first in range(0, steps, BLOCK):
        count = min(BLOCK, steps - first)
        spikes = np.where(rng.random((count, 1)) < 1e-3, 8.0, 1.0)
        norms = np.exp(0.3 * rng.standard_normal((count, layers), dtype=np.float32) + depth) * spikes.astype(np.float32)
        totals = np.sqrt(np.einsum("ij,ij->i", norms, norms, dtype=np.float64))
        for i, (row, total) in enumerate(zip(norms, totals, strict=True)):
            step = first + i
            loss = 0.5 + 2.0 / (1 + step / 500) + 0.05 * rng.random()
            writer.append(step=step, loss=loss, global_norm=total, grad_norm=row, grad_max=row / 2, lr=[1e-3])


def build(run: Path, page: Path) -> tuple[float, float]:
    """Seconds and peak resident MB of one `gradscope report`."""
    began = time.perf_counter()
    process = subprocess.Popen([*COMMAND, str(run), "-o", str(page)], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"gradscope report failed on {run}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def load(page: Path, repeats: int = 5) -> float:
    """Seconds until the load event, its script run."""
    with chromium() as browser:
        return statistics.median(_load_once(browser, page) for _ in range(repeats))


def _load_once(browser: object, page: Path) -> float:
    tab = browser.new_page(viewport={"width": 1440, "height": 900})  # type: ignore[attr-defined]
    tab.goto(page.resolve().as_uri())
    taken: float = tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd / 1000")
    tab.close()
    return taken


def main() -> None:
    """Print a row a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--large-only", action="store_true")
    sizes = list(SIZES)[1:] if parser.parse_args().large_only else list(SIZES)
    print("| layers × steps | built in, s | peak memory, MB | page, MB | loaded in, s |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for layers, steps in sizes:
            page = Path(folder) / "page.html"
            seconds, memory = build(write_run(Path(folder), layers, steps), page)
            found = seconds, memory, page.stat().st_size / 1e6, load(page)
            cells = " | ".join(_cell(value, most) for value, most in zip(found, SIZES[layers, steps], strict=True))
            print(f"| {layers:,} × {steps:,} | {cells} |", flush=True)


def _cell(value: float, most: float | None) -> str:
    return f"{value:.3g}" + (f" (allowed {most:g})" if most else "")


if __name__ == "__main__":
    main()
