"""Norms of gradients on an accelerator, without waiting for it: the row is completed once they arrived."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gradscope.capture.distributed import combine, local, spread
from gradscope.capture.later import Later, widest
from gradscope.capture.norms import LateNorms, Norms, missing
from gradscope.capture.norms_cuda import KINDS, CudaNorms, kernels

_kind = attrgetter("dtype", "layout", "requires_grad")
_lies = attrgetter("device", "dtype", "nbytes")
_PLAIN = {(dtype, torch.strided, False) for dtype in KINDS}


class DeviceNorms:
    """Reads the gradients of the same tensors again and again, on their devices; remembers how they lay last time."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = tuple(tensors)
        self._spread = spread(self._tensors)
        self._kinds: list[Any] = []
        self._groups: list[_Group] = []
        self._order = np.empty(0, int)

    def read(self) -> LateNorms:
        """Begin to read the gradients as they are now.

        Without the kernels of `norms_cuda`, `nonfinite` is 1 for a tensor with nonfinite elements, however many: counting
        them would cost another pass.
        """
        grads = [tensor.grad for tensor in self._tensors]
        parts = [_values(local(grad) if self._spread else grad) for grad in grads]
        kinds = [part if part is None else _lies(part) for part in parts]
        if kinds != self._kinds:
            self._kinds, self._groups = kinds, _grouped(parts)
            self._order = np.array([place for group in self._groups for place in group.places], int)
        tables = [group.read([parts[place] for place in group.places]) for group in self._groups]
        table = torch.cat([one.to(tables[0].device) for one in tables], dim=1) if tables else torch.empty(3, 0)
        order = self._order
        if self._spread:
            combine([grads[place] for place in order], *table.unbind())
        late = Later(table)
        return LateNorms(lambda: _placed(late.get(), order, len(grads)), late)


class _Group(NamedTuple):
    """The gradients on one device: their places, and what reads them: (3, gradients), as `CudaNorms.read`."""

    places: list[int]
    read: Callable[[list[Any]], torch.Tensor]


def _grouped(parts: Sequence[torch.Tensor | None]) -> list[_Group]:
    devices: dict[torch.device, list[int]] = {}
    for place, part in enumerate(parts):
        if part is not None:
            devices.setdefault(part.device, []).append(place)
    return [_Group(places, _reader(device, [parts[place] for place in places])) for device, places in devices.items()]


def _reader(device: torch.device, gradients: list[Any]) -> Callable[[list[Any]], torch.Tensor]:
    compiled = kernels(device)
    return CudaNorms(compiled, gradients).read if compiled else partial(_statistics, widest(device))


def _placed(table: torch.Tensor, order: NDArray[np.int64], count: int) -> Norms:
    """Column i of the (3, k) `table` belongs to tensor `order[i]` of `count`."""
    norms = missing(count)
    norms.norm[order], norms.peak[order], norms.nonfinite[order] = table.numpy()
    norms.present[order] = True
    return norms


def _statistics(dtype: torch.dtype, gradients: list[Any]) -> torch.Tensor:
    """(3, gradients): L2, largest |g| and whether any is nonfinite, found in `dtype` by torch's own operations."""
    table = torch.empty(3, len(gradients), dtype=dtype, device=gradients[0].device)
    for kind in {gradient.dtype for gradient in gradients}:
        places = [place for place, gradient in enumerate(gradients) if gradient.dtype == kind]
        alike = [one if (one := gradients[place]).numel() else one.new_zeros(1) for place in places]
        norm, peak = (torch.stack(torch._foreach_norm(alike, power, dtype=dtype)) for power in (2, math.inf))
        found = torch.stack([norm, peak, (~norm.isfinite()).to(dtype)])
        if len(alike) == len(gradients):
            return found
        table[:, torch.tensor(places).to(table.device, non_blocking=True)] = found
    return table


def _values(gradient: torch.Tensor | None) -> torch.Tensor | None:
    """A tensor with the same norms: of a usual kind of number, and without gaps."""
    if gradient is None:
        return None
    if _kind(gradient) in _PLAIN and (gradient.is_contiguous() or _dense(gradient)):
        return gradient
    values = gradient.detach()
    if values.layout == torch.sparse_coo:
        values = values.coalesce().values()
    if values.is_complex():
        values = values.abs()
    if values.dtype not in KINDS:
        values = values.to(widest(values.device))
    return values if _dense(values) else values.contiguous()


def _dense(tensor: torch.Tensor) -> bool:
    """Whether its elements lie without gaps, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
