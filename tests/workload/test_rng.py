from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from gradscope.workload.rng import Timeline, mixed, preserved, seed_everything


def draws() -> list[float]:
    return [torch.rand(1).item(), float(np.random.rand()), random.random()]


def states() -> Any:
    return (
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        np.random.get_state()[2],
        random.getstate(),
    )


def test_seeding_makes_every_generator_repeat() -> None:
    seed_everything(2**33 + 5)
    first = draws()
    seed_everything(2**33 + 5)
    assert draws() == first


def test_a_timeline_neither_sees_nor_disturbs_the_global_generators() -> None:
    seed_everything(0)
    timeline = Timeline(7)
    mine = [timeline.run(draws) for _ in range(6)]
    seed_everything(0)
    other, plain = Timeline(7), []
    for _ in range(6):
        before = states()
        again = other.run(draws)
        assert states() == before
        plain.append(draws())
        assert again == mine[len(plain) - 1]
    seed_everything(0)
    assert [draws() for _ in range(6)] == plain
    assert len({tuple(row) for row in mine}) == 6


def test_a_source_that_leaves_numpy_alone_is_trusted_until_it_starts_anew() -> None:
    timeline = Timeline(0)
    for _ in range(3):
        timeline.run(lambda: torch.rand(1))
    before = np.random.get_state()[2], random.getstate()
    timeline.start()
    timeline.run(draws)
    assert (np.random.get_state()[2], random.getstate()) == before
    for _ in range(5):
        timeline.run(draws)
    assert (np.random.get_state()[2], random.getstate()) == before


def test_a_seeded_draw_is_the_same_whenever_it_is_made() -> None:
    timeline = Timeline(0)
    rows = {i: timeline.run(draws, mixed(3, i)) for i in range(6)}
    assert {i: timeline.run(draws, mixed(3, i)) for i in reversed(range(6))} == rows
    assert len({tuple(row) for row in rows.values()}) == 6


def test_the_end_and_an_exception_put_the_generators_back() -> None:
    before = states()
    with pytest.raises(ZeroDivisionError):
        Timeline(0).run(lambda: draws() and 1 / 0)
    with preserved():
        draws()
    assert states() == before
