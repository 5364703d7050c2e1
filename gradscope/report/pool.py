"""Many steps in few columns, each the largest of its steps: a spike stays a spike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_COLUMNS = 400
MAX_CELLS = 400_000


def columns_for(steps: int, layers: int = 1) -> int:
    """How many columns show `steps` steps of `layers` layers: at most 400, fewer for very many layers."""
    return min(steps, MAX_COLUMNS, max(60, MAX_CELLS // max(layers, 1)))


def bins(count: int, columns: int) -> NDArray[np.intp]:
    """Where each of at most `columns` even bins over `count` steps begins."""
    columns = min(count, max(columns, 1))
    return np.arange(columns) * count // max(columns, 1)


def pool_max(values: NDArray[Any], starts: NDArray[np.intp]) -> NDArray[Any]:
    """The largest of each bin along the first axis; NaN where a bin holds nothing else."""
    if not len(starts):
        return values[:0]
    pooled: NDArray[Any] = np.fmax.reduceat(values, starts, axis=0)
    return pooled
