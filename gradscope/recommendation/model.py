"""What a recommendation says: the threshold, and the evidence behind it. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["safety net", "step limiter", "off"]
By = Literal["norm", "value"]


@dataclass(frozen=True)
class Threshold:
    """One percentile of the recorded norms as a threshold.

    `low` to `high`: order-statistics interval at `confidence` (None where there are too few steps for that side).
    `clipped_fraction` (0–1): share of the used steps above it. `mean_retained_step`: mean of min(1, c/n), 1 is untouched.
    """

    percentile: float
    max_norm: float
    low: float | None
    high: float | None
    confidence: float
    clipped_fraction: float
    mean_retained_step: float
    mode: Mode


@dataclass(frozen=True)
class LayerThreshold:
    """The same percentile for one layer alone."""

    layer: str
    max_norm: float
    clipped_fraction: float


@dataclass(frozen=True)
class Candidate:
    """A threshold that was tried on a trial run.

    `loss`: median |loss| of its last steps, None if it became nonfinite; `diverged`: that, or above ten times its first.
    `clipped_fraction` and `mean_retained_step` are over the trial's steps. `steps`: how many the trial was to take.
    `shuffled`: it took its batches in another order.
    """

    max_norm: float | None
    origin: str
    trial: str
    loss: float | None
    clipped_fraction: float
    diverged: bool
    chosen: bool = False
    mean_retained_step: float = 1.0
    steps: int = 0
    shuffled: bool = False


@dataclass(frozen=True)
class Recommendation:
    """The clipping threshold, and what it rests on.

    `max_norm` None: do not clip (`mode` "off"). `thresholds[0]` answers the asked percentile; `max_norm` is that one, or
    the verified winner among `candidates`. `basis`: which norms were used, in words. `excluded`: steps left out, by reason.
    """

    max_norm: float | None
    by: By
    mode: Mode
    thresholds: tuple[Threshold, ...]
    clipped_fraction: float | None
    mean_retained_step: float | None
    basis: str
    steps_used: int
    excluded: dict[str, int]
    measured_at: str
    verified: bool
    reason: str
    caveats: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    layers: tuple[LayerThreshold, ...] = ()

    @property
    def percentile(self) -> float | None:
        """The first percentile asked for."""
        return self.thresholds[0].percentile if self.thresholds else None
