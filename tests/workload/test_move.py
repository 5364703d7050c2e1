from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import torch

from gradscope.workload.move import copied, nbytes, to_device


def test_containers_are_copied_as_they_are_and_weighed() -> None:
    Pair = namedtuple("Pair", "x y")  # as a collate function would make it
    batch = {"a": Pair(torch.ones(2), [np.ones(3)]), "b": ("text", 3)}
    again = copied(batch)
    assert type(again["a"]) is Pair
    assert again["b"] == ("text", 3)
    again["a"].x.zero_()
    assert batch["a"].x.sum() == 2  # type: ignore[union-attr]  # it is a Pair
    assert nbytes(batch) == 1 + 8 + 24

    class Mine(dict[str, Any]):
        pass

    assert type(copied(Mine(x=torch.ones(1)))) is Mine


class Picky(dict[str, Any]):
    def __init__(self, *, x: Any) -> None:
        super().__init__(x=x)


def test_a_mapping_that_cannot_be_made_again_becomes_a_dict() -> None:
    assert type(copied(Picky(x=torch.ones(1)))) is dict


def test_whatever_can_move_is_moved() -> None:
    class Graph:
        def to(self, device: torch.device) -> str:
            return f"on {device}"

    moved = to_device([Graph(), (torch.ones(2), "text"), {"n": 3}], torch.device("meta"))
    assert moved[0] == "on meta"
    assert moved[1][0].device.type == "meta"
    assert moved[1][1:] == ("text",)
    assert moved[2] == {"n": 3}
