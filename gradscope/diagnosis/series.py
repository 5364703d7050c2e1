"""What the rules share: usable norms and losses, running medians, numbers in words. No rule decides anything here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradscope.runs.run import Floats, Run

if TYPE_CHECKING:
    from gradscope.diagnosis.model import Finding, Severity

BELOW = 0.5
"""Losses whose median is so far below zero, in sizes, do not only swing around it."""
MEDIAN_ERROR = 1.2533
"""Standard error of a median, in those of a mean."""
Bools = NDArray[np.bool_]
Indexes = NDArray[np.int64]


def finding(
    code: str,
    rule: str,
    severity: Severity,
    message: str,
    advice: str,
    *,
    subject: str | None = None,
    steps: tuple[int | None, int | None] = (None, None),
    value: float | None = None,
    limit: float | None = None,
    unit: str | None = None,
) -> Finding:
    """A Finding whose numbers are plain floats; a nonfinite `value` becomes None, since the message tells of it."""
    from gradscope.diagnosis.model import Finding

    kept = float(value) if value is not None and np.isfinite(value) else None
    return Finding(code, rule, severity, subject, steps[0], steps[1], kept, limit, unit, message, advice)


def unscaled_norms(run: Run) -> Floats:
    """(T,): global norms with the loss scale divided out where the run holds scaled gradients and the scale."""
    if run.header.gradients_are == "scaled":
        scale = np.where(np.isfinite(run.loss_scale) & (run.loss_scale > 0), run.loss_scale, np.nan)
        return np.asarray(run.global_norm / scale, float)
    return run.global_norm


def read_at(run: Run) -> str:
    """`pre-clip` or `post-clip`."""
    return run.header.measured_at.replace("_", "-")


def usable(run: Run) -> Bools:
    """(T,): steps that were taken, with a finite global norm above zero."""
    norms = unscaled_norms(run)
    with np.errstate(invalid="ignore"):
        return np.asarray(run.measured & np.isfinite(norms) & (norms > 0))


def uses_scaler(run: Run) -> bool:
    """Whether a gradient scaler multiplies the loss of this training."""
    return run.header.plan.precision == "fp16" or bool(np.isfinite(run.loss_scale).any())


def highest_rates(run: Run) -> Floats:
    """(T,): the highest learning rate of all groups at each recorded step; −∞ where none is known."""
    return np.asarray(np.fmax.reduce(run.lr, axis=1, initial=-np.inf))


def pre_clip_norms(run: Run, least: int) -> tuple[NDArray[np.int64], Floats]:
    """The steps and norms of `usable`.

    Raises:
        CannotRunError: the norms were read after clipping, or there are fewer than `least` of them.
    """
    from gradscope.diagnosis.model import CannotRunError

    if run.header.measured_at == "post_clip":
        raise CannotRunError("the norms were read after clipping, which hides every large one")
    keep = usable(run)
    if keep.sum() < least:
        raise CannotRunError(f"{count(int(keep.sum()), 'step')} with a finite gradient norm; {least} are needed")
    return run.step[keep], unscaled_norms(run)[keep]


def running_median(values: Floats, width: int, least: int = 1) -> Floats:
    """(T,): the median of up to `width` values before each one, the value itself left out; NaN before `least` of them."""
    result = np.full(len(values), np.nan)
    for i in range(max(1, least), min(width, len(values))):
        result[i] = _medians(values[:i])
    if len(values) > width:
        windows = np.lib.stride_tricks.sliding_window_view(values[:-1], width)
        result[width:] = _medians(windows)
    return result


def _medians(values: Floats) -> Floats:
    """The median of each row, NaN where the row holds one, as `np.median`, which loads numpy.ma."""
    ordered = np.sort(values, axis=-1)
    middle = ordered.shape[-1] // 2
    medians = (ordered[..., (ordered.shape[-1] - 1) // 2] + ordered[..., middle]) / 2
    return np.asarray(np.where(np.isnan(ordered[..., -1]), np.nan, medians))


def median(values: Any) -> float:
    """The median of the finite values; NaN when there is none."""
    kept = np.asarray(values, float)
    kept = kept[np.isfinite(kept)]
    return percentile(kept, 50.0) if len(kept) else float("nan")


def deviation(differences: Any) -> float:
    """1.4826 × the median size of differences from a middle: their standard deviation if they were normal."""
    return 1.4826 * median(np.abs(differences))


def level(losses: Any) -> float:
    """Where losses lie: the median of their sizes; where it is below zero that they lie, their median, negative."""
    kept = np.asarray(losses, float)
    kept = kept[np.isfinite(kept)]
    middle, size = median(kept), median(np.abs(kept))
    return middle if middle < -BELOW * size else size


def percentile(values: Any, place: float) -> float:
    """The percentile `place` (0–100) of finite values, linear between them, as `np.percentile`, which loads numpy.ma."""
    ordered = np.sort(np.asarray(values, float))
    return float(np.interp((len(ordered) - 1) * place / 100, np.arange(len(ordered)), ordered))


def log10(values: Any) -> Floats:
    """log10 with NaN for what is not a finite number above zero."""
    array = np.asarray(values, float)
    good = np.isfinite(array) & (array > 0)
    logs: Floats = np.log10(array, out=np.full(array.shape, np.nan), where=good)
    return logs


def number(value: float) -> str:
    """Three digits, without an exponent between .001 and 100 000: `0.0421`, `1,240`, `3.1e+08`."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = 0 if abs(value) >= 100 else 3
        return f"{value:,.0f}" if digits == 0 else f"{value:.3g}"
    return f"{value:.2g}"


def percent(fraction: float) -> str:
    """A share in per cent; never rounded to 0 or 100 unless it is."""
    text = f"{100 * fraction:.0f} %"
    if text in ("0 %", "100 %") and fraction not in (0.0, 1.0):
        return "< 1 %" if fraction < 0.5 else "> 99 %"
    return text


def count(amount: int, noun: str) -> str:
    """`1 step`, `3 steps`."""
    return f"{amount:,} {noun}" + ("" if amount == 1 else "s")


def listed(names: Sequence[object], shown: int) -> str:
    """The first so many, and how many more there are: `a, b, c and 2 more`."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(str, names[:shown])) + more


def any_of(words: Sequence[str]) -> str:
    """`log`, `add or log`, `bmm, add or log`."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last
