"""Memory that a step frees is there for the next one."""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import pytest
import torch

from gradscope.capture.memory import kept_memory

BLOCKS, SIZE, ROUNDS = 16, 1 << 20, 20


def faults() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_blocks_are_not_fetched_again_from_the_system() -> None:
    with kept_memory():
        for attempt in range(ROUNDS):
            blocks = [torch.zeros(SIZE, dtype=torch.uint8) for _ in range(BLOCKS)]
            if not attempt:
                before = faults()
            del blocks
        fetched = faults() - before
    assert fetched < ROUNDS * BLOCKS * SIZE / 4096 / 10


@pytest.mark.parametrize("broken", [OSError, AttributeError])
def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch, broken: type[Exception]) -> None:
    def library(_: Any) -> Any:
        raise broken

    monkeypatch.setattr(ctypes, "CDLL", library)
    with kept_memory():
        pass


def test_memory_is_given_back_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[int, ...]] = []

    class Library:
        def mallopt(self, *given: int) -> None:
            called.append(given)

        def malloc_trim(self, *given: int) -> None:
            called.append(given)

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library())
    with pytest.raises(ValueError, match="user"), kept_memory():
        raise ValueError("user")
    assert called[-1] == (0,)
    assert len(called) == 4
