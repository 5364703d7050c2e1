from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

from gradscope.workload.arrays import array_batches
from gradscope.workload.batches import IndexedBatches, StreamBatches, loader_batches
from gradscope.workload.model import DataEndedError

ROWS = torch.arange(20.0)


def taken(batches: Any, indexes: Any) -> list[Any]:
    return [batches.at(i)[0].tolist() for i in indexes]


def from_loader(loader: DataLoader[Any], count: int) -> list[Any]:
    rows: list[Any] = []
    while len(rows) < count:
        rows += [batch[0].tolist() for batch in loader]
    return rows[:count]


def test_a_seeded_loader_gives_its_own_order_by_index_over_epochs() -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(TensorDataset(ROWS), batch_size=6, shuffle=True, generator=torch.Generator().manual_seed(5))

    expected = from_loader(loader(), 11)
    assert taken(loader_batches(loader(), 0), range(11)) == expected
    far_first = loader_batches(loader(), 0)
    assert taken(far_first, [10, 2, 7, 10]) == [expected[10], expected[2], expected[7], expected[10]]
    assert far_first.reach(10**9)
    assert not far_first.reach(-1)


def test_a_loader_without_a_generator_follows_the_seed_alone() -> None:
    loader = DataLoader(TensorDataset(ROWS), batch_size=6, shuffle=True)
    first = taken(loader_batches(loader, 3), range(9))
    torch.rand(5)
    again = loader_batches(loader, 3)
    before = torch.get_rng_state()
    assert taken(again, range(9)) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert taken(loader_batches(loader, 4), range(9)) != first
    assert sorted(row for batch in first[:4] for row in batch) == ROWS.tolist()


def test_the_samples_of_a_batch_have_their_places_in_the_data() -> None:
    batches = loader_batches(DataLoader(TensorDataset(ROWS), batch_size=6, shuffle=True), 3)
    assert ROWS[batches.at(4)[0].new_tensor(batches.places(4)).long()].tolist() == batches.at(4)[0].tolist()
    single = loader_batches(DataLoader(TensorDataset(ROWS), batch_size=None), 3)
    single.at(0)
    assert single.places(0) == []


def test_the_data_is_not_read_to_know_the_order() -> None:
    class Watched(Dataset[Any]):
        def __init__(self) -> None:
            self.read: list[int] = []

        def __len__(self) -> int:
            return 1000

        def __getitem__(self, i: int) -> torch.Tensor:
            self.read.append(i)
            return torch.tensor([float(i)])

    watched = Watched()
    loader_batches(DataLoader(watched, batch_size=10, shuffle=True), 0).at(950)
    assert len(watched.read) == 10


def test_random_augmentation_is_the_same_whenever_a_batch_is_asked_for() -> None:
    class Noisy(Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, i: int) -> tuple[torch.Tensor]:
            return (torch.rand(1) + float(np.random.rand()) + random.random(),)

    batches = loader_batches(DataLoader(Noisy(), batch_size=2), 1)
    first = taken(batches, range(10))
    assert taken(batches, reversed(range(10))) == first[::-1]
    assert first[0] != first[4]


def test_samplers_of_every_kind() -> None:
    class Endless:
        def __init__(self) -> None:
            self.epochs: list[int] = []

        def __iter__(self) -> Iterator[list[int]]:
            while True:
                yield [int(torch.randint(20, ())) for _ in range(3)]

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    endless = Endless()
    batches = loader_batches(DataLoader(TensorDataset(ROWS), batch_sampler=endless), 0)  # type: ignore[arg-type]
    first = taken(batches, range(50))
    assert taken(batches, range(50)) == first
    assert endless.epochs == [0]
    assert getattr(batches, "epoch_length", 0) is None
    sampler = BatchSampler(RandomSampler(ROWS), 6, drop_last=True)
    whole = DataLoader(TensorDataset(ROWS), sampler=sampler, batch_size=None)
    assert all(len(row) == 6 for row in taken(loader_batches(whole, 0), range(7)))
    assert getattr(loader_batches(whole, 0), "epoch_length", 0) == 3


