"""How large the data is, and a training on data with mean 0 and variance 1 in each feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradscope.capture.data import DataProbe, standard_inputs, standard_targets
from gradscope.capture.recorder import Recorder
from gradscope.capture.snapshot import take
from gradscope.capture.trials import run_trial, standardised
from gradscope.runs.reader import load_run
from gradscope.runs.schema import TARGETS, Trial
from gradscope.workload.model import Workload
from gradscope.workload.steps import CriterionStep
from tests.capture.small_workloads import Fixed, workload

Row = tuple[str, float, int]


def approximately(subject: str, value: float, index: int) -> Any:
    return subject, pytest.approx(value), index


def small(model: nn.Module, data: Any, criterion: Callable[[Any, Any], torch.Tensor] = F.mse_loss) -> Workload:
    """One batch, again and again."""
    return workload(model=model, batches=Fixed(lambda _: data), training_step=CriterionStep(criterion))


def probed(work: Workload) -> dict[str, Row]:
    """What is emitted on the first of two sampled steps; nothing may be on the second."""
    probe, rows = DataProbe(work), {}

    def emit(probe: str, subjects: Sequence[str], values: Sequence[float], index: Sequence[int] | None = None) -> None:
        assert probe not in rows
        (rows[probe],) = zip(subjects, values, index or [0], strict=True)

    for step in range(2):
        probe.begin(step)
        work.training_step(work.model, work.batches.at(step))
        probe.end(step, emit)
    assert not any(module._forward_pre_hooks for module in work.model.modules())
    return rows


def test_the_size_of_each_feature_and_of_the_targets() -> None:
    x = torch.tensor([[1.0, 100.0, 3.0], [-1.0, -300.0, 4.0]])
    y = torch.tensor([[30.0], [40.0]])
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    work = small(model, (x, y))
    rows = probed(work)
    sizes = [1.0, (5e4) ** 0.5, 12.5**0.5]
    assert rows["input_rms"] == approximately("0", (sum(size**2 for size in sizes) / 3) ** 0.5, 0)
    assert rows["input_largest"] == approximately("0", sizes[1], 1)
    assert rows["input_median"] == approximately("0", sizes[2], 3)
    assert rows["target_rms"][1] == pytest.approx(1250**0.5)
    assert rows["output_rms"][1] == pytest.approx(float(model(x).detach().pow(2).mean().sqrt()))
    assert work.training_step == CriterionStep(F.mse_loss)


def test_channels_of_images() -> None:
    x = torch.ones(2, 3, 4, 4) * torch.tensor([1.0, 2.0, 50.0])[:, None, None]
    rows = probed(small(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), (x, torch.zeros(2, 8))))
    assert rows["input_largest"] == approximately("0", 50, 2)
    assert rows["input_median"] == approximately("0", 2, 3)


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3)), (torch.tensor([1, 2]), torch.tensor([0, 1]))),
        (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), (1e3 * torch.randn(8, 4), torch.arange(8) % 3)),
    ],
    ids=["tokens", "a trained norm comes first"],
)
def test_what_is_no_data_has_no_size(model: nn.Module, batch: Any) -> None:
    assert probed(small(model, batch, F.cross_entropy)) == {}


def odd_batch() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(3)) * torch.tensor([1.0, 1e4, 0.5]) + 7
    return x, 5e3 + 1e3 * x[:, :1] / 3 + x[:, 2:]


def standard(values: torch.Tensor) -> torch.Tensor:
    return (values - values.mean(0)) / values.std(0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def plainly(x: torch.Tensor, y: torch.Tensor, steps: int) -> tuple[list[float], nn.Module]:
    model, losses = network(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses, model


def tried(work: Workload, folder: Path, what: str) -> list[float]:
    trial = Trial("remedy", "data", indexes=tuple(range(20)), standardised=(what,))
    with Recorder(work.model, work.optimizers, directory=folder / "run") as parent:
        run_trial(work, take(work), trial, parent, change=standardised(what))
    losses: list[float] = load_run(folder / "run").trials["data"].loss.tolist()
    return losses


def test_inputs_are_those_of_a_training_on_standard_ones(tmp_path: Path) -> None:
    x, y = odd_batch()
    losses, _ = plainly(standard(x), y, 20)
    assert tried(small(network(), (x, y)), tmp_path, "0") == pytest.approx(losses, rel=1e-5)


def test_targets_are_those_of_a_training_on_standard_ones_and_losses_of_their_own_scale(tmp_path: Path) -> None:
    x, y = odd_batch()
    losses, _ = plainly(x, standard(y), 20)
    shown = tried(small(network(), (x, y)), tmp_path, TARGETS)
    assert shown == pytest.approx([loss * float(y.std()) ** 2 for loss in losses], rel=1e-4)


def test_nothing_is_left_when_it_is_over() -> None:
    work = small(network(), odd_batch())
    step = work.training_step
    with pytest.raises(RuntimeError, match="mat1 and mat2"), standard_inputs(work, "0"), standard_targets(work):
        work.training_step(work.model, (torch.randn(9, 5), torch.randn(9, 1)))
    assert work.training_step is step
    assert not any(module._forward_pre_hooks for module in work.model.modules())


def test_a_feature_that_never_varies_and_a_batch_of_one() -> None:
    seen: list[torch.Tensor] = []
    model = nn.Sequential(nn.Linear(2, 1))
    model[0].register_forward_hook(lambda module, args, out: seen.append(args[0]))
    for x in (torch.tensor([[1.0, 5.0]] * 9 + [[3.0, 5.0]]), torch.tensor([[4.0, 0.0]])):
        work = small(model, (x, torch.zeros(len(x), 1)))
        with standard_inputs(work, "0"):
            work.training_step(model, work.batches.at(0))
    assert seen[0][:, 1].tolist() == [0.0] * 10
    assert seen[0][:, 0].std() == pytest.approx(1)
    assert seen[1].tolist() == [[1.0, 0.0]]


def test_a_keyword_and_half_precision() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 1, dtype=torch.bfloat16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.fc(input=x)
            return out

    model, seen = Named(), []
    model.fc.register_forward_hook(lambda module, args, kwargs, out: seen.append(kwargs["input"]), with_kwargs=True)
    x = torch.randn(64, 3).bfloat16() * torch.tensor([1, 900, 30]).bfloat16()
    work = small(model, (x, x[:, :1]))
    assert probed(work)["input_largest"][2] == 1
    with standard_inputs(work, "fc"):
        work.training_step(model, work.batches.at(0))
    assert seen[-1].dtype is torch.bfloat16
    assert float(seen[-1].float().pow(2).mean()) == pytest.approx(1, abs=0.05)
