"""The learning rates that a training will have, by step of its plan, found without training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gradscope.workload.model import Workload

CYCLED = ("lr", "momentum", "betas")
"""What schedulers change in a parameter group."""

FARTHEST = 100_000
"""Steps up to which the schedulers are played; beyond, the plan's own samples say the rate."""

Group = Mapping[str, Any]


class PlannedRates:
    """`at(i)`: for each parameter group what the schedulers will have set at step i of the plan (0-based).

    Copies of the workload's schedulers, as they are now, are played on stand-ins for the optimizers, as far as asked.
    `first` is the step of the plan at which they stand; earlier ones are answered from there too.
    """

    def __init__(self, workload: Workload) -> None:
        self._plan = workload.plan
        stand_ins = {id(one): _stand_in(one) for one in workload.optimizers}
        self._groups = [group for one in stand_ins.values() for group in one.param_groups]
        self._schedulers = _copied(workload, stand_ins)
        self.first = max((int(getattr(one, "last_epoch", 0)) for one in workload.schedulers), default=0)
        self._known: list[list[Group]] = [self._read()]

    def at(self, index: int) -> Sequence[Group]:
        """The groups' `lr`, and `momentum` and `betas` where they have them, in the optimizers' order."""
        ahead = max(0, index - self.first)
        if ahead > FARTHEST or self._schedulers is None:
            return [dict(group, lr=rate) for group, rate in zip(self._known[0], self._sampled(index), strict=True)]
        if self._schedulers and len(self._known) <= ahead:
            self._play_on(max(ahead + 1, 2 * len(self._known)))
        return self._known[min(ahead, len(self._known) - 1)]

    def _read(self) -> list[Group]:
        return [{key: _plain(group[key]) for key in CYCLED if key in group} for group in self._groups]

    def _play_on(self, count: int) -> None:
        """Play so many steps in all, or as far as the schedulers can be played without the training.

        Many at once: after `catch_warnings` python shows the user's own warnings again that it had shown once.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                while len(self._known) < count:
                    for scheduler in self._schedulers or ():
                        scheduler.step()
                    self._known.append(self._read())
        except Exception:
            self._schedulers = ()

    def _sampled(self, index: int) -> Sequence[float]:
        """The plan's samples, on straight lines between them; without any, the rate now."""
        return self._plan.rates_at(index) or [group["lr"] for group in self._known[0]]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else copy.copy(value)


def _stand_in(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """An optimizer with the same groups and options over parameters of no size."""
    groups = [
        {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
        | {"params": [torch.zeros(0, requires_grad=True)]}
        for group in optimizer.param_groups
    ]
    return torch.optim.SGD(groups, lr=0.0)


def _copied(workload: Workload, stand_ins: Mapping[int, torch.optim.Optimizer]) -> Sequence[Any] | None:
    """The schedulers over the stand-ins; None where one cannot be copied."""
    same: dict[int, Any] = {id(workload.model): workload.model, **stand_ins}
    try:
        return copy.deepcopy(list(workload.schedulers), same)
    except Exception:
        return None
