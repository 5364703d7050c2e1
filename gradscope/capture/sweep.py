"""A sweep: the loss of coming batches for the model as it is now, looked at without training on them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from gradscope.capture.loop import StepSeen, micro_batches
from gradscope.capture.recorder import Recorder
from gradscope.capture.scaling import autocast
from gradscope.capture.snapshot import Snapshot
from gradscope.capture.trials import OUT_OF_TIME, Parent, recorded
from gradscope.runs.schema import Ending, Trial
from gradscope.workload.model import DataEndedError, Workload


def run_sweep(
    workload: Workload,
    start: Snapshot,
    trial: Trial,
    parent: Parent,
    *,
    on_step: Callable[[StepSeen], None] | None = None,
    deadline: float | None = None,
) -> Ending:
    """Record the loss of each of the trial's steps in `parent`'s `trials/<name>/`; norms are NaN. The model keeps its mode.

    Ends where the batches end or are out of reach. The workload is left at `start`, whatever happens.

    Raises:
        CannotSnapshotError: the training cannot be put back.
    """

    def look(child: Recorder) -> Ending:
        for optimizer in workload.optimizers:
            optimizer.zero_grad(set_to_none=True)
        for position, index in enumerate(trial.indexes):
            if not workload.batches.reach(index * workload.plan.accumulate):
                return Ending("finished", position, "the coming batches are out of reach")
            if deadline is not None and time.monotonic() > deadline:
                return Ending("interrupted", position, OUT_OF_TIME)
            try:
                loss = _loss(workload, index)
            except DataEndedError:
                return Ending("finished", position, "the data ended")
            child.observe(loss)
            child.finish_step()
            if on_step:
                on_step(StepSeen(position, index, loss, math.nan, None))
        return Ending("finished", len(trial.indexes))

    start.restore()
    try:
        return recorded(parent, trial, look)
    finally:
        start.restore()


def _loss(workload: Workload, index: int) -> float:
    """The mean loss over the step's micro-steps; infinite where the user's code fails on a batch."""
    total = 0.0
    for _, batch in micro_batches(workload, index):
        try:
            with torch.no_grad(), autocast(workload):
                total += float(workload.training_step(workload.model, batch)) / workload.plan.accumulate
        except Exception:
            return math.inf
    return total
