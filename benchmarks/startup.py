"""What starting costs, against importing typer and rich alone: python -m benchmarks.startup [--rounds 20]

Fresh interpreters take turns: in each round every command runs once. Printed are the medians of the rounds' ratios, of
process CPU time (of all threads) and of wall time, and the ratio of the smallest CPU times, the least disturbed ones.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.builders import make_header, make_run

BASE = "import typer, rich.console"
COMMAND = "from gradscope.cli import main; main()"
ALLOWED = {"--help": 1.6, "recommend": 3.0}
LAYERS, STEPS = 300, 200


class Cost(NamedTuple):
    cpu: float
    wall: float


def cost(*arguments: str) -> Cost:
    """Seconds of one fresh interpreter."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", *arguments], check=True, capture_output=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - begun
    return Cost(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall)


def main() -> None:
    """Print a row a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        parameters = make_header([f"blocks.{i}.fc" for i in range(LAYERS)]).parameters
        run = make_run(Path(folder), [1.0 + i % 7 for i in range(STEPS)], parameters=parameters)
        commands = {"--help": (COMMAND, "--help"), "recommend": (COMMAND, "recommend", str(run.path))}
        base, found = [], {name: [] for name in commands}
        for _ in range(rounds + 1):
            base.append(cost(BASE))
            for name, arguments in commands.items():
                found[name].append(cost(*arguments))
    print(f"× {BASE} ({1e3 * min(one.cpu for one in base[1:]):.0f} ms)\n")
    print("| command | CPU, median | CPU, smallest | wall, median | allowed |\n|---|---|---|---|---|")
    for name, costs in found.items():
        print(f"| gradscope {name} | {' | '.join(ratios(costs[1:], base[1:]))} | {ALLOWED[name]} |")


def ratios(costs: list[Cost], base: list[Cost]) -> list[str]:
    pairs = list(zip(costs, base, strict=True))
    cpu = statistics.median(one.cpu / other.cpu for one, other in pairs)
    smallest = min(one.cpu for one in costs) / min(one.cpu for one in base)
    wall = statistics.median(one.wall / other.wall for one, other in pairs)
    return [f"{cpu:.2f}", f"{smallest:.2f}", f"{wall:.2f}"]


if __name__ == "__main__":
    main()
