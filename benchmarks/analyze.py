"""What `analyze` costs against bare training: python -m benchmarks.analyze [--only lstm]

The window and each trial of an analysis are trained again as many bare steps, each from the spec's own start, with torch's
own clipping where it was clipped (a swept batch, forward only, as a third of a step). That is timed between two analyses, so
that a machine whose speed drifts favours neither.
Process CPU time of one thread, from the spec file to the printed report; imports are left out of both. FACTOR: times the
workload's healthy learning rate, so that thresholds and remedies are tried too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SPECS = Path(__file__).parent / "specs"
CASES = [("mlp", 1), ("conv", 1), ("lstm", 1), ("transformer", 1), ("mlp", 30), ("transformer", 50)]
SWEPT = 1 / 3
WARM_UP = 10


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
    target = str(SPECS / f"{name}.py")
    _analyzed(target, steps=2, rehearse=False, verify=False)
    report, first = _analyzed(target)
    taken = [_steps(one.header.trial, len(one.step)) for one in (report.run, *report.run.trials.values())]
    bare, steps = sum(_bare(target, *one) for one in taken), sum(count for count, _ in taken)
    spent = (first + _analyzed(target)[1]) / 2
    row = [f"{name} × {os.environ['FACTOR']}", report.diagnosis.verdict.verdict, str(steps)]
    numbers = [f"{1e3 * bare / steps:.2f}", f"{spent * steps / bare:.0f}", f"{spent / bare:.3f}"]
    print(f"| {' | '.join(row + numbers)} |", flush=True)


def _analyzed(target: str, **how: Any) -> tuple[Any, float]:
    """A report, printed into nothing, and its CPU seconds."""
    import gradscope
    from gradscope.cli.show import rendered

    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADSCOPE_DIR"] = folder
        begun = time.process_time()
        report = gradscope.analyze(target, **how)
        rendered(report, None, None)
        return report, time.process_time() - begun


def _steps(trial: Any, count: int) -> tuple[int, bool]:
    """How many bare steps stand for a trial (None: the window), and whether they are clipped."""
    swept = trial is not None and trial.kind == "sweep"
    return round(count * (SWEPT if swept else 1)), trial is not None and trial.max_norm is not None


def _bare(target: str, steps: int, clip: bool) -> float:
    """CPU seconds of so many training steps."""
    import torch

    from gradscope.workload import Overrides, read_workload

    workload = read_workload(target, overrides=Overrides(seed=0))
    parameters = list(workload.model.parameters())
    begun = 0.0
    for index in range(WARM_UP + steps):
        if index == WARM_UP:
            begun = time.process_time()
        for optimizer in workload.optimizers:
            optimizer.zero_grad()
        workload.training_step(workload.model, workload.batches.at(index)).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        for one in (*workload.optimizers, *workload.schedulers):
            one.step()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
