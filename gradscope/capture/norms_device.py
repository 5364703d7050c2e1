"""Norms of gradients on an accelerator, without waiting for it: the row is completed once they arrived."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch

from gradscope.capture.distributed import combine, local, spread
from gradscope.capture.later import Later, Number, arrived, widest
from gradscope.capture.norms import Norms, missing


class LateNorms:
    """Norms that are on their way, with all that `Norms` has; asking for a value waits for `awaited`, then calls `make`."""

    def __init__(self, make: Callable[[], Norms], *awaited: Number) -> None:
        self._make, self._awaited = make, awaited

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


class DeviceNorms:
    """Reads the gradients of the same tensors again and again, on their devices."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = tuple(tensors)
        self._spread = spread(self._tensors)

    def read(self) -> LateNorms:
        """Begin to read the gradients as they are now.

        `nonfinite` is 1 for a tensor with nonfinite elements, however many: counting them would cost another pass.
        """
        grads = [tensor.grad for tensor in self._tensors]
        parts = [_values(local(grad)) for grad in grads]
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for place, part in enumerate(parts):
            if part is not None:
                groups.setdefault((part.device, part.dtype), []).append(place)
        tables = [_statistics([parts[place] for place in group]) for group in groups.values()]
        table = torch.cat([one.to(tables[0].device) for one in tables], dim=1) if tables else torch.empty(3, 0)
        order = [place for group in groups.values() for place in group]
        if self._spread:
            combine([grads[place] for place in order], *table.unbind())
        late = Later(table)
        return LateNorms(lambda: _placed(late.get(), order, len(grads)), late)


def _placed(table: torch.Tensor, order: list[int], count: int) -> Norms:
    """Column i of the (3, k) `table` belongs to tensor `order[i]` of `count`."""
    norms = missing(count)
    norms.norm[order], norms.peak[order], norms.nonfinite[order] = table.numpy()
    norms.present[order] = True
    return norms


def _statistics(gradients: list[Any]) -> torch.Tensor:
    """(3, gradients): L2, largest |g| and whether any is nonfinite, of gradients of one device and type."""
    dtype = widest(gradients[0].device)
    norm = torch.stack(torch._foreach_norm(gradients, 2, dtype=dtype))
    peak = torch.stack(torch._foreach_norm(gradients, math.inf, dtype=dtype))
    return torch.stack([norm, peak, (~norm.isfinite()).to(dtype)])


def _values(gradient: torch.Tensor | None) -> torch.Tensor | None:
    """A plain tensor with the same norms."""
    if gradient is None:
        return None
    values = gradient.detach()
    if values.layout == torch.sparse_coo:
        values = values.coalesce().values()
    if values.is_complex():
        values = values.abs()
    return values if values.numel() else values.new_zeros(1)
