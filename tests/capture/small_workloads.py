"""Small workloads for tests of what is measured and tried on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gradscope.runs.schema import Plan
from gradscope.workload.model import DataEndedError, Workload


class Fixed:
    """Batches made from their index alone; `length` micro-steps of them, those up to `near` within reach."""

    shuffled = False

    def __init__(self, make: Callable[[torch.Generator], Any], length: int = 10_000, near: int | None = None) -> None:
        self.make, self.length, self.near = make, length, length if near is None else near
        self.asked: list[int] = []

    def at(self, index: int) -> Any:
        self.asked.append(index)
        if index >= self.length:
            raise DataEndedError
        return self.make(torch.Generator().manual_seed(index))

    def reach(self, index: int) -> bool:
        return index < self.near

    def places(self, index: int) -> list[int]:
        return list(range(8 * index, 8 * index + 8)) if index < 100 else []


def regression(generator: torch.Generator, width: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(8, width, generator=generator)
    return x, x.sum(1, keepdim=True).sin()


def mse(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    x, y = batch
    return F.mse_loss(model(x), y)


class Dropped(nn.Module):
    """Dropout, batch norm and a step counter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.drop = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.fc2 = nn.Linear(8, 1)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.fc2(self.drop(torch.relu(self.norm(self.fc1(x))))) * (1 + 0.01 * self.calls)


PLAN = Plan(total_steps=1000)


def workload(
    model: nn.Module | None = None,
    optimizers: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    schedulers: Callable[[torch.optim.Optimizer], Any] | None = None,
    training_step: Callable[[nn.Module, Any], torch.Tensor] = mse,
    batches: Any = None,
    plan: Plan = PLAN,
    seed: int = 0,
    **more: Any,
) -> Workload:
    torch.manual_seed(seed)
    model = model if model is not None else Dropped()
    optimizer = optimizers(model) if optimizers else torch.optim.Adam(model.parameters(), lr=0.01)
    return Workload(
        name="small",
        source="small.py",
        model=model,
        training_step=training_step,
        batches=batches if batches is not None else Fixed(regression),
        optimizers=(optimizer,),
        schedulers=(schedulers(optimizer),) if schedulers else (),
        plan=plan,
        pieces=(),
        seed=seed,
        device=torch.device("cpu"),
        **more,
    )
