"""The gradient norms of a run, layer by step, small enough to be looked at. Works through long runs in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope.report.pool import bins, columns_for
from gradscope.runs.run import Run

CHUNK_VALUES = 1 << 21
SAMPLED_STEPS = 4096


@dataclass(frozen=True)
class Cells:
    """Layer norms (L2) of a run, pooled to columns. L layers in forward order, C columns.

    `first`, `last`: (C,) the steps of a column. `norm`: (L, C) the largest finite norm in it, NaN where none was measured.
    `nonfinite`: (L, C) whether any of its gradients was nonfinite. Over the whole run, (L,): `median` (of at most 4,096
    evenly spaced steps), `maximum`, `final` (the last step), all of finite norms, and `nonfinite_steps`.
    """

    first: NDArray[np.int64]
    last: NDArray[np.int64]
    norm: NDArray[np.float64]
    nonfinite: NDArray[np.bool_]
    median: NDArray[np.float64]
    maximum: NDArray[np.float64]
    final: NDArray[np.float64]
    nonfinite_steps: NDArray[np.int64]
    steps: int

    @property
    def pooled(self) -> bool:
        """Whether a column stands for more than one step."""
        return len(self.first) < self.steps


def make_cells(run: Run) -> Cells:
    """Pool the gradient norms of `run`."""
    steps, layers = len(run.step), len(run.layers)
    starts = bins(steps, columns_for(steps, layers))
    place = np.searchsorted(starts, np.arange(steps), side="right") - 1
    norm = np.full((len(starts), layers), np.nan)
    bad = np.zeros((len(starts), layers), bool)
    bad_steps = np.zeros(layers, np.int64)
    final = np.full(layers, np.nan)
    for rows, values, wrong in _chunks(run):
        for column in np.unique(place[rows]):
            inside = place[rows] == column
            norm[column] = np.fmax(norm[column], np.fmax.reduce(values[inside]))
            bad[column] |= wrong[inside].any(axis=0)
        bad_steps += wrong.sum(axis=0)
        final = values[-1]
    ends = np.append(starts[1:], steps) - 1
    return Cells(
        first=run.step[starts],
        last=run.step[ends] if steps else run.step[starts],
        norm=norm.T,
        nonfinite=bad.T,
        median=_median(run),
        maximum=np.fmax.reduce(norm, axis=0) if steps else final,
        final=final,
        nonfinite_steps=bad_steps,
        steps=steps,
    )


def _chunks(run: Run) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.bool_]]]:
    """(rows, finite layer norms, whether nonfinite), both (rows, L)."""
    expected = _expected(run)
    for rows in _slices(run):
        yield rows, *_layers_of(run, run.grad_norm[rows], run.nonfinite[rows] > 0, expected)


def _slices(run: Run) -> Iterator[slice]:
    size = max(1, CHUNK_VALUES // max(1, run.grad_norm.shape[1]))
    for start in range(0, len(run.step), size):
        yield slice(start, min(start + size, len(run.step)))


def _expected(run: Run) -> NDArray[np.bool_]:
    """(P,): whether a NaN on a step with nonfinite gradients is one of them, not the mark of a missing gradient."""
    seen = np.zeros(run.grad_norm.shape[1], bool)
    for rows in _slices(run):
        seen |= (~np.isnan(run.grad_norm[rows])).any(axis=0)
    trainable = np.asarray([p.trainable for p in run.header.parameters], bool)
    return seen | trainable if not seen.any() else seen


def _layers_of(
    run: Run, own: NDArray[np.float32], step_bad: NDArray[np.bool_], expected: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    if not run.layers:
        return np.zeros((len(own), 0)), np.zeros((len(own), 0), bool)
    order = np.concatenate([layer.parameters for layer in run.layers]).astype(int)
    starts = np.cumsum([0, *(len(layer.parameters) for layer in run.layers[:-1])])
    finite = np.isfinite(own)
    wrong = np.isinf(own) | (np.isnan(own) & step_bad[:, None] & expected)
    squares = np.where(finite, own, 0).astype(np.float64) ** 2
    total = np.sqrt(np.add.reduceat(squares[:, order], starts, axis=1))
    total[~_any(finite[:, order], starts)] = np.nan
    return total, _any(wrong[:, order], starts)


def _any(flags: NDArray[np.bool_], starts: Any) -> NDArray[np.bool_]:
    result: NDArray[np.bool_] = np.logical_or.reduceat(flags, starts, axis=1)
    return result


def _median(run: Run) -> NDArray[np.float64]:
    rows = bins(len(run.step), SAMPLED_STEPS)
    step_bad = run.nonfinite[rows] > 0
    values, _ = _layers_of(run, run.grad_norm[rows], step_bad, np.ones(run.grad_norm.shape[1], bool))
    median = np.full(values.shape[1], np.nan)
    known = ~np.isnan(values).all(axis=0) if len(values) else np.zeros(values.shape[1], bool)
    median[known] = np.nanmedian(values[:, known], axis=0) if known.any() else median[known]
    return median
