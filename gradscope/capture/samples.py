"""The samples of one batch looked at one by one, to find the one that makes a step stand out."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from gradscope.capture.loop import StepSeen, micro_batches
from gradscope.capture.recorder import Recorder
from gradscope.capture.scaling import autocast
from gradscope.capture.snapshot import Snapshot
from gradscope.capture.trials import OUT_OF_TIME, Parent, recorded
from gradscope.runs.schema import Ending, Trial
from gradscope.workload.model import DataEndedError, Workload
from gradscope.workload.move import peak, row, rows

MOST = 1024
"""Samples of a batch that are looked at."""


def run_samples(
    workload: Workload,
    start: Snapshot,
    trial: Trial,
    parent: Parent,
    *,
    on_step: Callable[[StepSeen], None] | None = None,
    deadline: float | None = None,
) -> Ending:
    """Record loss and gradient norms of each sample of the trial's one step by itself, the model in evaluation mode.

    The child run has a row a sample, in its trial their places in the data, and of each the probe `input_peak`: the largest
    |value| of its floating-point tensors. It ends early where a batch has no rows to take apart, and where the user's code
    does not take one sample. The workload is left at `start`, whatever happens.

    Raises:
        CannotSnapshotError: the training cannot be put back.
    """
    start.restore()
    try:
        parts, places = _parts(workload, trial.indexes[0])
        told = dataclasses.replace(trial, samples=places)
        ending = recorded(parent, told, lambda child: _look(workload, parts, child, deadline))
        if on_step:
            on_step(StepSeen(0, trial.indexes[0], math.nan, math.nan, None))
        return ending
    finally:
        start.restore()


def _parts(workload: Workload, index: int) -> tuple[list[Any], tuple[int, ...]]:
    """Each sample of a step as a batch of its own, and their places in the data; no places where these are unknown."""
    parts: list[Any] = []
    places: list[int] = []
    with suppress(DataEndedError):
        for micro, batch in micro_batches(workload, index):
            size = min(rows(batch), MOST - len(parts))
            parts += [row(batch, k) for k in range(size)]
            places += workload.batches.places(micro)[:size]
    return parts, tuple(places) if len(places) == len(parts) else ()


def _look(workload: Workload, parts: list[Any], child: Recorder, deadline: float | None) -> Ending:
    for module in workload.model.modules():
        module.training = isinstance(module, nn.RNNBase)  # whose kernels on a GPU have no backward pass otherwise
    try:
        with warnings.catch_warnings(action="ignore"):
            for position, part in enumerate(parts):
                if deadline is not None and time.monotonic() > deadline:
                    return Ending("interrupted", position, OUT_OF_TIME)
                _look_at(workload, part, child)
    except Exception as error:
        return Ending("failed", child.step, f"{type(error).__name__}: {error}")
    return Ending("finished", len(parts)) if parts else Ending("failed", 0, "the batch has no rows to take apart")


def _look_at(workload: Workload, part: Any, child: Recorder) -> None:
    """One forward and backward pass, without a step."""
    for tensor in child.tensors:
        tensor.grad = None
    with autocast(workload):
        loss: torch.Tensor = workload.training_step(workload.model, part).reshape(())
    child.observe(loss)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    child.measure()
    child.probe("input_peak", ["input"], [peak(part)])
    child.finish_step()
