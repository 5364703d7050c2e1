"""The clipping threshold from one run: percentiles of its norms, or the winner of the thresholds that were tried."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gradscope.diagnosis.range_test import training_of
from gradscope.diagnosis.rehearsals import Rehearsed, horizon
from gradscope.diagnosis.series import count, median, number, percent
from gradscope.diagnosis.series import percentile as percentile_of
from gradscope.errors import UsageError
from gradscope.recommendation.basis import Basis, choose_basis, layer_sizes
from gradscope.recommendation.candidates import (
    FIRST,
    TIE,
    above,
    candidates,
    one_each,
    plan_fails,
    rehearsed_in_full,
    same_threshold,
    surely,
)
from gradscope.recommendation.model import By, Candidate, LayerThreshold, Recommendation
from gradscope.recommendation.percentiles import (
    check_percentiles,
    clipped_fraction,
    mode,
    thresholds,
)
from gradscope.runs.run import Run

FEW = 20
TORCH_ADDS = 1e-6
TINY = 100 * TORCH_ADDS
"""The smaller norms are, the more torch's addition to them counts: from here on, above 1 %."""
SAME = 1e-6
"""Relative difference up to which two thresholds are one."""


def recommend(
    run: Run,
    percentiles: Iterable[float] | None = None,
    *,
    by: By = "norm",
    per_layer: bool = False,
    proven: bool | None = None,
) -> Recommendation:
    """The threshold for `run`: the best of those tried in its trials, or a percentile of its norms.

    Asked for `percentiles`, the first of them is the answer, beside what was tried; asked for none, the best of those tried,
    else the 95th percentile. `proven` says which of the two, whatever was asked.

    `by="value"` is for clipping single values (`clip_grad_value_`): percentiles of the largest |gradient| of each step.

    Raises:
        UsageError: a percentile outside 0–100, or `by` is neither "norm" nor "value".
        NothingMeasuredError: no step has a usable norm.
    """
    if by not in ("norm", "value"):
        raise UsageError(f"clipping goes by 'norm' or by 'value', not by {by!r}")
    asked = check_percentiles((95.0,) if percentiles is None else percentiles)
    proven = percentiles is None if proven is None else proven
    run = training_of(run)
    basis = choose_basis(run, by)
    found = thresholds(basis.sizes, asked)
    first = found[0]
    comma = "," if "," in basis.words else ""
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
        reason=f"The {_ordinal(first.percentile)} percentile of {basis.words}{comma} is {number(first.max_norm)}; "
        f"it clips {percent(first.clipped_fraction)} of them.",
        caveats=_caveats(run, basis),
        layers=_layers(basis, asked[0], by) if per_layer else (),
    )
    tried = candidates(run) if by == "norm" else ()
    if not tried:
        return plain
    if proven and _cut_short(run, tried):
        return _unproven(plain, tried, run.header.plan.max_norm)
    return _verified(run, plain, tried) if proven else _beside(plain, tried)


def _cut_short(run: Run, tried: tuple[Candidate, ...]) -> bool:
    """Whether the budget left the trials too few steps to stand for the plan, and nothing failed."""
    enough = min(FIRST, horizon(run))
    return 0 < tried[0].steps < enough and not _needed(tried) and not plan_fails(run)


def _unproven(plain: Recommendation, tried: tuple[Candidate, ...], today: float | None) -> Recommendation:
    """The threshold in use, where it held, else the percentile as a safety net: such short trials choose none."""
    tried = tuple(dataclasses.replace(one, chosen=False) for one in tried)
    own = next((one for one in tried if same_threshold(one, today) and not one.diverged), None) if today else None
    short = (
        f"Of {count(len(_apart(tried)), 'threshold')} tried over {count(tried[0].steps, 'step')} none is proven: too few; "
        f"a larger --budget has room for {FIRST}."
    )
    answer = f"The {number(today or 0.0)} in use today held there: keep it." if own else plain.reason
    took = _as_tried(own) | {"max_norm": today} if own else {}
    return dataclasses.replace(plain, **took, reason=f"{short} {answer}", candidates=tried)


