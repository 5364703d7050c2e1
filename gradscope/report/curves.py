"""Figures of losses step by step, of gradients along time, and of two runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from gradscope.diagnosis.series import median
from gradscope.recommendation.candidates import one_each
from gradscope.report.model import Report
from gradscope.report.plotting import (
    BLUE,
    COLORS,
    DASHES,
    ORANGE,
    SKY,
    WIDE,
    labels_beside,
    log_axis,
    new_figure,
    plain_number,
    style,
)
from gradscope.report.pool import bins, columns_for, pool_max
from gradscope.report.ranks import apart
from gradscope.report.rows import title_of, trials
from gradscope.report.text import elide, number, visible
from gradscope.runs.run import Run

CUT = 30.0
"""Times its beginning: where the axis of a loss ends, so that those that held can be told apart."""
SMOOTH, FAINT = 80, 0.25
"""Parts of a curve whose medians are drawn, over its single steps."""


def rehearsals(report: Report) -> Figure | None:
    """Loss of the rehearsals at ×1, ×2, ×4 and of the worst-batch replay."""
    return _losses([(title_of(child), child) for child in trials(report.run, "rehearsal", "replay")])


def candidates(report: Report) -> Figure | None:
    """Loss of every threshold that was tried, on its longest trial."""
    tried = report.recommendation.candidates if report.recommendation else ()
    kept = [one for one in tried if one.trial in report.run.trials]
    curves = []
    for candidate in one_each(sorted(kept, key=lambda one: (-one.steps, not one.chosen))):
        limit = "no clipping" if candidate.max_norm is None else f"max_norm {number(candidate.max_norm)}"
        curves.append((limit + (", chosen" if candidate.chosen else ""), report.run.trials[candidate.trial]))
    return _losses(curves)


def remedies(report: Report) -> Figure | None:
    """Loss of every remedy that was tried."""
    known = [(remedy.name, report.run.trials.get(remedy.trial)) for remedy in report.remedies]
    return _losses([(elide(visible(name), 30), child) for name, child in known if child is not None])


def ranks(report: Report) -> Figure | None:
    """The loss that each rank computed from its own batches; of very many only the first, the accused and a band."""
    losses = report.rank_losses
    if losses is None or not np.isfinite(losses.loss).any():
        return None
    starts = bins(len(losses.step), columns_for(len(losses.step)))
    at, pooled = losses.step[starts], pool_max(np.where(np.isfinite(losses.loss), losses.loss, np.nan), starts)
    figure, (axis,) = new_figure(3.4)
    finite = pooled[np.isfinite(pooled)]
    _loss_axis(axis, finite, float(finite.max()))
    drawn, found = list(range(len(losses.ranks))), apart(report.diagnosis)
    if len(drawn) > len(COLORS):
        some = np.isfinite(pooled).any(axis=1)
        low, high = np.nanmin(pooled[some], axis=1), np.nanmax(pooled[some], axis=1)
        axis.fill_between(at[some], low, high, color=SKY, alpha=0.4, linewidth=0)
        drawn = [place for place in drawn if place == 0 or (found and f"rank {losses.ranks[place]}" == found.subject)]
    labels = []
    for i, place in enumerate(drawn):
        name, color, column = f"rank {losses.ranks[place]}", COLORS[i], pooled[:, place]
        axis.plot(at, column, color=color, linestyle=DASHES[i], linewidth=1.4)
        broken = np.flatnonzero(losses.broken[:, place])
        if len(broken):
            axis.plot(
                losses.step[broken[0]], 0.97 - 0.07 * i, "x", color=color, markersize=8, markeredgewidth=2,
                transform=axis.get_xaxis_transform(),
            )  # fmt: skip
            name += f", ✕ nonfinite from {losses.step[broken[0]]}"
        known = column[np.isfinite(column)]
        labels.append((float(known[-1]) if len(known) else float(finite.max()), name, color, DASHES[i]))
    axis.set_ylabel("loss of the rank")
    axis.set_xlabel("optimizer step")
    labels_beside(axis, labels)
    return figure


def _losses(curves: list[tuple[str, Run]]) -> Figure | None:
    curves = [(name, child) for name, child in curves if np.isfinite(child.loss).any()]
    if not curves:
        return None
    figure, (axis,) = new_figure(3.4)
    finite = np.concatenate([_finite(child) for _, child in curves])
    first = max(abs(float(_finite(child)[0])) for _, child in curves)
    top = min(float(finite.max()), CUT * first) if first else float(finite.max())
    _loss_axis(axis, finite, top)
    labels = []
    for i, (name, child) in enumerate(curves):
        color, dash = COLORS[i % len(COLORS)], DASHES[i % len(DASHES)]
        at, loss = _places(child), np.where(np.isfinite(child.loss), child.loss, np.nan)
        axis.plot(at, loss, color=color, linewidth=0.8, alpha=FAINT)
        middles, medians = _smoothed(at, loss)
        axis.plot(middles, medians, color=color, linestyle=dash, linewidth=1.6)
        last = int(np.flatnonzero(np.isfinite(loss))[-1])
        end = min(float(medians[np.isfinite(medians)][-1]), top)
        if last + 1 < len(loss) or not np.isfinite(child.global_norm[last]):
            axis.plot([at[last]], [end], "x", color=color, markersize=8, markeredgewidth=2)
            name += ", ✕ nonfinite"
        labels.append((end, name, color, dash))
    axis.set_ylabel("loss" if top == finite.max() else f"loss (cut at {number(top)})")
    axis.set_xlabel("step of the plan")
    labels_beside(axis, labels)
    return figure


def _places(child: Run) -> Any:
    """The steps of the plan that a trial's steps stand for."""
    indexes = child.header.trial.indexes if child.header.trial else ()
    return np.asarray(indexes[: len(child.loss)]) if len(indexes) >= len(child.loss) else np.arange(len(child.loss))


