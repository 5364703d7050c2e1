"""Norms of gradients in main memory, at about the cost of reading them once.

Small tensors are gathered into one array and reduced together; large ones are read in blocks that stay in the cache while
both statistics are taken. Rows of 2,048 are summed in float32 and the rows in float64: exact to 5e-7. The largest |g| comes
from two integer maxima, since the bits of floats of one sign are ordered as their sizes are, and NaN above all. Where
squares would over- or underflow, the gradient is first scaled by a power of two, which loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gradscope.capture.distributed import combine, local, spread
from gradscope.capture.norms import LateNorms, Norms, exact, missing

ROW = 2048
ROWS = 64
BLOCK = ROWS * ROW
SMALL = 16384
LOW, HIGH = 1e-12, 1e16
"""With the peak above LOW and the norm below HIGH, squares in float32 lose nothing that counts."""
_INT, _UNSIGNED = np.dtype(np.int32), np.dtype(np.uint32)
HALF = (torch.float16, torch.bfloat16)
_kind = attrgetter("dtype", "layout", "is_cpu", "requires_grad")
_SINGLE = (torch.float32, torch.strided, True, False)
_PLAIN = {_SINGLE, *((dtype, *_SINGLE[1:]) for dtype in HALF)}
_TYPES = {torch.Tensor, torch.nn.Parameter}


def _rows_by_matmul(rows: Any, _: Any, out: Any) -> Any:
    return np.matmul(rows[:, None, :], rows[:, :, None], out=out[:, None, None])


_square_rows: Callable[..., Any] = getattr(np, "vecdot", _rows_by_matmul)
_highest = np.maximum.reduce


class _ChangedError(Exception):
    """The gradients are no longer laid out as they were."""


class _Chunk(NamedTuple):
    """Small gradients read together: each group of places is joined along its first dimension into a part of `values`."""

    places: list[int]
    groups: list[tuple[list[int], torch.Tensor]]
    values: NDArray[np.float32]
    starts: NDArray[np.intp]


@dataclass
class _Large:
    """Large gradients, read one by one. `begin[i]`: where gradient i's sums of rows begin in `sums`, and where the bits of
    its blocks' largest and most negative elements begin in `tops` and `bottoms`.
    """

    places: list[int]
    sizes: list[int]
    half: list[bool]

    def __post_init__(self) -> None:
        rows, blocks = (np.cumsum([0, *(-(-size // each) for size in self.sizes)]) for each in (ROW, BLOCK))
        self.index, self.elements = np.array(self.places, int), np.array(self.sizes, int)
        self.first_row, self.first_block = rows[:-1], blocks[:-1]
        self.begin = list(zip(rows.tolist(), blocks.tolist(), strict=True))
        self.sums, self.scales = np.empty(rows[-1], np.float32), np.ones(len(self.places), np.float32)
        self.tops, self.bottoms = np.empty(blocks[-1], _INT), np.empty(blocks[-1], _UNSIGNED)
        self.scratch = np.empty(BLOCK, np.float32)


@dataclass
class _Plan:
    """Which gradients are read how: small ones in chunks, large ones one by one, `odd` ones by `exact`."""

    present: NDArray[np.bool_]
    absent: list[int]
    chunks: list[_Chunk] = field(default_factory=list)
    large: _Large = field(default_factory=lambda: _Large([], [], []))
    odd: list[int] = field(default_factory=list)


class HostNorms:
    """Reads the gradients of the same tensors again and again; remembers how they were laid out last time."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = tuple(tensors)
        self._plan: _Plan | None = None
        self._spread = spread(self._tensors)

    def read(self) -> Norms | LateNorms:
        """The norms of the gradients as they are now."""
        grads = [tensor.grad for tensor in self._tensors]
        if not self._spread:
            return self._read(grads)
        parts = self._read([local(grad) for grad in grads])
        norms = Norms(parts.norm, parts.peak, parts.present, parts.nonfinite.copy())
        nonfinite = torch.from_numpy(norms.nonfinite).double()
        combine(grads, torch.from_numpy(norms.norm), torch.from_numpy(norms.peak), nonfinite)
        norms.nonfinite[:] = nonfinite.numpy()
        return norms

    def read_as_torch(self) -> Norms | LateNorms:
        """As `read`, and each norm also as torch's own clipping rounds it, where that is found on the way."""
        return self.read()

    def _read(self, grads: list[Any]) -> Norms | LateNorms:
        if self._plan is not None:
            try:
                return _read(grads, self._plan)
            except (TypeError, AttributeError, RuntimeError, _ChangedError):
                pass
        self._plan = _planned(grads)
        return _read(grads, self._plan)


