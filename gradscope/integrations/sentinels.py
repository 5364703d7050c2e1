"""A few small gradients that are watched closely, so that the rest need to be read only once a step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from gradscope.capture.magnitude import l2
from gradscope.capture.norms import LateNorms, Norms
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
        self.live = live
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

    def gradients(self) -> dict[int, torch.Tensor]:
        """Their gradients by index, but for large ones and those on a device that would have to be waited for."""
        grads = {i: tensor.grad for i, tensor in self._chosen.items()}
        return {i: one for i, one in grads.items() if one is not None and one.is_cpu and one.numel() <= SMALL}

    def norms(self) -> dict[int, float]:
        """The norms of `gradients`."""
        return {i: l2(grad) for i, grad in self.gradients().items()}

    def copies(self) -> dict[int, torch.Tensor]:
        """Copies of `gradients`."""
        return {i: grad.detach().clone() for i, grad in self.gradients().items()}

    def only_shrunk(self, before: dict[int, torch.Tensor]) -> bool:
        """Whether each element is what clipping may make of it: as it was or smaller, of its sign, and not zero."""
        now = self.gradients()
        return all(_shrunk(one, now[i]) for i, one in before.items() if i in now and one.shape == now[i].shape)

    def divided(self, before: dict[int, torch.Tensor], by: int) -> bool:
        """Whether each element is just what division by `by`, or multiplication by 1 / `by`, makes of it."""
        now = self.gradients()
        pairs = [(one, now[i]) for i, one in before.items() if i in now and one.layout == torch.strided]
        return all(torch.equal(after, one / by) or torch.equal(after, one * (1 / by)) for one, after in pairs)


def _shrunk(before: torch.Tensor, after: torch.Tensor) -> bool:
    if before.layout != torch.strided or before.is_complex():
        return True
    kept = (after.abs() <= before.abs() * (1 + SAME)) & (after.sign() == before.sign())
    return bool((kept | ~after.isfinite()).all())


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


def clipped(before: Norms | LateNorms, after: Norms | LateNorms) -> bool:
    """Whether norms and largest values can be those that a clip has left: of each tensor that changed both by the same
    factor, or the largest value at one limit, which no other exceeds.
    """
    with np.errstate(all="ignore"):
        norms, peaks = after.norm / before.norm, after.peak / before.peak
    changed = np.isfinite(norms) & (np.abs(norms - 1) > SAME)
    scaled = np.abs(peaks[changed] / norms[changed] - 1) <= SAME
    at_limit = after.peak[changed] >= (1 - SAME) * np.fmax.reduce(after.peak, initial=0.0)
    return bool(scaled.all() or at_limit.all())
