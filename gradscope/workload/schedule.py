"""The planned learning rates, read from a copy of the scheduler so that the real one is not touched."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

EXACT = 60
"""The first steps are all sampled: the window lies in them."""
POINTS = 400
AHEAD = 1_000_000
"""A schedule is read ahead for so many steps at most, about ten seconds."""

Rates = tuple[tuple[float, ...], ...]


def sample_steps(total: int) -> tuple[int, ...]:
    """The steps at which the schedule is sampled: all of the first 60, then evenly to the last, 400 at most."""
    if total <= POINTS:
        return tuple(range(total))
    rest = np.linspace(EXACT, total - 1, POINTS - EXACT).round().astype(int)
    return (*range(EXACT), *(int(step) for step in np.unique(rest)))


def planned_rates(optimizers: Sequence[Optimizer], schedulers: Sequence[Any], steps: Sequence[int]) -> Rates:
    """The learning rate of every group at each of `steps` (ascending), by stepping copies of the schedulers.

    Raises whatever the copy raises: a scheduler that cannot be copied has no planned rates.
    """
    memo: dict[int, Any] = {id(optimizer): _stand_in(optimizer) for optimizer in optimizers}
    doubles = [memo[id(optimizer)] for optimizer in optimizers]
    copies = copy.deepcopy(list(schedulers), memo)
    rates, at = [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in steps:
            if len(copies) == 1 and type(copies[0]) is LambdaLR and step > at:
                copies[0].last_epoch, at = step - 1, step - 1  # its rate depends on the step alone: no need to go there
            while at < step:
                for scheduler in copies:
                    scheduler.step()
                at += 1
            rates.append(current_rates(doubles))
    return tuple(rates)


def current_rates(optimizers: Sequence[Optimizer]) -> tuple[float, ...]:
    """The learning rate of every parameter group now, in the order of the optimizers."""
    return tuple(float(group.get("lr", 0.0)) for optimizer in optimizers for group in optimizer.param_groups)


def _stand_in(optimizer: Optimizer) -> Optimizer:
    """An optimizer with the same groups and settings over one-element parameters."""
    groups = [{**_settings(group), "params": [torch.zeros(1, requires_grad=True)]} for group in optimizer.param_groups]
    double = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    double.param_groups = groups
    double.defaults = dict(optimizer.defaults)
    return double


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.detach().clone() if isinstance(value, torch.Tensor) else copy.copy(value)
        for key, value in group.items()
        if key != "params"
    }


def follows_a_metric(scheduler: Any) -> bool:
    """Whether it must be told a validation metric at every step, which is not measured here."""
    return isinstance(scheduler, ReduceLROnPlateau)


class EveryFew:
    """A scheduler that is stepped once every `every` optimizer steps: Lightning's once an epoch."""

    def __init__(self, scheduler: Any, every: int) -> None:
        self.scheduler, self.every, self.count = scheduler, every, 0
        self.optimizer = getattr(scheduler, "optimizer", None)

    def step(self) -> None:
        """Count one optimizer step."""
        self.count += 1
        if self.count % self.every == 0:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The count and the scheduler's own state."""
        return {"count": self.count, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.count = state["count"]
        self.scheduler.load_state_dict(state["scheduler"])
