"""One suite for every integration: the same run as the plain loop, and the same training with and without gradscope.

An integration is a function `train(case, folder, recorded) -> Outcome`. The plain loop here is the reference: it measures
with nothing but float64 sums.
"""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils import clip_grad
from torch.optim import lr_scheduler, optimizer
from torch.utils.data import dataloader

from gradscope.capture.recorder import active
from gradscope.runs.run import Run

WIDTH, BATCH, RATE = 6, 8, 0.05


@dataclass(frozen=True)
class Case:
    """A small training. `stops`: (step, exception) that the data raises instead of that step's first batch."""

    name: str
    steps: int = 5
    accumulate: int = 1
    max_norm: float | None = None
    init_scale: float | None = None
    stops: tuple[int, type[BaseException]] | None = None


class StopError(Exception):
    """Raised by the data of a case that stops."""


PLAIN = Case("plain")
CASES = (
    PLAIN,
    Case("accumulated", accumulate=3),
    Case("clipped", max_norm=1.0),
    Case("accumulated and clipped", accumulate=2, max_norm=1.0),
    Case("scaled", init_scale=2.0**127),
    Case("scaled and clipped", init_scale=2.0**127, max_norm=1.0),
    Case("raised", stops=(3, StopError)),
    Case("interrupted", stops=(3, KeyboardInterrupt)),
)


@dataclass
class Outcome:
    """What a training did: the loss of every micro-step, the weights at its end, and the runs recorded of it."""

    losses: list[float] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)


@dataclass
class Expected:
    """One entry an optimizer step."""

    norms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    skipped: list[bool] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)


Train = Callable[[Case, Path, bool], Outcome]


def make_model() -> nn.Module:
    """The same weights each time."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(WIDTH, 12), nn.Tanh(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 1))


def make_data(case: Case) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One batch a micro-step; where the loss is scaled by 2¹²⁷, the second step's target is large enough to overflow."""
    generator = torch.Generator().manual_seed(5)
    batches = []
    for i in range(case.steps * case.accumulate):
        inputs = torch.randn(BATCH, WIDTH, generator=generator)
        target = inputs.sum(1, keepdim=True) / 10
        overflows = case.init_scale is not None and i // case.accumulate == 1
        batches.append((inputs, target + 30.0 if overflows else target))
    return batches


def check_raises(case: Case, micro_step: int) -> None:
    """What the data of a case that stops does before that batch."""
    if case.stops is not None and micro_step == case.stops[0] * case.accumulate:
        raise case.stops[1]("the data stops here")


def loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], case: Case) -> torch.Tensor:
    """The loss that is differentiated: divided by the number of micro-steps."""
    return nn.functional.mse_loss(model(batch[0]), batch[1]) / case.accumulate


def plain_loop(case: Case) -> Expected:
    """The reference: no gradscope, norms by float64 sums."""
    model, expected = make_model(), Expected()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=case.init_scale or 1.0, enabled=case.init_scale is not None)
    data = make_data(case)
    for step in range(case.steps if case.stops is None else case.stops[0]):
        losses = []
        for batch in data[step * case.accumulate : (step + 1) * case.accumulate]:
            loss = loss_of(model, batch, case)
            scaler.scale(loss).backward()
            losses.append(loss.item())
        scale = scaler.get_scale()
        scaler.unscale_(optimizer)
        norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters()))
        if case.max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), case.max_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        expected.norms.append(norm)
        expected.losses.append(sum(losses) / len(losses))
        expected.skipped.append(scaler.is_enabled() and scaler.get_scale() < scale)
        expected.scales.append(scale if scaler.is_enabled() else math.nan)
    return expected


def check(train: Train, case: Case, folder: Path) -> None:
    """Hold one integration to the reference on one case."""
    bare = train(case, folder / "bare", False)
    before = _replaceable()
    recorded = train(case, folder / "recorded", True)
    assert _replaceable() == before
    assert not active
    assert recorded.losses == bare.losses
    assert all(torch.equal(recorded.weights[name], bare.weights[name]) for name in bare.weights)
    assert not bare.runs
    assert len(recorded.runs) == 1
    check_run(recorded.runs[0], case, plain_loop(case))


def check_two(train: Train, folder: Path) -> None:
    """Two models in one process, one after the other, are a run each."""
    for name in ("first", "second"):
        outcome = train(PLAIN, folder / name, True)
        assert len(outcome.runs) == 1
        check_run(outcome.runs[0], PLAIN, plain_loop(PLAIN))
        gc.collect()


def _replaceable() -> list[object]:
    """Whatever an integration might replace or hang a hook on, in torch, in the interpreter and in live modules."""
    clips = [clip_grad.clip_grad_norm_, clip_grad.clip_grad_value_, clip_grad._get_total_norm]
    inner = [cell.cell_contents for clip in clips for cell in clip.__closure__ or ()]
    owners = (optimizer.Optimizer, torch.amp.GradScaler, lr_scheduler.LRScheduler, dataloader._BaseDataLoaderIter)
    methods = [(owner, dict(vars(owner))) for owner in (*owners, torch.autograd.graph.saved_tensors_hooks)]
    hooks = [len(optimizer._global_optimizer_pre_hooks), len(optimizer._global_optimizer_post_hooks)]
    modules = [one for one in gc.get_objects() if issubclass(type(one), nn.Module) and "_modules" in vars(one)]
    hooks += [sum(len(one._forward_pre_hooks) + len(one._forward_hooks) + len(one._backward_hooks) for one in modules)]
    return [
        *clips,
        *inner,
        *methods,
        *hooks,
        torch.autograd._engine_run_backward,
        os._exit,
        sys.excepthook,
        *sys.meta_path,
    ]


def check_offender(run: Run) -> None:
    """A NaN in the fourth batch of two a step was seen where it came in."""
    found = run.header.first_nonfinite
    assert found is not None
    assert (found.step, found.micro_step, found.batch) == (1, 1, 3)
    assert (found.went_first, found.parameter) == ("input", None)
    assert found.layer.endswith("0")


def check_run(run: Run, case: Case, expected: Expected) -> None:
    """The run that was recorded of `case` says what the reference does."""
    assert run.step.tolist() == list(range(len(expected.norms)))
    taken = ~np.asarray(expected.skipped, bool)
    np.testing.assert_allclose(run.global_norm[taken], np.asarray(expected.norms)[taken], rtol=1e-6)
    assert not np.isfinite(run.global_norm[~taken]).any()
    np.testing.assert_allclose(run.loss[taken], np.asarray(expected.losses)[taken], rtol=1e-6)
    assert run.skipped.tolist() == expected.skipped
    assert run.micro_steps.tolist() == [case.accumulate] * len(expected.norms)
    np.testing.assert_array_equal(run.max_norm, [math.nan if case.max_norm is None else case.max_norm] * len(run.step))
    np.testing.assert_array_equal(run.loss_scale, expected.scales)
    np.testing.assert_allclose(run.lr, RATE)
    assert run.header.measured_at == "pre_clip"
    assert run.header.gradients_are == "unscaled"
    assert [parameter.shape for parameter in run.header.parameters] == [
        tuple(p.shape) for p in make_model().parameters()
    ]
    assert run.header.first_nonfinite is None
    hows = {None: "finished", StopError: "failed", KeyboardInterrupt: "interrupted"}
    assert run.header.ending.how == hows[case.stops and case.stops[1]]
    assert run.header.ending.step == len(expected.norms)
