"""What optimizers hold: which of them are alive, their parameters, and when the gradients of those change."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gradscope.integrations.sentinels import Mark, mark


class Registry:
    """The optimizers that are alive, in the order in which they were made."""

    def __init__(self) -> None:
        self._references: list[weakref.ref[torch.optim.Optimizer]] = []

    def add(self, optimizer: torch.optim.Optimizer) -> None:
        """Remember one more."""
        self._references = [reference for reference in self._references if reference() is not None]
        self._references.append(weakref.ref(optimizer))

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        return (one for reference in self._references if (one := reference()) is not None)


class ByHand:
    """Stands for the optimizer of a script that has none, so that parameters no module owns are recorded too."""

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        self.param_groups = [{"params": list(parameters)}]
        self.defaults: dict[str, Any] = {}


def held(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The parameters of all its groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def mark_of(optimizer: torch.optim.Optimizer) -> Mark:
    """Changes when any of its gradients is written to, replaced or removed."""
    return mark(held(optimizer))
