"""What starting costs, against importing typer and rich alone: python -m benchmarks.startup [--repeats 15]

Process CPU time of fresh interpreters, paired: each command in turn, the median of the ratios.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.builders import make_run

BASE = [sys.executable, "-c", "import typer, rich.console"]
COMMAND = [sys.executable, "-c", "from gradscope.cli import main; main()"]
ALLOWED = {"--help": 1.6, "recommend": 3.0}


def cpu(command: list[str]) -> float:
    """CPU seconds of one child process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a row a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        layers = [f"blocks.{i}.fc" for i in range(300)]
        run = make_run(Path(folder), [1.0 + i % 7 for i in range(200)], **_header(layers))
        commands = {"--help": ["--help"], "recommend": ["recommend", str(run.path)]}
        print("| command | × import typer, rich.console | allowed |\n|---|---|---|")
        for name, arguments in commands.items():
            ratios = [cpu([*COMMAND, *arguments]) / cpu(BASE) for _ in range(repeats)]
            print(f"| gradscope {name} | {statistics.median(ratios):.2f} | {ALLOWED[name]} |")


def _header(layers: list[str]) -> dict[str, object]:
    from tests.builders import make_header

    return {"parameters": make_header(layers).parameters}


if __name__ == "__main__":
    main()
