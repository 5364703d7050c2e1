"""A workload: a model, its data and how it is trained, read from the user's file and ready to step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from gradscope.runs.schema import Piece, Plan


class DataEndedError(Exception):
    """The data has no batch at that step and cannot begin again."""


class Batches(Protocol):
    """The training's own batches, by planned optimizer (micro-)step.

    `at(i)` is the batch that training would meet at micro-step i, the same one however often and in whatever order it is
    asked for. Map-style data fetches by index; an iterator is drawn on and what was drawn ahead is kept.
    """

    @property
    def shuffled(self) -> bool:
        """Whether their order is known to be drawn at random, so that another one is as good."""
        ...

    def at(self, index: int) -> Any:
        """The batch of micro-step `index` (0-based). Raises DataEndedError."""
        ...

    def reach(self, index: int) -> bool:
        """Whether `at(index)` can be had at a bearable cost in time and memory."""
        ...

    def places(self, index: int) -> list[int]:
        """Where in the data the samples of a batch are that was asked for before; empty where that is unknown."""
        ...


@dataclass
class Workload:
    """Everything needed to train: what capture.loop steps through.

    `training_step(model, batch)` returns the scalar loss tensor. `schedulers` are stepped once an optimizer step.
    `pieces` say where each part came from. Batches are moved to `device` by the loop, which also makes the loss `scaler`
    where the precision needs one.
    """

    name: str
    source: str
    model: nn.Module
    training_step: Callable[[nn.Module, Any], torch.Tensor]
    batches: Batches
    optimizers: tuple[torch.optim.Optimizer, ...]
    schedulers: tuple[Any, ...]
    plan: Plan
    pieces: tuple[Piece, ...]
    seed: int
    device: torch.device
    synthetic_data: bool = False
    inferred_loss: bool = False
    scaler: torch.amp.GradScaler | None = None
