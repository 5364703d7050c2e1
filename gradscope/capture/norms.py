"""Norms of many gradients at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Norms:
    """One number a tensor: `norm` (L2) and `peak` (largest |g|), float64, NaN where there is no gradient.

    `present` tells a missing gradient from one that holds a NaN; `nonfinite` counts elements that are NaN or infinite.
    """

    norm: NDArray[np.float64]
    peak: NDArray[np.float64]
    present: NDArray[np.bool_]
    nonfinite: NDArray[np.int64]

    @property
    def total(self) -> float:
        """L2 norm of all of them together; NaN without any gradient."""
        norms = self.norm[self.present]
        peak = float(norms.max()) if len(norms) else math.nan
        if not math.isfinite(peak) or peak == 0.0:
            return peak
        return peak * math.sqrt(float(np.square(norms / peak).sum()))


def measure(tensors: Sequence[torch.Tensor]) -> Norms:
    """The norms of the tensors' gradients as they are now."""
    count = len(tensors)
    norms = Norms(np.full(count, np.nan), np.full(count, np.nan), np.zeros(count, bool), np.zeros(count, np.int64))
    for i, tensor in enumerate(tensors):
        if tensor.grad is not None:
            norms.present[i] = True
            norms.norm[i], norms.peak[i], norms.nonfinite[i] = _one(tensor.grad)
    return norms


def _one(gradient: torch.Tensor) -> tuple[float, float, int]:
    values: Any = gradient.detach()
    if values.is_sparse:
        values = values.coalesce().values()
    values = values.abs().double().flatten()
    if not values.numel():
        return 0.0, 0.0, 0
    peak = values.max().item()
    if not math.isfinite(peak) or peak == 0.0:
        return peak, peak, int((~values.isfinite()).sum())
    return peak * torch.linalg.vector_norm(values / peak).item(), peak, 0
