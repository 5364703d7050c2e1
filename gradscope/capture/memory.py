"""Freed memory kept for the next step: a training frees its gradients and makes them anew at every one."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""
KEPT, LARGEST, AFTERWARDS = 1 << 30, 1 << 25, 1 << 26
"""Bytes: as much freed memory is kept meanwhile; larger blocks than that are always the system's (glibc's own limit); what
glibc itself keeps at most, once it has seen such blocks.
"""


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed memory in the process meanwhile, and give it back at the end.

    Where gradients lie at the end of the heap, glibc returns their pages to the system each step and fetches them again,
    which was measured at an eighth of a step. Nothing happens where there is no glibc.
    """
    try:
        libc = ctypes.CDLL(None)
        set_option, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError, TypeError):
        yield
        return
    set_option(_MMAP_THRESHOLD, LARGEST)
    set_option(_TRIM_THRESHOLD, KEPT)
    try:
        yield
    finally:
        set_option(_TRIM_THRESHOLD, AFTERWARDS)
        trim(0)