def _read(grads: list[Any], plan: _Plan) -> Norms:
    if any(grads[place] is not None for place in plan.absent):
        raise _ChangedError
    norms = missing(len(grads))
    norms.present[:] = plan.present
    with np.errstate(all="ignore"):
        for chunk in plan.chunks:
            _read_chunk(chunk, grads, norms)
        _read_large(plan, grads, norms)
    np.sqrt(norms.norm, out=norms.norm)
    _correct(grads, plan, norms)
    return norms


def _array(gradient: Any, elements: int, half: bool) -> Any:
    """The elements of a large gradient, in any order: an array, or for a half a flat tensor."""
    flat = gradient.detach().flatten() if half else gradient.numpy().ravel("K")
    known = flat.dtype in HALF if half else flat.dtype == np.float32
    if len(flat) != elements or not known:
        raise _ChangedError
    return flat


def _read_chunk(chunk: _Chunk, grads: list[Any], norms: Norms) -> None:
    """Σg² and the peak of every small gradient of a chunk."""
    for places, joined in chunk.groups:
        gradients = [grads[place] for place in places]
        (torch.cat if gradients[0].dim() else torch.stack)(gradients, out=joined)
    values, starts = chunk.values, chunk.starts
    peaks = _sizes(*(np.maximum.reduceat(values.view(bits), starts) for bits in (_INT, _UNSIGNED)))
    normal = ((peaks > LOW) & (peaks < HIGH) | (peaks == 0.0)).all()
    squares = np.square(values, out=values) if normal else np.square(values, dtype=np.float64)
    norms.norm[chunk.places] = np.add.reduceat(squares, starts)
    norms.peak[chunk.places] = peaks


def _sizes(tops: NDArray[Any], bottoms: NDArray[Any]) -> NDArray[np.float32]:
    """The largest |g| from the largest bits as signed and as unsigned integers."""
    return np.maximum(np.abs(tops.view(np.float32)), np.abs(bottoms.view(np.float32)))


def _read_large(plan: _Plan, grads: list[Any], norms: Norms) -> None:
    """Σg² and the peak of every large gradient. `scales` are guesses from the last step; a wrong one is taken again."""
    large = plan.large
    if not large.places:
        return
    for i, place in enumerate(large.places):
        _sum_tensor(large, i, grads[place])
    peaks = np.maximum.reduceat(_sizes(large.tops, large.bottoms), large.first_block)
    squares = np.add.reduceat(large.sums, large.first_row, dtype=np.float64)
    used, least = large.scales.copy(), _least_square() * large.elements
    lost = ~((squares >= least) & (squares < np.inf)) & (peaks > 0) & (peaks < np.inf)
    for i in np.flatnonzero(lost).tolist():
        large.scales[i] = used[i] = _scale(float(peaks[i]))
        _sum_tensor(large, i, grads[large.places[i]])
        squares[i] = np.add.reduceat(large.sums, large.first_row, dtype=np.float64)[i]
    squares /= used.astype(np.float64) ** 2
    large.scales[(squares >= least) & (peaks < HIGH)] = 1.0
    norms.norm[large.index] = squares
    norms.peak[large.index] = peaks


def _least_square() -> float:
    """A mean square of float32 above this loses less than 1e-7 of itself to squares too small for float32."""
    subnormals = np.float32(1e-30) * np.float32(1e-10) > 0  # `torch.set_flush_denormal` switches them off
    return 1e-38 if subnormals else 1e-31


