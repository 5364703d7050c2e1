"""What flags and configuration say in place of the spec file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Overrides:
    """Values that win over the spec's own; None leaves the spec's.

    `data` is a data file, or the name of the one meant in the spec file. `target_column` is the column or array to predict.
    """

    data: Path | str | None = None
    target_column: str | None = None
    total_steps: int | None = None
    max_norm: float | None = None
    batch_size: int | None = None
    precision: str | None = None
    accumulate: int | None = None
    seed: int | None = None
    device: str | None = None
