"""A few small gradients that are watched closely, so that the rest need to be read only once a step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from gradscope.capture.magnitude import l2
from gradscope.capture.recorder import Reading
from gradscope.runs.schema import Parameter

SMALL = 1 << 14
SAME = 1e-4
"""Relative difference below which two norms of one gradient count as the same."""

Mark = tuple[tuple[int, int] | None, ...]


class Sentinels:
    """Two parameters: the first that the forward pass uses (a NaN anywhere reaches it) and the largest gradient.

    Their values are read where that needs no device to be waited for; elsewhere only whether they were written to.
    """

    def __init__(
        self, tensors: Sequence[torch.Tensor], parameters: Sequence[Parameter], live: Iterable[int] | None = None
    ) -> None:
        """`live`: the places of those that get gradients, by default of those that have one now."""
        self._tensors = tensors
        live = [i for i, tensor in enumerate(tensors) if tensor.grad is not None] if live is None else [*map(int, live)]
        self._small = np.array([i for i in live if tensors[i].numel() <= SMALL] or live[:1], int)
        earliest = min((parameters[i].order for i in live), default=0)
        first = [i for i in live if parameters[i].order == earliest]
        self._first = min(first, key=lambda i: tensors[i].numel(), default=None)
        self._spare = max(live, key=lambda i: parameters[i].order, default=None)
        self._chosen: dict[int, torch.Tensor] = {}
        self.follow(None)

    def follow(self, reading: Reading | None) -> None:
        """Watch the largest gradient of `reading` too."""
        largest = None
        if reading is not None and reading.norms.ready and len(self._small):
            largest = int(self._small[np.argmax(np.nan_to_num(reading.norms.peak[self._small], nan=-1.0))])
        chosen = [i for i in dict.fromkeys((self._first, largest, self._spare)) if i is not None]
        self._chosen = {i: self._tensors[i] for i in chosen[:2]}

    def mark(self) -> Mark:
        """Changes when any of them is written to, replaced or removed."""
        return mark(self._chosen.values())

    def spared(self, before: Mark, now: Mark) -> bool:
        """Whether none of them was written to between two marks of all parameters."""
        return bool(before) and all(before[i] == now[i] for i in self._chosen)

    @property
    def gone(self) -> bool:
        """Whether no parameter has a gradient, or each is zero."""
        return _zero(self._chosen.values()) and _zero(self._tensors)

    def norms(self) -> dict[int, float]:
        """Their norms by index; empty where reading them would wait for a device."""
        found = {}
        for i, tensor in self._chosen.items():
            if (grad := tensor.grad) is not None and grad.is_cpu and grad.numel() <= SMALL:
                found[i] = l2(grad)
        return found


def _zero(tensors: Iterable[torch.Tensor]) -> bool:
    grads = (tensor.grad for tensor in tensors)
    return all(grad is None or (grad.is_cpu and not bool(grad.any())) for grad in grads)


def mark(tensors: Iterable[torch.Tensor]) -> Mark:
    """Changes when the gradient of any of them is written to, replaced or removed."""
    return tuple([None if (grad := one.grad) is None else (id(grad), grad._version) for one in tensors])


def ratios(before: dict[int, float], after: dict[int, float]) -> list[float]:
    """after ÷ before of those that both know and that are neither zero nor nonfinite."""
    pairs = [(before[i], after[i]) for i in before if i in after]
    return [b / a for a, b in pairs if a > 0 and math.isfinite(a) and math.isfinite(b)]


def unchanged(found: list[float]) -> bool:
    """Whether every ratio is one."""
    return all(abs(ratio - 1) <= SAME for ratio in found)


def uniform(found: list[float]) -> bool:
    """Whether every ratio is the same."""
    return bool(found) and max(found) - min(found) <= SAME * max(found)
