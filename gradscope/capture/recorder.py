"""The recorder: reads the gradients of a step and writes its row. It never judges."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from gradscope.capture.describe import Models, describe
from gradscope.capture.distributed import rank, world_size
from gradscope.capture.header import versions
from gradscope.capture.norms import Norms, measure
from gradscope.errors import UsageError
from gradscope.runs.catalogue import new_run_directory
from gradscope.runs.schema import Ending, Header, Offender, Trial
from gradscope.runs.writer import RunWriter

active: list[Recorder] = []
"""Recorders that are open in this process, the newest last."""


@dataclass(frozen=True)
class Reading:
    """The gradients of one step, unscaled: `norms` per parameter and what was known when they were read."""

    norms: Norms
    scale: float = math.nan
    max_norm: float = math.nan

    @property
    def global_norm(self) -> float:
        """L2 norm over all parameters; NaN without a gradient."""
        return self.norms.total


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
        _writer: RunWriter | None = None,
    ) -> None:
        self._model = model
        self._optimizers = _several(optimizers)
        self.every = every
        self._max_rows = max_rows
        described = describe(model, self._optimizers)
        self.tensors = described.tensors
        if not self.tensors:
            raise UsageError("the model has no parameters: there is no gradient to record")
        self.step = 0
        self._reading: Reading | None = None
        self.last: Reading | None = None
        self.last_skipped = False
        self._losses: list[float] = []
        self._batch: int | None = None
        self._closed = False
        header = header or _header(name)
        self._header = dataclasses.replace(
            header, parameters=described.parameters, optimizer=described.optimizer, every=every
        )
        self._writer = _writer or self._open(name, directory)
        active.append(self)

    def _open(self, name: str, directory: Path | None) -> RunWriter | None:
        if rank() != 0:
            return None
        path = directory or new_run_directory(name)
        try:
            return RunWriter(path, self._header)
        except OSError as error:
            raise UsageError(f"cannot write a run to {path}: {error.strerror}") from error

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
        return self._writer.header if self._writer else self._header

    @property
    def global_norm(self) -> float:
        """L2 norm of the last step read, before clipping; NaN before the first."""
        reading = self._reading or self.last
        return reading.global_norm if reading else math.nan

    def observe(self, loss: torch.Tensor | float, *, batch: int | None = None) -> None:
        """Take the loss of one micro-step; a row holds the mean of its micro-steps. `batch`: the batch's position."""
        value = loss.detach().item() if isinstance(loss, torch.Tensor) else float(loss)
        if batch is not None and all(map(math.isfinite, self._losses)):
            self._batch = batch
        self._losses.append(value)

    def measure(self, *, scale: float = 1.0, max_norm: float | None = None, loss_scale: float | None = None) -> Reading:
        """Read the gradients as they are now; later calls in the same step return the first one's reading.

        `scale`: what they are to be divided by. `max_norm`: the threshold they are about to be clipped at.
        `loss_scale`: the scale in force where the gradients are unscaled already; only noted.
        """
        if self._reading is None:
            noted = loss_scale if loss_scale is not None else scale if scale != 1.0 else math.nan
            self._reading = Reading(
                _divided(measure(self.tensors), scale), noted, math.nan if max_norm is None else float(max_norm)
            )
        return self._reading

    @property
    def reading(self) -> Reading | None:
        """This step's reading so far."""
        return self._reading

    def take(self, reading: Reading | None) -> None:
        """Put a reading in place of this step's, or forget it (None): gradients changed since."""
        self._reading = reading

    def abandon(self) -> None:
        """Forget what was observed and read in this step: it is not taken."""
        self._reading, self._losses, self._batch = None, [], None

    def release_optimizers(self) -> None:
        """Hold no optimizer from now on, so that it can be freed; `finish_step` is then told the learning rates."""
        self._optimizers = ()

    def finish_step(self, *, skipped: bool = False, lr: Sequence[float] | None = None) -> None:
        """Write the row of this optimizer step and begin the next. `lr`: a rate a group, else the optimizers' own."""
        if self._reading is not None or self.step % self.every == 0:
            self._write(self.measure(), skipped, self._lr() if lr is None else lr)
        self.last, self.last_skipped = self._reading or self.last, skipped
        self._reading, self._losses, self._batch = None, [], None
        self.step += 1

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

    def trial(self, trial: Trial, **changes: Any) -> Recorder:
        """A recorder of a child run of this one, over the same model."""
        writer = self._writer.trial(trial, first_nonfinite=None, **changes) if self._writer else None
        header = writer.header if writer else self._header
        return Recorder(self._model, self._optimizers, header=header, _writer=writer)

    def close(self, ending: Ending | None = None) -> None:
        """Write what is left and how the run ended; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        active.remove(self)
        if self._writer:
            self._writer.close(ending or Ending("finished", self.step))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(_ending(error, self.step))

    def _lr(self) -> tuple[float, ...]:
        return tuple(float(group["lr"]) for one in self._optimizers for group in one.param_groups if "lr" in group)

    def _write(self, reading: Reading, skipped: bool, lr: Sequence[float]) -> None:
        if not self._writer:
            return
        norms, loss = reading.norms, _mean(self._losses)
        nonfinite = int(norms.nonfinite.sum())
        self._writer.append(
            step=self.step,
            loss=loss,
            global_norm=norms.total,
            grad_norm=norms.norm,
            grad_max=norms.peak,
            lr=lr,
            loss_scale=reading.scale,
            max_norm=reading.max_norm,
            skipped=skipped,
            nonfinite=nonfinite,
            micro_steps=max(1, len(self._losses)),
        )
        if (nonfinite or math.isinf(loss) or any(map(math.isnan, self._losses))) and not skipped:
            self._note_first(norms)

    def _note_first(self, norms: Norms) -> None:
        if self.header.first_nonfinite is not None:
            return
        bad = np.flatnonzero(norms.nonfinite)
        first = self.header.parameters[max(bad, key=lambda i: self.header.parameters[i].order)] if len(bad) else None
        broken = [i for i, loss in enumerate(self._losses) if not math.isfinite(loss)]
        offender = Offender(
            step=self.step,
            layer=first.layer if first else None,
            parameter=first.name if first else None,
            went_first="loss" if broken else "gradient",
            micro_step=broken[0] if broken else max(0, len(self._losses) - 1),
            batch=self._batch,
        )
        self.update_header(first_nonfinite=offender)


def _several(optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None) -> tuple[Any, ...]:
    if optimizers is None:
        return ()
    return (optimizers,) if isinstance(optimizers, torch.optim.Optimizer) else tuple(optimizers)


def _header(name: str) -> Header:
    return Header(
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=sys.argv[0],
        command=tuple(sys.argv),
        parameters=(),
        recorded_by="Recorder",
        world_size=world_size(),
        versions=versions(),
        pid=os.getpid(),
    )


def _divided(norms: Norms, scale: float) -> Norms:
    return norms if scale == 1.0 else dataclasses.replace(norms, norm=norms.norm / scale, peak=norms.peak / scale)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _ending(error: BaseException | None, step: int) -> Ending | None:
    if error is None:
        return None
    if isinstance(error, KeyboardInterrupt):
        return Ending("interrupted", step)
    return Ending("failed", step, f"{type(error).__name__}: {error}")
