"""Data that the model itself makes, as the rollouts of a policy: drawn ahead, it is not what training would see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from gradscope.workload.batches import StreamBatches
from gradscope.workload.model import Workload


@contextmanager
def watching_draws(workload: Workload) -> Iterator[list[nn.Module]]:
    """The first module of the model that is called while a batch is drawn, once one is; for data drawn in turn."""
    called: list[nn.Module] = []
    batches, own = workload.batches, set(workload.model.modules())
    if not isinstance(batches, StreamBatches):
        yield called
        return
    batches.drawing = lambda: _noting(own, called)
    try:
        yield called
    finally:
        batches.drawing = nullcontext


@contextmanager
def _noting(own: set[nn.Module], called: list[nn.Module]) -> Iterator[None]:
    def note(module: nn.Module, inputs: Any) -> None:
        del inputs
        if module in own and not called:
            called.append(module)

    handle = register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()
