"""A run in memory: the header and its tables as arrays. Everything that judges or draws starts from here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradscope.runs.ranks import RankLoss
from gradscope.runs.schema import Header

if TYPE_CHECKING:
    from gradscope.runs.stream import Rows, StoredMatrix

Floats = NDArray[np.float64]
BLOCK_VALUES = 1 << 18
ROWS = (
    "step",
    "elapsed_s",
    "loss",
    "lr",
    "global_norm",
    "loss_scale",
    "max_norm",
    "skipped",
    "nonfinite",
    "micro_steps",
    "norms",
    "peaks",
)
"""The columns of a run that have one row a step."""


T = TypeVar("T")


def once(function: Callable[[Run], T]) -> Callable[[Run], T]:
    """The same function, which computes its answer once for every run in memory."""
    key = f"{function.__module__}.{function.__qualname__}"

    @wraps(function)
    def answer(run: Run) -> T:
        if key not in run.__dict__:
            run.__dict__[key] = function(run)
        found: T = run.__dict__[key]
        return found

    return answer


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
    `norms` and `peaks` are these two by rows: `norms[10:20]` reads so many steps of a run too large for memory.
    `ranks`: the losses of the ranks beside rank 0, whose own are in `loss`; empty where they were not recorded.
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
    norms: Rows
    peaks: Rows
    probes: ProbeTable
    trials: Mapping[str, Run] = field(default_factory=dict)
    ranks: Mapping[int, RankLoss] = field(default_factory=dict)
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

    def since(self, row: int) -> Run:
        """The run from `row` on: its rows, and what was measured at their steps."""
        first = self.step[row]
        columns: dict[str, Any] = {name: _since(getattr(self, name), row) for name in ROWS}
        kept = self.probes.step >= first
        probes = ProbeTable(*(getattr(self.probes, column.name)[kept] for column in fields(ProbeTable)))
        ranks = {
            rank: RankLoss(one.step[one.step >= first], one.loss[one.step >= first]) for rank, one in self.ranks.items()
        }
        return replace(self, **columns, probes=probes, ranks=ranks)

    @cached_property
    def grad_norm(self) -> NDArray[np.float32]:
        """(T, P): the L2 norm of every parameter's gradient, all in memory."""
        return np.asarray(self.norms)

    @cached_property
    def grad_max(self) -> NDArray[np.float32]:
        """(T, P): the largest |g| of every parameter, all in memory."""
        return np.asarray(self.peaks)

    @cached_property
    def layer_grad_norm(self) -> Floats:
        """(T, L): the root-sum-square of each layer's gradient norms; NaN where none of its parameters got one."""
        return self.of_layers(self.grad_norm)

    def of_layers(self, norms: NDArray[Any], layers: slice = slice(None)) -> Floats:
        """(n, L): `layer_grad_norm` of rows of `norms`, for some of the layers."""
        absent = np.isnan(norms)
        squares = np.where(absent, 0.0, norms).astype(np.float64)
        total: Floats = np.sqrt(self.by_layer(np.add, np.square(squares, out=squares), layers))
        if absent.any():
            total[self.by_layer(np.logical_and, absent, layers)] = np.nan
        return total

    def by_layer(self, combine: np.ufunc, values: NDArray[Any], layers: slice = slice(None)) -> NDArray[Any]:
        """(n, L): the values (n, P) of each layer's parameters, combined."""
        chosen = self.layers[layers]
        if not chosen:
            return np.zeros((len(values), 0), values.dtype)
        counts = [len(layer.parameters) for layer in chosen]
        order = [i for layer in chosen for i in layer.parameters]
        combined: NDArray[Any] = combine.reduceat(values[:, order], np.cumsum([0, *counts[:-1]]), axis=1)
        return combined

    def blocks(self, rows: NDArray[np.int64] | None = None) -> Iterator[NDArray[np.int64]]:
        """Some rows of the run, all by default, in stretches small enough to hold the norms of."""
        rows = np.arange(len(self.step)) if rows is None else rows
        size = max(1, BLOCK_VALUES // max(1, len(self.header.parameters)))
        yield from (rows[start : start + size] for start in range(0, len(rows), size))

    def ever(self, test: Callable[[NDArray[Any]], Any], rows: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """(P,): whether `test` holds for the norm of a parameter in any of some rows."""
        found = np.zeros(len(self.header.parameters), bool)
        for block in self.blocks(rows):
            if found.all():
                break
            found |= np.asarray(test(self.norms[block])).any(axis=0)
        return found

    @cached_property
    def measured(self) -> NDArray[np.bool_]:
        """(T,): the steps whose global norm is a finite number and that were not skipped."""
        finite: NDArray[np.bool_] = np.isfinite(self.global_norm) & ~self.skipped
        return finite


def _since(column: NDArray[Any] | StoredMatrix, row: int) -> NDArray[Any] | StoredMatrix:
    return column[row:] if isinstance(column, np.ndarray) else column.since(row)
