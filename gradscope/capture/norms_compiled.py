"""Norms of gradients in main memory by one compiled pass over each, where the package was built with a C compiler.

The pass itself is `native/norms.c`. `width`: floats that the processor is asked to handle at once.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradscope.capture.norms import Norms, exact, missing, multiply
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
    library.norms.argtypes = [pointer, pointer, number, pointer, ctypes.c_int, pointer, pointer]
    library.norms.restype = None
    return library


_LIBRARY = _loaded()
WIDTH: int = _LIBRARY.norms_width() if _LIBRARY else 0
"""Floats handled at once by this processor; 0 where nothing is compiled."""


def host_norms(tensors: Sequence[torch.Tensor]) -> HostNorms:
    """The fastest reader there is for gradients in main memory."""
    return CompiledNorms(tensors) if WIDTH else HostNorms(tensors)


@dataclass(frozen=True)
class _Layout:
    """How the gradients lie: `places` are float32 without gaps, read where they are; `copied` are made so first; the `odd`
    ones are read by `exact`, and `absent` there is none.
    """

    places: list[int]
    copied: list[int]
    odd: list[int]
    absent: list[int]
    present: NDArray[np.bool_]
    bytes: list[int]
    sizes: NDArray[np.int64]
    squares: NDArray[np.float64]
    peaks: NDArray[np.float32]


class CompiledNorms(HostNorms):
    """As `HostNorms`, for vectors of `width` floats."""

    def __init__(self, tensors: Sequence[torch.Tensor], width: int = WIDTH) -> None:
        super().__init__(tensors)
        self._width = width
        self._layout: _Layout | None = None

    def _read(self, grads: list[Any], factor: float) -> Norms:
        layout = self._layout or _laid_out(grads)
        addresses = _addresses(grads, layout)
        if addresses is None:
            layout = _laid_out(grads)
            addresses = _addresses(grads, layout)
        assert addresses is not None
        self._layout = layout
        return self._pass(grads, layout, addresses, factor)

    def _pass(self, grads: list[Any], layout: _Layout, addresses: array[int], factor: float) -> Norms:
        self._call(addresses, layout.sizes, layout.squares, layout.peaks, factor)
        norms = missing(len(grads))
        norms.present[:] = layout.present
        norms.norm[layout.places], norms.peak[layout.places] = np.sqrt(layout.squares), layout.peaks
        for place in layout.copied:
            self._copied(grads[place], place, norms)
        for place in (*layout.odd, *np.flatnonzero(layout.present & ~np.isfinite(norms.norm))):
            norms.norm[place], norms.peak[place], norms.nonfinite[place] = exact(grads[place])
        if factor != 1.0:
            torch.autograd.graph.increment_version([grads[place] for place in layout.places])
            multiply([grads[place] for place in (*layout.copied, *layout.odd)], factor)
        return norms

    def _copied(self, gradient: torch.Tensor, place: int, norms: Norms) -> None:
        values = gradient.detach().float().numpy().ravel("K")
        square, peak = np.empty(1), np.empty(1, np.float32)
        self._call(array("q", [values.ctypes.data]), np.array([values.size]), square, peak, 1.0)
        norms.norm[place], norms.peak[place] = np.sqrt(square[0]), peak[0]

    def _call(
        self,
        addresses: array[int],
        sizes: NDArray[np.int64],
        squares: NDArray[np.float64],
        peaks: NDArray[np.float32],
        factor: float,
    ) -> None:
        assert _LIBRARY is not None
        change = None if factor == 1.0 else ctypes.byref(ctypes.c_float(factor))
        found = squares.ctypes.data, peaks.ctypes.data
        _LIBRARY.norms(addresses.buffer_info()[0], sizes.ctypes.data, len(sizes), change, self._width, *found)


def _addresses(grads: list[Any], layout: _Layout) -> array[int] | None:
    """Where the gradients that are read in place are; None if the gradients lie differently now."""
    held = [grads[place] for place in layout.places]
    try:
        same = list(map(_bytes, held)) == layout.bytes and all(map(_on_host, held)) and all(map(_contiguous, held))
        same = same and all(grads[place] is None for place in layout.absent)
        same = same and all(plain(grads[place]) for place in layout.copied)
        return array("q", map(_address, held)) if same else None
    except (AttributeError, RuntimeError):
        return None


def _laid_out(grads: list[Any]) -> _Layout:
    present = np.array([gradient is not None for gradient in grads], bool)
    usual = [place for place in np.flatnonzero(present).tolist() if plain(grads[place])]
    places = [place for place in usual if grads[place].dtype not in HALF and grads[place].is_contiguous()]
    copied = [place for place in usual if grads[place].dtype in HALF or not grads[place].is_contiguous()]
    odd = [place for place in np.flatnonzero(present).tolist() if not plain(grads[place])]
    sizes = np.array([grads[place].numel() for place in places], np.int64)
    absent = np.flatnonzero(~present).tolist()
    results = np.empty(len(places)), np.empty(len(places), np.float32)
    return _Layout(places, copied, odd, absent, present, [4 * size for size in sizes.tolist()], sizes, *results)
