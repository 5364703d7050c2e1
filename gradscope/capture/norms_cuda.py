"""Norms of gradients on an NVIDIA GPU: one pass over all of them, by two kernels that are compiled when first needed.

The kernels are `native/norms.cu`. Built of torch's own operations the same takes several passes and a launch a tensor.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
"""Kinds of number that the kernels read, and their numbers there."""

CHUNK, THREADS, WARP = 1 << 15, 256, 32
PIECE = 24
"""Bytes of what is found in a piece of CHUNK elements."""

MOST = 480
"""Gradients read by one launch, so that their addresses fit among its arguments."""

_address = torch.Tensor.data_ptr


class Kernels(NamedTuple):
    """The compiled kernels, as handles of the driver."""

    partial: ctypes.c_void_p
    total: ctypes.c_void_p


class CudaNorms:
    """Reads gradients of the same sizes and kinds of number, on one GPU, again and again.

    `gradients`: such ones, without gaps, of the `KINDS`. A float64 gradient above 1e154 has an infinite norm, though nothing
    nonfinite is counted.
    """

    def __init__(self, kernels: Kernels, gradients: Sequence[torch.Tensor]) -> None:
        self._kernels, self._device = kernels, gradients[0].device
        sizes = np.array([gradient.numel() for gradient in gradients], np.int64)
        pieces = -(-sizes // CHUNK)
        kinds = [KINDS[gradient.dtype] for gradient in gradients]
        owners = np.repeat(np.arange(len(sizes)), pieces)
        self._table = np.concatenate([sizes, kinds, [0], np.cumsum(pieces), owners]).astype(np.int64)
        self._groups = [(begin, int(pieces[begin : begin + MOST].sum())) for begin in range(0, len(sizes), MOST)]
        self._count, self._pieces = len(sizes), len(owners)
        self._placed: dict[int, torch.Tensor] = {}

    def read(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """(3, gradients) float64, still being computed: L2, largest |g|, and how many elements are nonfinite."""
        addresses = list(map(_address, gradients))
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream().cuda_stream
            pieces = torch.empty(self._pieces * PIECE + 1, dtype=torch.uint8, device=self._device)
            results = torch.empty(3, self._count, dtype=torch.float64, device=self._device)
            common = (_pointer(self._on_device(stream)), ctypes.c_int(self._count), _pointer(pieces))
            for begin, blocks in self._groups:
                if blocks:
                    group = (ctypes.c_void_p * MOST)(*addresses[begin : begin + MOST])
                    _launch(self._kernels.partial, blocks, THREADS, stream, group, ctypes.c_int(begin), *common)
            _launch(self._kernels.total, self._count, WARP, stream, *common, _pointer(results))
        return results

    def _on_device(self, stream: int) -> torch.Tensor:
        """The table that the kernels read, copied there in the order of this stream."""
        if stream not in self._placed:
            table = torch.from_numpy(self._table).pin_memory()
            self._placed[stream] = table.to(self._device, non_blocking=True)
        return self._placed[stream]


def _pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _launch(kernel: ctypes.c_void_p, blocks: int, threads: int, stream: int, *arguments: Any) -> None:
    places = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
    _checked(_driver().cuLaunchKernel(kernel, blocks, 1, 1, threads, 1, 1, 0, ctypes.c_void_p(stream), places, None))


@functools.cache
def kernels(device: torch.device) -> Kernels | None:
    """The kernels for this device; None where it is no NVIDIA GPU, or its driver or compiler is not found."""
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    try:
        return _loaded(device)
    except (OSError, AttributeError, RuntimeError):
        return None


def _loaded(device: torch.device) -> Kernels:
    module, found = ctypes.c_void_p(), Kernels(ctypes.c_void_p(), ctypes.c_void_p())
    with torch.cuda.device(device):
        torch.cuda.current_stream()
        _checked(_driver().cuModuleLoadData(ctypes.byref(module), _compiled(torch.cuda.get_device_capability(device))))
        for name, function in found._asdict().items():
            _checked(_driver().cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
    return found


def _compiled(capability: tuple[int, int]) -> bytes:
    """`norms.cu` for GPUs of this compute capability. Raises RuntimeError with the compiler's own words."""
    compiler, program, size = _compiler(), ctypes.c_void_p(), ctypes.c_size_t()
    source = (files("gradscope.capture") / "native" / "norms.cu").read_bytes()
    constants = {"CHUNK": CHUNK, "THREADS": THREADS, "WARP": WARP, "MOST": MOST}
    options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}", *(f"-D{k}={v}" for k, v in constants.items())]
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    _checked(compiler.nvrtcCreateProgram(ctypes.byref(program), source, b"norms.cu", 0, None, None))
    try:
        if compiler.nvrtcCompileProgram(program, len(options), given):
            _checked(compiler.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
            log = ctypes.create_string_buffer(size.value)
            _checked(compiler.nvrtcGetProgramLog(program, log))
            raise RuntimeError(log.value.decode())
        _checked(compiler.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        binary = ctypes.create_string_buffer(size.value)
        _checked(compiler.nvrtcGetCUBIN(program, binary))
    finally:
        compiler.nvrtcDestroyProgram(ctypes.byref(program))
    return binary.raw


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _compiler() -> ctypes.CDLL:
    """NVRTC, which comes with torch; raises OSError where it is not found."""
    version = str(torch.version.cuda).split(".")[0]
    name = f"nvrtc64_{version}0_0.dll" if sys.platform == "win32" else f"libnvrtc.so.{version}"
    beside = Path(torch.__file__).parents[1].glob(f"nvidia/*/lib/{name}")
    for place in (name, *map(str, beside)):
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    raise OSError(name)


def _checked(status: int) -> None:
    """Raises RuntimeError for a status of the driver or the compiler other than success."""
    if status:
        raise RuntimeError(f"CUDA error {status}")
