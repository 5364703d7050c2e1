"""Own targets against those of other samples, at the end of a rehearsal of the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradscope.capture.recorder import Recorder
from gradscope.capture.snapshot import take
from gradscope.capture.trials import run_trial
from gradscope.runs.reader import load_run
from gradscope.runs.schema import Plan, Trial
from tests.capture.small_workloads import Fixed, regression, workload


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value.expand(len(x), 1)


def measured(folder: Path, steps: int = 60, factor: float = 1.0, **how: Any) -> Any:
    """(rows, 2): the losses with own and with others' targets."""
    work = workload(**{"model": nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))} | how)
    with Recorder(work.model, work.optimizers, directory=folder / "run") as parent:
        run_trial(work, take(work), Trial("rehearsal", "x", lr_factor=factor, indexes=tuple(range(steps))), parent)
    return load_run(folder / "run").trials["x"].probes.matrix("target_loss", ["own", "others"])


def test_what_was_learned_does_better_on_its_own_targets(tmp_path: Path) -> None:
    steps, losses = measured(tmp_path, optimizers=lambda m: torch.optim.Adam(m.parameters(), lr=0.05), steps=200)
    assert steps.tolist() == list(range(190, 200))
    assert (losses[:, 0] < 0.8 * losses[:, 1]).all()


def test_a_model_that_ignores_its_input_does_as_well_on_either(tmp_path: Path) -> None:
    _, losses = measured(tmp_path, model=Constant())
    assert losses[:, 0].tolist() == pytest.approx(losses[:, 1].tolist(), rel=1e-5)
    assert len(losses) == 10


def test_labels_of_a_mapping(tmp_path: Path) -> None:
    def batch(generator: torch.Generator) -> dict[str, torch.Tensor]:
        x, y = regression(generator)
        return {"x": x, "labels": y}

    def step(model: nn.Module, one: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.mse_loss(model(one["x"]), one["labels"])

    plain = measured(tmp_path / "pair")[1]
    assert np.array_equal(measured(tmp_path / "mapping", batches=Fixed(batch), training_step=step)[1], plain)


def alone(generator: torch.Generator) -> torch.Tensor:
    return regression(generator)[0]


def one_sample(generator: torch.Generator) -> Any:
    return tuple(part[:1] for part in regression(generator))


def unlike(generator: torch.Generator) -> Any:
    return regression(generator), None


def apart(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch[0]).square().mean() + batch[1].square().mean()


@pytest.mark.parametrize(
    ("batch", "step"),
    [
        (alone, lambda model, x: model(x).square().mean()),
        (one_sample, lambda model, b: F.mse_loss(model(b[0]), b[1])),
        (unlike, lambda model, b: F.mse_loss(model(b[0][0]), b[0][1])),
        (regression, lambda model, b: F.mse_loss(model(b[0]), b[0][:, :1])),
        (regression, apart),
    ],
    ids=["no target", "one sample", "another form", "target ignored", "target apart from input"],
)
def test_what_cannot_be_exchanged_is_not_measured(tmp_path: Path, batch: Any, step: Any) -> None:
    assert not len(measured(tmp_path, batches=Fixed(batch), training_step=step)[1])


def test_a_loss_that_takes_no_other_batch_is_not_measured(tmp_path: Path) -> None:
    def picky(model: nn.Module, batch: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            raise ValueError("only for training")
        return F.mse_loss(model(batch[0]), batch[1])

    assert not len(measured(tmp_path, training_step=picky)[1])


@pytest.mark.parametrize("trial", [{"factor": 2.0}, {"steps": 9}])
def test_only_rehearsals_of_the_plan_that_are_long_enough(tmp_path: Path, trial: Any) -> None:
    assert not len(measured(tmp_path, **trial)[1])


def test_the_first_micro_batch_of_each_step(tmp_path: Path) -> None:
    batches = Fixed(regression)
    measured(tmp_path, steps=10, batches=batches, plan=Plan(accumulate=2))
    assert batches.asked == [*range(20), *range(0, 20, 2)]
