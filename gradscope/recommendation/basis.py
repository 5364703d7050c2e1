"""Which steps a threshold may rest on, and why the others are left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnosis.series import Bools, count, number, read_at, unscaled_norms
from gradscope.diagnosis.window import Explosion, explosion
from gradscope.errors import NothingMeasuredError
from gradscope.recommendation.model import By
from gradscope.runs.run import Floats, Layer, Run

SKIPPED, NONFINITE, ABSENT = "skipped", "nonfinite norm", "no norm recorded"
ZERO, EXPLODED = "zero gradient", "after the explosion began"

HELD = 1 << 23
"""Norms of single layers in memory at a time."""


@dataclass(frozen=True)
class Basis:
    """The norms (or largest values) that a threshold rests on: those of `run` at `rows`, described in `words`."""

    run: Run
    rows: NDArray[np.int64]
    sizes: Floats
    excluded: dict[str, int]
    words: str
    contaminated: bool


def step_sizes(run: Run, by: By) -> Floats:
    """(T,): the global norm of each step, or its largest |gradient| for `by="value"`, with the loss scale divided out."""
    if by == "norm":
        return unscaled_norms(run)
    peaks = [np.fmax.reduce(run.peaks[rows], axis=1, initial=-np.inf) for rows in run.blocks()]
    largest = np.concatenate([np.zeros(0), *peaks])
    return np.asarray(np.where(np.isneginf(largest), np.nan, largest) * _per_unit(run))


def layer_sizes(run: Run, by: By, rows: NDArray[np.int64]) -> Iterator[tuple[Layer, Floats]]:
    """Each layer with the same for it alone at some rows. Few layers are held at a time, so as to read long runs."""
    width = max(1, HELD // max(1, len(rows)))
    for first in range(0, len(run.layers), width):
        group = slice(first, first + width)
        sizes = np.empty((len(run.layers[group]), len(rows)))
        done = 0
        for block in run.blocks(rows):
            sizes[:, done : done + len(block)] = _of_layers(run, by, block, group).T
            done += len(block)
        yield from zip(run.layers[group], sizes * _per_unit(run)[rows], strict=True)


def _of_layers(run: Run, by: By, rows: NDArray[np.int64], group: slice) -> Floats:
    if by == "norm":
        return run.of_layers(run.norms[rows], group)
    return run.by_layer(np.fmax, run.peaks[rows], group)


def choose_basis(run: Run, by: By) -> Basis:
    """The recorded steps; or those of a conservatively clipped trial where the recorded ones explode.

    Raises:
        NothingMeasuredError: no step has a usable norm.
    """
    if not len(run.step):
        raise NothingMeasuredError(
            f"run {run.id} holds no steps; record at least 20 with: gradscope analyze or record, or choose another run of: "
            "gradscope runs"
        )
    seen = explosion(run)
    clipped = _clipped_window(run) if seen else None
    if clipped is not None:
        basis = _of(clipped, by, None)
        about = clipped.header.trial
        limit = f" at {number(about.max_norm)}" if about and about.max_norm is not None else ""
        amount = _amount(clipped, len(basis.rows), by)
        words = f"{amount} of a trial clipped conservatively{limit}, since the recorded window explodes"
        return Basis(clipped, basis.rows, basis.sizes, basis.excluded, words, True)
    basis = _of(run, by, seen)
    if not len(basis.rows):
        raise NothingMeasuredError(_nothing(run, basis.excluded))
    return basis


def _clipped_window(run: Run) -> Run | None:
    """The first trial of kind "window" with a usable step."""
    kept = [t for t in run.trials.values() if t.header.trial and t.header.trial.kind == "window"]
    return next((t for t in kept if (np.isfinite(t.global_norm) & (t.global_norm > 0)).any()), None)


def _of(run: Run, by: By, seen: Explosion | None) -> Basis:
    sizes = step_sizes(run, by)
    reasons: dict[str, Bools] = {
        SKIPPED: run.skipped,
        NONFINITE: (run.nonfinite > 0) | np.isinf(sizes),
        ABSENT: np.isnan(sizes),
        ZERO: sizes == 0,
    }
    kept, excluded = np.ones(len(sizes), bool), {}
    for reason, out in reasons.items():
        excluded[reason] = int((kept & out).sum())
        kept &= ~out
    if seen and (calm := kept & (run.step < seen.first_step)).any():
        excluded[EXPLODED] = int(kept.sum() - calm.sum())
        kept = calm
    rows = np.flatnonzero(kept)
    words = f"{_amount(run, len(rows), by)} of the recorded window"
    left_out = {reason: amount for reason, amount in excluded.items() if amount}
    return Basis(run, rows, sizes[rows], left_out, words, seen is not None)


def _amount(run: Run, rows: int, by: By) -> str:
    return count(rows, f"{read_at(run)} gradient norm" if by == "norm" else f"largest {read_at(run)} gradient value")


def _nothing(run: Run, excluded: dict[str, int]) -> str:
    why = ", ".join(f"{amount} {reason}" for reason, amount in excluded.items())
    advice = "lower the learning rate or find the first nonfinite layer with: gradscope show"
    if run.header.gradients_are == "scaled" and ABSENT in excluded:
        advice = "its gradients are scaled and the scale is unknown: call scaler.unscale_(optimizer) before measuring"
    return f"run {run.id} holds no usable gradient norm ({why}); {advice}"


def _per_unit(run: Run) -> Floats:
    """(T,): what to multiply recorded sizes by: 1, or one over the loss scale where gradients are scaled."""
    if run.header.gradients_are != "scaled":
        return np.ones(len(run.step))
    good = np.isfinite(run.loss_scale) & (run.loss_scale > 0)
    inverse: Floats = np.divide(1.0, run.loss_scale, out=np.full(len(run.step), np.nan), where=good)
    return inverse
