"""Several processes training one model: who writes, and norms of gradients that are spread over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

if dist.is_available():
    from torch.distributed.tensor import DTensor


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _running() else 1


def rank() -> int:
    """This process's place among them; 0 writes the run."""
    return dist.get_rank() if _running() else 0


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()


def spread(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether some tensor is a DTensor, so that this process holds only a part of it."""
    return dist.is_available() and any(isinstance(tensor, DTensor) for tensor in tensors)


def local(gradient: torch.Tensor | None) -> torch.Tensor | None:
    """This process's part of a gradient; sums that are still pending are made first (a collective call)."""
    if gradient is None or not isinstance(gradient, DTensor):
        return gradient
    if any(placement.is_partial() for placement in gradient.placements):
        return gradient.full_tensor()
    return gradient.to_local()


def combine(
    gradients: Sequence[torch.Tensor | None], norm: torch.Tensor, peak: torch.Tensor, nonfinite: torch.Tensor
) -> None:
    """Turn the statistics of the parts into those of the whole tensors, in place (float64; a collective call).

    Squares are added over the ranks that hold different parts, after division by the largest peak.
    """
    for (mesh, dims), places in _sharded(gradients).items():
        groups = [mesh.get_group(dim) for dim in dims]
        top = peak[places].nan_to_num(nan=torch.inf, posinf=torch.inf)
        for group in groups:
            dist.all_reduce(top, dist.ReduceOp.MAX, group)
        unit = torch.where((top > 0) & top.isfinite(), top, 1.0)
        sums = torch.stack([(norm[places] / unit).square(), nonfinite[places]])
        for group in groups:
            dist.all_reduce(sums, dist.ReduceOp.SUM, group)
        norm[places] = unit * sums[0].sqrt()
        peak[places] = torch.where(top.isfinite(), top, norm[places])
        nonfinite[places] = sums[1]


def _sharded(gradients: Sequence[torch.Tensor | None]) -> dict[tuple[Any, tuple[int, ...]], list[int]]:
    found: dict[tuple[Any, tuple[int, ...]], list[int]] = {}
    for place, gradient in enumerate(gradients):
        if gradient is not None and isinstance(gradient, DTensor):
            dims = tuple(dim for dim, placement in enumerate(gradient.placements) if placement.is_shard())
            if dims and not any(placement.is_partial() for placement in gradient.placements):
                found.setdefault((gradient.device_mesh, dims), []).append(place)
    return found
