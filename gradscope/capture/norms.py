"""Norms of all gradients of a model: L2, the largest |g|, and how many elements are nonfinite."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gradscope.capture.later import Number, arrived

BLOCK = 1 << 20


class Norms(NamedTuple):
    """One number a tensor: `norm` (L2) and `peak` (largest |g|), float64, NaN where there is no gradient.

    `present` tells a missing gradient from one that holds a NaN; `nonfinite` counts elements that are NaN or infinite.
    `sum_square`: Σ norm², where it was found on the way.
    """

    norm: NDArray[np.float64]
    peak: NDArray[np.float64]
    present: NDArray[np.bool_]
    nonfinite: NDArray[np.int64]
    sum_square: float | None = None

    @property
    def as_torch(self) -> array[float] | None:
        """Each norm as torch's own clipping rounds it, where that was found on the way."""
        return None

    @property
    def ready(self) -> bool:
        """Whether they have arrived."""
        return True

    @property
    def total(self) -> float:
        """L2 norm of all of them together; NaN without any gradient."""
        return root_sum_square(self.norm[self.present]) if self.sum_square is None else math.sqrt(self.sum_square)

    def of(self, places: Sequence[int]) -> Norms:
        """The norms of the tensors at these places."""
        chosen = np.asarray(places, int)
        return Norms(self.norm[chosen], self.peak[chosen], self.present[chosen], self.nonfinite[chosen])

    def without(self, places: Sequence[int]) -> Norms:
        """The norms as if the tensors at these places had no gradient."""
        found = Norms(self.norm.copy(), self.peak.copy(), self.present.copy(), self.nonfinite.copy())
        found.norm[places], found.peak[places], found.present[places], found.nonfinite[places] = (
            np.nan,
            np.nan,
            False,
            0,
        )
        return found

    def divided(self, scale: Number) -> Norms:
        """The norms of the gradients divided by `scale`."""
        scale = float(scale)
        if scale == 1.0:
            return self
        sum_square = None if self.sum_square is None else self.sum_square / scale**2
        return Norms(self.norm / scale, self.peak / scale, self.present, self.nonfinite, sum_square)


class LateNorms:
    """Norms that are made when they are asked for, with all that `Norms` has.

    Asking for a value waits for `awaited`, then calls `make`.
    """

    def __init__(self, make: Callable[[], Norms], *awaited: Number, as_torch: array[float] | None = None) -> None:
        self._make, self._awaited, self.as_torch = make, awaited, as_torch

    @property
    def ready(self) -> bool:
        """Whether they have arrived."""
        return all(map(arrived, self._awaited))

    @cached_property
    def now(self) -> Norms:
        """The norms; waits for them where it must."""
        return self._make()

    def divided(self, scale: Number) -> LateNorms:
        """The norms of the gradients divided by `scale`; does not wait."""
        if isinstance(scale, float) and scale == 1.0:
            return self
        return LateNorms(lambda: self.now.divided(float(scale)), *self._awaited, scale)

    def without(self, places: Sequence[int]) -> LateNorms:
        """The norms as if the tensors at these places had no gradient; does not wait."""
        return LateNorms(lambda: self.now.without(places), *self._awaited)

    def of(self, places: Sequence[int]) -> LateNorms:
        """The norms of the tensors at these places; does not wait."""
        return LateNorms(lambda: self.now.of(places), *self._awaited)

    def __getattr__(self, name: str) -> Any:
        """What `Norms` has."""
        return getattr(self.now, name)


def root_sum_square(norms: NDArray[np.float64]) -> float:
    """√Σn² without overflow; NaN of nothing."""
    with np.errstate(over="ignore"):
        total = math.sqrt(float(norms.dot(norms))) if len(norms) else math.nan
    if 1e-150 < total < 1e150:
        return total
    peak = float(norms.max()) if len(norms) else math.nan
    if not math.isfinite(peak) or peak == 0.0:
        return peak
    return peak * root_sum_square(norms / peak)


def missing(count: int) -> Norms:
    """Norms of `count` tensors before any gradient was read."""
    return Norms(np.full(count, np.nan), np.full(count, np.nan), np.zeros(count, bool), np.zeros(count, np.int64))


def exact(gradient: torch.Tensor) -> tuple[float, float, int]:
    """(L2, largest |g|, nonfinite elements) of one gradient of any kind and size of number, a block at a time.

    Every block is divided by the largest value before it is squared in float64, so nothing over- or underflows.
    """
    values = gradient.detach()
    if values.layout != torch.strided:
        values = values.coalesce().values() if values.layout == torch.sparse_coo else values.to_dense()
    if values.is_quantized or not values.numel():
        return 0.0, 0.0, 0
    peaks, bad = [], 0
    for block in torch.split(values.flatten(), BLOCK):
        size = block.abs().double()
        peaks.append(size.max().item())
        bad += 0 if math.isfinite(peaks[-1]) else int((~size.isfinite()).sum())
    peak = math.nan if any(map(math.isnan, peaks)) else max(peaks)
    if bad or peak == 0.0:
        return peak, peak, bad
    squares = [(block.abs().double() / peak).square().sum().item() for block in torch.split(values.flatten(), BLOCK)]
    return peak * math.sqrt(math.fsum(squares)), peak, 0
