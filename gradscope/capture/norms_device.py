"""Norms of gradients on an accelerator, without waiting for it.

The statistics stay on the device and are copied to pinned memory behind the step; the row is completed once they arrived.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from gradscope.capture.distributed import combine, local, spread
from gradscope.capture.norms import Norms, missing


class Later:
    """Values on their way from a device to main memory."""

    def __init__(self, values: torch.Tensor) -> None:
        self._event: Any = None
        self._values = values
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._event.record()

    @property
    def ready(self) -> bool:
        """Whether they have arrived."""
        return self._event is None or bool(self._event.query())

    def get(self) -> torch.Tensor:
        """The values, in main memory; waits for them where it must."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.cpu()


class LateNorms:
    """Norms whose values are on their way; asking for one waits for it.

    Column i of the (3, k) table belongs to tensor `order[i]`; the rows are L2, largest |g| and nonfinite.
    """

    def __init__(self, table: Later, order: list[int], count: int, scale: float = 1.0) -> None:
        self._later, self._order, self._count, self._scale = table, order, count, scale

    @property
    def ready(self) -> bool:
        """Whether they have arrived."""
        return self._later.ready

    @cached_property
    def now(self) -> Norms:
        """The norms; waits for them where it must."""
        norms = missing(self._count)
        norms.norm[self._order], norms.peak[self._order], norms.nonfinite[self._order] = self._later.get().numpy()
        norms.present[self._order] = True
        return norms.divided(self._scale)

    def divided(self, scale: float) -> LateNorms:
        """The norms of the gradients divided by `scale`; does not wait."""
        return LateNorms(self._later, self._order, self._count, self._scale * scale)

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
        devices = dict.fromkeys(part.device for part in parts if part is not None)
        places = [[i for i, part in enumerate(parts) if part is not None and part.device == one] for one in devices]
        tables = [_statistics([parts[place] for place in group]) for group in places]
        table = torch.cat([one.to(tables[0].device) for one in tables], dim=1) if tables else torch.empty(3, 0)
        order = [place for group in places for place in group]
        if self._spread:
            combine([grads[place] for place in order], *table.unbind())
        return LateNorms(Later(table), order, len(grads))


def _statistics(gradients: list[Any]) -> torch.Tensor:
    """(3, gradients) of one device; squares are summed in float64 where the device has it."""
    dtype = torch.float32 if gradients[0].device.type == "mps" else torch.float64
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
