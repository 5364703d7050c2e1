"""Batches as trees: the same change to every leaf, containers kept as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch


def mapped(batch: Any, change: Callable[[Any], Any]) -> Any:
    """The batch with every leaf changed; tuples, named tuples, lists and mappings keep their type where they can."""
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(mapped(value, change) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(mapped(value, change) for value in batch)
    if isinstance(batch, Mapping):
        values = {key: mapped(value, change) for key, value in batch.items()}
        return values if type(batch) is dict else _rebuilt(batch, values)
    return change(batch)


def _rebuilt(batch: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    try:
        return type(batch)(values)  # type: ignore[call-arg]  # a mapping's class takes a dict, as torch's collate expects
    except Exception:
        return values


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors, and whatever else can move, on `device`."""
    return mapped(batch, lambda leaf: leaf.to(device) if hasattr(leaf, "to") else leaf)


def copied(batch: Any) -> Any:
    """The batch with every tensor and array in it cloned."""

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return leaf.clone()
        return leaf.copy() if isinstance(leaf, np.ndarray) else leaf

    return mapped(batch, copy)


def holds_nonfinite(batch: Any) -> bool:
    """Whether a tensor in the batch has a value that is NaN or infinite."""
    found = []

    def look(leaf: Any) -> None:
        if isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
            found.append(not bool(leaf.isfinite().all()))

    mapped(batch, look)
    return any(found)


def nbytes(batch: Any) -> int:
    """Bytes of the tensors and arrays in a batch, at least 1."""
    total = 1

    def add(leaf: Any) -> None:
        nonlocal total
        if isinstance(leaf, torch.Tensor | np.ndarray):
            total += int(leaf.nbytes)

    mapped(batch, add)
    return total


def rows(batch: Any) -> int:
    """How many samples the batch has: the first dimension that all its tensors share; 0 where they share none."""
    sizes = set()

    def look(leaf: Any) -> None:
        if isinstance(leaf, torch.Tensor) and leaf.ndim:
            sizes.add(len(leaf))

    mapped(batch, look)
    return sizes.pop() if len(sizes) == 1 and sizes != {1} else 0


def row(batch: Any, place: int) -> Any:
    """One sample of the batch, as a batch."""

    def take(leaf: Any) -> Any:
        return leaf[place : place + 1] if isinstance(leaf, torch.Tensor) and leaf.ndim else leaf

    return mapped(batch, take)


def peak(batch: Any) -> float:
    """The largest |value| of its floating-point tensors; NaN without one, and where one is NaN."""
    found = []

    def look(leaf: Any) -> None:
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.numel():
            found.append(leaf.abs().max().item())

    mapped(batch, look)
    return float(np.max(found)) if found else float("nan")
