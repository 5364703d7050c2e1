"""The clipping threshold from one run: percentiles of its norms, or the winner of the thresholds that were tried."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from gradscope.diagnosis.series import count, median, number, percent
from gradscope.errors import UsageError
from gradscope.recommendation.basis import Basis, choose_basis, layer_sizes
from gradscope.recommendation.candidates import candidates
from gradscope.recommendation.model import By, Candidate, LayerThreshold, Recommendation
from gradscope.recommendation.percentiles import (
    check_percentiles,
    clipped_fraction,
    mean_retained_step,
    mode,
    thresholds,
)
from gradscope.runs.run import Run

FEW = 20


def recommend(
    run: Run, percentiles: Iterable[float] = (95.0,), *, by: By = "norm", per_layer: bool = False
) -> Recommendation:
    """The threshold for `run`: the first percentile of its norms, or the best of the thresholds tried in its trials.

    `by="value"` is for clipping single values (`clip_grad_value_`): percentiles of the largest |gradient| of each step.

    Raises:
        UsageError: a percentile outside 0–100, or `by` is neither "norm" nor "value".
        NothingMeasuredError: no step has a usable norm.
    """
    if by not in ("norm", "value"):
        raise UsageError(f"clipping goes by 'norm' or by 'value', not by {by!r}")
    asked = check_percentiles(percentiles)
    basis = choose_basis(run, by)
    found = thresholds(basis.sizes, asked)
    first = found[0]
    plain = Recommendation(
        max_norm=first.max_norm,
        by=by,
        mode=first.mode,
        thresholds=found,
        clipped_fraction=first.clipped_fraction,
        mean_retained_step=first.mean_retained_step,
        basis=basis.words,
        steps_used=len(basis.rows),
        excluded=basis.excluded,
        measured_at=run.header.measured_at,
        verified=False,
        reason=f"The {_ordinal(first.percentile)} percentile of {basis.words} is {number(first.max_norm)}; "
        f"it clips {percent(first.clipped_fraction)} of them.",
        caveats=_caveats(run, basis),
        layers=_layers(basis, asked[0], by) if per_layer else (),
    )
    tried = candidates(run) if by == "norm" else ()
    return _verified(plain, tried, basis) if tried else plain


def _verified(plain: Recommendation, tried: tuple[Candidate, ...], basis: Basis) -> Recommendation:
    """The recommendation with the winner of the candidates in place of the percentile."""
    best = tried[0]
    amount = count(len(tried), "threshold")
    if not best.chosen:
        reason = f"None of {amount} tried held: each diverged on its trial run. Clipping alone does not help here."
        return _off(plain, tried, False, reason)
    loss = number(best.loss or 0.0)
    if best.max_norm is None:
        return _off(plain, tried, True, f"Of {amount} tried, not clipping ended at the lowest loss, {loss}.")
    fraction = clipped_fraction(basis.sizes, best.max_norm)
    reason = (
        f"Of {amount} tried, {number(best.max_norm)} ({best.origin}) ended at the lowest loss, {loss}; "
        f"it clipped {percent(best.clipped_fraction)} of its trial's steps."
    )
    return dataclasses.replace(
        plain,
        max_norm=best.max_norm,
        mode=mode(fraction),
        clipped_fraction=fraction,
        mean_retained_step=mean_retained_step(basis.sizes, best.max_norm),
        verified=True,
        reason=reason,
        candidates=tried,
    )


def _off(plain: Recommendation, tried: tuple[Candidate, ...], verified: bool, reason: str) -> Recommendation:
    return dataclasses.replace(
        plain,
        max_norm=None,
        mode="off",
        clipped_fraction=0.0,
        mean_retained_step=1.0,
        verified=verified,
        reason=reason,
        candidates=tried,
    )


def _layers(basis: Basis, percentile: float, by: By) -> tuple[LayerThreshold, ...]:
    sizes = layer_sizes(basis.run, by)[basis.rows]
    found = []
    for layer, column in zip(basis.run.layers, sizes.T, strict=True):
        kept = column[np.isfinite(column) & (column > 0)]
        if len(kept):
            limit = float(np.percentile(kept, percentile))
            found.append(LayerThreshold(layer.name, limit, clipped_fraction(kept, limit)))
    return tuple(found)


def _caveats(run: Run, basis: Basis) -> tuple[str, ...]:
    """What this threshold cannot know, in plain words."""
    said = []
    if run.header.measured_at == "post_clip":
        limit = median(run.max_norm)
        cap = f" {number(limit)}" if np.isfinite(limit) else ""
        said.append(
            f"These norms are post-clip: they were read after clipping and cannot exceed max_norm{cap}, so their "
            "percentiles say nothing about the gradients before it."
        )
    if basis.contaminated and basis.run is run:
        said.append(
            "The recorded window explodes and no conservatively clipped trial was run: this percentile rests on "
            f"{count(len(basis.rows), 'step')} of it and may be far too large."
        )
    if len(basis.rows) < FEW:
        said.append(f"It rests on {count(len(basis.rows), 'step')}; record at least {FEW}.")
    if run.header.every > 1:
        said.append(f"Only every {run.header.every}th step was recorded; rare large norms may be missing.")
    if run.header.synthetic_data:
        said.append("The inputs were random, not your data; norms on your data will differ.")
    return tuple(said)


def _ordinal(percentile: float) -> str:
    text = f"{percentile:g}"
    teen = text in ("11", "12", "13")
    return text + ({"1": "st", "2": "nd", "3": "rd"}.get(text[-1], "th") if not teen else "th")