def _beside(plain: Recommendation, tried: tuple[Candidate, ...]) -> Recommendation:
    """The percentile as the answer, with how it did among the thresholds that were tried."""
    own = next((one for one in tried if one.max_norm is not None and _same(one.max_norm, plain.max_norm)), None)
    best = next((one for one in tried if one.chosen), None)
    reason = plain.reason
    if own is not None:
        how = "diverged" if own.diverged or own.loss is None else f"ended at loss {number(own.loss)}"
        reason += f" Tried as a threshold it {how}."
    if best is not None and best is not own:
        value = "not clipping" if best.max_norm is None else number(best.max_norm)
        amount = count(len(_apart(tried)), "threshold")
        reason += f" Of {amount} tried, the best was {value}, with loss {number(best.loss or 0.0)}."
    verified = own is not None and not own.diverged
    return dataclasses.replace(plain, verified=verified, reason=reason, candidates=tried)


def _apart(tried: Sequence[Candidate]) -> list[Candidate]:
    """One trial of each threshold; no clipping is none."""
    return one_each([one for one in tried if one.max_norm is not None])


def _won(best: Candidate, tried: tuple[Candidate, ...]) -> str:
    """How its loss compares with those of the others that were tried as long."""
    longest = [one for one in tried if one.steps == best.steps]
    lowest = min(surely(one, longest) for one in longest)
    again = any(one is not other and same_threshold(one, other.max_norm) for one in longest for other in longest)
    counting = ", the worst trial of each counting" if again else ""
    if surely(best, longest) <= lowest:
        alone = all(same_threshold(one, best.max_norm) for one in longest)
        return "held, at loss" if alone else f"ended at the lowest loss{counting},"
    return f"ended as the largest of those near the lowest loss ({number(lowest)}){counting}, at"


def _same(one: float, other: float | None) -> bool:
    return other is not None and abs(one - other) <= SAME * other


def _kept(off: Recommendation, best: Candidate, today: float | None) -> Recommendation | None:
    """The threshold in use today, where it did no harm: a short trial is no reason to take a safety net away."""
    if today is None:
        return None
    longest = [one for one in off.candidates if one.steps == best.steps]
    own = next((one for one in longest if same_threshold(one, today)), None)
    if own is None or own.diverged or surely(own, longest) > above(best.loss or 0.0, TIE):
        return None
    did = f"The {number(today)} in use today did no worse, {number(own.loss or 0.0)}: keep it as a safety net."
    return dataclasses.replace(off, **_as_tried(own) | {"max_norm": today}, reason=f"{off.reason} {did}")


def _verified(run: Run, plain: Recommendation, tried: tuple[Candidate, ...]) -> Recommendation:
    """The recommendation with the winner of the candidates in place of the percentile."""
    today, whole = run.header.plan.max_norm, rehearsed_in_full(run)
    fails = any(one.failed for one in whole)
    if _needed(tried) and all(one.max_norm is None for one in tried):
        untried = f"{plain.reason} Without clipping it diverged on its trial; no threshold was tried."
        return dataclasses.replace(plain, reason=untried, candidates=tried)
    best = next((one for one in tried if one.chosen), None)
    amount = count(len(_apart(tried)), "threshold")
    longest = [one for one in tried if one.steps == tried[0].steps]
    if best is None and fails and not all(one.diverged for one in longest):
        said = (
            f"{plain.reason} Without clipping the plan fails in full; no threshold that was tried clipped on its trial."
        )
        return dataclasses.replace(plain, reason=said, candidates=tried)
    if best is None or (best.diverged and best.max_norm is None):
        over = f" over {count(tried[0].steps, 'step')}" if tried[0].steps else ""
        limits = count(len(_apart(longest)), "threshold")
        where = ", in one order of the batches or another" if any(one.shuffled for one in longest) else ""
        reason = f"None of {limits} tried{over} held: each diverged{where}. Clipping alone does not help here."
        return dataclasses.replace(plain, **_OFF, verified=False, reason=reason, candidates=tried)
    stands = f" that stand for {horizon(run):,}" if best.steps < horizon(run) else ""
    over = f"over {count(best.steps, 'trial step')}{stands}" if best.steps else "on its trial"
    if best.max_norm is None or not (best.clipped_fraction or _needed(tried)):
        lower = f"none ended at a clearly lower loss than not clipping: {number(best.loss or 0.0)} {over}"
        alone = f"Not clipping alone was tried: loss {number(best.loss or 0.0)} {over}."
        reason = f"Of {amount} tried, {lower}." if _apart(tried) else alone
        off = dataclasses.replace(plain, **_OFF, verified=True, reason=reason, candidates=tried)
        return _kept(off, best, today) or off
    percentile = f"the {_ordinal(plain.thresholds[0].percentile)} percentile, {number(plain.thresholds[0].max_norm)}"
    reason = (
        f"Of {amount} tried, {number(best.max_norm)} {_won(best, tried)} {number(surely(best, longest))} {over}"
        f"{_without(tried, whole)}; it clipped {percent(best.clipped_fraction)} of them{_in_other_orders(best, longest)}. "
        f"It is {number(best.max_norm / plain.thresholds[0].max_norm)} × {percentile}."
    )
    if best.diverged:
        reason += " Even so its |loss| ended far above where it began: clipping alone does not rescue this training."
    return dataclasses.replace(
        plain,
        **_as_tried(best),
        verified=not best.diverged,
        reason=reason,
        candidates=tried,
    )