def _smoothed(at: Any, loss: Any) -> tuple[Any, Any]:
    """The middles and medians of at most 80 parts of a curve."""
    starts = bins(len(loss), SMOOTH)[1:]
    middles, medians = ([median(part) for part in np.split(values, starts)] for values in (at, loss))
    return np.array(middles), np.array(medians)


def _loss_axis(axis: Any, finite: Any, top: float) -> None:
    """An axis for losses up to `top`: in powers where they are positive and span more than ten times."""
    if finite.min() > 0 and top / finite.min() > 10:
        log_axis(axis, np.append(finite[finite <= top], top))
    else:
        axis.set_ylim(*_padded(finite[finite <= top]))
        axis.yaxis.set_major_formatter(FuncFormatter(plain_number))


def _finite(child: Run) -> Any:
    return child.loss[np.isfinite(child.loss)]


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
    figure, (axis,) = new_figure(3.2)
    log_axis(axis, np.concatenate([values for *_, values in curves]))
    for i, (_, times, values) in enumerate(curves):
        axis.plot(times, values, color=COLORS[i % len(COLORS)], linestyle=DASHES[i % len(DASHES)], linewidth=1.6)
    ends = [(values[-1], elide(visible(str(name)), 30)) for name, _, values in curves]
    looks = [(COLORS[i % len(COLORS)], DASHES[i % len(DASHES)]) for i in range(len(curves))]
    labels_beside(axis, [(*end, *look) for end, look in zip(ends, looks, strict=True)])
    axis.set_xlabel("time step t of the sequence")
    axis.set_ylabel("gradient norm of the state")
    return figure


def compared(a: Report, b: Report, width: float = WIDE) -> Figure | None:
    """The global norms of two runs on one axis, with the threshold of each; `width` in inches."""
    with style(width):
        return _compared(a, b)


def _compared(a: Report, b: Report) -> Figure | None:
    shown = [(letter, report) for letter, report in (("A", a), ("B", b)) if report.run.measured.any()]
    if not shown:
        return None
    figure, (axis,) = new_figure(3.8)
    finite = [report.run.global_norm[report.run.measured] for _, report in shown]
    limits = [r.recommendation.max_norm for _, r in shown if r.recommendation and r.recommendation.max_norm]
    log_axis(axis, np.concatenate([*finite, limits]))
    labels = []
    for (letter, report), color, dash in zip(shown, (BLUE, ORANGE), (DASHES[0], DASHES[1]), strict=False):
        starts = bins(len(report.run.step), columns_for(len(report.run.step)))
        norm = pool_max(np.where(report.run.measured, report.run.global_norm, np.nan), starts)
        axis.plot(report.run.step[starts], norm, color=color, linestyle=dash, linewidth=1.5)
        labels.append((float(norm[~np.isnan(norm)][-1]), letter, color, dash))
        limit = report.recommendation.max_norm if report.recommendation else None
        if limit:
            axis.axhline(limit, color=color, linewidth=1, linestyle=DASHES[2])
            labels.append((limit, f"max_norm {letter} {number(limit)}", color, DASHES[2]))
    axis.set_ylabel("global norm (L2)")
    axis.set_xlabel("optimizer step")
    labels_beside(axis, labels)
    return figure
