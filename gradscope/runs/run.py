"""A run in memory: the header and its tables as arrays. Everything that judges or draws starts from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope.runs.schema import Header

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """A module that owns parameters: `parameters` are indexes into `Header.parameters`, `order` its forward place."""

    name: str
    type: str
    order: int
    parameters: tuple[int, ...]


@dataclass(frozen=True)
class ProbeTable:
    """What is measured on some steps only, a row a value: parallel arrays `step, probe, subject, index, value`."""

    step: NDArray[np.int64]
    probe: NDArray[Any]
    subject: NDArray[Any]
    index: NDArray[np.int32]
    value: Floats

    def select(self, probe: str) -> ProbeTable:
        """The rows of one probe, in recorded order."""
        keep = self.probe == probe
        return ProbeTable(self.step[keep], self.probe[keep], self.subject[keep], self.index[keep], self.value[keep])

    def matrix(self, probe: str, subjects: list[str]) -> tuple[NDArray[np.int64], Floats]:
        """One probe as (steps, values of shape steps × subjects); NaN where it was not measured. Last value wins."""
        rows = self.select(probe)
        steps = np.unique(rows.step)
        values = np.full((len(steps), len(subjects)), np.nan)
        column = {name: i for i, name in enumerate(subjects)}
        for step, subject, value in zip(rows.step, rows.subject, rows.value, strict=True):
            if subject in column:
                values[np.searchsorted(steps, step), column[subject]] = value
        return steps, values


@dataclass(frozen=True)
class Run:
    """One recorded run. T steps (rows), P parameters, G optimizer groups.

    `loss`, `global_norm`, `loss_scale`, `max_norm`, `elapsed_s`: (T,) floats, NaN where absent; `lr`: (T, G);
    `grad_norm` (L2) and `grad_max` (largest |g|): (T, P) float32, NaN where a parameter got no gradient, infinite or NaN
    where its gradient was nonfinite. Norms are as `header.measured_at` and `header.gradients_are` say. Trials take no
    `grad_max`, except that of a clipped window.
    `notes`: what the reader had to leave out, in plain words.
    """

    path: Path
    header: Header
    step: NDArray[np.int64]
    elapsed_s: Floats
    loss: Floats
    lr: Floats
    global_norm: Floats
    loss_scale: Floats
    max_norm: Floats
    skipped: NDArray[np.bool_]
    nonfinite: NDArray[np.int64]
    micro_steps: NDArray[np.int32]
    grad_norm: NDArray[np.float32]
    grad_max: NDArray[np.float32]
    probes: ProbeTable
    trials: Mapping[str, Run] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The name of its directory."""
        return self.path.name

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The modules that own parameters, in forward order."""
        owned: dict[str, list[int]] = {}
        for i, parameter in enumerate(self.header.parameters):
            owned.setdefault(parameter.layer, []).append(i)
        first = {name: self.header.parameters[indexes[0]] for name, indexes in owned.items()}
        layers = [Layer(name, first[name].type, first[name].order, tuple(owned[name])) for name in owned]
        return tuple(sorted(layers, key=lambda layer: layer.order))

    @cached_property
    def layer_grad_norm(self) -> Floats:
        """(T, L): the root-sum-square of each layer's gradient norms; NaN where none of its parameters got one."""
        squares = self.grad_norm.astype(np.float64) ** 2
        columns = []
        for layer in self.layers:
            own = squares[:, list(layer.parameters)]
            total = np.where(np.isnan(own), 0.0, own).sum(axis=1)
            total[np.isnan(own).all(axis=1)] = np.nan
            columns.append(np.sqrt(total))
        return np.stack(columns, axis=1) if columns else np.zeros((len(self.step), 0))

    @cached_property
    def measured(self) -> NDArray[np.bool_]:
        """(T,): the steps whose global norm is a finite number and that were not skipped."""
        finite: NDArray[np.bool_] = np.isfinite(self.global_norm) & ~self.skipped
        return finite
