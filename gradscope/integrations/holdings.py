"""What optimizers hold: which of them are alive, their parameters, and when the gradients of those change."""

from __future__ import annotations

import weakref
from collections.abc import Container, Iterator, Sequence
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


class Holdings:
    """What the optimizers of one training hold, as last looked at: scripts replace parameters, and add more."""

    def __init__(self) -> None:
        self._ends: dict[int, tuple[int, ...]] = {}
        self._keys: dict[int, list[int]] = {}

    def news(self, optimizer: torch.optim.Optimizer, known: Container[int]) -> tuple[dict[int, torch.Tensor], bool]:
        """Parameters that are not `known` (by id) and took the place of another one, by its id; and whether there are more.

        Looked for where the first parameter of the first or last group, or a number, is another than before.
        """
        if (ends := _ends(optimizer)) == self._ends.get(id(optimizer)):
            return {}, False
        now = held(optimizer)
        before = [self._keys.pop(id(optimizer), []), *self._keys.values()]
        self._ends[id(optimizer)], self._keys[id(optimizer)] = ends, [id(p) for p in now]
        new = {id(p) for p in now} - {id(p) for p in now if id(p) in known}
        for keys in before:
            swaps = {key: p for key, p in zip(keys, now, strict=False) if key != id(p)}
            if len(keys) == len(now) and {id(p) for p in swaps.values()} == new:
                return swaps, False
        return {}, bool(new)

    def forget(self, optimizer: torch.optim.Optimizer) -> None:
        """It is another one, perhaps with the id of one that is gone."""
        self._ends.pop(id(optimizer), None)


def _ends(optimizer: torch.optim.Optimizer) -> tuple[int, ...]:
    groups = optimizer.param_groups
    first, last = groups[0]["params"], groups[-1]["params"]
    return len(groups), len(first), len(last), *map(id, (*first[:1], *last[:1], *last[-1:]))


def held(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The parameters of all its groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def mark_of(optimizer: torch.optim.Optimizer) -> Mark:
    """Changes when any of its gradients is written to, replaced or removed."""
    return mark(held(optimizer))
