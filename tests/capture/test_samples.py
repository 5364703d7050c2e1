"""A batch is taken apart, each sample measured by itself, and no trace is left in the training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradscope.capture.recorder import Recorder
from gradscope.capture.samples import run_samples
from gradscope.capture.snapshot import take
from gradscope.runs.reader import load_run
from gradscope.runs.run import Run
from gradscope.runs.schema import Ending, Plan, Trial
from gradscope.workload.model import Workload
from tests.capture.small_workloads import Dropped, Fixed, mse, regression, workload


def looked(work: Workload, folder: Path, step: int = 7, **how: Any) -> tuple[Ending, Run]:
    trial = Trial("samples", "samples-7", indexes=(step,))
    with Recorder(work.model, work.optimizers, directory=folder / "run") as parent:
        ending = run_samples(work, take(work), trial, parent, **how)
    return ending, load_run(folder / "run").trials["samples-7"]


def test_each_sample_has_the_loss_and_gradient_of_its_own(tmp_path: Path) -> None:
    work = workload(nn.Linear(4, 1), plan=Plan(accumulate=2))
    seen: list[int] = []
    ending, child = looked(work, tmp_path, on_step=lambda step: seen.append(step.index))
    assert ending == Ending("finished", 16)
    assert seen == [7]
    assert child.header.trial is not None
    assert child.header.trial.samples == tuple(range(8 * 14, 8 * 16))
    x, y = (torch.cat(parts) for parts in zip(*(work.batches.at(i) for i in (14, 15)), strict=True))
    for k in range(16):
        work.model.zero_grad()
        loss = mse(work.model, (x[k : k + 1], y[k : k + 1]))
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in work.model.parameters() if p.grad is not None])
        assert child.loss[k] == pytest.approx(loss.item())
        assert child.global_norm[k] == pytest.approx(gradients.norm().item())
    _, peaks = child.probes.matrix("input_peak", ["input"])
    expected = np.maximum(x.abs().amax(1).numpy(), y.abs()[:, 0].numpy())
    np.testing.assert_allclose(peaks[:, 0], expected)


def test_the_training_is_left_as_it_was(tmp_path: Path) -> None:
    model = Dropped()
    work = workload(model)
    before, random_state = model.fc1.weight.clone(), torch.get_rng_state()
    _, child = looked(work, tmp_path)
    assert len(child.loss) == 8
    assert model.training
    assert model.drop.training
    assert torch.equal(model.fc1.weight, before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(model.norm.running_mean, torch.zeros(8))  # type: ignore[arg-type]
    assert model.calls == 0
    assert model.fc1.weight.grad is None


def test_places_that_are_unknown_are_left_out(tmp_path: Path) -> None:
    _, child = looked(workload(nn.Linear(4, 1)), tmp_path, 100)
    assert len(child.loss) == 8
    assert child.header.trial is not None
    assert child.header.trial.samples == ()


@pytest.mark.parametrize(
    ("batches", "how", "said"),
    [
        (Fixed(lambda g: (torch.ones(5, 4), torch.ones(1))), {}, "the batch has no rows to take apart"),
        (Fixed(regression, length=3), {}, "the batch has no rows to take apart"),
        (Fixed(lambda g: (torch.ones(8, 5), torch.ones(8, 1))), {}, "RuntimeError: mat1"),
        (Fixed(regression), {"deadline": time.monotonic() - 1}, "the time budget ended"),
    ],
)
def test_what_ends_it_early(tmp_path: Path, batches: Any, how: dict[str, Any], said: str) -> None:
    model = nn.Linear(4, 1)
    ending, child = looked(workload(model, batches=batches), tmp_path, **how)
    assert said in (ending.message or "")
    assert not len(child.loss)
    assert model.training
