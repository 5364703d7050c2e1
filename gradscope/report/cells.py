"""The gradient norms of a run, layer by step, small enough to be looked at. Works through long runs in chunks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.report.pool import bins, columns_for
from gradscope.runs.run import Run

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
    norm = np.full((len(starts), layers), np.nan)
    bad = np.zeros((len(starts), layers), bool)
    bad_steps = np.zeros(layers, np.int64)
    final = np.full(layers, np.nan)
    expected = _expected(run)
    for rows in run.blocks():
        values, wrong = _layers_of(run, rows, expected)
        column, inside = _columns(starts, rows)
        norm[column] = np.fmax(norm[column], np.fmax.reduceat(values, inside))
        bad[column] |= np.logical_or.reduceat(wrong, inside)
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


def _columns(starts: NDArray[np.intp], rows: NDArray[np.int64]) -> tuple[slice, NDArray[np.intp]]:
    """The columns that neighbouring rows belong to, and where among the rows each begins."""
    first, last = np.searchsorted(starts, rows[[0, -1]], side="right") - 1
    inside = np.maximum(starts[first : last + 1] - rows[0], 0)
    return slice(int(first), int(last) + 1), inside


def _expected(run: Run) -> NDArray[np.bool_]:
    """(P,): whether a NaN on a step with nonfinite gradients is one of them, not the mark of a missing gradient."""
    seen = run.ever(lambda norms: ~np.isnan(norms))
    trainable = np.asarray([p.trainable for p in run.header.parameters], bool)
    return seen | trainable if not seen.any() else seen


def _layers_of(
    run: Run, rows: NDArray[np.int64], expected: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(n, L): the finite norms of the layers, and whether one of their parameters is nonfinite."""
    own = run.norms[rows]
    finite = np.isfinite(own)
    if finite.all():
        return run.of_layers(own), np.zeros((len(own), len(run.layers)), bool)
    wrong = np.isinf(own) | (np.isnan(own) & (run.nonfinite[rows] > 0)[:, None] & expected)
    return run.of_layers(np.where(finite, own, np.nan)), run.by_layer(np.logical_or, wrong)


def _median(run: Run) -> NDArray[np.float64]:
    """(L,): over a sample of the steps."""
    rows = bins(len(run.step), SAMPLED_STEPS)
    median = np.full(len(run.layers), np.nan)
    if not len(rows):
        return median
    own = run.norms[rows]
    values = run.of_layers(np.where(np.isfinite(own), own, np.nan))
    known = ~np.isnan(values).all(axis=0)
    median[known] = np.nanmedian(values[:, known], axis=0, overwrite_input=True) if known.any() else median[known]
    return median
