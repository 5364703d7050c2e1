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


Piece = int | NDArray[np.float32]
"""The rows of one batch: where they lie in the file, or, of a compressed batch, the numbers themselves."""


class StoredMatrix:
    """T × P float32 numbers that stay in their file. `matrix[rows]` reads rows as numpy would choose them from an array;
    `np.asarray(matrix)` reads all.
    """

    def __init__(self, file: Any, pieces: list[Piece], counts: list[int], width: int, first: int = 0) -> None:
        """`counts`: how many rows each piece has. `first`: the row that it begins with."""
        self._file, self._counts, self._first = file, counts, first
        self._starts = np.cumsum([0, *counts])
        self._pieces = pieces
        self.shape = int(self._starts[-1]) - first, width

    def since(self, row: int) -> StoredMatrix:
        """The same from `row` on."""
        return StoredMatrix(self._file, self._pieces, self._counts, self.shape[1], self._first + row)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        chosen = self._first + np.arange(len(self))[rows]
        flat = chosen.ravel()
        values = np.empty((len(flat), self.shape[1]), np.float32)
        if values.size:
            for begin, end, piece, inside in self._stretches(flat):
                self._read(values[begin:end], piece, inside)
        return values.reshape(*chosen.shape, self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    def _stretches(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, int, Piece, int]]:
        """Neighbouring `rows` of one piece: begin, end, the piece, and which of its rows comes first."""
        batch = np.searchsorted(self._starts, rows, side="right") - 1
        cuts = (np.flatnonzero((np.diff(rows) != 1) | (np.diff(batch) != 0)) + 1).tolist()
        for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
            yield begin, end, self._pieces[batch[begin]], int(rows[begin] - self._starts[batch[begin]])

    def _read(self, values: NDArray[np.float32], piece: Piece, first: int) -> None:
        if isinstance(piece, int):
            self._file.seek(piece + 4 * self.shape[1] * first)
            self._file.readinto(values)
        else:
            values[:] = piece[first : first + len(values)]


Rows = NDArray[np.float32] | StoredMatrix
"""T × P numbers, indexed by rows alone."""


@dataclass(frozen=True)
class Stream:
    """`table` of the narrow columns; `pieces` of each wide one, of `counts` rows; `torn`: what ended the stream early."""

    table: pa.Table
    pieces: dict[str, list[Piece]]
    counts: list[int]
    torn: Exception | None


class ForeignStreamError(Exception):
    """A stream of other columns."""


def read_stream(file: Any, schema: pa.Schema, wide: tuple[str, ...] = ()) -> Stream:
    """Every whole batch. `wide`: columns of fixed-size lists of float32.

    Raises:
        ForeignStreamError: the stream has another schema.
    """
    narrow = pa.schema([column for column in schema if column.name not in wide])
    pieces: dict[str, list[Piece]] = {name: [] for name in wide}
    kept: list[pa.RecordBatch] = []
    gathered: list[pa.RecordBatch] = []
    counts: list[int] = []
    size, torn = 0, None
    try:
        for batch, body, offset in _batches(file, schema):
            for name in wide:
                pieces[name].append(_piece(batch[name], body, offset))
            counts.append(batch.num_rows)
            gathered.append(batch.select(narrow.names))
            size += body.size
            if size > GATHERED:
                kept, gathered, size = [*kept, pa.concat_batches(gathered)], [], 0
    except (pa.ArrowException, OSError) as error:
        torn = error
    return Stream(pa.Table.from_batches([*kept, *gathered], narrow), pieces, counts, torn)


def _piece(matrix: pa.FixedSizeListArray, body: pa.Buffer, offset: int) -> Piece:
    numbers = matrix.values.buffers()[1]
    if not numbers:
        return offset
    inside = int(numbers.address - body.address)
    if 0 <= inside <= body.size - numbers.size:
        return offset + inside
    return np.array(np.from_dlpack(matrix.values)).reshape(len(matrix), -1)


def _batches(file: Any, schema: pa.Schema) -> Iterator[tuple[pa.RecordBatch, pa.Buffer, int]]:
    """Batches, the buffer that holds each, and where that buffer lies in the file."""
    with contextlib.suppress(EOFError):
        if not _tells_of(pa.ipc.read_message(file), schema):
            raise ForeignStreamError
        while True:
            message = pa.ipc.read_message(file)
            batch = pa.ipc.read_record_batch(message, schema)
            batch.validate(full=True)
            if not all(_is_whole(column) for column in batch.columns):
                raise ForeignStreamError
            yield batch, message.body, file.tell() - message.body.size


def _tells_of(message: pa.Message, schema: pa.Schema) -> bool:
    """Whether it is a schema with these columns. It is not decoded: pyarrow crashes on a damaged one."""
    told = message.metadata.to_pybytes()
    return bool(message.type == "schema") and all(name.encode() in told for name in schema.names)


def _is_whole(column: pa.Array) -> bool:
    """Whether a fixed-size list has just the numbers of its rows: a stream of more parameters has more."""
    width = getattr(column.type, "list_size", None)
    return width is None or len(column.values) == len(column) * width
