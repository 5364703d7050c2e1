"""The figures of a report, as matplotlib Figures. Each function draws one, or gives None when there is nothing to draw."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from gradscope.report.facts import in_use
from gradscope.report.model import Report
from gradscope.report.pool import bins, columns_for, pool_max
from gradscope.report.rows import title_of, trials
from gradscope.report.text import elide, number, visible
from gradscope.runs.run import Run

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
WIDTH = 10.5
BOXES = 30


@dataclass(frozen=True)
class Chart:
    """A figure by name: what its heading says and the function that draws it."""

    name: str
    title: str
    draw: Callable[[Report], Figure | None]


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure; a name's missing glyph is no reason to warn."""
    with matplotlib.rc_context({**_DEFAULTS, **STYLE}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", category=matplotlib.MatplotlibDeprecationWarning)
        yield


def draw(chart: Chart, report: Report) -> Figure | None:
    """The figure of one chart, in gradscope's style."""
    with style():
        return chart.draw(report)


def _figure(height: float, rows: Sequence[float] = (1,)) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=list(rows))[:, 0]
    for axis in axes:
        axis.grid(True, axis="y")
        axis.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
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


def right_labels(axis: Any, labels: Sequence[tuple[float, str, str]]) -> None:
    """Write (y, text, color) right of the axes, pushed apart so that none covers another."""
    shown = [(y, text, color) for y, text, color in labels if np.isfinite(y)]
    places = [axis.transAxes.inverted().transform(axis.transData.transform((0, y)))[1] for y, _, _ in shown]
    gap, below = 15 / (72 * axis.figure.get_figheight() * 0.75), -1.0
    spread = []
    for place, (_, text, color) in sorted(zip(places, shown, strict=True), key=lambda item: item[0]):
        below = max(float(np.clip(place, 0, 1)), below + gap)
        spread.append((below, text, color))
    over = max(0.0, below - 1.02)
    for place, text, color in spread:
        axis.text(1.01, place - over, text, color=color, transform=axis.transAxes, va="center", fontsize=10)


def global_norm(report: Report) -> Figure | None:
    """Global norm over the steps, with the percentiles, the threshold, the candidates and the one in use."""
    run = report.run
    if not len(run.step):
        return None
    starts = bins(len(run.step), columns_for(len(run.step)))
    usable = np.where(np.isfinite(run.global_norm), run.global_norm, np.nan)
    norm, at = pool_max(usable, starts), run.step[starts]
    levels = _levels(report)
    has_loss = bool(np.isfinite(run.loss).any())
    figure, axes = _figure(4.6 if has_loss else 3.2, (3, 1) if has_loss else (1,))
    axis = axes[0]
    log_axis(axis, np.concatenate([norm, [y for y, *_ in levels]]))
    axis.plot(at, norm, color=BLUE, linewidth=1.4, marker="o" if len(at) < 60 else None, markersize=3)
    for y, _, color, dash in levels:
        axis.axhline(y, color=color, linewidth=1.1, linestyle=dash)
    _mark(axis, run, starts)
    axis.set_ylabel("global norm (L2)")
    right_labels(axis, [(y, text, color) for y, text, color, _ in levels])
    if has_loss:
        _loss_panel(axes[1], at, pool_max(np.where(np.isfinite(run.loss), run.loss, np.nan), starts))
    axes[-1].set_xlabel("optimizer step")
    return figure


def _mark(axis: Any, run: Run, starts: Any) -> None:
    bad = np.maximum.reduceat(~np.isfinite(run.global_norm), starts)
    skipped = np.maximum.reduceat(run.skipped, starts) & ~bad
    for flags, marker, text, color in ((bad, "x", "nonfinite", ORANGE), (skipped, "v", "skipped", PURPLE)):
        if flags.any():
            at = run.step[starts][flags]
            place = axis.get_xaxis_transform()
            axis.plot(at, np.full(len(at), 0.97), marker, color=color, transform=place, markersize=6, label=text)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=10, borderaxespad=0)


def _loss_panel(axis: Any, at: Any, loss: Any) -> None:
    axis.plot(at, loss, color=GREEN, linewidth=1.3)
    axis.set_ylabel("loss")
    if np.nanmin(loss) > 0 and np.nanmax(loss) / np.nanmin(loss) > 10:
        log_axis(axis, loss)
    else:
        axis.yaxis.set_major_formatter(FuncFormatter(plain_number))


