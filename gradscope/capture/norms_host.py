"""Norms of gradients in main memory, at about the cost of reading them once.

Small tensors are gathered into one array and reduced together; large ones are read in blocks that stay in the cache while
both statistics are taken. Rows of 2,048 are summed in float32 and the rows in float64: exact to 3e-7. The largest |g| comes
from two integer maxima, since the bits of floats of one sign are ordered as their sizes are, and NaN above all. Where
squares would over- or underflow, the block is first scaled by a power of two, which loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gradscope.capture.distributed import combine, local, spread
from gradscope.capture.norms import Norms, exact, missing

ROW = 2048
ROWS = 64
BLOCK = ROWS * ROW
SMALL = 4096
LOW, HIGH = 1e-12, 1e16
"""With the peak above LOW and the norm below HIGH, squares in float32 lose nothing that counts."""
_HALF = (torch.float16, torch.bfloat16)


def _rows_by_matmul(rows: Any, _: Any, out: Any) -> Any:
    return np.matmul(rows[:, None, :], rows[:, :, None], out=out[:, None, None])


_square_rows: Callable[..., Any] = getattr(np, "vecdot", _rows_by_matmul)


class _ChangedError(Exception):
    """The gradients are no longer laid out as they were."""


class _Chunk(NamedTuple):
    """Small gradients read together: each group of places is joined along its first dimension into a part of `values`."""

    places: list[int]
    groups: list[tuple[list[int], torch.Tensor]]
    values: NDArray[np.float32]
    starts: NDArray[np.intp]


class _Large(NamedTuple):
    """One large gradient: the sums of its rows go to `sums[start:]`."""

    place: int
    elements: int
    start: int
    half: bool


@dataclass
class _Plan:
    """Which gradients are read how: small ones in chunks, large ones one by one, `odd` ones by `exact`."""

    present: NDArray[np.bool_]
    absent: list[int]
    chunks: list[_Chunk] = field(default_factory=list)
    large: list[_Large] = field(default_factory=list)
    odd: list[int] = field(default_factory=list)
    single: bool = False
    scales: list[float] = field(default_factory=list)
    sums: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    scratch: NDArray[np.float32] = field(default_factory=lambda: np.empty(BLOCK, np.float32))


class HostNorms:
    """Reads the gradients of the same tensors again and again; remembers how they were laid out last time."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = tuple(tensors)
        self._plan: _Plan | None = None
        self._spread = spread(self._tensors)

    def read(self) -> Norms:
        """The norms of the gradients as they are now."""
        if not self._spread:
            return self._read([tensor.grad for tensor in self._tensors], None)
        grads = [tensor.grad for tensor in self._tensors]
        norms = self._read([local(grad) for grad in grads], None)
        nonfinite = torch.from_numpy(norms.nonfinite).double()
        combine(grads, torch.from_numpy(norms.norm), torch.from_numpy(norms.peak), nonfinite)
        norms.nonfinite[:] = nonfinite.numpy()
        return norms

    def read_twice(self) -> tuple[Norms, dict[int, torch.Tensor]]:
        """The norms, and by index the same as torch's own clipping computes them, while each gradient is in the cache.

        The second is empty where not all gradients are plain float32.
        """
        if self._spread:
            return self.read(), {}
        own: dict[int, torch.Tensor] = {}
        norms = self._read([tensor.grad for tensor in self._tensors], own)
        return norms, own if self._plan is not None and self._plan.single else {}

    def _read(self, grads: list[Any], own: dict[int, torch.Tensor] | None) -> Norms:
        if self._plan is not None:
            try:
                return _read(grads, self._plan, own)
            except (TypeError, AttributeError, RuntimeError, _ChangedError):
                pass
        self._plan = _planned(grads)
        return _read(grads, self._plan, own)


def _read(grads: list[Any], plan: _Plan, own: dict[int, torch.Tensor] | None) -> Norms:
    if any(grads[place] is not None for place in plan.absent):
        raise _ChangedError
    norms = missing(len(grads))
    norms.present[:] = plan.present
    with np.errstate(all="ignore"):
        for chunk in plan.chunks:
            _read_chunk(chunk, grads, norms, own)
        _read_large(plan, grads, norms, own)
    np.sqrt(norms.norm, out=norms.norm)
    _correct(grads, plan, norms)
    return norms


def _array(gradient: Any, large: _Large) -> Any:
    """The elements of a large gradient, in any order: an array, or for a half a flat tensor."""
    flat = gradient.detach().flatten() if large.half else gradient.numpy().ravel("K")
    kinds = _HALF if large.half else (np.float32,)
    if len(flat) != large.elements or flat.dtype not in kinds:
        raise _ChangedError
    return flat


