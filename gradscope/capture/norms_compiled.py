"""Norms of gradients in main memory by one compiled pass over each, where the package was built with a C compiler.

The pass itself is `native/norms.c`. `width`: floats that the processor is asked to handle at once.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gradscope.capture.norms import LateNorms, Norms, exact
from gradscope.capture.norms_host import HALF, HostNorms, plain

_bytes, _on_host, _contiguous = attrgetter("nbytes"), attrgetter("is_cpu"), torch.Tensor.is_contiguous
_address = torch.Tensor.data_ptr


def _loaded() -> ctypes.CDLL | None:
    """The compiled pass; None where the package was installed without a C compiler."""
    spec = find_spec("gradscope.capture._norms")
    if spec is None or spec.origin is None:
        return None
    library = ctypes.CDLL(spec.origin)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.norms.argtypes = [pointer, pointer, number, ctypes.c_int, pointer, pointer, pointer]
    library.norms.restype = ctypes.c_double
    return library


_LIBRARY = _loaded()
WIDTH: int = _LIBRARY.norms_width() if _LIBRARY else 0
"""Floats handled at once by this processor; 0 where nothing is compiled."""


TRIED_ALONE = (1e-30, 1e30)
"""Values whose squares leave the range of float32, of which torch takes the size where they are alone."""
TRIED_SIZES = (*range(1, 50), *range(1, 50), 1021, 4099, 1 << 17, 300_007)
"""Of values that tell how torch rounds: with every rest of its vectors, and enough for its threads to share."""


def host_norms(tensors: Sequence[torch.Tensor]) -> HostNorms:
    """The fastest reader there is for gradients in main memory."""
    return CompiledNorms(tensors) if WIDTH else HostNorms(tensors)


@dataclass(frozen=True)
class _Layout:
    """How the gradients lie: `direct` ones are float32 without gaps, read where they are; `copied` ones are made so first;
    the `odd` ones are read by `exact`, and `absent` there is none.
    """

    direct: list[int]
    copied: list[int]
    odd: list[int]
    absent: list[int]
    bytes: list[int]
    sizes: array[int]
    present: NDArray[np.bool_]
    nonfinite: NDArray[np.int64]


class CompiledNorms(HostNorms):
    """As `HostNorms`, for vectors of `width` floats."""

    def __init__(self, tensors: Sequence[torch.Tensor], width: int = WIDTH) -> None:
        super().__init__(tensors)
        self._width = width
        self._layout: _Layout | None = None

    def read_as_torch(self) -> Norms | LateNorms:
        """As `read`, and each norm also as torch's own clipping rounds it, unless a gradient lies unusually."""
        if self._spread:
            return self.read()
        return self._read([tensor.grad for tensor in self._tensors], as_torch=True)

    def _read(self, grads: list[Any], *, as_torch: bool = False) -> Norms | LateNorms:
        layout = self._layout or _laid_out(grads)
        addresses = _addresses(grads, layout)
        if addresses is None:
            layout = _laid_out(grads)
            addresses = _addresses(grads, layout)
        assert addresses is not None
        self._layout = layout
        found = _read(addresses, layout.sizes, self._width, as_torch=as_torch)
        if layout.direct and math.isfinite(found.sum_square) and not (layout.copied or layout.odd):
            return LateNorms(partial(_norms, found, layout), as_torch=found.as_torch or None)
        return self._finished(grads, layout, _norms(found, layout))

    def _finished(self, grads: list[Any], layout: _Layout, norms: Norms) -> Norms:
        """With the gradients that are not read in place, and the nonfinite values counted."""
        norms = norms._replace(nonfinite=norms.nonfinite.copy(), sum_square=None)
        for place in layout.copied:
            values = grads[place].detach().float().numpy().ravel("K")
            norms.norm[place], norms.peak[place] = _read_arrays([values], self._width).values
        for place in (*layout.odd, *np.flatnonzero(layout.present & ~np.isfinite(norms.norm))):
            norms.norm[place], norms.peak[place], norms.nonfinite[place] = exact(grads[place])
        return norms


class _Found(NamedTuple):
    """L2 of each array, then the largest |g| of each; L2 as torch rounds it, empty if not asked for; the sum of the squares.

    In a step, nothing of numpy is in the processor's caches: its first call would take longer than to read a small model.
    """

    values: array[float]
    as_torch: array[float]
    sum_square: float


