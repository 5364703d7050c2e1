"""Several processes training one model: who writes, and norms of gradients that are spread over them."""

from __future__ import annotations

import torch.distributed as dist


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _running() else 1


def rank() -> int:
    """This process's place among them; 0 writes the run."""
    return dist.get_rank() if _running() else 0


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()
