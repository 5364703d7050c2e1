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
        self._begins: dict[int, list[int]] = {}
        self._keys: dict[int, list[int]] = {}

    def news(
        self, optimizer: torch.optim.Optimizer, own: Container[int], known: Container[int], *, closely: bool
    ) -> tuple[dict[int, torch.Tensor], bool]:
        """Parameters that no training has (`known`, by id) in place of one of its `own`, by its id; and whether there are
        more. Looked for where the first parameter of a group, or a number of them, is another than before; or `closely`.
        """
        if (begins := _begins(optimizer)) == self._begins.get(id(optimizer)) and not closely:
            return {}, False
        now = held(optimizer)
        keys = [id(p) for p in now]
        if keys == self._keys.get(id(optimizer)):
            return {}, False
        before = [self._keys.pop(id(optimizer), []), *self._keys.values()]
        self._begins[id(optimizer)], self._keys[id(optimizer)] = begins, keys
        new = {key for key in keys if key not in known}
        for old in before:
            swaps = {key: p for key, p in zip(old, now, strict=False) if key != id(p)}
            if len(old) == len(now) and {id(p) for p in swaps.values()} == new and all(key in own for key in swaps):
                return swaps, False
        return {}, bool(new)

    def forget(self, optimizer: torch.optim.Optimizer) -> None:
        """It is another one, perhaps with the id of one that is gone."""
        self._begins.pop(id(optimizer), None)


def _begins(optimizer: torch.optim.Optimizer) -> list[int]:
    """The first parameter of each group and how many there are, and the last one of all."""
    groups = [group["params"] for group in optimizer.param_groups]
    return [*(id(group[0]) if group else 0 for group in groups), *map(len, groups), *map(id, groups[-1][-1:])]


def held(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The parameters of all its groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def mark_of(optimizer: torch.optim.Optimizer) -> Mark:
    """Changes when any of its gradients is written to, replaced or removed."""
    return mark(held(optimizer))
