"""Random numbers: seeding everything, and drawing data without disturbing what training will draw."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")
WATCHED = 2
"""So many draws after a start are watched; a source that left numpy's and Python's generators alone is trusted after."""


def seed_everything(seed: int) -> None:
    """Seed torch, numpy's global generator and Python's `random`."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def mixed(seed: int, index: int) -> int:
    """A seed below 2**32 for item `index` of the sequence that `seed` names."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0])


@contextmanager
def preserved(devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Puts the random state of torch (CPU and the CUDA `devices`), numpy and Python back at the end."""
    others = _others()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        _set_others(others)


class Timeline:
    """Random state of its own for drawing data: draws neither see nor disturb the global generators.

    torch's CPU generator is swapped at every draw. numpy's and Python's cost ten times as much as a small batch, so after
    `WATCHED` draws that did not touch them they are left in place until the next `start`.
    """

    def __init__(self, seed: int) -> None:
        self._torch = torch.Generator().manual_seed(seed).get_state()
        self._others = (np.random.RandomState(seed % 2**32).get_state(legacy=True), random.Random(seed).getstate())
        self._touched = False
        self._watch = WATCHED

    def start(self) -> None:
        """Say that the source begins anew: its next draws are watched again."""
        self._watch = WATCHED

    def run(self, draw: Callable[[], T], seed: int | None = None) -> T:
        """`draw()` under this timeline's random state, or under a fresh one made from `seed`."""
        others = self._touched or self._watch > 0
        outside, outside_others = torch.get_rng_state(), _others() if others else None
        self._enter(seed, others)
        try:
            return draw()
        finally:
            self._torch = torch.get_rng_state()
            torch.set_rng_state(outside)
            if outside_others is not None:
                self._watch -= 1
                now = _others()
                self._touched = self._touched or not _same(now, self._others)
                self._others = now
                _set_others(outside_others)

    def _enter(self, seed: int | None, others: bool) -> None:
        if seed is None:
            torch.set_rng_state(self._torch)
        else:
            torch.default_generator.manual_seed(seed)
            if others:
                self._others = (np.random.RandomState(seed).get_state(legacy=True), random.Random(seed).getstate())
        if others:
            _set_others(self._others)


def _others() -> tuple[Any, Any]:
    return np.random.get_state(legacy=True), random.getstate()


def _set_others(states: tuple[Any, Any]) -> None:
    np.random.set_state(states[0])
    random.setstate(states[1])


def _same(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    first, second = one[0], other[0]
    return bool(one[1] == other[1] and first[2:] == second[2:] and np.array_equal(first[1], second[1]))