def _levels(report: Report) -> list[tuple[float, str, str, Any]]:
    """(height, label, color, dash) of every line to draw across the norms."""
    rungs = {rung.percentile: rung.max_norm for rung in report.ladder}
    lines = [(rungs[p], f"p{p}  {number(rungs[p])}", INK, DASHES[2]) for p in (50, 95, 99) if rungs.get(p)]
    recommendation = report.recommendation
    if recommendation is not None and recommendation.by == "norm":
        tried = [c for c in recommendation.candidates if c.max_norm and not c.chosen]
        lines += [(c.max_norm or 0, f"tried {number(c.max_norm)}", PURPLE, DASHES[1]) for c in tried]
        if recommendation.max_norm:
            lines += [(recommendation.max_norm, f"max_norm {number(recommendation.max_norm)}", ORANGE, DASHES[0])]
    if in_use(report.run):
        lines += [(in_use(report.run) or 0, f"in use {number(in_use(report.run))}", GREEN, DASHES[3])]
    return lines


def heatmap(report: Report) -> Figure | None:
    """log10 of every layer's norm at every step."""
    cells = report.cells
    if not cells.norm.size:
        return None
    with np.errstate(divide="ignore"):
        values = np.log10(np.where(cells.norm > 0, cells.norm, np.nan))
    count = len(values)
    figure, (axis,) = _figure(min(12.0, max(2.2, 0.24 * count + 1)))
    axis.grid(False)
    axis.set_facecolor(GRID)
    low, high = (np.nanmin(values), np.nanmax(values)) if np.isfinite(values).any() else (0, 1)
    extent = (cells.first[0] - 0.5, cells.last[-1] + 0.5, count - 0.5, -0.5)
    image = axis.imshow(
        np.where(cells.nonfinite, np.nan, values), cmap="cividis", aspect="auto", vmin=low, vmax=max(high, low + 1e-6),
        extent=extent, interpolation="nearest",
    )  # fmt: skip
    if cells.nonfinite.any():
        rows, columns = np.nonzero(cells.nonfinite)
        middle = (cells.first[columns] + cells.last[columns]) / 2
        axis.plot(middle, rows, "x", color=ORANGE, markersize=3, label="nonfinite")
    places = np.unique(np.linspace(0, count - 1, min(count, 40)).astype(int))
    axis.set_yticks(places, [elide(visible(report.run.layers[i].name), 36) for i in places], fontsize=8)
    axis.set_xlabel(
        "optimizer step"
        + (", the largest of several in a column" if cells.pooled else "")
        + (" · x: nonfinite" if cells.nonfinite.any() else "")
    )
    figure.colorbar(image, ax=axis, label="log10 of the gradient norm", format=FuncFormatter(plain_number))
    return figure


def depth(report: Report) -> Figure | None:
    """Median gradient norm and gains along the forward order, the layer most at risk marked."""
    cells, run = report.cells, report.run
    if np.isfinite(cells.median).sum() < 2:
        return None
    gains = [
        (name, _gain(run, probe))
        for name, probe in (("forward gain", "forward_gain"), ("backward gain", "backward_gain"))
    ]
    gains = [(name, values) for name, values in gains if np.isfinite(values).any()]
    figure, axes = _figure(4.8 if gains else 3.0, (1, 1) if gains else (1,))
    place = np.arange(len(cells.median))
    few = {"marker": "o", "markersize": 3.5} if len(place) < 80 else {}
    log_axis(axes[0], np.concatenate([cells.median, cells.maximum]))
    axes[0].plot(place, cells.median, color=BLUE, label="median", **few)
    axes[0].plot(place, cells.maximum, color=INK, linewidth=0.9, linestyle=DASHES[2], label="largest")
    axes[0].set_ylabel("gradient norm")
    if gains:
        log_axis(axes[1], np.concatenate([values for _, values in gains]))
        for i, (name, values) in enumerate(gains):
            axes[1].plot(place, values, color=(GREEN, PURPLE)[i], linestyle=DASHES[i], label=name, **few)
        axes[1].set_ylabel("gain")
    for axis in axes:
        _mark_culprit(axis, report, named=axis is axes[0])
        axis.legend(loc="best", ncols=2, fontsize=10)
    axes[-1].set_xlabel("layer, in forward order (0 runs first)")
    return figure


