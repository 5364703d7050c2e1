"""Rows of the steps table as messages of an Arrow stream.

Arrow makes the first message of a size; those after it are the same bytes with other numbers in place. That takes a tenth
of the time, and is done every quarter of a second beside a training.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradscope.runs import tables

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
MOST_ROWS = 256
MOST_BYTES = 1 << 22
MOST_SIZES = 16
CODES = {pa.int32(): "i", pa.int64(): "q", pa.float64(): "d"}
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_LR, _GLOBAL_NORM = map(tables.steps_schema(0).get_field_index, ("lr", "global_norm"))


class StepRows:
    """Rows as they came, made a message together."""

    def __init__(self, parameters: int) -> None:
        self.schema = tables.steps_schema(parameters)
        self._capacity = max(1, min(MOST_ROWS, MOST_BYTES // (16 * parameters + 1)))
        self._scalars: list[tuple[Any, ...]] = []
        self._norms: list[NDArray[Any]] = []
        self._peaks: list[NDArray[Any]] = []
        self._messages: dict[tuple[int, ...], _Message] = {}

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._scalars)

    @property
    def full(self) -> bool:
        """Whether they are to be taken now."""
        return self.count >= self._capacity

    def add(self, scalars: tuple[Any, ...], norm: NDArray[Any], peak: NDArray[Any]) -> None:
        """`scalars`: in the order of the schema's first columns, of which the global norm is not below any entry of
        `norm` and `peak`.
        """
        self._scalars.append(scalars)
        self._norms.append(norm)
        self._peaks.append(peak)

    def take(self) -> bytearray:
        """The rows so far, as one message, which the next one may be written over."""
        columns = list(zip(*self._scalars, strict=True))
        message = self._message(tuple(map(len, columns[_LR])))
        message.write(columns)
        put = _put_float32 if all(norm < _FLOAT32_MAX for norm in columns[_GLOBAL_NORM]) else _put_beyond_float32
        for rows, place in zip((self._norms, self._peaks), message.matrices, strict=True):
            put(rows, place)
        self._scalars, self._norms, self._peaks = [], [], []
        return message.content

    def _message(self, rates: tuple[int, ...]) -> _Message:
        if rates not in self._messages:
            if len(self._messages) == MOST_SIZES:
                self._messages.clear()
            self._messages[rates] = _Message(self.schema, rates)
        return self._messages[rates]


class _Message:
    """A batch as `schema` has it, of one row for each entry of `lengths`, which are those of its lists.

    `content`: the serialised bytes. `matrices`: those of its numbers that belong to fixed-size lists, a flat array for each.
    No value is missing, and the ends of lists are in place from the start.
    """

    def __init__(self, schema: pa.Schema, lengths: tuple[int, ...]) -> None:
        blank = pa.RecordBatch.from_arrays([_blank(kind, lengths) for kind in schema.types], schema=schema)
        serialised = blank.serialize()
        read = pa.ipc.read_record_batch(pa.ipc.read_message(serialised), schema)
        self.content = bytearray(serialised)
        self.matrices: list[NDArray[np.float32]] = []
        self._puts: list[Callable[[Sequence[Any]], None]] = []
        for column in read.columns:
            numbers = column.buffers()[-1]
            place = numbers.address - serialised.address if numbers else 0
            if pa.types.is_fixed_size_list(column.type):
                count = len(column) * column.type.list_size
                self.matrices.append(np.frombuffer(self.content, np.float32, count, place))
            else:
                self._puts.append(partial(_putter(column.type), self.content, place))

    def write(self, columns: Sequence[Sequence[Any]]) -> None:
        """Put in place the columns that are no matrices, each a sequence of as many values as there are rows."""
        for put, values in zip(self._puts, columns, strict=True):
            put(values)


def _blank(kind: pa.DataType, lengths: Sequence[int]) -> pa.Array:
    """A column of zeros; `pa.array` would import pandas into the training."""
    rows = len(lengths)
    if pa.types.is_list(kind):
        ends = np.cumsum([0, *lengths], dtype=np.int32)
        return pa.ListArray.from_arrays(_array(pa.int32(), ends), _array(kind.value_type, np.zeros(ends[-1])))
    if pa.types.is_fixed_size_list(kind):
        numbers = _array(kind.value_type, np.zeros(rows * kind.list_size))
        return pa.FixedSizeListArray.from_arrays(numbers, kind.list_size)
    return _array(kind, np.zeros(rows))


def _array(kind: pa.DataType, values: NDArray[Any]) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _putter(kind: pa.DataType) -> Callable[[bytearray, int, Sequence[Any]], None]:
    """What puts the values of such a column into a message, at a place."""
    if kind == pa.bool_():
        return _put_truths
    return partial(_put_lists, CODES[kind.value_type]) if pa.types.is_list(kind) else partial(_put_numbers, CODES[kind])


def _put_numbers(code: str, content: bytearray, place: int, values: Sequence[Any]) -> None:
    struct.pack_into(f"={len(values)}{code}", content, place, *values)


def _put_lists(code: str, content: bytearray, place: int, values: Sequence[Sequence[Any]]) -> None:
    _put_numbers(code, content, place, [*itertools.chain(*values)])


def _put_truths(content: bytearray, place: int, values: Sequence[bool]) -> None:
    for start in range(0, len(values), 8):
        content[place + start // 8] = sum(truth << i for i, truth in enumerate(values[start : start + 8]))


def _put_float32(rows: Sequence[NDArray[Any]], place: NDArray[np.float32]) -> None:
    np.concatenate(rows, out=place, casting="same_kind")


def _put_beyond_float32(rows: Sequence[NDArray[Any]], place: NDArray[np.float32]) -> None:
    """A finite value beyond float32 stays finite, since infinite means a nonfinite gradient."""
    values = np.concatenate(rows)
    with np.errstate(over="ignore"):
        place[:] = values
    place[np.isinf(place) & np.isfinite(values)] = _FLOAT32_MAX
