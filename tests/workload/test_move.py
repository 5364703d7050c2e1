from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import torch

from gradscope.workload.move import copied, nbytes, peak, row, rows, to_device


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


def test_a_batch_is_taken_apart_where_all_its_tensors_have_the_same_rows() -> None:
    batch = {"x": torch.arange(6.0).reshape(3, 2), "y": (torch.tensor([7, 8, 9]), torch.tensor(0.5)), "name": "text"}
    assert rows(batch) == 3
    second = row(batch, 1)
    assert second["x"].tolist() == [[2.0, 3.0]]
    assert second["y"][0].tolist() == [8]
    assert second["y"][1].item() == 0.5
    assert second["name"] == "text"
    assert peak(second) == 3.0
    assert rows((torch.ones(3, 2), torch.ones(4))) == rows(torch.ones(1, 5)) == rows("text") == 0


def test_the_peak_of_values_is_nan_where_one_is_or_there_are_none() -> None:
    assert np.isnan(peak((torch.ones(2), torch.tensor([1.0, float("nan")]))))
    assert np.isnan(peak(torch.arange(3)))
