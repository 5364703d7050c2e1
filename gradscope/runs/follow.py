"""Reads the rows of a run while another process writes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradscope.runs import files, tables
from gradscope.runs.reader import read_header
from gradscope.runs.schema import Header


@dataclass(frozen=True)
class Rows:
    """Rows that came in since the last look: arrays over steps; `grad_norm` is (steps, parameters)."""

    step: NDArray[np.int64]
    loss: NDArray[np.float64]
    global_norm: NDArray[np.float64]
    grad_norm: NDArray[np.float32]


class Follower:
    """Follows one run directory. `poll` hands on what is new; a half-written batch waits for the next time.

    Raises:
        RunFormatError: the directory is not a run.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.header: Header = read_header(directory)
        self._last_step = -1
        self._offset, self._file_id = 0, 0
        self._schema = tables.steps_schema(len(self.header.parameters))

    def poll(self) -> Rows | None:
        """The rows that are new, or None."""
        self.header = read_header(self.directory)
        path = self.directory / files.STEPS_FILE
        if path.stat().st_ino != self._file_id:  # begun, or thinned out into a new file
            self._offset, self._file_id = 0, path.stat().st_ino
        batches = self._batches(path)
        if not batches:
            return None
        table = pa.Table.from_batches(batches, self._schema)
        steps = table["step"].to_numpy()
        new = steps > self._last_step
        if not new.any():
            return None
        self._last_step = int(steps[-1])
        norms = table["grad_norm"].combine_chunks().flatten().to_numpy().reshape(len(steps), -1)
        return Rows(steps[new], table["loss"].to_numpy()[new], table["global_norm"].to_numpy()[new], norms[new])

    def _batches(self, path: Path) -> list[pa.RecordBatch]:
        """Every whole batch behind the place reached so far."""
        found: list[Any] = []
        with pa.OSFile(str(path), "rb") as file:
            file.seek(self._offset)
            while (message := _message(file)) is not None:
                self._offset = file.tell()
                if message.type == "record batch":
                    found.append(pa.ipc.read_record_batch(message, self._schema))
        return found


def _message(file: Any) -> Any:
    """The next message of an Arrow stream; None where it is not all there yet, or the stream is over."""
    try:
        return pa.ipc.read_message(file)
    except (EOFError, OSError, pa.ArrowInvalid):
        return None
