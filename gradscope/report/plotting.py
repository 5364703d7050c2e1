"""What all figures share: their look, their axes, and labels that do not cover each other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from gradscope.report.text import number

INK, GRID = "#1b1b1b", "#c8c8c8"
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#56b4e9"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, INK)
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)), (0, (9, 3)))
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gradscope",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "font.size": 11,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 72,
    "savefig.dpi": 200,
}
_DEFAULTS: Any = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
WIDE, NARROW = 10.5, 4.9
"""Inches: the width of a figure, and of one for a phone."""
Label = tuple[float, str, str, Any]
"""Height in data, text, colour and dash of a line's label."""


@contextmanager
def style(width: float = WIDE) -> Iterator[None]:
    """The look of every figure, `width` inches wide; a name's missing glyph is no reason to warn."""
    with matplotlib.rc_context({**_DEFAULTS, **STYLE, "figure.figsize": (width, width)}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", category=matplotlib.MatplotlibDeprecationWarning)
        yield


def narrow() -> bool:
    """Whether the figures of this moment are for a phone."""
    return bool(matplotlib.rcParams["figure.figsize"][0] < WIDE)


def room(characters: int) -> int:
    """How many characters fit where so many fit in a wide figure."""
    return round(characters * NARROW / WIDE) if narrow() else characters


def new_figure(height: float, rows: Sequence[float] = (1,)) -> tuple[Figure, list[Any]]:
    """An empty figure with one axes a row, whose steps are whole numbers."""
    figure = Figure(figsize=(NARROW if narrow() else WIDE, height), layout="constrained")
    axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=list(rows))[:, 0]
    for axis in axes:
        axis.grid(True, axis="y")
        axis.xaxis.set_major_locator(MaxNLocator(room(10), integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    return figure, list(axes)


def plain_number(value: float, _place: int | None = None) -> str:
    """A tick as plain text: `0.001`, `20`, `1e-08`."""
    return number(value)


def log_axis(axis: Any, values: Any) -> None:
    """A log axis with plain ticks, over the positive finite `values` and a little more."""
    known = np.asarray(values, float)
    known = known[np.isfinite(known) & (known > 0)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.1, 10.0)
    if high / low < 10:
        middle = np.sqrt(high) * np.sqrt(low)
        low, high = min(low, middle / 3.2), max(high, middle * 3.2)
    pad = (np.log10(high) - np.log10(low)) * 0.05
    axis.set_yscale("log")
    axis.set_ylim(max(10 ** (np.log10(low) - pad), 1e-320), min(10 ** (np.log10(high) + pad), 1e307))
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,), numticks=8))
    axis.yaxis.set_major_formatter(FuncFormatter(plain_number))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_minor_formatter(NullFormatter())


def labels_beside(axis: Any, labels: Sequence[Label]) -> None:
    """Write labels right of the axes, pushed apart so that none covers another; below a figure for a phone."""
    shown = [label for label in labels if np.isfinite(label[0])]
    if narrow():
        _legend_below(axis.figure, sorted(shown, key=lambda label: -label[0]))
        return
    places = [axis.transAxes.inverted().transform(axis.transData.transform((0, y)))[1] for y, *_ in shown]
    gap, below = 15 / (72 * axis.figure.get_figheight() * 0.75), -1.0
    spread = []
    for place, (_, text, color, _dash) in sorted(zip(places, shown, strict=True), key=lambda item: item[0]):
        below = max(float(np.clip(place, 0, 1)), below + gap)
        spread.append((below, text, color))
    over = max(0.0, below - 1.02)
    for place, text, color in spread:
        axis.text(1.01, place - over, text, color=color, transform=axis.transAxes, va="center", fontsize=10)


def _legend_below(figure: Figure, labels: Sequence[Label]) -> None:
    """The labels with their lines, the highest first, in room of its own."""
    if labels:
        columns = 2 if len(labels) > 1 and max(len(text) for _, text, *_ in labels) <= room(46) else 1
        figure.set_figheight(figure.get_figheight() + 0.1 + 0.23 * -(-len(labels) // columns))
        lines = [Line2D([], [], color=color, linestyle=dash, linewidth=1.5) for *_, color, dash in labels]
        texts = [text for _, text, *_ in labels]
        figure.legend(lines, texts, loc="outside lower left", ncols=columns, fontsize=11, handlelength=2.6)
