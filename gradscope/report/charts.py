"""The figures of a report, as matplotlib Figures. Each function draws one, or gives None when there is nothing to draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from gradscope.recommendation.candidates import same_threshold
from gradscope.report.curves import candidates, ranks, rehearsals, remedies, time_profile
from gradscope.report.facts import in_use
from gradscope.report.model import Report
from gradscope.report.plotting import (
    BLUE,
    DASHES,
    GREEN,
    GRID,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    WIDE,
    Label,
    labels_beside,
    log_axis,
    narrow,
    new_figure,
    plain_number,
    room,
    style,
)
from gradscope.report.pool import bins, columns_for, pool_max
from gradscope.report.text import elide, number, visible
from gradscope.report.which_layer import accused
from gradscope.runs.run import Run

BOXES = 30
NAMED = 8
"""Layers up to which each is named along the depth."""


@dataclass(frozen=True)
class Chart:
    """A figure by name: what its heading says and the function that draws it."""

    name: str
    title: str
    draw: Callable[[Report], Figure | None]


def draw(chart: Chart, report: Report, width: float = WIDE) -> Figure | None:
    """The figure of one chart, in gradscope's style, `width` inches wide."""
    with style(width):
        return chart.draw(report)


def global_norm(report: Report) -> Figure | None:
    """Global norm over the steps, with the percentiles, the threshold, the candidates and the one in use."""
    run = report.run
    if not (np.isfinite(run.global_norm) & (run.global_norm > 0)).any():
        return None
    starts = bins(len(run.step), columns_for(len(run.step)))
    usable = np.where(np.isfinite(run.global_norm), run.global_norm, np.nan)
    norm, at = pool_max(usable, starts), run.step[starts]
    levels = _levels(report)
    has_loss = bool(np.isfinite(run.loss).any())
    figure, axes = new_figure(4.6 if has_loss else 3.2, (3, 1) if has_loss else (1,))
    axis = axes[0]
    log_axis(axis, np.concatenate([norm, [y for y, *_ in levels]]))
    axis.plot(at, norm, color=BLUE, linewidth=1.4, marker="o" if len(at) < 60 else None, markersize=3)
    for y, _, color, dash in levels:
        axis.axhline(y, color=color, linewidth=1.1, linestyle=dash)
    _mark(axis, run, starts)
    axis.set_ylabel("global norm (L2)")
    labels_beside(axis, levels)
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
    axis.plot(at, loss, color=GREEN, linewidth=1.3, marker="o" if len(at) < 60 else None, markersize=2.5)
    axis.set_ylabel("loss")
    if np.nanmin(loss) > 0 and np.nanmax(loss) / np.nanmin(loss) > 10:
        log_axis(axis, loss)
    else:
        axis.yaxis.set_major_formatter(FuncFormatter(plain_number))


def _levels(report: Report) -> list[Label]:
    """(height, label, color, dash) of every line to draw across the norms."""
    rungs = {rung.percentile: rung.max_norm for rung in report.ladder}
    lines = [(rungs[p], f"p{p}  {number(rungs[p])}", INK, DASHES[2]) for p in (50, 95, 99) if rungs.get(p)]
    recommendation = report.recommendation
    if recommendation is not None and recommendation.by == "norm":
        others = (c for c in recommendation.candidates if c.max_norm and not same_threshold(c, recommendation.max_norm))
        tried = {f"tried {number(c.max_norm)}": c.max_norm for c in others if c.max_norm}
        lines += [(limit, label, PURPLE, DASHES[1]) for label, limit in sorted(tried.items(), key=lambda one: one[1])]
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
    figure, (axis,) = new_figure(min(12.0, max(2.2, 0.24 * count + 1)))
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
    if (cells.maximum > 0).sum() < 2:
        return None
    gains = [
        (name, _gain(run, probe))
        for name, probe in (("forward gain", "forward_gain"), ("backward gain", "backward_gain"))
    ]
    gains = [(name, values) for name, values in gains if np.isfinite(values).any()]
    figure, axes = new_figure(4.8 if gains else 3.0, (1, 1) if gains else (1,))
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
    axes[-1].set_xlabel("layer, in forward order (0 runs first)" if len(place) > NAMED else "layer, in forward order")
    if len(place) <= NAMED:
        axes[-1].set_xticks(place, [elide(visible(layer.name), room(96) // len(place)) for layer in run.layers])
    return figure


def culprit(report: Report) -> int | None:
    """The forward place of the layer to look at first."""
    found = accused(report)
    names = [layer.name for layer in report.run.layers]
    return names.index(found[0]) if found and found[0] in names else None


def _mark_culprit(axis: Any, report: Report, *, named: bool) -> None:
    place = culprit(report)
    if place is None:
        return
    axis.axvline(place, color=ORANGE, linewidth=1.2, linestyle=DASHES[1])
    if named:
        name = elide(visible(report.run.layers[place].name), room(60))
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
    figure, (axis,) = new_figure(0.24 * len(finite) + 1.1)
    axis.grid(True, axis="x")
    lines = {"color": INK, "linewidth": 0.9}
    drawn = axis.boxplot(
        [np.log10(values) for _, values in finite][::-1], orientation="horizontal", showfliers=False, patch_artist=True,
        widths=0.6, whiskerprops=lines, capprops=lines, medianprops={"color": ORANGE, "linewidth": 1.6},
        boxprops={"facecolor": SKY, "edgecolor": INK, "linewidth": 0.7, "alpha": 0.6},
    )  # fmt: skip
    del drawn
    labels = [elide(visible(names[i]), room(44)) for i, _ in finite][::-1]
    axis.set_yticks(range(1, len(labels) + 1), labels, fontsize=9)
    axis.xaxis.set_major_locator(MaxNLocator(room(8), integer=axis.dataLim.width > 1.5))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: plain_number(10**x)))
    about = "gradient norm (L2), log scale: median, quartiles, whiskers to 1.5 × their distance"
    axis.set_xlabel(fill(about, room(120)), loc="right" if narrow() else "center")
    return figure


CHARTS = (
    Chart("heatmap", "Gradient norm by layer and step", heatmap),
    Chart("global_norm", "Global norm and thresholds", global_norm),
    Chart("depth", "Along the depth of the network", depth),
    Chart("boxes", "Spread of the layers most at risk", boxes),
    Chart("rehearsals", "Rehearsals of the planned training", rehearsals),
    Chart("candidates", "Thresholds tried", candidates),
    Chart("remedies", "Remedies tried", remedies),
    Chart("ranks", "Loss of each rank", ranks),
    Chart("time_profile", "Along time in the recurrent layer", time_profile),
)
