"""Which steps a threshold may rest on, and why the others are left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnosis.series import Bools, count, number, read_at, unscaled_norms
from gradscope.diagnosis.window import Explosion, explosion
from gradscope.errors import NothingMeasuredError
from gradscope.recommendation.model import By
from gradscope.runs.run import Floats, Run

SKIPPED, NONFINITE, ABSENT = "skipped by the gradient scaler", "nonfinite norm", "no norm recorded"
ZERO, EXPLODED = "zero gradient", "after the explosion began"


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
    peaks = np.where(np.isnan(run.grad_max), -np.inf, run.grad_max.astype(float)).max(axis=1, initial=-np.inf)
    peaks = np.where(np.isneginf(peaks), np.nan, peaks)
    return np.asarray(peaks * _per_unit(run))


def layer_sizes(run: Run, by: By) -> Floats:
    """(T, L): the same for each layer alone."""
    per_unit = _per_unit(run)[:, None]
    if by == "norm":
        return np.asarray(run.layer_grad_norm * per_unit)
    peaks = np.where(np.isnan(run.grad_max), -np.inf, run.grad_max.astype(float))
    columns = [peaks[:, list(layer.parameters)].max(axis=1) for layer in run.layers]
    return np.asarray(np.stack(columns, axis=1) * per_unit)


def choose_basis(run: Run, by: By) -> Basis:
    """The recorded steps; or those of a conservatively clipped trial where the recorded ones explode.

    Raises:
        NothingMeasuredError: no step has a usable norm.
    """
    if not len(run.step):
        raise NothingMeasuredError(f"run {run.id} holds no steps; record at least 20 with: gradscope analyze or record")
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
