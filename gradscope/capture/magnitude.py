"""How large a tensor is, at any scale that its dtype can hold, and which tensor of a nested value counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

_TINY, _HUGE = 1e-15, 1e15
"""Beyond these, squares in float32 lose digits: the norm is taken again in float64."""


def l2(tensor: torch.Tensor) -> float:
    """L2 norm of all elements. Right wherever the dtype itself is: neither squares underflow nor overflow."""
    values: Any = tensor.detach()
    if values.is_sparse:
        values = values.coalesce().values()
    if not values.numel():
        return 0.0
    own = values.dtype in (torch.float64, torch.complex128)
    norm: float = torch.linalg.vector_norm(values, dtype=None if own or values.is_complex() else torch.float32).item()
    if _TINY < norm < _HUGE or math.isnan(norm):
        return norm
    if own or values.is_complex() or values.device.type == "mps":
        return _by_peak(values)
    return float(torch.linalg.vector_norm(values, dtype=torch.float64).item())


def _by_peak(values: torch.Tensor) -> float:
    sizes = values.abs()
    peak: float = sizes.max().item()
    if not math.isfinite(peak) or peak == 0.0:
        return peak
    return peak * float(torch.linalg.vector_norm(sizes / peak).item())


def rms(tensor: torch.Tensor) -> float:
    """Root mean square of all elements; NaN for an empty tensor."""
    count = tensor.numel()
    return l2(tensor) / math.sqrt(count) if count else math.nan


def root_mean_square(values: list[float]) -> float:
    """Root mean square of plain numbers, NaN ones left out; NaN where none is left. Safe at any scale."""
    known = [value for value in values if not math.isnan(value)]
    peak = max(map(abs, known), default=math.nan)
    if not math.isfinite(peak) or peak == 0.0:
        return peak
    return peak * math.sqrt(sum((value / peak) ** 2 for value in known) / len(known))


def root_sum_square(values: list[float]) -> float:
    """L2 norm of plain numbers. Safe at any scale."""
    return root_mean_square(values) * math.sqrt(len(values))


def float_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every floating-point or complex tensor in nested tuples, lists, mappings and dataclass-like outputs, in order."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() or value.is_complex():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from float_tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from float_tensors(item)