def culprit(report: Report) -> int | None:
    """The forward place of the layer most at risk, if its level is not low."""
    ranked = report.diagnosis.layers
    names = [layer.name for layer in report.run.layers]
    return names.index(ranked[0].name) if ranked and ranked[0].level != "low" and ranked[0].name in names else None


def _mark_culprit(axis: Any, report: Report, *, named: bool) -> None:
    place = culprit(report)
    if place is None:
        return
    axis.axvline(place, color=ORANGE, linewidth=1.2, linestyle=DASHES[1])
    if named:
        name = elide(visible(report.run.layers[place].name), 40)
        side = "right" if place > len(report.run.layers) / 2 else "left"
        text = f" ▲ {name} "
        axis.text(
            place, 1.0, text, color=ORANGE, ha=side, va="bottom", fontsize=10, transform=axis.get_xaxis_transform()
        )


def _gain(run: Run, probe: str) -> Any:
    """(L,): median of one gain over the sampled steps, with the activation that follows where that was measured."""
    names = [layer.name for layer in run.layers]
    values = np.full(len(names), np.nan)
    for kind in (probe, f"{probe}_with_activation"):
        measured = run.probes.matrix(kind, names)[1]
        finite = np.where(np.isfinite(measured), measured, np.nan)
        known = np.isfinite(finite).any(axis=0)
        values[known] = np.nanmedian(finite[:, known], axis=0) if known.any() else values[known]
    return values


def boxes(report: Report) -> Figure | None:
    """The spread of the gradient norm of the layers most at risk, at most 30."""
    names = [layer.name for layer in report.run.layers]
    ranked = [names.index(risk.name) for risk in report.diagnosis.layers if risk.name in names][:BOXES]
    finite = [(i, report.cells.norm[i][np.isfinite(report.cells.norm[i]) & (report.cells.norm[i] > 0)]) for i in ranked]
    finite = [(i, values) for i, values in finite if len(values)]
    if not finite or len(report.run.step) < 5:
        return None
    figure, (axis,) = _figure(0.24 * len(finite) + 1.1)
    axis.grid(True, axis="x")
    lines = {"color": INK, "linewidth": 0.9}
    drawn = axis.boxplot(
        [np.log10(values) for _, values in finite][::-1], orientation="horizontal", showfliers=False, patch_artist=True,
        widths=0.6, whiskerprops=lines, capprops=lines, medianprops={"color": ORANGE, "linewidth": 1.6},
        boxprops={"facecolor": SKY, "edgecolor": INK, "linewidth": 0.7, "alpha": 0.6},
    )  # fmt: skip
    del drawn
    labels = [elide(visible(names[i]), 44) for i, _ in finite][::-1]
    axis.set_yticks(range(1, len(labels) + 1), labels, fontsize=9)
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=axis.dataLim.width > 1.5))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: plain_number(10**x)))
    axis.set_xlabel("gradient norm (L2), log scale: median, quartiles, whiskers to 1.5 × their distance")
    return figure


def rehearsals(report: Report) -> Figure | None:
    """Loss of the rehearsals at ×1, ×2, ×4 and of the worst-batch replay."""
    return _losses([(title_of(child), child) for child in trials(report.run, "rehearsal", "replay")])


def candidates(report: Report) -> Figure | None:
    """Loss of every threshold that was tried."""
    tried = report.recommendation.candidates if report.recommendation else ()
    curves = []
    for candidate in tried:
        limit = "no clipping" if candidate.max_norm is None else f"max_norm {number(candidate.max_norm)}"
        if candidate.trial in report.run.trials:
            curves.append((limit + (", chosen" if candidate.chosen else ""), report.run.trials[candidate.trial]))
    return _losses(curves)


def remedies(report: Report) -> Figure | None:
    """Loss of every remedy that was tried."""
    known = [(remedy.name, report.run.trials.get(remedy.trial)) for remedy in report.remedies]
    return _losses([(elide(visible(name), 30), child) for name, child in known if child is not None])