def test_a_dataset_is_read_many_rows_at_once_where_it_can_be() -> None:
    class Many(Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitems__(self, indexes: list[int]) -> list[torch.Tensor]:
            return [torch.tensor([float(i)]) for i in indexes]

    assert loader_batches(DataLoader(Many(), batch_size=4), 0).at(1).flatten().tolist() == [4.0, 5.0, 6.0, 7.0]


def test_an_epoch_without_a_batch_ends() -> None:
    with pytest.raises(DataEndedError, match="the data is empty"):
        IndexedBatches(lambda i: i, lambda _: iter(()), 0).at(0)


class Counted(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[torch.Tensor]]:
        for i in range(7):
            yield (torch.tensor(float(i)),)


def test_an_iterable_dataset_is_drawn_on_and_begins_again() -> None:
    batches = loader_batches(DataLoader(Counted(), batch_size=3), 0)
    assert taken(batches, range(5)) == [[0, 1, 2], [3, 4, 5], [6], [0, 1, 2], [3, 4, 5]]
    assert batches.reach(4)
    assert not batches.reach(10**12)


def stream(passes: int = 1) -> Iterator[torch.Tensor]:
    for _ in range(passes):
        yield torch.rand(2) + float(np.random.rand()) + random.random()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40))
def test_a_stream_gives_the_same_batches_in_whatever_order(order: list[int]) -> None:
    reference = StreamBatches(lambda _: stream(), 3)
    expected = [reference.at(i).tolist() for i in range(31)]
    batches = StreamBatches(lambda _: stream(), 3)
    before = torch.get_rng_state(), np.random.get_state()[2], random.getstate()
    assert [batches.at(i).tolist() for i in order] == [expected[i] for i in order]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[2], random.getstate()) == before[1:]


def test_a_batch_that_the_model_changes_in_place_is_whole_the_next_time() -> None:
    buffer = torch.zeros(2)

    def reused() -> Iterator[dict[str, torch.Tensor]]:
        while True:
            buffer.add_(1)
            yield {"x": buffer}

    batches = StreamBatches(lambda _: reused(), 0)
    batches.at(0)["x"].zero_()
    batches.at(3)
    assert [batches.at(i)["x"][0].item() for i in range(4)] == [1, 2, 3, 4]


def test_data_that_cannot_begin_again_ends() -> None:
    once = StreamBatches(lambda number: iter(ROWS.split(10)) if number == 0 else None, 0)
    once.at(1)
    assert once.reach(2)
    with pytest.raises(DataEndedError, match=r"ended after 2 batches and cannot begin again; make it a function"):
        once.at(2)
    assert [once.reach(i) for i in range(4)] == [True, True, False, False]
    spent = iter([ROWS])
    with pytest.raises(DataEndedError, match="ended after 1 batches: beginning again gave no batch"):
        StreamBatches(lambda _: spent, 0).at(1)
    with pytest.raises(DataEndedError, match="the data is empty"):
        StreamBatches(lambda _: iter(()), 0).at(0)


def test_what_a_stream_holds_is_bounded_and_never_at_the_cost_of_what_training_has_yet_to_meet() -> None:
    def endless() -> Iterator[torch.Tensor]:
        number = 0.0
        while True:
            yield torch.full((250,), number)
            number += 1

    batches = StreamBatches(lambda _: endless(), 0, limit=10_000)
    for i in range(30):
        batches.at(i)
    assert [i for i in range(30) if batches.reach(i)] == list(range(21, 30))
    assert batches.reach(35)
    assert not batches.reach(60)
    with pytest.raises(DataEndedError, match="batch 3 was used and dropped"):
        batches.at(3)
    batches.at(38)
    assert [batches.at(i)[0].item() for i in range(30, 39)] == list(range(30, 39))
    with pytest.raises(DataEndedError, match="batches are drawn ahead already"):
        batches.at(90)


class Bucketed(BatchSampler):
    """Batches in an order that means something."""


@pytest.mark.parametrize(
    ("how", "shuffled"),
    [
        ({"batch_size": 6, "shuffle": True}, True),
        ({"batch_size": None, "sampler": RandomSampler(ROWS)}, True),
        ({"batch_sampler": BatchSampler(RandomSampler(ROWS), 6, drop_last=True)}, True),
        ({"batch_size": 6, "sampler": DistributedSampler(ROWS, num_replicas=1, rank=0)}, True),
        ({"batch_size": 6, "sampler": DistributedSampler(ROWS, num_replicas=1, rank=0, shuffle=False)}, False),
        ({"batch_sampler": Bucketed(RandomSampler(ROWS), 6, drop_last=True)}, False),
        ({"batch_size": 6}, False),
    ],
)
def test_whether_the_order_is_random_is_known(how: dict[str, Any], shuffled: bool) -> None:
    assert loader_batches(DataLoader(TensorDataset(ROWS), **how), 0).shuffled is shuffled


def test_arrays_are_shuffled_and_a_stream_is_not_known_to_be() -> None:
    assert array_batches((ROWS, ROWS), 4, 0).shuffled
    assert not StreamBatches(lambda _: iter([ROWS]), 0).shuffled
