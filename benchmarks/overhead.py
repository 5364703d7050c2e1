"""What recording costs: `python benchmarks/overhead.py` prints a table.

Process CPU time on one thread, paired in one process: each round times the bare thing and the recorded one next to each
other, and the medians of the rounds' ratios are printed, with the quartiles beside them. In units of one
`torch.nn.utils.clip_grad_norm_` call where the column says "clips", else in percent of a bare training step.
"""

from __future__ import annotations

import argparse
import itertools
import operator
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from overhead_workloads import BUILDERS, Case, build

from gradscope.capture.clipping import clip_grad_norm_
from gradscope.capture.norms_compiled import host_norms
from gradscope.capture.recorder import Recorder

Work = Callable[[], object]
Limit = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", default="", help="begin of a workload's name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in BUILDERS if name.startswith(options.only)]
    print(f"{'':24}{'clip, % of':>12}{'all norms,':>18}{'clip that records,':>36}{'a Recorder, % of':>18}")
    print(f"{'':24}{'the step':>12}{'clips':>18}{'clips: not / clipping':>36}{'the step':>16}")
    for name in names:
        row = measure(name, options.rounds)
        print(f"{name:24}{row[0]:>12}{row[1]:>18}{row[2]:>18}{row[3]:>18}{row[4]:>16}", flush=True)


def measure(name: str, rounds: int) -> list[str]:
    case = build(name)
    for _ in range(3):
        step(case)
    parameters = list(case.model.parameters())
    norms = host_norms(parameters)

    def clip(limit: Limit) -> Work:
        return lambda: torch.nn.utils.clip_grad_norm_(parameters, limit())

    loss = case.backward()
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, 1e30))
    shrinking = itertools.accumulate(itertools.repeat(0.9999), initial=norm, func=operator.mul)

    def never() -> float:
        return 1e30

    cells = [percent(ratios(lambda: step(case), clip(never), rounds)), clips(ratios(clip(never), norms.read, rounds))]
    for limit in (never, lambda: next(shrinking)):
        with recorder(case) as one:
            cells.append(clips(ratios(clip(limit), recorded_clip(one, parameters, limit, loss), rounds)))
    with recorder(case) as one:
        cells.append(percent(ratios(lambda: step(case), after_step(one, loss), rounds)))
    return cells


def step(case: Case) -> None:
    case.backward()
    case.optimizer.step()


def recorder(case: Case) -> Recorder:
    return Recorder(case.model, case.optimizer, directory=Path(tempfile.mkdtemp()) / "run")


def recorded_clip(one: Recorder, parameters: list[torch.Tensor], limit: Limit, loss: torch.Tensor) -> Work:
    """Everything that recording adds to a script that clips: the loss, the reading, the row."""

    def work() -> None:
        one.observe(loss)
        clip_grad_norm_(parameters, limit())
        one.finish_step()

    work()
    return work


def after_step(one: Recorder, loss: torch.Tensor) -> Work:
    """Everything that recording adds to a script that does not clip."""

    def work() -> None:
        one.observe(loss)
        one.finish_step()

    work()
    return work


def ratios(bare: Work, other: Work, rounds: int) -> list[float]:
    """CPU time of `other` ÷ `bare`, round by round; each is repeated until it takes some milliseconds."""
    times = max(1, round(0.004 / max(cpu(bare, 1), 1e-6))), max(1, round(0.004 / max(cpu(other, 1), 1e-6)))
    found = []
    for _ in range(rounds):
        reference = cpu(bare, times[0]) / times[0]
        found.append(cpu(other, times[1]) / times[1] / reference)
    return found


def cpu(work: Work, times: int) -> float:
    begun = time.process_time()
    for _ in range(times):
        work()
    return time.process_time() - begun


def clips(found: list[float]) -> str:
    low, middle, high = statistics.quantiles(found, n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def percent(found: list[float]) -> str:
    return f"{100 * statistics.median(found):.2f}"


if __name__ == "__main__":
    main()
