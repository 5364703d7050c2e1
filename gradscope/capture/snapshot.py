"""A snapshot of everything that training changes, put back bit for bit and in place.

Taken before a rehearsal and put back after it, so that training goes on as if nothing had been tried. In place: every
tensor, container and object keeps its identity, so that optimizers, schedulers and the user's own references still hold.

Covered: the model's parameters, buffers, gradients, flags and plain attributes; optimizers, schedulers and the loss scaler;
what the training step reaches through its closure, the globals of its file and the object it is bound to; the random states
of torch (CPU and every CUDA device), numpy and Python. Data sets, loaders, loggers, files and threads are left alone:
batches are asked for by index. Hooks are left as they are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gradscope.capture.rates import PlannedRates
from gradscope.capture.saving import CannotSnapshotError, Saving
from gradscope.workload.model import Workload

__all__ = ["CannotSnapshotError", "Snapshot", "take"]


@dataclass(frozen=True)
class Snapshot:
    """The state of a training at one moment, and the learning rates planned from then on. Holds one copy of its tensors."""

    saving: Saving
    rates: PlannedRates
    random_states: tuple[Any, ...]

    def restore(self) -> None:
        """Put everything back, and compare every tensor with its copy.

        Raises:
            CannotSnapshotError: something did not come back as it was; the message says what.
        """
        self.saving.restore()
        _set_random_states(self.random_states)

    @property
    def nbytes(self) -> int:
        """Memory that the copies of tensors take."""
        return self.saving.nbytes


def take(workload: Workload) -> Snapshot:
    """Copy everything that training `workload` changes.

    Raises:
        CannotSnapshotError: some part cannot be copied; the message says which.
    """
    saving = Saving()
    random_states, rates = _random_states(), PlannedRates(workload)
    saving.visit(workload.model, "model")
    for i, optimizer in enumerate(workload.optimizers):
        saving.visit(optimizer, f"optimizers[{i}]")
    for i, scheduler in enumerate(workload.schedulers):
        saving.visit(scheduler, f"schedulers[{i}]")
    saving.visit(workload.training_step, "training_step")
    saving.attribute(workload, "scaler")
    return Snapshot(saving, rates, random_states)


def _random_states() -> tuple[Any, ...]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return torch.get_rng_state(), devices, np.random.get_state(), random.getstate()


def _set_random_states(states: tuple[Any, ...]) -> None:
    cpu, devices, numpy_state, python_state = states
    torch.set_rng_state(cpu)
    for i, state in enumerate(devices):
        torch.cuda.set_rng_state(state, i)
    np.random.set_state(numpy_state)
    random.setstate(python_state)
