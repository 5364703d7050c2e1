"""Which steps the clipping in force touched. Shared by rules GS401 and GS402."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.series import Bools, count, unscaled_norms, usable
from gradscope.runs.run import Floats, Run

TOUCHED = 0.999


@dataclass(frozen=True)
class Clipped:
    """The usable steps under a threshold: step numbers, norms, the threshold of each, and whether it was clipped."""

    steps: NDArray[np.int64]
    norms: Floats
    limits: Floats
    clipped: Bools

    @property
    def share(self) -> float:
        """The clipped fraction (0–1)."""
        return float(self.clipped.mean())


def clipped_steps(run: Run, least: int) -> Clipped:
    """What the threshold in force did; the plan's `max_norm` stands in where no step recorded one.

    In norms read after clipping, a step counts as clipped when its norm is at least .999 of the threshold.

    Raises:
        CannotRunError: nothing was clipped in this run, or fewer than `least` usable steps were under a threshold.
    """
    limits = np.where(run.max_norm > 0, run.max_norm, np.nan)
    if not np.isfinite(limits).any() and run.header.plan.max_norm is not None:
        limits = np.full(len(run.step), run.header.plan.max_norm if run.header.plan.max_norm > 0 else np.nan)
    if not np.isfinite(limits).any():
        raise CannotRunError("no clipping by the norm is in force")
    rows = np.flatnonzero(usable(run) & np.isfinite(limits))
    if len(rows) < least:
        raise CannotRunError(f"{count(len(rows), 'step')} under a threshold with a finite norm; {least} are needed")
    norms, limits = unscaled_norms(run)[rows], limits[rows]
    touched = norms >= TOUCHED * limits if run.header.measured_at == "post_clip" else norms > limits
    return Clipped(run.step[rows], norms, limits, touched)