def _read(addresses: array[int], sizes: array[int], width: int, *, as_torch: bool = False) -> _Found:
    """Read that many floats at each address; NaN at 0."""
    assert _LIBRARY is not None
    count = len(sizes)
    values, rounded = array("d", bytes(16 * count)), array("f", bytes(4 * count) if as_torch else b"")
    norms = values.buffer_info()[0]
    results = norms, norms + 8 * count, rounded.buffer_info()[0] if as_torch else None
    sum_square = _LIBRARY.norms(addresses.buffer_info()[0], sizes.buffer_info()[0], count, width, *results)
    return _Found(values, rounded, sum_square)


def _read_arrays(values: list[NDArray[np.float32]], width: int, *, as_torch: bool = False) -> _Found:
    places, sizes = array("q", [one.ctypes.data for one in values]), array("q", [one.size for one in values])
    return _read(places, sizes, width, as_torch=as_torch)


def _norms(found: _Found, layout: _Layout) -> Norms:
    norm, peak = np.frombuffer(found.values).reshape(2, -1)
    return Norms(norm, peak, layout.present, layout.nonfinite, found.sum_square)


def total_as_torch(norms: array[float]) -> float | None:
    """The L2 norm of gradients with these norms `as_torch`, in this order, as torch's own clipping rounds it.

    None where torch, as it was built for this machine, rounds otherwise than the compiled pass expects.
    """
    if not _rounds_as_torch(torch.get_num_threads()):
        return None
    place, size = array("q", [norms.buffer_info()[0]]), array("q", [len(norms)])
    return _read(place, size, WIDTH, as_torch=True).as_torch[0]


@cache
def _rounds_as_torch(_threads: int) -> bool:
    """Whether torch, with so many threads, gives the norms `as_torch` of values at random, of many sizes, bit for bit."""
    generator = np.random.default_rng(0)
    values = [generator.standard_normal(size, np.float32) for size in TRIED_SIZES]
    values += [np.array([one], np.float32) for one in TRIED_ALONE]
    found = _read_arrays(values, WIDTH, as_torch=True).as_torch
    expected = torch.stack(torch._foreach_norm([*map(torch.from_numpy, values)], 2.0))
    return found.tolist() == expected.tolist()


def _addresses(grads: list[Any], layout: _Layout) -> array[int] | None:
    """Where the gradients that are read in place are, 0 for the others; None if the gradients lie differently now."""
    held = [grads[place] for place in layout.direct] if len(layout.direct) < len(grads) else grads
    try:
        same = list(map(_bytes, held)) == layout.bytes and all(map(_on_host, held)) and all(map(_contiguous, held))
        if not (same and (held is grads or _others_same(grads, layout))):
            return None
        found = array("q", map(_address, held))
    except (AttributeError, RuntimeError):
        return None
    if held is grads:
        return found
    spread = array("q", bytes(8 * len(grads)))
    for place, address in zip(layout.direct, found, strict=True):
        spread[place] = address
    return spread


def _others_same(grads: list[Any], layout: _Layout) -> bool:
    """Whether those that are not read in place still lie as they did."""
    absent = all(grads[place] is None for place in layout.absent)
    return absent and all(plain(grads[place]) for place in layout.copied)


def _laid_out(grads: list[Any]) -> _Layout:
    present = np.array([gradient is not None for gradient in grads], bool)
    held = np.flatnonzero(present).tolist()
    nonfinite = np.zeros(len(grads), np.int64)
    present.flags.writeable = nonfinite.flags.writeable = False  # the norms of many steps share them
    usual = [place for place in held if plain(grads[place])]
    direct = [place for place in usual if grads[place].dtype not in HALF and grads[place].is_contiguous()]
    return _Layout(
        direct=direct,
        copied=sorted({*usual} - {*direct}),
        odd=sorted({*held} - {*usual}),
        absent=np.flatnonzero(~present).tolist(),
        bytes=[4 * grads[place].numel() for place in direct],
        sizes=array("q", [0 if gradient is None else gradient.numel() for gradient in grads]),
        present=present,
        nonfinite=nonfinite,
    )