def _in_other_orders(best: Candidate, longest: list[Candidate]) -> str:
    """That it was tried in other orders of the batches: what did not hold there is not chosen."""
    others = sum(one.shuffled and same_threshold(one, best.max_norm) for one in longest)
    return f" and held in {count(others, 'other order')} of the batches too" if others else ""


def _as_tried(one: Candidate) -> dict[str, Any]:
    """What a recommendation says of a threshold as its trial showed it."""
    return {
        "max_norm": one.max_norm,
        "mode": mode(one.clipped_fraction),
        "clipped_fraction": one.clipped_fraction,
        "mean_retained_step": one.mean_retained_step,
    }


_OFF: dict[str, Any] = {"max_norm": None, "mode": "off", "clipped_fraction": 0.0, "mean_retained_step": 1.0}


def _needed(tried: tuple[Candidate, ...]) -> bool:
    """Whether training without clipping diverged, or was never tried."""
    unclipped = [one for one in tried if one.max_norm is None]
    return not unclipped or any(one.diverged for one in unclipped)


def _without(tried: tuple[Candidate, ...], whole: list[Rehearsed]) -> str:
    """How the plan in full, or else the longest trial without clipping, ended."""
    if any(one.failed for one in whole):
        return " (without clipping the plan fails in full)"
    plain = next((one for one in tried if one.max_norm is None), None)
    if plain is None:
        return ""
    if not plain.diverged and any(one.shuffled and one.diverged and one.max_norm is None for one in tried):
        return " (without clipping it diverged in another order of the batches)"
    over = f" over {plain.steps}" if plain.steps else ""
    diverged = plain.diverged or plain.loss is None
    ended = "it diverged" if diverged else number(plain.loss or 0.0)
    if whole and (diverged or whole[0].length > plain.steps):
        return f" (without clipping {ended}{over}; the plan in full held, at loss {number(whole[0].loss)})"
    return f" (without clipping {ended}{'' if diverged else over})"


def _layers(basis: Basis, percentile: float, by: By) -> tuple[LayerThreshold, ...]:
    found = []
    for layer, column in layer_sizes(basis.run, by, basis.rows):
        kept = column[np.isfinite(column) & (column > 0)]
        if len(kept):
            limit = percentile_of(kept, percentile)
            found.append(LayerThreshold(layer.name, limit, clipped_fraction(kept, limit)))
    return tuple(found)


def _caveats(run: Run, basis: Basis) -> tuple[str, ...]:
    """What this threshold cannot know, in plain words."""
    said = list(run.notes)
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
        said.append(f"Only 1 of {run.header.every} steps was recorded; rare large norms may be missing.")
    if basis.sizes.size and median(basis.sizes) < TINY:
        said.append(
            f"These norms are small: torch.nn.utils.clip_grad_norm_ adds {TORCH_ADDS:g} to each and so clips more than it "
            "is asked to. Scale the loss up, or multiply the gradients by max_norm / norm yourself."
        )
    if run.header.synthetic_data:
        said.append("The inputs were random, not your data; norms on your data will differ.")
    return tuple(said)


def _ordinal(percentile: float) -> str:
    text = f"{percentile:g}"
    teen = text in ("11", "12", "13")
    return text + ({"1": "st", "2": "nd", "3": "rd"}.get(text[-1], "th") if not teen else "th")
