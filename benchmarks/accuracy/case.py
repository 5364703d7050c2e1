"""One training of the corpus: its parts, schedules and losses, and how it is built."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.accuracy import pieces

Schedule = Callable[[int], float]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
SHORT, LONG = 300, 1500


@dataclass(frozen=True)
class Case:
    """One training. `culprit`: the layer that was planted, if one was; `factor` and `group_lr` say how."""

    name: str
    family: str
    model: Callable[[], nn.Module]
    data: pieces.Batches
    loss: Loss
    lr: float
    optimizer: str = "sgd"
    schedule: Schedule | None = None
    steps: int = SHORT
    culprit: str | None = None
    factor: float = 1.0
    group_lr: float = 1.0
    eps: float = 1e-8


@dataclass
class Loaded:
    """A case in the names of a spec file."""

    model: nn.Module
    data: pieces.Batches
    training_step: Callable[[nn.Module, Any], torch.Tensor]
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    total_steps: int


def build(case: Case) -> Loaded:
    """Its training; the same every time."""
    torch.manual_seed(zlib.crc32(case.name.encode()))
    model = case.model()
    _plant(model, case)
    optimizer = _optimizer(model, case)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, case.schedule or (lambda _: 1.0))
    return Loaded(model, case.data, lambda m, b: case.loss(m(b[0]), b[1]), optimizer, scheduler, case.steps)


def scaled(case: Case, factor: float) -> Case:
    """The same training with its loss multiplied."""
    rate = case.lr / factor if case.optimizer in ("sgd", "momentum") else case.lr
    return replace(case, loss=lambda *batch: factor * case.loss(*batch), lr=rate, eps=factor * case.eps)


def _plant(model: nn.Module, case: Case) -> None:
    if case.culprit and case.factor != 1.0:
        with torch.no_grad():
            for name, parameter in model.get_submodule(case.culprit).named_parameters(recurse=False):
                if "weight" in name:
                    parameter.mul_(case.factor)


def _optimizer(model: nn.Module, case: Case) -> torch.optim.Optimizer:
    own = model.get_submodule(case.culprit) if case.culprit and case.group_lr != 1.0 else None
    apart = [p for p in own.parameters() if p.requires_grad] if own else []
    rest = [p for p in model.parameters() if p.requires_grad and all(p is not q for q in apart)]
    groups: list[dict[str, Any]] = [{"params": rest, "lr": case.lr}]
    if apart:
        groups.append({"params": apart, "lr": case.lr * case.group_lr})
    kinds = {
        "sgd": torch.optim.SGD,
        "momentum": partial(torch.optim.SGD, momentum=0.9),
        "adam": partial(torch.optim.Adam, eps=case.eps),
        "adamw": partial(torch.optim.AdamW, eps=case.eps),
        "rmsprop": partial(torch.optim.RMSprop, eps=case.eps),
    }
    return kinds[case.optimizer](groups, lr=case.lr)


def warm_up(steps: int) -> Schedule:
    """Linear to the peak."""
    return lambda step: min(1.0, (step + 1) / steps)


def cosine(steps: int) -> Schedule:
    """From the peak to zero."""
    return lambda step: 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def one_cycle(peak: int, steps: int) -> Schedule:
    """Up to the peak, then down to zero."""
    return lambda step: (
        (step + 1) / peak if step < peak else 0.5 * (1 + math.cos(math.pi * (step - peak) / (steps - peak)))
    )


def jump(at: int, factor: float) -> Schedule:
    """A sudden change of the rate."""
    return lambda step: 1.0 if step < at else factor


ce: Loss = F.cross_entropy
mse: Loss = F.mse_loss


def summed(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross entropy with reduction="sum": a large loss that is no explosion."""
    return F.cross_entropy(output, target, reduction="sum")


def negative(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A likelihood that becomes legitimately negative."""
    return ((output - target) ** 2 / 0.02).mean() + math.log(0.1)
