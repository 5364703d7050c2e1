"""Numbers and names as people read them: the same in the terminal, in Markdown and on the page."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from gradscope.report.pool import bins, pool_max
from gradscope.runs.schema import ROOT

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_BLOCKS, _ASCII = "▁▂▃▄▅▆▇█", "_.:-=+*#"


def visible(name: str) -> str:
    """A name with every control, direction and unprintable character written out; the root module is `(root)`."""
    if not name:
        return ROOT
    if name.isascii() and name.isprintable():
        return name
    return "".join(_SHORT.get(c, _escape(c)) if unicodedata.category(c) in _HIDDEN else c for c in name)


def _escape(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def elide(name: str, width: int | None) -> str:
    """A name cut in its middle to `width` characters; None leaves it whole."""
    if width is None or len(name) <= width:
        return name
    if width < 3:
        return name[:width]
    head = (width - 1) // 2
    return f"{name[:head]}…{name[len(name) - (width - 1 - head) :]}"


def number(value: float | None) -> str:
    """Four significant digits, without an exponent where that is short; `–` for what is absent."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{float(f'{value:.4g}'):.7g}"


def share(fraction: float | None) -> str:
    """A fraction (0–1) in percent."""
    return "–" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.3g} %"


def times(factor: float | None) -> str:
    """A factor, as `3.2×`."""
    return "–" if factor is None or math.isnan(factor) else f"{number(float(f'{factor:.2g}'))}×"


def plural(count: int, noun: str) -> str:
    """`1 step`, `2 steps`, `12,000 steps`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def ordinal(percentile: float) -> str:
    """`95th`, `99.5th`, `1st`."""
    text = f"{percentile:g}"
    teen = text[-2:] in {"11", "12", "13"}
    return text + ("th" if teen or "." in text else {"1": "st", "2": "nd", "3": "rd"}.get(text[-1], "th"))


def steps_range(first: int | None, last: int | None) -> str:
    """`12`, `12–40`, or nothing."""
    if first is None:
        return ""
    return str(first) if last is None or last == first else f"{first}–{last}"


def sparkline(
    values: Sequence[float], width: int, *, limits: tuple[float, float] | None = None, unicode: bool = True
) -> str:
    """log10 of `values`, at most `width` characters, each the largest of its steps; `✕`: nonfinite, `·`: zero.

    `limits` are the values of the lowest and the highest mark; by default those of `values`.
    """
    magnitude = np.asarray(values, float)
    if not len(magnitude):
        return ""
    starts = bins(len(magnitude), width)
    bad = np.maximum.reduceat(~np.isfinite(magnitude), starts)
    largest = pool_max(np.where(np.isfinite(magnitude), magnitude, np.nan), starts)
    pooled = log10(largest)
    known = pooled[~np.isnan(pooled)] if limits is None else np.log10(limits)
    low, span = (known.min(), max(np.ptp(known), 1e-9)) if len(known) else (0.0, 1.0)
    marks = _BLOCKS if unicode else _ASCII
    level = np.clip(np.nan_to_num((pooled - low) / span), 0, 1) * (len(marks) - 1)
    wrong, none = ("✕", "·") if unicode else ("x", " ")
    shown = zip(bad, largest == 0, level, strict=True)
    return "".join(wrong if b else none if zero else marks[round(i)] for b, zero, i in shown)


def bar(value: float | None, low: float, high: float, width: int, *, unicode: bool = True) -> str:
    """A bar for log10 of `value` between log10 of `low` and `high`; at least one mark for any positive value."""
    if value is None or not math.isfinite(value) or value <= 0:
        return ""
    span = math.log10(high / low) if 0 < low < high else 1.0
    part = min(1.0, max(0.0, math.log10(value / low) / span)) if low > 0 else 1.0
    return ("█" if unicode else "#") * max(1, round(part * width))


def log10(values: np.typing.NDArray[np.float64]) -> np.typing.NDArray[np.float64]:
    """log10; zero becomes the smallest positive value there is, or NaN when there is none."""
    positive = values[values > 0]
    floor = positive.min() if len(positive) else np.nan
    return np.log10(np.where(values > 0, values, np.where(np.isnan(values), np.nan, floor)))


def sentences(lines: Iterable[str]) -> tuple[str, ...]:
    """Each line that says something with a capital letter and a full stop."""
    return tuple(f"{line[0].upper()}{line[1:]}{'' if line[-1] in '.:!?' else '.'}" for line in lines if line)
