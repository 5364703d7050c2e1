"""What the ranks beside rank 0 recorded: `ranks/<rank>.f64`, a little-endian int64 step and float64 loss a record.

Each rank writes its own file as it goes, a record at a time, so that a kill loses none.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradscope.runs.files import RANKS_DIR

_RECORD = struct.Struct("<qd")
_COLUMNS = np.dtype([("step", "<i8"), ("loss", "<f8")])


@dataclass(frozen=True)
class RankLoss:
    """The losses of one rank: (n,) steps in order, (n,) means over its micro-steps, from its own batches alone."""

    step: NDArray[np.int64]
    loss: NDArray[np.float64]


def rank_file(directory: Path, rank: int) -> Path:
    """Where `rank` writes, inside a run directory."""
    return directory / RANKS_DIR / f"{rank}.f64"


def record(step: int, loss: float) -> bytes:
    """One record, to be added to the file."""
    return _RECORD.pack(step, loss)


def read_ranks(directory: Path) -> dict[int, RankLoss]:
    """The losses by rank; a torn last record is left out, and so is a file with another name."""
    found = {}
    for path in (directory / RANKS_DIR).glob("*.f64"):
        if path.stem.isdecimal():
            data = path.read_bytes()
            rows = np.frombuffer(data, _COLUMNS, len(data) // _RECORD.size)
            found[int(path.stem)] = RankLoss(rows["step"].astype(np.int64), rows["loss"].astype(np.float64))
    return dict(sorted(found.items()))
