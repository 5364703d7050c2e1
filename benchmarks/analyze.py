"""What `analyze` costs against bare training: python -m benchmarks.analyze [--only lstm]

Counts the training steps that `analyze` takes, window and trials (a swept batch, forward only, as a third of a step),
against as many bare ones, with torch's own clipping on those that were clipped. A bare step's cost is the mean of HALF steps
timed just before `analyze` and HALF just after, so that a machine whose speed drifts favours neither.
Process CPU time of one thread, from the spec file to the printed report; imports are left out of both. FACTOR: times the
workload's healthy learning rate, so that thresholds and remedies are tried too.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SPECS = Path(__file__).parent / "specs"
CASES = [("mlp", 1), ("conv", 1), ("lstm", 1), ("transformer", 1), ("mlp", 30), ("transformer", 50)]
SWEPT = 1 / 3
WARM_UP, HALF = 10, 400


def main() -> None:
    """Print a row a case, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="begin of a case's name")
    only = parser.parse_args().only
    print("| workload | verdict | steps | a bare step, ms | analyze, bare steps | ratio |\n|---|---|---|---|---|---|")
    for name, factor in CASES:
        if name.startswith(only):
            environment = os.environ | {"FACTOR": str(factor), "OMP_NUM_THREADS": "1"}
            code = f"from benchmarks.analyze import measure; measure({name!r})"
            subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def measure(name: str) -> None:
    """Print one case's row."""
    import gradscope
    from gradscope.cli.show import rendered

    target = str(SPECS / f"{name}.py")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADSCOPE_DIR"] = folder
        rendered(gradscope.analyze(target, steps=2, rehearse=False, verify=False), None, None)
        time_bare = _bare(target)
        before = time_bare()
        begun = time.process_time()
        report = gradscope.analyze(target)
        rendered(report, None, None)
        spent = time.process_time() - begun
    a_step = [(one + other) / 2 for one, other in zip(before, time_bare(), strict=True)]
    taken = _steps(report.run)
    steps, bare = sum(taken), sum(count * cost for count, cost in zip(taken, a_step, strict=True))
    row = [f"{name} × {os.environ['FACTOR']}", report.diagnosis.verdict.verdict, str(steps)]
    numbers = [f"{1e3 * bare / steps:.2f}", f"{spent * steps / bare:.0f}", f"{spent / bare:.3f}"]
    print(f"| {' | '.join(row + numbers)} |", flush=True)


def _steps(run) -> tuple[int, int]:
    """Steps taken without and with clipping."""
    taken = {one.header.trial: len(one.step) for one in run.trials.values()}
    clipped = sum(count for trial, count in taken.items() if trial.max_norm is not None)
    plain = sum(count * (SWEPT if trial.kind == "sweep" else 1) for trial, count in taken.items()) - clipped
    return round(len(run.step) + plain), clipped


def _bare(target: str) -> Callable[[], tuple[float, float]]:
    """A function that trains on and tells the CPU seconds of a bare step without and with clipping."""
    import torch

    from gradscope.workload import Overrides, read_workload

    workload = read_workload(target, overrides=Overrides(seed=0))
    parameters, indexes = list(workload.model.parameters()), itertools.count()

    def train(steps: int, clip: bool) -> float:
        begun = time.process_time()
        for index in itertools.islice(indexes, steps):
            for optimizer in workload.optimizers:
                optimizer.zero_grad()
            workload.training_step(workload.model, workload.batches.at(index)).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(parameters, 0.1)
            for one in (*workload.optimizers, *workload.schedulers):
                one.step()
        return (time.process_time() - begun) / steps

    train(WARM_UP, True)
    return lambda: (train(HALF, False), train(HALF, True))


if __name__ == "__main__":
    main()