def _scale(peak: float) -> float:
    """The power of two to multiply by, so that the squares stay within float32."""
    return float(2.0 ** min(127, -math.frexp(peak)[1]))


def _sum_tensor(large: _Large, i: int, gradient: Any) -> None:
    """Σg² of each row of one gradient, times its scale², and the two maxima of each block, taken once it is in the cache."""
    half, scale = large.half[i], large.scales[i]
    array = _array(gradient, large.sizes[i], half)
    row, number = large.begin[i]
    for begin in range(0, len(array), BLOCK):
        block = array[begin : begin + BLOCK]
        if half:
            block = block.float().numpy()
        scaled = block if scale == 1.0 else np.multiply(block, scale, out=large.scratch[: len(block)])
        _square(scaled, large.sums[row : row + ROWS])
        large.tops[number], large.bottoms[number] = _highest(block.view(_INT)), _highest(block.view(_UNSIGNED))
        row += ROWS
        number += 1


def _square(block: Any, sums: Any) -> None:
    """Σg² of each row of a block."""
    rows, rest = divmod(len(block), ROW)
    if rows:
        whole = block[: rows * ROW].reshape(rows, ROW)
        _square_rows(whole, whole, out=sums[:rows])
    if rest:
        sums[rows] = block[rows * ROW :].dot(block[rows * ROW :])


def _correct(grads: list[Any], plan: _Plan, norms: Norms) -> None:
    """Read the odd ones, and count what is nonfinite in the others."""
    for place in (*plan.odd, *np.flatnonzero(plan.present & ~np.isfinite(norms.norm))):
        norms.norm[place], norms.peak[place], norms.nonfinite[place] = exact(grads[place])


def _planned(grads: list[Any]) -> _Plan:
    present = np.array([gradient is not None for gradient in grads], bool)
    plan = _Plan(present, np.flatnonzero(~present).tolist())
    small: dict[tuple[int, ...] | None, list[int]] = {}
    large: list[int] = []
    for place, gradient in enumerate(grads):
        if gradient is None:
            continue
        if not plain(gradient):
            plan.odd.append(place)
        elif gradient.numel() < SMALL:
            small.setdefault(tuple(gradient.shape[1:]) if gradient.dim() else None, []).append(place)
        else:
            large.append(place)
    sizes = [grads[place].numel() for place in large]
    plan.large = _Large(large, sizes, [grads[place].dtype in HALF for place in large])
    plan.chunks = _chunks(grads, list(small.values()))
    return plan


def plain(gradient: Any) -> bool:
    """Whether it is an ordinary tensor of single or half precision in main memory."""
    return type(gradient) in _TYPES and _kind(gradient) in _PLAIN and gradient.numel() > 0


def _chunks(grads: list[Any], groups: list[list[int]]) -> list[_Chunk]:
    """Groups packed into chunks of at most BLOCK elements; a group that does not fit goes on in the next chunk."""
    packed: list[list[list[int]]] = [[]]
    room = BLOCK
    for group in groups:
        each = max(grads[place].numel() for place in group)
        left = group
        while left:
            if room < each:
                packed.append([])
                room = BLOCK
            taken, left = left[: room // each], left[room // each :]
            packed[-1].append(taken)
            room -= each * len(taken)
    return [_chunk(grads, pieces) for pieces in packed if pieces]


def _chunk(grads: list[Any], pieces: list[list[int]]) -> _Chunk:
    places = [place for piece in pieces for place in piece]
    ends = np.cumsum([grads[place].numel() for place in places])
    values = np.empty(ends[-1], np.float32)
    joined, begin = [], 0
    for piece in pieces:
        first = grads[piece[0]]
        size = sum(grads[place].numel() for place in piece)
        view = torch.from_numpy(values[begin : begin + size])
        joined.append((piece, view.view(-1, *first.shape[1:])))
        begin += size
    return _Chunk(places, joined, values, np.concatenate(([0], ends[:-1])))
