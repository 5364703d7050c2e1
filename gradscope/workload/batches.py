"""The training's batches by index: map-style data in its seeded order, and streams that are drawn on."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from gradscope.workload.model import DataEndedError
from gradscope.workload.move import copied, nbytes
from gradscope.workload.rng import Timeline, mixed

HELD_BYTES = 2**30
"""Most bytes of drawn batches a stream holds. Used batches go first, longest unused first; unused ones are never dropped."""

DRAWING_SECONDS = 30.0
"""The longest that drawing on to a coming batch may take."""

RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class IndexedBatches:
    """Map-style data: the order of the indexes is drawn, epoch by epoch, without reading the data.

    `epoch(number)` starts one pass over the index batches and `fetch` turns one of them into a batch. Whatever `fetch`
    draws at random comes from the seed and the batch's index alone, so a batch is the same whenever it is asked for.
    """

    def __init__(
        self,
        fetch: Callable[[Any], Any],
        epoch: Callable[[int], Iterator[Any]],
        seed: int,
        epoch_length: int | None = None,
        *,
        shuffled: bool = False,
    ) -> None:
        """`epoch_length`: batches a pass, where that is known. `shuffled`: whether their order is drawn at random."""
        self._fetch, self._epoch, self._seed = fetch, epoch, seed
        self.epoch_length, self.shuffled = epoch_length, shuffled
        self._order: list[Any] = []
        self._ordering, self._fetching = Timeline(seed), Timeline(seed)
        self._indexes: Iterator[Any] | None = None
        self._epochs = 0

    def at(self, index: int) -> Any:
        """The batch of micro-step `index`. Raises DataEndedError when an epoch has no batch at all."""
        while len(self._order) <= index:
            self._order.append(_compact(self._ordering.run(self._next)))
        chosen = self._order[index]
        return self._fetching.run(lambda: self._fetch(chosen), mixed(self._seed, index))

    def places(self, index: int) -> list[int]:
        """Their indexes, where these are whole numbers."""
        chosen = self._order[index]
        whole = isinstance(chosen, torch.Tensor | np.ndarray) and chosen.ndim == 1
        return [int(one) for one in chosen] if whole else []

    def reach(self, index: int) -> bool:
        """True: any batch is fetched by its index."""
        return index >= 0

    def _next(self) -> Any:
        if self._indexes is not None:
            for chosen in self._indexes:
                return chosen
        self._indexes = self._epoch(self._epochs)
        self._epochs += 1
        for chosen in self._indexes:
            return chosen
        raise DataEndedError("the data is empty: one pass over it gave no batch")


def _compact(indexes: Any) -> Any:
    """Index batches of whole numbers as an array: eight bytes a row in place of about forty."""
    if isinstance(indexes, list) and indexes and all(type(i) is int for i in indexes):
        return np.asarray(indexes)
    return indexes


class StreamBatches:
    """Data that can only be drawn in turn: an iterator, a generator function, an IterableDataset.

    Draws happen on a random state of their own, so drawing ahead changes neither the batches nor the training.
    At most `HELD_BYTES` of batches are held.
    """

    shuffled = False

    def __init__(self, start: Callable[[int], Iterator[Any] | None], seed: int, limit: int = HELD_BYTES) -> None:
        """`start(number)` begins pass `number` over the data, or is None when the data cannot begin again."""
        self._start, self._limit = start, limit
        self._timeline = Timeline(seed)
        self._source: Iterator[Any] | None = None
        self._passes = self._drawn = 0
        self._ahead: dict[int, tuple[Any, int]] = {}
        self._used: OrderedDict[int, tuple[Any, int]] = OrderedDict()
        self._ahead_bytes = self._used_bytes = self._drawn_bytes = 0
        self._drawing_seconds = 0.0
        self._ended = False
        self.drawing: Callable[[], AbstractContextManager[None]] = nullcontext
        """What is entered while a batch is drawn."""

    def at(self, index: int) -> Any:
        """The batch of micro-step `index`, a copy that the model may change.

        Raises DataEndedError: the data ended and cannot begin again, the batch was dropped, or too much is held already.
        """
        while self._drawn <= index:
            self._draw()
        if index in self._ahead:
            held = self._ahead.pop(index)
            self._ahead_bytes -= held[1]
            self._used_bytes += held[1]
            self._used[index] = held
        elif index not in self._used:
            raise DataEndedError(f"batch {index} was used and dropped: at most {self._limit / 2**20:.0f} MiB are held")
        self._used.move_to_end(index)
        batch = self._used[index][0]
        self._trim()
        return copied(batch)

    def places(self, index: int) -> list[int]:
        """None: samples are drawn without an index."""
        del index
        return []

    def reach(self, index: int) -> bool:
        """Whether batch `index` is held, or drawing on to it stays within `HELD_BYTES` and `DRAWING_SECONDS`."""
        if index < self._drawn:
            return index in self._ahead or index in self._used
        if self._ended or self._drawn == 0:
            return not self._ended
        further = (index + 1 - self._drawn) / self._drawn
        held = self._ahead_bytes + further * self._drawn_bytes
        return held <= self._limit and further * self._drawing_seconds <= DRAWING_SECONDS

    def _draw(self) -> None:
        if self._ahead_bytes > self._limit:
            raise DataEndedError(
                f"{len(self._ahead)} batches are drawn ahead already, more than {self._limit / 2**20:.0f} MiB; "
                "data that is fetched by index (a Dataset) has no such limit"
            )
        began = time.monotonic()
        with self.drawing():
            batch = copied(self._timeline.run(self._next))
        self._drawing_seconds += time.monotonic() - began
        size = nbytes(batch)
        self._drawn_bytes += size
        self._ahead[self._drawn] = (batch, size)
        self._ahead_bytes += size
        self._drawn += 1
        self._trim()

    def _next(self) -> Any:
        if self._source is not None:
            for batch in self._source:
                return batch
        source = self._start(self._passes)
        if source is None:
            self._ended = True
            raise DataEndedError(
                f"the data ended after {self._drawn} batches and cannot begin again; make it a function that returns a "
                "fresh iterator"
            )
        self._passes += 1
        self._timeline.start()
        self._source = source
        for batch in source:
            return batch
        raise DataEndedError(
            "the data is empty: it gave no batch"
            if self._drawn == 0
            else f"the data ended after {self._drawn} batches: beginning again gave no batch"
        )

    def _trim(self) -> None:
        while self._used and self._ahead_bytes + self._used_bytes > self._limit:
            _, (_, size) = self._used.popitem(last=False)
            self._used_bytes -= size


def loader_batches(loader: DataLoader[Any], seed: int) -> IndexedBatches | StreamBatches:
    """The batches a DataLoader would give in this process: by index where its dataset has them."""
    if isinstance(loader.dataset, torch.utils.data.IterableDataset):
        return StreamBatches(lambda _: iter(loader), seed)
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler

    def epoch(number: int) -> Iterator[Any]:
        for part in (sampler, getattr(sampler, "sampler", None)):
            set_epoch = getattr(part, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(number)
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)  # the loader's own draw for its workers
        return iter(sampler)

    drawn = getattr(sampler, "sampler", None) if type(sampler) is BatchSampler else sampler
    shuffled = isinstance(drawn, RANDOM) or bool(getattr(drawn, "shuffle", False))
    return IndexedBatches(lambda chosen: _fetch(loader, chosen), epoch, seed, _length(sampler), shuffled=shuffled)


def _length(sampler: Any) -> int | None:
    """How many batches it draws; None where it does not say, as one may that never ends."""
    try:
        return len(sampler)
    except (TypeError, NotImplementedError):
        return None


def _fetch(loader: DataLoader[Any], chosen: Any) -> Any:
    dataset = loader.dataset
    indexes = chosen.tolist() if isinstance(chosen, np.ndarray) else chosen
    if loader.batch_sampler is None:
        return loader.collate_fn(dataset[indexes])
    many = getattr(dataset, "__getitems__", None)
    return loader.collate_fn(many(indexes) if many else [dataset[i] for i in indexes])
