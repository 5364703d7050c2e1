"""A percentile of recorded norms as a threshold, with what can be known about it from so many steps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gradscope.diagnosis.series import percentile as percentile_of
from gradscope.errors import NothingMeasuredError, UsageError
from gradscope.recommendation.model import Mode, Threshold
from gradscope.runs.run import Floats

CONFIDENCE = 0.95
LIMITER = 0.25


def thresholds(norms: Floats, percentiles: Iterable[float], confidence: float = CONFIDENCE) -> tuple[Threshold, ...]:
    """One Threshold a percentile (0–100, linear between order statistics) of `norms`: (T,), finite and above zero.

    Raises:
        UsageError: a percentile outside 0–100, or none at all.
        NothingMeasuredError: `norms` is empty.
    """
    asked = check_percentiles(percentiles)
    if not len(norms):
        raise NothingMeasuredError("no finite gradient norm above zero to take a percentile of")
    ordered = np.sort(norms)
    return tuple(_threshold(ordered, percentile, confidence) for percentile in asked)


def check_percentiles(percentiles: Iterable[float]) -> tuple[float, ...]:
    """The percentiles as floats.

    Raises:
        UsageError: one lies outside 0–100, or there is none.
    """
    asked = tuple(float(percentile) for percentile in percentiles)
    if not asked:
        raise UsageError("no percentile asked for; give at least one between 0 and 100, for example 95")
    for percentile in asked:
        if not 0 <= percentile <= 100:
            raise UsageError(f"a percentile lies between 0 and 100, not at {percentile:g}; the 95th is 95")
    return asked


def clipped_fraction(norms: Floats, max_norm: float) -> float:
    """The share (0–1) of `norms` above `max_norm`."""
    return float((norms > max_norm).mean())


def mean_retained_step(norms: Floats, max_norm: float) -> float:
    """Mean of min(1, max_norm / norm): how much of the average step is left; 1 is untouched."""
    return float(np.minimum(1.0, max_norm / norms).mean())


def mode(fraction: float) -> Mode:
    """A threshold that clips more than a quarter of the steps limits the training; one that clips fewer is a safety net."""
    return "step limiter" if fraction > LIMITER else "safety net"


def interval(ordered: Floats, percentile: float, confidence: float) -> tuple[float | None, float | None]:
    """A lower and an upper bound on a percentile of the distribution that `ordered` (ascending) was drawn from.

    Exact for independent draws: the number of values below the percentile is binomial. Each end is a one-sided bound at
    `confidence`, so both hold together at 2·confidence − 1. None: no order statistic is sure enough; an upper bound on the
    95th percentile at .95 needs 59 values (.95^59 < .05).
    """
    below = _binomial_cdf(len(ordered), percentile / 100)
    low = int(np.searchsorted(below, 1 - confidence, side="right"))
    high = int(np.searchsorted(below, confidence, side="left"))
    return (
        float(ordered[low - 1]) if low > 0 else None,
        float(ordered[high]) if high < len(ordered) else None,
    )


def _binomial_cdf(n: int, p: float) -> Floats:
    """P(B ≤ k) for k = 0 … n, B binomial(n, p)."""
    if p in (0.0, 1.0):
        return np.ones(n + 1) if p == 0 else np.append(np.zeros(n), 1.0)
    k = np.arange(n + 1)
    choose = np.concatenate([[0.0], np.cumsum(np.log(n - k[:-1]) - np.log(k[1:]))])
    cdf: Floats = np.cumsum(np.exp(choose + k * np.log(p) + (n - k) * np.log1p(-p)))
    return cdf


def _threshold(ordered: Floats, percentile: float, confidence: float) -> Threshold:
    value = percentile_of(ordered, percentile)
    fraction = clipped_fraction(ordered, value)
    low, high = interval(ordered, percentile, confidence)
    return Threshold(
        percentile, value, low, high, confidence, fraction, mean_retained_step(ordered, value), mode(fraction)
    )
