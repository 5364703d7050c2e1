"""What other clipping rules would have done on recorded norms.

Each policy is causal: the limit of a step comes from the norms before it. A nonfinite norm enters no statistic, so one NaN
cannot poison what follows; the limit of such a step is what the policy would have clipped it to.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gradscope.runs.run import Floats

Policy = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Replay:
    """One policy on recorded norms. `limits`: (T,), inf where it does not clip, 0 where it drops the step.

    `clipped_fraction` and `mean_retained_step` (0–1) are over the steps with a finite norm; None when there is none.
    """

    name: str
    limits: Floats
    clipped_fraction: float | None
    mean_retained_step: float | None


def autoclip(norms: Floats, percentile: float = 10.0) -> Floats:
    """AutoClip (Seetharaman et al. 2020): a percentile of all norms so far, this one included."""
    seen: list[float] = []
    limits = np.full(len(norms), np.inf)
    for t, norm in enumerate(norms):
        if np.isfinite(norm):
            bisect.insort(seen, float(norm))
        if seen:
            place = (len(seen) - 1) * percentile / 100
            low, high = seen[int(place)], seen[min(int(place) + 1, len(seen) - 1)]
            limits[t] = low + (high - low) * (place % 1)
    return limits


def zclip(norms: Floats, alpha: float = 0.97, z: float = 2.5, warmup: int = 25) -> Floats:
    """ZClip (Kumar et al. 2025): above z standard deviations of moving averages, clip to μ + z²σ / z_t."""
    limits = np.full(len(norms), np.inf)
    first: list[float] = []
    mean, variance = 0.0, 0.0
    for t, norm in enumerate(norms):
        if len(first) < warmup:
            first += [float(norm)] if np.isfinite(norm) else []
            mean, variance = (float(np.mean(first)), float(np.var(first))) if first else (0.0, 0.0)
            continue
        sigma = float(np.sqrt(variance))
        score = (norm - mean) / sigma if sigma > 0 else 0.0
        if not score <= z:
            limits[t] = mean + (z * z * sigma / score if np.isfinite(score) else 0.0)
        kept = min(float(norm), float(limits[t])) if np.isfinite(norm) else mean
        variance = alpha * variance + (1 - alpha) * (kept - mean) ** 2
        mean = alpha * mean + (1 - alpha) * kept
    return limits


def icefall(norms: Floats, factor: float = 2.0, width: int = 100) -> Floats:
    """icefall's ScaledAdam: a multiple of the median of the last norms."""
    return _trailing(norms, width, 1, lambda past: factor * float(np.median(past)))


def mean_and_deviations(norms: Floats, deviations: float = 3.0, width: int = 100) -> Floats:
    """Mean plus so many standard deviations of the last norms."""
    return _trailing(norms, width, 2, lambda past: float(past.mean() + deviations * past.std()))


def pascanu(norms: Floats, factor: float = 1.0) -> Floats:
    """Pascanu, Mikolov, Bengio 2013: the mean norm so far."""
    mean, _ = _so_far(norms)
    return factor * mean


def chen(norms: Floats, deviations: float = 4.0) -> Floats:
    """Chen et al. 2018: mean plus four standard deviations of the log norm so far; such steps are dropped."""
    good = np.isfinite(norms) & (norms > 0)
    mean, deviation = _so_far(np.log(norms, out=np.full(len(norms), np.nan), where=good))
    with np.errstate(over="ignore"):
        return _dropped(norms, np.exp(mean + deviations * deviation))


def olmo(norms: Floats, deviations: float = 6.0, width: int = 128) -> Floats:
    """OLMo-core: a step above mean + 6 standard deviations of the last 128 norms is dropped."""
    return _dropped(norms, mean_and_deviations(norms, deviations, width))


def megatron(norms: Floats, factor: float = 10.0, first: int = 100) -> Floats:
    """Megatron: a step above ten times the largest of the first hundred norms is dropped."""
    finite = np.isfinite(norms)
    limits = np.full(len(norms), np.inf)
    begin = int(np.searchsorted(np.cumsum(finite), first)) + 1
    if begin < len(norms):
        limits[begin:] = factor * norms[:begin][finite[:begin]].max()
    return _dropped(norms, limits)


POLICIES: dict[str, Policy] = {
    "AutoClip p10": autoclip,
    "ZClip": zclip,
    "icefall": icefall,
    "mean + 3 std": mean_and_deviations,
    "mean": pascanu,
    "Chen 2018": chen,
    "OLMo-core": olmo,
    "Megatron": megatron,
    "1.0": lambda norms: np.ones(len(norms)),
}


def replay(norms: Floats) -> tuple[Replay, ...]:
    """Every policy on `norms`: (T,), nonfinite ones included."""
    return tuple(_replay(name, policy(norms), norms) for name, policy in POLICIES.items())


def _replay(name: str, limits: Floats, norms: Floats) -> Replay:
    used = np.isfinite(norms) & (norms > 0)
    if not used.any():
        return Replay(name, limits, None, None)
    share = np.minimum(1.0, limits[used] / norms[used])
    return Replay(name, limits, float((share < 1).mean()), float(share.mean()))


def _trailing(norms: Floats, width: int, least: int, rule: Callable[[Floats], float]) -> Floats:
    """`rule` of the last `width` finite norms before each step; inf before there are `least`."""
    limits = np.full(len(norms), np.inf)
    kept = np.empty(len(norms))
    size = 0
    for t, norm in enumerate(norms):
        if size >= least:
            limits[t] = rule(kept[max(0, size - width) : size])
        if np.isfinite(norm):
            kept[size] = norm
            size += 1
    return limits


def _so_far(values: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the finite values before each step; inf before there is one."""
    mean, deviation = np.full(len(values), np.inf), np.zeros(len(values))
    size, center, squares = 0, 0.0, 0.0
    for t, value in enumerate(values):
        if size:
            mean[t], deviation[t] = center, np.sqrt(squares / size)
        if np.isfinite(value):
            size += 1
            step = float(value) - center
            center += step / size
            squares += step * (float(value) - center)
    return mean, deviation


def _dropped(norms: Floats, limits: Floats) -> Floats:
    """0 where the norm is above the limit or nonfinite (the step is dropped), else inf."""
    return np.where(norms <= limits, np.inf, 0.0)
