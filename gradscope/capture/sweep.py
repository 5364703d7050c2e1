"""A sweep: the loss of coming batches for the model as it is now, looked at without training on them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from gradscope.capture.loop import StepSeen, to_device
from gradscope.capture.scaling import autocast
from gradscope.capture.snapshot import Snapshot
from gradscope.capture.trials import Parent
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
    start.restore()
    child = parent.trial(trial)
    ending = Ending("finished", len(trial.indexes))
    try:
        for optimizer in workload.optimizers:
            optimizer.zero_grad(set_to_none=True)
        for position, index in enumerate(trial.indexes):
            if not workload.batches.reach(index * workload.plan.accumulate):
                return (ending := Ending("finished", position, "the coming batches are out of reach"))
            if deadline is not None and time.monotonic() > deadline:
                return (ending := Ending("interrupted", position, "the time budget ended"))
            loss = _loss(workload, index)
            child.observe(loss)
            child.finish_step()
            if on_step:
                on_step(StepSeen(position, index, loss, math.nan, None))
    except DataEndedError:
        ending = Ending("finished", child.step, "the data ended")
    finally:
        child.close(ending)
        start.restore()
    return ending


def _loss(workload: Workload, index: int) -> float:
    """The mean loss over the step's micro-steps; infinite where the user's code fails on a batch."""
    count, total = workload.plan.accumulate, 0.0
    for micro in range(index * count, (index + 1) * count):
        batch = to_device(workload.batches.at(micro), workload.device)
        try:
            with torch.no_grad(), autocast(workload):
                total += float(workload.training_step(workload.model, batch)) / count
        except Exception:
            return math.inf
    return total
