"""The recorder: reads the gradients of a step and writes its row. It never judges."""

from __future__ import annotations

import atexit
import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from gradscope.capture.describe import ForwardOrder, Models, describe
from gradscope.capture.distributed import rank, world_size
from gradscope.capture.header import ending_of, new_header
from gradscope.capture.later import Number, Numbers, gathered, soon
from gradscope.capture.norms_compiled import host_norms
from gradscope.capture.norms_device import DeviceNorms
from gradscope.capture.norms_host import HostNorms
from gradscope.capture.ranks import OtherRank, meet
from gradscope.capture.rows import Reading, Row, Rows, write_row
from gradscope.errors import UsageError
from gradscope.runs.catalogue import new_run_directory
from gradscope.runs.schema import Ending, Header, Trial
from gradscope.runs.writer import RunWriter

__all__ = ["Reading", "Recorder", "active"]

CHANGED = (
    "norms are those that clipping left: gradients were changed between observe() and finish_step(); "
    "call measure(max_norm=…) before you clip, or clip with gradscope.clip_grad_norm_"
)

active: list[Recorder] = []
"""Recorders that are open in this process, the newest last."""


@atexit.register
def _close_all() -> None:
    for recorder in active[:]:
        recorder.close(Ending("interrupted", recorder.step, "the process ended before the recorder was closed"))


