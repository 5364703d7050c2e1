"""Is the training already exploding in the recorded steps? Shared by rule GS201 and by the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.series import Bools, Indexes, median, number, running_median, unscaled_norms, usable
from gradscope.runs.run import Floats, Run

LEAST = 20
EARLY_LOSSES, EARLY_NORMS, LATE = 5, 10, 10
LOSS_FACTOR, NORM_FACTOR = 10.0, 100.0
BLOWN, BEFORE = 1000.0, 100
NOT_LEARNED = 0.75
JUMP = 30.0
GUARD = 0.01
"""A beginning a hundred times below the median of the window is no reference."""


@dataclass(frozen=True)
class Explosion:
    """An explosion seen in the window: where it begins, what showed it, and by how much (None: nonfinite)."""

    first_step: int
    reason: str
    value: float | None = None
    limit: float | None = None


def explosion(run: Run) -> Explosion | None:
    """The explosion that the recorded steps show, or None.

    Any nonfinite value, or, of the run's own beginning: median of the last 10 |loss| above 10 ×, median of the last 10 norms
    above 100 ×, or a norm above 1000 × while the loss has not recovered. Steps that a gradient scaler skipped count only
    by their loss; a loss that falls is no explosion, however negative. Norms read after clipping are not judged.
    """
    return _nonfinite(run) or next(_grown(run), None)


def enough(run: Run) -> bool:
    """Whether there are steps enough to compare early with late ones."""
    return int(np.isfinite(run.loss).sum()) >= LEAST or int(usable(run).sum()) >= LEAST


def stable_prefix(run: Run) -> int:
    """How many rows come before the first norm that is nonfinite or above 30 × the running median; skipped steps aside."""
    norms = unscaled_norms(run)
    taken = np.flatnonzero(~run.skipped & ~(np.isnan(norms) & (run.nonfinite == 0)))
    values = np.where(np.isfinite(norms[taken]), norms[taken], np.inf)
    stays = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        stays &= ~(values > JUMP * running_median(np.where(stays, values, 0.0), 50))
    stays[:1] = True
    return len(run.step) if stays.all() else int(taken[np.argmin(stays)])


def nonfinite_steps(run: Run) -> Bools:
    """(T,): steps whose gradient is nonfinite and was not thrown away by a gradient scaler."""
    return np.asarray(~run.skipped & ((run.nonfinite > 0) | np.isinf(run.global_norm)))


def nonfinite_losses(run: Run) -> Bools:
    """(T,): steps whose loss is nonfinite. Where a run holds no loss at all, only steps with a nonfinite gradient count."""
    bad = ~np.isfinite(run.loss)
    if np.isnan(run.loss).all():
        bad &= nonfinite_steps(run)
    return np.asarray(bad)


def _nonfinite(run: Run) -> Explosion | None:
    gradients, losses = nonfinite_steps(run), nonfinite_losses(run)
    bad = np.flatnonzero(gradients | losses)
    if not len(bad):
        return None
    row = int(bad[0])
    what = "the loss" if losses[row] else "the gradient"
    return Explosion(_begin(run, row), f"{what} is nonfinite at step {run.step[row]}")


def _grown(run: Run) -> Iterator[Explosion]:
    """What grew, the surest sign first."""
    loss_rows, norm_rows = np.flatnonzero(np.isfinite(run.loss)), np.flatnonzero(usable(run))
    losses, norms = run.loss[loss_rows], unscaled_norms(run)[norm_rows]
    judged = run.header.measured_at == "pre_clip" and len(norms) >= LEAST
    first, last = _first(np.abs(losses), EARLY_LOSSES), median(np.abs(losses[-LATE:]))
    if len(losses) >= LEAST and last > LOSS_FACTOR * first and _rose(losses):
        yield _explosion(
            run, loss_rows, np.abs(losses), (last, first, LOSS_FACTOR), f"median |loss| of the last {LATE}"
        )
    if judged and median(norms[-LATE:]) > NORM_FACTOR * _first(norms, EARLY_NORMS):
        ends = (median(norms[-LATE:]), _first(norms, EARLY_NORMS), NORM_FACTOR)
        yield _explosion(run, norm_rows, norms, ends, f"median gradient norm of the last {LATE}")
    if judged and len(losses) >= LEAST and (peak := _blown(norms, losses)):
        yield _explosion(
            run, norm_rows, norms, (peak[0], peak[1], BLOWN), "a gradient norm, with a loss that stays up,"
        )


def _blown(norms: Floats, losses: Floats) -> tuple[float, float] | None:
    """A norm above 1000 × what came before, with a loss that did not recover: that norm, and what came before."""
    last = median(np.abs(losses[-LATE:]))
    before = running_median(norms, BEFORE, EARLY_LOSSES)
    with np.errstate(invalid="ignore"):
        jumps = norms > BLOWN * before
    if jumps.any() and last > NOT_LEARNED * _first(np.abs(losses), EARLY_LOSSES):
        row = int(np.argmax(jumps))
        return float(norms[row]), float(before[row])
    if norms.max() > BLOWN * norms[0] and last > LOSS_FACTOR * losses[0] > 0:
        return float(norms.max()), float(norms[0])
    return None


def _first(sizes: Floats, count: int) -> float:
    """The beginning to compare with; never below a hundredth of the median."""
    return float(np.fmax(median(sizes[:count]), GUARD * median(sizes)))


def _rose(losses: Floats) -> bool:
    return median(losses[-LATE:]) > median(losses[:EARLY_LOSSES])


def _explosion(run: Run, rows: Indexes, sizes: Floats, ends: tuple[float, float, float], what: str) -> Explosion:
    last, first, limit = ends
    row = int(rows[np.argmax(sizes > limit * first)])
    said = f"{what} is {number(last)}, against {number(first)} before"
    return Explosion(_begin(run, row), said, last / first if first else None, limit)


def _begin(run: Run, row: int) -> int:
    return int(run.step[min(row, stable_prefix(run))])
