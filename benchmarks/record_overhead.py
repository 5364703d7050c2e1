"""What `gradscope record` adds to a script: `python benchmarks/record_overhead.py` prints a table.

Process CPU time on one thread. Each round times the same training steps bare and then recorded, in one process, by putting
the listening in place and taking it away again; the medians of the rounds' differences are printed with their quartiles.
Everything is included: backward, clip and step are listened to, gradients read, rows written. "no clip" is in percent of
the bare step; "clips" is a script that calls `clip_grad_norm_`, in units of one such call.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from overhead_workloads import BUILDERS, Case, build

from gradscope.integrations.headers import new_header
from gradscope.integrations.session import Session
from gradscope.integrations.torch_calls import install
from gradscope.runs.schema import Ending

Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", default="", help="begin of a workload's name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':24}{'step, ms':>10}{'clip, ms':>10}{'no clip, % of the step':>28}{'clips, in clip calls':>28}")
    for name in (name for name in BUILDERS if name.startswith(options.only)):
        print(f"{name:24}" + "".join(measure(name, options.rounds)), flush=True)


def measure(name: str, rounds: int) -> list[str]:
    case = build(name)
    parameters = list(case.model.parameters())

    def clip(limit: float) -> Step:
        return lambda: torch.nn.utils.clip_grad_norm_(parameters, limit)

    def clipping_step() -> None:
        case.backward()
        torch.nn.utils.clip_grad_norm_(parameters, limit)
        case.optimizer.step()

    for _ in range(3):
        step(case)
    limit = 0.5 * float(torch.nn.utils.clip_grad_norm_(parameters, 1e30))
    times = max(1, round(0.02 / cpu(lambda: step(case), 1)))
    bare, plain = differences(lambda: step(case), times, rounds)
    _, clipped = differences(clipping_step, times, rounds)
    call = statistics.median(cpu(clip(1e30), 5) / 5 for _ in range(rounds))
    cells = [f"{1e3 * bare:>10.2f}{1e3 * call:>10.3f}"]
    cells.append(f"{spread([100 * one / bare for one in plain]):>28}")
    cells.append(f"{spread([one / call for one in clipped]):>28}")
    return cells


def step(case: Case) -> None:
    case.backward()
    case.optimizer.step()


def differences(work: Step, times: int, rounds: int) -> tuple[float, list[float]]:
    """CPU seconds of one bare call of `work`, and what recording added to it in each round."""
    session = Session(new_header("benchmark", "record", "benchmark"), root=Path(tempfile.mkdtemp()))
    bare, added = [], []
    for i in range(rounds + 1):
        first = cpu(work, times) / times
        patches = install(session)
        try:
            if i == 0:  # the first steps find the model and open the file
                for _ in range(3):
                    work()
            recorded = cpu(work, times) / times
        finally:
            patches.undo()
        again = cpu(work, times) / times
        bare += [first, again]
        added += [recorded - (first + again) / 2]
    assert session.armed
    assert session.runs
    session.close(lambda reached: Ending("finished", reached))
    return statistics.median(bare), added[1:]


def cpu(work: Step, times: int) -> float:
    begun = time.process_time()
    for _ in range(times):
        work()
    return time.process_time() - begun


def spread(found: list[float]) -> str:
    low, middle, high = statistics.quantiles(found, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