class Recorder:
    """Records a training loop of one's own.

        with Recorder(model, optimizer) as recorder:
            for batch in data:
                loss = training_step(model, batch)
                loss.backward()
                recorder.observe(loss)
                recorder.measure(max_norm=1.0)      # where the gradients are not clipped yet
                clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                recorder.finish_step()

    `model`: a module, or modules by name. `every`: record each so-many-th step. `max_rows` bounds the file.

    Raises:
        UsageError: the directory cannot be written, or the model has no parameters.
    """

    def __init__(
        self,
        model: Models,
        optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        *,
        name: str = "run",
        directory: Path | None = None,
        header: Header | None = None,
        every: int = 1,
        max_rows: int | None = None,
    ) -> None:
        chosen = _several(optimizers)
        described = describe(model, chosen)
        header = dataclasses.replace(
            header or new_header(name, "Recorder", sys.argv[0], world_size()),
            parameters=described.parameters,
            optimizer=described.optimizer,
            every=every,
        )
        if not described.tensors:
            raise UsageError("the model has no parameters: there is no gradient to record")
        writer = _writer(header, name, directory) if rank() == 0 else None
        ranks = meet(writer.directory if writer else None, header.parameters)
        self._begin(described.tensors, chosen, header, writer, max_rows, ForwardOrder(model), ranks)

    def _begin(
        self,
        tensors: tuple[torch.Tensor, ...],
        optimizers: tuple[torch.optim.Optimizer, ...],
        header: Header,
        writer: RunWriter | None,
        max_rows: int | None = None,
        order: ForwardOrder | None = None,
        ranks: OtherRank | None = None,
    ) -> None:
        self.tensors = tensors
        self._keys = [id(tensor) for tensor in tensors]
        self.places = {key: place for place, key in enumerate(self._keys)}
        self.step = 0
        self.last: Reading | None = None
        self._skipped: Number = False
        self.every = header.every
        self._optimizers = optimizers
        self._order = order
        self._max_rows = max_rows
        self._header = header
        self._writer = writer
        self._ranks = ranks
        self.away = not all(tensor.is_cpu for tensor in tensors)
        self._rows = self._rows_to(writer, ranks)
        self._reading: Reading | None = None
        self._computed: tuple[int, int] | None = None
        self._losses: list[Number] = []
        self._batches: list[int | None] = []
        self._lr: Numbers = ()
        self._norms: HostNorms | DeviceNorms = DeviceNorms(tensors) if self.away else host_norms(tensors)
        self._spent = 0.0
        self._closed = False
        active.append(self)

    def _rows_to(self, writer: RunWriter | None, ranks: OtherRank | None) -> Rows | None:
        if writer is None:
            return Rows(ranks.write, at_once=True) if ranks else None
        rows = Rows(partial(write_row, writer), at_once=self.away)
        if not self.away:
            writer.gather = rows.drain
        return rows

    @property
    def writes(self) -> bool:
        """Whether this process writes the run; in distributed training rank 0 alone does."""
        return self._writer is not None

    @property
    def directory(self) -> Path:
        """The run directory. Raises UsageError where another rank writes it."""
        if self._writer is None:
            raise UsageError(f"rank {rank()} writes no run: rank 0 does")
        return self._writer.directory

    @property
    def header(self) -> Header:
        """The header as it is now."""
        if self._rows:
            self._rows.drain()
        return self._writer.header if self._writer else self._header

    @property
    def due(self) -> bool:
        """Whether this step is one of those that are recorded."""
        return self.step % self.every == 0

    @property
    def reading(self) -> Reading | None:
        """This step's reading so far."""
        return self._reading

    @property
    def last_skipped(self) -> bool:
        """Whether a gradient scaler kept the optimizer from the last step. Waits for a device."""
        return float(self._skipped) > 0

    @property
    def global_norm(self) -> float:
        """L2 norm of the last step read, before clipping; NaN before the first. Waits for a device."""
        reading = self._reading or self.last
        return reading.global_norm if reading else math.nan

    def observe(self, loss: torch.Tensor | float | None, *, batch: int | None = None) -> None:
        """Take the loss of one micro-step, None where it is unknown; a row holds the mean of its micro-steps.

        `batch`: the batch's position.
        """
        self._batches.append(batch)
        self._computed = self._first_gradient()
        if loss is not None:
            self._losses.append(soon(loss))

    def _first_gradient(self) -> tuple[int, int] | None:
        """Which tensor the first gradient is, and how often it was written to."""
        first = next((tensor.grad for tensor in self.tensors if tensor.grad is not None), None)
        return None if first is None else (id(first), first._version)

    def measure(
        self,
        *,
        scale: Number = 1.0,
        max_norm: float | None = None,
        loss_scale: Number | None = None,
        as_torch: bool = False,
    ) -> Reading:
        """Read the gradients as they are now; later calls in the same step return the first one's reading.

        `scale`: what they are to be divided by. `max_norm`: the threshold they are about to be clipped at.
        `loss_scale`: the scale in force where the gradients are unscaled already; only noted. `as_torch`: read them also as
        torch's own clipping rounds them. On a step that is not recorded nothing is read, and the last reading is returned.
        """
        if self._reading is not None:
            return self._reading
        if not self.due and self.last is not None:
            return self.last
        begun = time.perf_counter()
        reader = self._norms
        norms = reader.read_as_torch() if as_torch and isinstance(reader, HostNorms) else reader.read()
        noted = loss_scale if loss_scale is not None else scale if scale != 1.0 else math.nan
        self._reading = Reading(norms.divided(scale), noted, math.nan if max_norm is None else float(max_norm))
        self._lr = rates_of(self._optimizers)
        self._spent += time.perf_counter() - begun
        return self._reading

    def reads(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether gradients in main memory are still to be read in this step, and are just those of `tensors`."""
        if self._reading is not None or not self.due or self.away:
            return False
        keys = [id(tensor) for tensor in tensors]
        return keys == self._keys or _with_gradients(tensors) == _with_gradients(self.tensors)

    def take(self, reading: Reading | None) -> None:
        """Put a reading in place of this step's, or forget it (None): gradients changed since."""
        self._reading = reading

    def abandon(self) -> None:
        """Forget what was observed and read in this step: it is not taken."""
        self._reading, self._losses, self._batches, self._lr, self._computed = None, [], [], (), None

    def replace(self, changed: dict[int, torch.Tensor]) -> None:
        """Go on with other tensors at these places, under the names that were there."""
        self.tensors = tuple(changed.get(place, tensor) for place, tensor in enumerate(self.tensors))
        self._keys = [id(tensor) for tensor in self.tensors]
        self.places.clear()
        self.places |= {key: place for place, key in enumerate(self._keys)}
        self._norms = DeviceNorms(self.tensors) if self.away else host_norms(self.tensors)
        shapes = zip(self.header.parameters, self.tensors, strict=True)
        self.update_header(parameters=tuple(dataclasses.replace(p, shape=tuple(t.shape)) for p, t in shapes))

    def hand_on(self, other: Recorder, places: Sequence[int]) -> None:
        """Give this step, as far as it is known, to a recorder of some of these parameters, which are at `places`."""
        other._losses, other._batches, other._lr = self._losses, self._batches, self._lr
        if self._reading is not None:
            other.take(self._reading._replace(norms=self._reading.norms.of(places)))

    def release_optimizers(self) -> None:
        """Hold no optimizer from now on, so that it can be freed; `finish_step` is then told the learning rates."""
        self._optimizers = ()

    def finish_step(self, *, skipped: Number = False, lr: Numbers | None = None) -> None:
        """Write the row of this optimizer step and begin the next.

        `lr`: a rate a group, else the optimizers' own as they were when the gradients were read. `skipped`: above 0 where a
        gradient scaler kept the optimizer from it.
        """
        if self._order:
            self._refine_order()
        if self.due:
            if self._reading is None:
                self._say_if_clipped()
            reading, rates = self.measure(), self._lr if lr is None else lr
            if self._rows:
                row = Row(self.step, reading, self._losses, self._batches, rates, skipped, time.monotonic())
                self._rows.add(row)
            self._bound()
        self.last, self._skipped = self._reading or self.last, skipped
        self.abandon()
        self.step += 1

    def _say_if_clipped(self) -> None:
        """Gradients are read at the end of the step; if they were written to since their loss was observed, that is told."""
        now, before = self._first_gradient(), self._computed
        told = self._header.measured_at == "post_clip"
        if now and before and now[0] == before[0] and now[1] > before[1] and not told:
            self.update_header(notes=(*self.header.notes, CHANGED), measured_at="post_clip")

    def _refine_order(self) -> None:
        if self._order:
            parameters = self._order.end(self.header.parameters)
            self._order = None
            if parameters != self.header.parameters:
                self.update_header(parameters=parameters)

    def _bound(self) -> None:
        """Keep every second row once the file is full, and record every second step from then on, on all ranks alike."""
        if self._max_rows and self.step // self.every + 1 >= self._max_rows:
            self.every *= 2
            if self._rows and self._writer:
                self._rows.drain(wait=True)
                self._writer.thin(self.every)
            self.update_header(every=self.every)

    def probe(
        self,
        probe: str,
        subjects: Sequence[str],
        values: Sequence[float],
        index: Sequence[int] | None = None,
        *,
        step: int | None = None,
    ) -> None:
        """Add one measurement a subject, at this step unless `step` says another."""
        if self._writer:
            self._writer.probe(self.step if step is None else step, probe, subjects, values, index)

    def update_header(self, **changes: Any) -> None:
        """Replace fields of the header."""
        self._header = dataclasses.replace(self.header, **changes)
        if self._writer:
            self._writer.update_header(**changes)

    def blame(
        self, went_first: str, layer: str | None = None, parameter: str | None = None, operations: tuple[str, ...] = ()
    ) -> None:
        """What was nonfinite before the loss was, where the step just finished is the first with something nonfinite."""
        found = self.header.first_nonfinite
        if found is not None and (found.went_first, found.step) == ("loss", self.step - 1):
            told = dataclasses.replace(
                found, went_first=went_first, layer=layer, parameter=parameter, operations=operations
            )
            self.update_header(first_nonfinite=told)

    def trial(self, trial: Trial, **changes: Any) -> Recorder:
        """A recorder of a child run of this one, over the same model. Every step of it is recorded."""
        changes = {"first_nonfinite": None, "overhead_s": None, "every": 1} | changes
        writer = self._writer.trial(trial, **changes) if self._writer else None
        child = Recorder.__new__(Recorder)
        header = writer.header if writer else dataclasses.replace(self._header, trial=trial, **changes)
        child._begin(self.tensors, self._optimizers, header, writer)
        return child

    def close(self, ending: Ending | None = None) -> None:
        """Write what is left and how the run ended; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        active.remove(self)
        if self._order:
            self._order.end(())
        try:
            if self._rows:
                self._rows.drain(wait=True)
        finally:
            if self._ranks:
                self._ranks.close()
            if self._writer:
                self._writer.close(ending or Ending("finished", self.step), overhead_s=round(self._spent, 6))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(ending_of(error, self.step))


def _several(optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None) -> tuple[Any, ...]:
    if optimizers is None:
        return ()
    return (optimizers,) if isinstance(optimizers, torch.optim.Optimizer) else tuple(optimizers)


def _writer(header: Header, name: str, directory: Path | None) -> RunWriter:
    path = directory or new_run_directory(name)
    try:
        return RunWriter(path, header)
    except OSError as error:
        raise UsageError(f"cannot write a run to {path}: {error.strerror}") from error


def _with_gradients(tensors: Sequence[torch.Tensor]) -> list[int]:
    return sorted(id(tensor) for tensor in tensors if tensor.grad is not None)


def rates_of(optimizers: Sequence[torch.optim.Optimizer]) -> Numbers:
    """The learning rates of all their groups; does not wait for a device."""
    return gathered([rate for one in optimizers for rate in learning_rates(one)])


def learning_rates(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Of each of its groups: a number, or a tensor that a scheduler may change."""
    return [group["lr"] for group in optimizer.param_groups if "lr" in group]
