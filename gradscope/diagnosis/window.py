"""Is the training already exploding in the recorded steps? Shared by rule GS201 and by the verdict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.series import Bools, count, median, number, running_median, unscaled_norms, usable
from gradscope.runs.run import Run

EARLY_LOSSES, LATE, EARLY_NORMS = 5, 10, 10
LOSS_FACTOR, NORM_FACTOR = 10.0, 100.0
LEAST = 15
JUMP = 30.0


@dataclass(frozen=True)
class Explosion:
    """An explosion seen in the window: where it begins, what showed it, and by how much (None: nonfinite)."""

    first_step: int
    reason: str
    value: float | None = None
    limit: float | None = None


def explosion(run: Run) -> Explosion | None:
    """The explosion that the recorded steps show, or None.

    nonfinite, or median(last 10 |loss|) > 10 × median(first 5), or median(last 10 norms) > 100 × median(first 10).
    Steps that a gradient scaler skipped count only by their loss; a loss that falls is no explosion, however negative.
    """
    return _nonfinite(run) or _loss_grew(run) or _norm_grew(run)


def enough(run: Run) -> bool:
    """Whether there are steps enough to compare early with late ones."""
    return int(np.isfinite(run.loss).sum()) >= LEAST or int(usable(run).sum()) >= LEAST


def stable_prefix(run: Run) -> int:
    """How many rows come before the first norm that is nonfinite or above 30 × the running median (skipped steps aside)."""
    norms = unscaled_norms(run)
    taken = np.flatnonzero(~run.skipped & ~(np.isnan(norms) & (run.nonfinite == 0)))
    values = norms[taken]
    bad = ~np.isfinite(values)
    filled = np.where(bad, 0.0, values)
    with np.errstate(invalid="ignore"):
        bad |= filled > JUMP * running_median(filled, 50, least=3)
    return int(taken[np.argmax(bad)]) if bad.any() else len(run.step)


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
    begin = min(row, stable_prefix(run))
    return Explosion(int(run.step[begin]), f"{what} is nonfinite at step {run.step[row]}")


def _loss_grew(run: Run) -> Explosion | None:
    rows = np.flatnonzero(np.isfinite(run.loss))
    losses = run.loss[rows]
    if len(losses) < LEAST:
        return None
    size = np.abs(losses)
    first, last = median(size[:EARLY_LOSSES]), median(size[-LATE:])
    rose = np.median(losses[-LATE:]) > np.median(losses[:EARLY_LOSSES])
    if not (rose and last > LOSS_FACTOR * first):
        return None
    begin = int(np.argmax(size > LOSS_FACTOR * first))
    seen = f"median |loss| of the last {LATE} steps is {number(last)}, of the first {EARLY_LOSSES} {number(first)}"
    return Explosion(_begin(run, int(rows[begin])), seen, last / first if first else None, LOSS_FACTOR)


def _norm_grew(run: Run) -> Explosion | None:
    rows = np.flatnonzero(usable(run))
    if len(rows) < LEAST or run.header.measured_at == "post_clip":
        return None
    norms = unscaled_norms(run)[rows]
    first, last = median(norms[:EARLY_NORMS]), median(norms[-LATE:])
    if not last > NORM_FACTOR * first:
        return None
    begin = int(np.argmax(norms > NORM_FACTOR * first))
    seen = (
        f"median gradient norm of the last {LATE} of {count(len(rows), 'step')} is {number(last)}, "
        f"of the first {EARLY_NORMS} {number(first)}"
    )
    return Explosion(_begin(run, int(rows[begin])), seen, last / first, NORM_FACTOR)


def _begin(run: Run, row: int) -> int:
    return int(run.step[min(row, stable_prefix(run))])
