"""Rows on their way to the file. In a step they are only put aside: what writes them has left the processor's caches."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gradscope.capture.later import Number, Numbers, arrived, listed
from gradscope.capture.norms import LateNorms, Norms
from gradscope.runs.schema import Offender, Parameter
from gradscope.runs.writer import RunWriter

MOST_WAITING = 256
"""Rows that are put aside at most, until they are written together."""


class Reading(NamedTuple):
    """The gradients of one step, unscaled: `norms` per parameter and what was known when they were read.

    `scale`: the loss scale in force, NaN without one. `max_norm`: the threshold they were about to be clipped at, or NaN.
    """

    norms: Norms | LateNorms
    scale: Number = math.nan
    max_norm: float = math.nan

    @property
    def global_norm(self) -> float:
        """L2 norm over all parameters; NaN without a gradient. Waits for a device."""
        return float(self.norms.total)

    @property
    def broken(self) -> bool:
        """Whether any gradient holds a NaN or an infinity. Waits for a device."""
        return bool(self.norms.nonfinite.any())


class Row(NamedTuple):
    """What is known of one optimizer step. `losses`: one a micro-step; `batches`: their places in the data, if told.

    `skipped`: whether a gradient scaler kept the optimizer from it, that is what it found is above 0. `ended`: by
    `time.monotonic()`.
    """

    step: int
    reading: Reading
    losses: Sequence[Number]
    batches: list[int | None]
    lr: Numbers
    skipped: Number
    ended: float

    @property
    def ready(self) -> bool:
        """Whether all its values have arrived."""
        late = *self.losses, self.lr, self.skipped, self.reading.scale
        return bool(self.reading.norms.ready) and all(map(arrived, late))

    @property
    def known(self) -> Sequence[float]:
        """The losses; waits for them where it must."""
        return list(map(float, self.losses))

    @property
    def loss(self) -> float:
        """The mean of the losses, NaN without one."""
        losses = self.known
        return sum(losses) / len(losses) if losses else math.nan


class Rows:
    """Writes rows in their order with `write`, each once it is complete.

    `at_once`: try at every step, for want of another thread that drains, or because a device must not be asked by another:
    that would break the recording of a CUDA graph. A forked child writes nothing.
    """

    def __init__(self, write: Callable[[Row], None], *, at_once: bool) -> None:
        self._write, self._at_once = write, at_once
        self._waiting: deque[Row] = deque()
        self._draining = threading.Lock()
        self._pid = os.getpid()

    def add(self, row: Row) -> None:
        """Write this row, now or later."""
        self._waiting.append(row)
        if self._at_once or len(self._waiting) >= MOST_WAITING:
            self.drain()

    def drain(self, *, wait: bool = False) -> None:
        """Write every row that is complete; with `wait`, all."""
        if os.getpid() != self._pid:
            return
        with self._draining:
            while self._waiting and (wait or self._waiting[0].ready):
                self._write(self._waiting[0])
                self._waiting.popleft()


def write_row(writer: RunWriter, row: Row) -> None:
    """Add a row to the run, and to its header where it is the first with something nonfinite."""
    norms, reading, losses, skipped = row.reading.norms, row.reading, row.known, float(row.skipped) > 0
    total = norms.total
    nonfinite = 0 if math.isfinite(total) else int(norms.nonfinite.sum())
    writer.append(
        step=row.step,
        loss=row.loss,
        global_norm=total,
        grad_norm=norms.norm,
        grad_max=norms.peak,
        lr=listed(row.lr),
        loss_scale=float(reading.scale),
        max_norm=reading.max_norm,
        skipped=skipped,
        nonfinite=nonfinite,
        micro_steps=max(1, len(row.batches)),
        ended=row.ended,
    )
    if (nonfinite or not all(map(math.isfinite, losses))) and writer.header.first_nonfinite is None:
        offender = first_offender(row, losses, writer.header.parameters)
        if not skipped:
            writer.update_header(first_nonfinite=offender)


def first_offender(row: Row, losses: Sequence[float], parameters: Sequence[Parameter]) -> Offender:
    """The first of the nonfinite values of a row: in backward order, that is from the layer that runs last."""
    bad = [int(i) for i in np.flatnonzero(row.reading.norms.nonfinite)]
    first = parameters[max(bad, key=lambda i: parameters[i].order)] if bad else None
    broken = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
    micro_step = broken[0] if broken else max(0, len(losses) - 1)
    return Offender(
        step=row.step,
        layer=first.layer if first else None,
        parameter=first.name if first else None,
        went_first="loss" if broken else "gradient",
        micro_step=micro_step,
        batch=row.batches[micro_step] if micro_step < len(row.batches) else None,
    )