def _losses(curves: list[tuple[str, Run]]) -> Figure | None:
    curves = [(name, child) for name, child in curves if np.isfinite(child.loss).any()]
    if not curves:
        return None
    figure, (axis,) = _figure(3.4)
    finite = np.concatenate([child.loss[np.isfinite(child.loss)] for _, child in curves])
    if finite.min() > 0 and finite.max() / finite.min() > 10:
        log_axis(axis, finite)
    else:
        axis.set_ylim(*_padded(finite))
        axis.yaxis.set_major_formatter(FuncFormatter(plain_number))
    labels = []
    for i, (name, child) in enumerate(curves):
        color, dash = COLORS[i % len(COLORS)], DASHES[i % len(DASHES)]
        loss = np.where(np.isfinite(child.loss), child.loss, np.nan)
        axis.plot(np.arange(len(loss)), loss, color=color, linestyle=dash, linewidth=1.5)
        last = int(np.flatnonzero(np.isfinite(loss))[-1])
        if last + 1 < len(loss) or not np.isfinite(child.global_norm[last]):
            axis.plot([last], [loss[last]], "x", color=color, markersize=8, markeredgewidth=2)
            name += ", ✕ nonfinite"
        labels.append((float(loss[last]), name, color))
    axis.set_ylabel("loss")
    axis.set_xlabel("step of the trial")
    right_labels(axis, labels)
    return figure


def _padded(values: Any) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def time_profile(report: Report) -> Figure | None:
    """Gradient norm of a recurrent state at every time step, median over the sampled steps."""
    rows = report.run.probes.select("state_grad_norm")
    subjects = list(dict.fromkeys(rows.subject))
    curves = []
    for subject in subjects:
        own = (rows.subject == subject) & np.isfinite(rows.value) & (rows.value > 0)
        times = np.unique(rows.index[own])
        if len(times):
            curves.append((subject, times, np.array([np.median(rows.value[own & (rows.index == t)]) for t in times])))
    if not curves:
        return None
    figure, (axis,) = _figure(3.2)
    log_axis(axis, np.concatenate([values for *_, values in curves]))
    for i, (_, times, values) in enumerate(curves):
        axis.plot(times, values, color=COLORS[i % len(COLORS)], linestyle=DASHES[i % len(DASHES)], linewidth=1.6)
    right_labels(
        axis, [(v[-1], elide(visible(str(name)), 30), COLORS[i % len(COLORS)]) for i, (name, _, v) in enumerate(curves)]
    )
    axis.set_xlabel("time step t of the sequence")
    axis.set_ylabel("gradient norm of the state")
    return figure


def compared(a: Report, b: Report) -> Figure | None:
    """The global norms of two runs on one axis, with the threshold of each."""
    with style():
        return _compared(a, b)


def _compared(a: Report, b: Report) -> Figure | None:
    shown = [(letter, report) for letter, report in (("A", a), ("B", b)) if report.run.measured.any()]
    if not shown:
        return None
    figure, (axis,) = _figure(3.8)
    finite = [report.run.global_norm[report.run.measured] for _, report in shown]
    limits = [r.recommendation.max_norm for _, r in shown if r.recommendation and r.recommendation.max_norm]
    log_axis(axis, np.concatenate([*finite, limits]))
    labels = []
    for (letter, report), color, dash in zip(shown, (BLUE, ORANGE), (DASHES[0], DASHES[1]), strict=False):
        starts = bins(len(report.run.step), columns_for(len(report.run.step)))
        norm = pool_max(np.where(report.run.measured, report.run.global_norm, np.nan), starts)
        axis.plot(report.run.step[starts], norm, color=color, linestyle=dash, linewidth=1.5)
        labels.append((float(norm[~np.isnan(norm)][-1]), letter, color))
        limit = report.recommendation.max_norm if report.recommendation else None
        if limit:
            axis.axhline(limit, color=color, linewidth=1, linestyle=DASHES[2])
            labels.append((limit, f"max_norm {letter} {number(limit)}", color))
    axis.set_ylabel("global norm (L2)")
    axis.set_xlabel("optimizer step")
    right_labels(axis, labels)
    return figure


CHARTS = (
    Chart("heatmap", "Gradient norm by layer and step", heatmap),
    Chart("global_norm", "Global norm and thresholds", global_norm),
    Chart("depth", "Along the depth of the network", depth),
    Chart("boxes", "Spread of the layers most at risk", boxes),
    Chart("rehearsals", "Rehearsals of the planned training", rehearsals),
    Chart("candidates", "Thresholds tried", candidates),
    Chart("remedies", "Remedies tried", remedies),
    Chart("time_profile", "Along time in the recurrent layer", time_profile),
)
