"""An Arrow stream read batch by batch: its narrow columns into memory, its wide ones by their place in the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

GATHERED = 1 << 23
"""Bytes of batches that are copied out of the file's buffers at once."""


class StoredMatrix:
    """T × P float32 numbers that stay in their file. `matrix[rows]` reads rows as numpy would choose them from an array;
    `np.asarray(matrix)` reads all.
    """

    def __init__(self, file: Any, pieces: list[tuple[int, int]], width: int) -> None:
        """`pieces`: (rows, offset in the file) of every batch."""
        self._file = file
        self._starts = np.cumsum([0, *(rows for rows, _ in pieces)])
        self._offsets = [offset for _, offset in pieces]
        self.shape = int(self._starts[-1]), width

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        chosen = np.arange(len(self))[rows]
        flat = chosen.ravel()
        values = np.empty((len(flat), self.shape[1]), np.float32)
        if values.size:
            for begin, end, offset in self._reads(flat):
                self._file.seek(offset)
                self._file.readinto(values[begin:end])
        return values.reshape(*chosen.shape, self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    def _reads(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
        """Stretches of `rows` that lie one behind the other in the file: begin, end, offset."""
        batch = np.searchsorted(self._starts, rows, side="right") - 1
        cuts = np.flatnonzero((np.diff(rows) != 1) | (np.diff(batch) != 0)) + 1
        for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(rows)], strict=True):
            inside = int(rows[begin] - self._starts[batch[begin]])
            yield begin, end, self._offsets[batch[begin]] + 4 * self.shape[1] * inside


Rows = NDArray[np.float32] | StoredMatrix
"""T × P numbers, indexed by rows alone."""


@dataclass(frozen=True)
class Stream:
    """`table` of the narrow columns; `pieces` of each wide one, as StoredMatrix takes them; `torn`: what ended it early."""

    table: pa.Table
    pieces: dict[str, list[tuple[int, int]]]
    torn: Exception | None


class ForeignStreamError(Exception):
    """A stream of other columns."""


def read_stream(file: Any, schema: pa.Schema, wide: tuple[str, ...] = ()) -> Stream:
    """Every whole batch. `wide`: columns of fixed-size lists of float32.

    Raises:
        ForeignStreamError: the stream has another schema.
    """
    narrow = pa.schema([column for column in schema if column.name not in wide])
    pieces: dict[str, list[tuple[int, int]]] = {name: [] for name in wide}
    kept: list[pa.RecordBatch] = []
    gathered: list[pa.RecordBatch] = []
    size, torn = 0, None
    try:
        for batch, body, offset in _batches(file, schema):
            for name in wide:
                pieces[name].append((batch.num_rows, offset + _place(batch[name], body)))
            gathered.append(batch.select(narrow.names))
            size += body.size
            if size > GATHERED:
                kept, gathered, size = [*kept, pa.concat_batches(gathered)], [], 0
    except (pa.ArrowException, OSError) as error:
        torn = error
    return Stream(pa.Table.from_batches([*kept, *gathered], narrow), pieces, torn)


def _place(matrix: pa.FixedSizeListArray, body: pa.Buffer) -> int:
    """Where the numbers of a matrix begin in the buffer of its batch."""
    numbers = matrix.values.buffers()[1]
    return int(numbers.address - body.address) if numbers else 0


def _batches(file: Any, schema: pa.Schema) -> Iterator[tuple[pa.RecordBatch, pa.Buffer, int]]:
    """Batches, the buffer that holds each, and where that buffer lies in the file."""
    with contextlib.suppress(EOFError):
        if not pa.ipc.read_schema(pa.ipc.read_message(file)).equals(schema):
            raise ForeignStreamError
        while True:
            message = pa.ipc.read_message(file)
            batch = pa.ipc.read_record_batch(message, schema)
            batch.validate(full=True)
            yield batch, message.body, file.tell() - message.body.size