def _read_chunk(chunk: _Chunk, grads: list[Any], norms: Norms, own: dict[int, torch.Tensor] | None) -> None:
    """Σg² and the peak of every small gradient of a chunk."""
    for places, joined in chunk.groups:
        gradients = [grads[place] for place in places]
        if own is not None:
            own.update(zip(places, torch._foreach_norm(gradients, 2.0), strict=True))
        (torch.cat if gradients[0].dim() else torch.stack)(gradients, out=joined)
    values, starts = chunk.values, chunk.starts
    tops, bottoms = (np.maximum.reduceat(values.view(bits), starts).view(np.float32) for bits in (np.int32, np.uint32))
    peaks = np.maximum(np.abs(tops), np.abs(bottoms))
    normal = ((peaks > LOW) & (peaks < HIGH) | (peaks == 0.0)).all()
    squares = np.square(values, dtype=np.float32 if normal else np.float64)
    norms.norm[chunk.places] = np.add.reduceat(squares, starts)
    norms.peak[chunk.places] = peaks


def _read_large(plan: _Plan, grads: list[Any], norms: Norms, own: dict[int, torch.Tensor] | None) -> None:
    if not plan.large:
        return
    for i, large in enumerate(plan.large):
        array = _array(grads[large.place], large)
        if own is not None:
            own[large.place] = torch._foreach_norm([grads[large.place]], 2.0)[0]
        row, guess, peak = large.start, plan.scales[i], 0.0
        for block in _blocks(array):
            sums = plan.sums[row : row + len(block)]
            row += len(block)
            peak = max(_sum_block(block, sums, guess, plan.scratch), peak)
        norms.peak[large.place], plan.scales[i] = peak, _scale(peak)
    places = [large.place for large in plan.large]
    norms.norm[places] = np.add.reduceat(plan.sums, [large.start for large in plan.large])


def _blocks(array: Any) -> Iterator[Any]:
    """Views of (at most ROWS, ROW) elements, the last one (1, what is left)."""
    rows, rest = divmod(len(array), ROW)
    whole = array[: rows * ROW].reshape(rows, ROW)
    for begin in range(0, rows, ROWS):
        yield whole[begin : begin + ROWS]
    if rest:
        yield array[rows * ROW :].reshape(1, rest)


def _scale(peak: float) -> float:
    """The power of two to multiply by, so that the squares stay within float32."""
    if LOW < peak < HIGH or peak == 0.0 or not math.isfinite(peak):
        return 1.0
    return float(2.0 ** min(127, -math.frexp(peak)[1]))


def _sum_block(block: Any, sums: Any, scale: float, scratch: Any) -> float:
    """Σg² of each row into `sums`, while the block is in the cache; returns its peak.

    `scale` is the guess from the last step; where it was wrong the block is taken again.
    """
    if isinstance(block, torch.Tensor):
        block = block.float().numpy()
    scaled = block
    if scale != 1.0:
        scaled = np.multiply(block, np.float32(scale), out=scratch[: block.size].reshape(block.shape))
    _square_rows(scaled, scaled, out=sums)
    peak: float = abs(scaled.item(scaled.view(np.int32).argmax()))
    peak = max(peak, abs(scaled.item(scaled.view(np.uint32).argmax())))
    if not LOW < peak < HIGH:
        better = _scale(peak) if scale == 1.0 else 1.0
        if better != scale:
            return _sum_block(block, sums, better, scratch)
    if scale != 1.0:
        sums /= scale**2
        peak /= scale
    return peak


def _correct(grads: list[Any], plan: _Plan, norms: Norms) -> None:
    """Read the odd ones, and count what is nonfinite in the others."""
    for place in (*plan.odd, *np.flatnonzero(plan.present & ~np.isfinite(norms.norm))):
        norms.norm[place], norms.peak[place], norms.nonfinite[place] = exact(grads[place])


def _planned(grads: list[Any]) -> _Plan:
    present = np.array([gradient is not None for gradient in grads], bool)
    plan = _Plan(present, np.flatnonzero(~present).tolist())
    small: dict[tuple[int, ...] | None, list[int]] = {}
    rows = 0
    for place, gradient in enumerate(grads):
        if gradient is None:
            continue
        if not _plain(gradient):
            plan.odd.append(place)
        elif gradient.numel() < SMALL:
            small.setdefault(tuple(gradient.shape[1:]) if gradient.dim() else None, []).append(place)
        else:
            plan.large.append(_Large(place, gradient.numel(), rows, gradient.dtype in _HALF))
            rows += -(-gradient.numel() // ROW)
    plan.sums, plan.scales = np.empty(rows), [1.0] * len(plan.large)
    plan.chunks = _chunks(grads, list(small.values()))
    plan.single = not plan.odd and all(grad is None or grad.dtype == torch.float32 for grad in grads)
    return plan


def _plain(gradient: Any) -> bool:
    return (
        type(gradient) in (torch.Tensor, torch.nn.Parameter)
        and gradient.layout == torch.strided
        and gradient.dtype in (torch.float32, *_HALF)
        and gradient.device.type == "cpu"
        and gradient.numel() > 0
        and not gradient.requires_grad
    )


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
