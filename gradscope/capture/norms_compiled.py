"""Norms of gradients in main memory by one compiled pass over each, where the package was built with a C compiler.

The pass itself is `native/norms.c`. `width`: floats that the processor is asked to handle at once.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradscope.capture.norms import Norms, exact, multiply
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
    library.norms.restype = ctypes.c_double
    return library


_LIBRARY = _loaded()
WIDTH: int = _LIBRARY.norms_width() if _LIBRARY else 0
"""Floats handled at once by this processor; 0 where nothing is compiled."""


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
    sizes: NDArray[np.int64]
    present: NDArray[np.bool_]
    nonfinite: NDArray[np.int64]


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
        results = np.empty((2, len(grads)))
        sum_square = self._call(addresses, layout.sizes, results, factor)
        if factor != 1.0:
            torch.autograd.graph.increment_version([grads[place] for place in layout.direct])
        if layout.direct and math.isfinite(sum_square) and not (layout.copied or layout.odd):
            return Norms(results[0], results[1], layout.present, layout.nonfinite, sum_square)
        norms = Norms(results[0], results[1], layout.present, layout.nonfinite.copy())
        return self._finished(grads, layout, norms, factor)

    def _finished(self, grads: list[Any], layout: _Layout, norms: Norms, factor: float) -> Norms:
        """With the gradients that are not read in place, and the nonfinite values counted."""
        for place in layout.copied:
            values, result = grads[place].detach().float().numpy().ravel("K"), np.empty((2, 1))
            self._call(array("q", [values.ctypes.data]), np.array([values.size]), result, 1.0)
            norms.norm[place], norms.peak[place] = result[:, 0]
        for place in (*layout.odd, *np.flatnonzero(layout.present & ~np.isfinite(norms.norm))):
            norms.norm[place], norms.peak[place], norms.nonfinite[place] = exact(grads[place])
        multiply([grads[place] for place in (*layout.copied, *layout.odd)], factor)
        return norms

    def _call(
        self, addresses: array[int], sizes: NDArray[np.int64], results: NDArray[np.float64], factor: float
    ) -> float:
        """Σ norm²."""
        assert _LIBRARY is not None
        change = None if factor == 1.0 else ctypes.byref(ctypes.c_float(factor))
        norms = results.ctypes.data
        places = addresses.buffer_info()[0], sizes.ctypes.data, len(sizes)
        sum_square: float = _LIBRARY.norms(*places, change, self._width, norms, norms + results.strides[0])
        return sum_square


def _addresses(grads: list[Any], layout: _Layout) -> array[int] | None:
    """Where the gradients that are read in place are, 0 for the others; None if the gradients lie differently now."""
    held = [grads[place] for place in layout.direct] if len(layout.direct) < len(grads) else grads
    try:
        same = list(map(_bytes, held)) == layout.bytes and all(map(_on_host, held)) and all(map(_contiguous, held))
        same = same and all(grads[place] is None for place in layout.absent)
        if not (same and all(plain(grads[place]) for place in layout.copied)):
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
        sizes=np.array([0 if gradient is None else gradient.numel() for gradient in grads], np.int64),
        present=present,
        nonfinite=nonfinite,
    )
