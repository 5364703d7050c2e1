"""A sweep looks at coming batches and leaves no trace in the training."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradscope.capture.recorder import Recorder
from gradscope.capture.snapshot import take
from gradscope.capture.sweep import run_sweep
from gradscope.runs.reader import load_run
from gradscope.runs.run import Run
from gradscope.runs.schema import Ending, Plan, Trial
from gradscope.workload.model import Workload
from tests.capture.small_workloads import Dropped, Fixed, regression, workload


def swept(work: Workload, folder: Path, indexes: Any, **how: Any) -> tuple[Ending, Run]:
    with Recorder(work.model, work.optimizers, directory=folder / "run") as parent:
        ending = run_sweep(work, take(work), Trial("sweep", "sweep", indexes=tuple(indexes)), parent, **how)
    return ending, load_run(folder / "run").trials["sweep"]


def test_the_worst_batch_is_seen_without_training_on_it(tmp_path: Path) -> None:
    def make(generator: torch.Generator) -> Any:
        x, y = regression(generator)
        return x, y * (100 if generator.initial_seed() in (14, 15) else 1)

    model = Dropped()
    work = workload(model, batches=Fixed(make), plan=Plan(accumulate=2))
    before, random_state = model.fc1.weight.clone(), torch.get_rng_state()
    seen: list[int] = []
    ending, child = swept(work, tmp_path, range(20), on_step=lambda step: seen.append(step.index))
    assert ending == Ending("finished", 20)
    assert child.loss.argmax() == 7
    assert seen == list(range(20))
    assert child.nonfinite.tolist() == [0] * 20
    assert torch.equal(model.fc1.weight, before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(model.norm.running_mean, torch.zeros(8))  # type: ignore[arg-type]
    assert model.calls == 0


def test_a_batch_that_fails_counts_as_the_worst(tmp_path: Path) -> None:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        if batch == 1:
            raise ValueError("no")
        return torch.tensor(float(batch))

    work = workload(nn.Linear(4, 1), training_step=step, batches=Fixed(lambda g: g.initial_seed(), 4, near=9))
    ending, child = swept(work, tmp_path, range(6))
    assert ending.message == "the data ended"
    assert child.loss.tolist() == [0.0, math.inf, 2.0, 3.0]


@pytest.mark.parametrize(
    ("near", "how", "word"),
    [(3, {}, "the coming batches are out of reach"), (9, {"deadline": time.monotonic() - 1}, "the time budget ended")],
)
def test_what_ends_it_early(tmp_path: Path, near: int, how: dict[str, Any], word: str) -> None:
    work = workload(nn.Linear(4, 1), batches=Fixed(regression, near=near))
    ending, child = swept(work, tmp_path, range(6), **how)
    assert ending.message == child.header.ending.message == word
    assert ending.step == len(child.step)
