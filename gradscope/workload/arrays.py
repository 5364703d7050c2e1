"""Arrays, tensors and tables as batches of rows in a seeded shuffled order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from gradscope.errors import SpecError
from gradscope.workload.batches import IndexedBatches

Columns = tuple[torch.Tensor, ...] | dict[str, torch.Tensor]


def array_batches(columns: Columns, batch_size: int, seed: int) -> IndexedBatches:
    """Batches of `batch_size` rows, shuffled anew every epoch; a last smaller batch is left out."""
    parts = list(columns.values()) if isinstance(columns, dict) else list(columns)
    rows = len(parts[0])
    size = min(batch_size, rows)

    def epoch(_: int) -> Iterator[Any]:
        order = torch.randperm(rows)
        return iter([order[i : i + size] for i in range(0, rows - size + 1, size)] if rows else [])

    def fetch(chosen: torch.Tensor) -> Any:
        if isinstance(columns, dict):
            return {name: column[chosen] for name, column in columns.items()}
        taken = tuple(column[chosen] for column in columns)
        return taken if len(taken) > 1 else taken[0]

    return IndexedBatches(fetch, epoch, seed, rows // size, shuffled=True)


def is_array(value: Any) -> bool:
    """Whether it is a tensor, a numpy array or a pandas column."""
    return isinstance(value, torch.Tensor | np.ndarray) or type(value).__name__ == "Series"


def columns_of(value: Any, where: str) -> Columns:
    """Tensors with one row a sample, from an array, a tuple of arrays or a dict of them.

    Arrays of whole numbers become int64 and of fractions float32; uint8 images become 0–1. Tensors stay as they are.

    Raises:
        SpecError: different numbers of rows, no row, or something that is not numbers.
    """
    if isinstance(value, Mapping):
        columns: Columns = {str(k): tensor_of(v, f"{where}: {k}") for k, v in value.items()}
    else:
        parts = value if isinstance(value, tuple | list) else (value,)
        columns = tuple(tensor_of(part, where) for part in parts)
    held = list(columns.values()) if isinstance(columns, dict) else columns
    sizes = [len(part) if part.ndim else -1 for part in held]
    if -1 in sizes or len(set(sizes)) > 1:
        shapes = " and ".join(str(tuple(part.shape)) for part in held)
        raise SpecError(f"{where}: the parts have shapes {shapes}; each must have the same number of rows first")
    if not sizes[0]:
        raise SpecError(f"{where}: the data is empty")
    return columns


def tensor_of(value: Any, where: str) -> torch.Tensor:
    """One array as a tensor. Raises SpecError for text and objects."""
    if isinstance(value, torch.Tensor):
        return value
    array = np.asarray(value)
    if array.dtype.kind in "OUSVMm":
        raise SpecError(f"{where}: holds {array.dtype} values, not numbers; convert them to numbers first")
    if array.dtype == np.uint8 and array.ndim >= 3:
        return torch.from_numpy(array.astype(np.float32) / np.float32(255))
    if array.dtype.kind in "iu":
        return torch.from_numpy(array.astype(np.int64))
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    return torch.from_numpy(np.array(array))


def is_frame(value: Any) -> bool:
    """Whether it is a pandas DataFrame."""
    return type(value).__name__ == "DataFrame" and hasattr(value, "columns") and hasattr(value, "iloc")


def frame_columns(frame: Any, target: str | None, where: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`(X, y)` of a table: every other column as float32, the target as float32 or, for classes, int64 codes.

    Raises:
        SpecError: no target named, no such column, text among the inputs, missing values, no row.
    """
    names = [str(name) for name in frame.columns]
    if target is None:
        raise SpecError(
            f"{where}: a table needs the column to predict: --target COLUMN (one of {', '.join(names[:12])})"
        )
    if target not in names:
        raise SpecError(f"{where}: no column `{target}`; there are {', '.join(names[:12])}")
    if not len(frame):
        raise SpecError(f"{where}: the data is empty")
    holes = frame.isna().sum()
    for name, missing in zip(names, holes, strict=True):
        if missing:
            raise SpecError(f"{where}: column `{name}` has {missing} missing values; fill them or drop the rows first")
    inputs = [i for i, name in enumerate(names) if name != target]
    for i in inputs:
        if frame.iloc[:, i].dtype.kind not in "biuf":
            raise SpecError(
                f"{where}: column `{names[i]}` is not numbers ({frame.iloc[:, i].dtype}); encode or drop it first"
            )
    if not inputs:
        raise SpecError(f"{where}: there is no column but the target")
    values = frame.iloc[:, inputs].to_numpy(dtype=np.float32)
    return torch.from_numpy(values.copy()), _target(frame.iloc[:, names.index(target)])


def _target(column: Any) -> torch.Tensor:
    if column.dtype.kind == "f":
        return torch.from_numpy(column.to_numpy(dtype=np.float32).copy())
    if column.dtype.kind in "iu":
        return torch.from_numpy(column.to_numpy(dtype=np.int64).copy())
    codes = np.unique(column.astype(str).to_numpy(dtype=str), return_inverse=True)[1]
    return torch.from_numpy(codes.astype(np.int64))
