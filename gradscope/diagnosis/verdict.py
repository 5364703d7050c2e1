"""Will it explode? From the window what it shows, from rehearsals what it foresees.

A rehearsal of the whole rest of the plan, uncompressed, decides; where it fails, so must those of it from slightly other
weights, or it fails by chance: thin headroom at 1 ×; so does one that holds, but not with its batches in another order.
Without one, "will-explode" needs a long rehearsal at the planned learning rate that fails and a second failure at ×1 or ×2;
other failures are thin headroom. "exploding" is also an explosion within the next 20 steps, uncompressed, unless the rest of
the plan in full shows that it passes. The score sums the rise of loss and norm in decades: of the rehearsal nearest to the
plan, of the worst at ×2, and half of that at ×4; 48 more for "will-explode". Rehearsals do not clip. Where one fails and the
plan clips, it is gone through again as clipped today, and that decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.as_today import as_clipped_today
from gradscope.diagnosis.model import ALARMS, Verdict
from gradscope.diagnosis.offenders import named
from gradscope.diagnosis.rehearsals import (
    MOST,
    REFERENCE,
    Reference,
    Rehearsed,
    broken_off,
    horizon,
    in_full,
    in_other_orders,
    planned,
    reference,
    rehearsed,
    size,
)
from gradscope.diagnosis.series import count, level, number, read_at, unscaled_norms, usable
from gradscope.diagnosis.window import (
    EARLY_LOSSES,
    EARLY_NORMS,
    GREW,
    LATE,
    LOSS_FACTOR,
    beginning,
    enough,
    explosion,
    growth_before,
    harmful,
    is_nonfinite,
    late_loss,
    what_to_do,
    with_its_targets,
)
from gradscope.runs.run import Run, once

NEXT = 20
"""Steps of an uncompressed rehearsal that still belong to the window."""
RISEN = 1.5
"""A learning rate so many times that of the window is worth a word."""
FOUR_TIMES = 0.5
SURE = 4 * MOST
EXPLODING = SURE + 2 * MOST * (2 + FOUR_TIMES)
"""The top of the scale."""
TESTED = 50.0
WHAT = {"replay": "replay of the worst batch", "candidate": "the whole plan from its start"}
CANNOT_FORESEE = "recorded steps alone cannot foresee an explosion that comes later; rehearsals can"


@once
def judge(run: Run) -> Verdict:
    """The verdict on a run from its recorded steps and its trials; it says what the other seeds of its analysis came to."""
    found, seeds = _of_this_seed(run), run.header.seeds
    if not seeds:
        return found
    total = sum(seeds.values())
    agree = ", ".join(f"{word} in {times} of {total}" for word, times in seeds.items())
    return dataclasses.replace(found, reasons=(f"{total} seeds: {agree}", *found.reasons))


def _of_this_seed(run: Run) -> Verdict:
    unclipped = rehearsed(run)
    bare = _judgement(run, unclipped)
    foreseen = bare.first_step is None and bare.verdict in ALARMS
    trials = as_clipped_today(run, unclipped) if foreseen else None
    if trials is None:
        return bare if bare.may_explode else _in_other_orders(run, bare)
    found = _judgement(run, trials)
    reasons = (*found.reasons, _without_the_clip(run, [one for one in unclipped if one.failed]))
    return dataclasses.replace(found, clipped_at=run.header.plan.max_norm, reasons=reasons)


def _in_other_orders(run: Run, found: Verdict) -> Verdict:
    """The verdict, by chance where the plan holds but became nonfinite with its batches in another order."""
    orders = in_other_orders(run)
    broke = sum(map(is_nonfinite, orders))
    if not broke or found.verdict not in ("stable", "thin-headroom"):
        return found
    said = f"of {count(len(orders), 'training')} of the plan with its batches in other orders, {broke} became nonfinite"
    return dataclasses.replace(
        found,
        verdict="thin-headroom",
        lr_headroom=1.0,
        reasons=(said, *found.reasons),
        chance="the order of the batches",
    )


def _without_the_clip(run: Run, failed: list[Rehearsed]) -> str:
    """What failed unclipped: the first of it in full, and at which other factors."""
    first = min(failed, key=lambda one: (one.lr_factor, -one.length))
    others = sorted({one.lr_factor for one in failed} - {first.lr_factor})
    more = " and ".join(f"{number(factor)} ×" for factor in others)
    return f"unclipped: {_say(run, first)}" + (f"; at {more} too" if more else "")


def _judgement(run: Run, trials: list[Rehearsed]) -> Verdict:
    """The verdict by the window and by these rehearsals."""
    seen = explosion(run)
    if seen:
        return Verdict("exploding", EXPLODING, None, seen.first_step, (seen.reason,))
    if soon := next((said for one in trials if (said := _seen_next(run, one))), None):
        return Verdict("exploding", EXPLODING, 1.0, None, (soon,))
    if not enough(run):
        return Verdict("unknown", None, None, None, ("too few steps with a finite loss or gradient norm to judge",))
    if not planned(trials):
        nothing = f"no explosion in the {count(len(run.step), 'recorded step')} (norms read {read_at(run)})"
        return Verdict("unknown", None, None, None, (nothing, *_broken(run), CANNOT_FORESEE))
    base = reference(run)
    if not any(one.failed for one in trials) and not (base.loss > 0 and base.norm > 0):
        return Verdict(
            "unknown", None, None, None, ("the window has no loss or no norm to measure a rehearsal against",)
        )
    return _from_trials(run, trials)


def _broken(run: Run) -> Iterator[str]:
    """Why the first rehearsal of the plan says nothing."""
    trial = run.trials.get("x1")
    if trial is not None and broken_off(trial):
        length = len(trial.header.trial.indexes) if trial.header.trial else 0
        told = trial.header.ending.how == "failed"  # by GS210
        why = "" if told else f": {trial.header.ending.message or 'it was cut short'}"
        yield f"its rehearsal took {len(trial.step)} of {count(length, 'step')}{why}"


def explosion_score(trials: list[Rehearsed]) -> float:
    """The weighted sum of rises, none below 0. Nearest: the one in full, else the mean of the longer, else the first."""
    near = planned(trials)
    nearest = in_full(trials) or near[1:] or near
    twice = max((_rise(one) for one in trials if _is_at(one, 2.0)), default=0.0)
    four = max((_rise(one) for one in trials if _is_at(one, 4.0)), default=0.0)
    return sum(map(_rise, nearest)) / len(nearest) + twice + FOUR_TIMES * four


def _rise(one: Rehearsed) -> float:
    return max(one.loss_rise, 0.0) + max(one.norm_rise, 0.0)


def _is_at(one: Rehearsed, factor: float) -> bool:
    return one.kind == "rehearsal" and one.lr_factor == factor


def _sure(trials: list[Rehearsed]) -> bool:
    """Whether the failures at the planned learning rate are confirmed."""
    if full := in_full(trials):
        return all(one.failed for one in full)
    near = planned(trials)
    twice = sorted((one for one in trials if _is_at(one, 2.0)), key=lambda one: one.length)[:1]
    return any(one.failed for one in near[1:]) and sum(one.failed for one in near + twice) > 1


def _seen_next(run: Run, one: Rehearsed) -> str | None:
    """Whether the next steps after the window, taken as planned, explode."""
    if one.perturbed or not ((one.full or one.next) and _is_at(one, 1.0)):
        return None
    trial = run.trials[one.name]
    bad = harmful(trial)[:NEXT]
    if bad.any():
        return f"{count(int(np.argmax(bad)) + 1, 'step')} after the window the training is nonfinite{_first(trial)}"
    base, before = reference(run), beginning(np.abs(run.loss), EARLY_LOSSES)
    limit = LOSS_FACTOR * before
    if one.full and not _above(late_loss(trial), base, limit):
        return None
    risen = level(trial.loss[NEXT - LATE : NEXT])
    if _above(risen, base, limit) and not (risen > 0 and _with_its_targets(run, trial, risen / before)):
        return f"within {NEXT} steps after the window the loss rises above {LOSS_FACTOR:.0f} × its beginning"
    return None


def _with_its_targets(run: Run, trial: Run, growth: float) -> bool:
    norms, coming = unscaled_norms(run)[usable(run)], unscaled_norms(trial)[usable(trial)][:NEXT]
    before = beginning(norms, EARLY_NORMS)
    return before > 0 and with_its_targets(growth, float(np.concatenate([norms, coming]).max()) / before)


def _above(late: float, base: Reference, limit: float) -> bool:
    """Whether a late loss is above `limit`; below zero, too deep to be a likelihood that falls."""
    return size(late, base) > (LOSS_FACTOR * base.loss if late < 0 else limit) > 0


def _from_trials(run: Run, trials: list[Rehearsed]) -> Verdict:
    sure = _sure(trials)
    score = explosion_score(trials) + (SURE if sure else 0.0)
    told = [_say(run, one) for one in sorted(trials, key=lambda one: (one.kind, one.lr_factor, one.draw, one.length))]
    told += _limits(run, planned(trials))
    if sure:
        return Verdict("will-explode", score, 1.0, None, tuple(told))
    factors, full = [one.lr_factor for one in trials if one.failed], in_full(trials)
    if failed := sum(one.failed for one in full):
        chance = f"of {len(full)} rehearsals of the plan that differ by rounding, {failed} failed"
        return Verdict("thin-headroom", score, 1.0, None, (chance, *told))
    if 1.0 in factors:
        told.append("a rehearsal at the planned learning rate failed, but nothing confirms it")
    if factors:
        return Verdict("thin-headroom", score, max(2.0, min(factors)), None, tuple(told))
    return Verdict("stable", score, None, None, tuple(told))


def out_of_nothing(run: Run) -> tuple[int, str] | None:
    """The step of the plan at which its rehearsal is nonfinite though its gradient norm had grown in none of it, and what to
    do; None where that is not so.
    """
    bare = rehearsed(run)
    near = planned(as_clipped_today(run, bare) or bare)
    failed = [run.trials[one.name] for one in near if one.nonfinite and one.compression == 1]
    broke = [(trial, int(np.argmax(harmful(trial)))) for trial in failed]
    grown = [growth_before(trial, row) for trial, row in broke]
    if any(growth is not None and growth > GREW for growth in grown):
        return None
    for (trial, row), growth in zip(broke, grown, strict=True):
        made = trial.header.trial
        if made is not None and row < len(made.indexes) and growth is not None:
            return made.indexes[row], what_to_do(trial, row, "that step's batch and how the loss is computed from it")
    return None


def _limits(run: Run, near: list[Rehearsed]) -> list[str]:
    """What the rehearsals cannot know."""
    said = []
    if run.header.plan.total_steps is None:
        said.append(
            f"the length of the plan is not known: judged for {count(horizon(run) - len(run.step), 'step')} more"
        )
    nearest = min(near, key=lambda one: one.compression)
    if nearest.compression > TESTED:
        said.append(
            f"the rehearsals compress the plan {nearest.compression:.0f} ×; this was tested up to {TESTED:.0f} ×"
        )
    elif nearest.compression > 1:
        rest = count(horizon(run) - len(run.step), "step")
        said.append(f"{count(nearest.length, 'step')} stood for {rest}: what happens between them alone was not seen")
    return said


def _say(run: Run, one: Rehearsed) -> str:
    made = run.trials[one.name].header.trial
    what = WHAT.get(made.kind if made else "", "rehearsal")
    state = "failed" if one.failed else "held"
    end = _how_it_broke(run, one) if one.nonfinite else _how_it_ended(run, one)
    clipped = "" if one.max_norm is None else f", clipped at {number(run.header.plan.max_norm or 0.0)} as today"
    if made and made.perturbed:
        what, rate = "the same", f"from weights changed by one part in {1 / made.perturbed:,.0f}{clipped}"
    else:
        rate = f"at {number(one.lr_factor)} × the planned learning rate{clipped}"
    return f"{what} {rate}, {count(one.steps, 'step')}: {state} ({end})"


def _how_it_broke(run: Run, one: Rehearsed) -> str:
    return f"nonfinite{_where(run, one)}{_first(run.trials[one.name])}"


def _first(trial: Run) -> str:
    """What went nonfinite first in a trial, where that is known and not the loss."""
    seen = trial.header.first_nonfinite
    return "" if seen is None or seen.went_first == "loss" else f"; first {named(seen)}"


def _how_it_ended(run: Run, one: Rehearsed) -> str:
    trial, window = run.trials[one.name], level(run.loss[-REFERENCE:])
    said = f"loss {number(one.loss)}, in the window {number(window)}"
    if not one.failed:
        return said
    largest, usual = unscaled_norms(trial)[usable(trial)].max(initial=0.0), reference(run).norm
    return f"{said}; largest norm {number(float(largest))}{_where(run, one)}; in the window {number(usual)}"


def _where(run: Run, one: Rehearsed) -> str:
    """The step of the plan where a rehearsal went nonfinite, or had its largest norm. At the planned learning rate also that
    there, where it is far above the window's.
    """
    trial, plan = run.trials[one.name], run.header.plan
    bad = harmful(trial)
    row = int(np.argmax(bad if bad.any() else np.where(usable(trial), unscaled_norms(trial), 0.0)))
    if trial.header.trial is None or not 0 <= row < len(trial.header.trial.indexes):
        return ""
    step = trial.header.trial.indexes[row]
    at, last = (max(plan.rates_at(place), default=0.0) for place in (step, len(run.step) - 1))
    risen = one.lr_factor == 1.0 and at > RISEN * last > 0
    rate = f", where the learning rate is {number(at / last)} × that of the window" if risen else ""
    return f" at step {step:,} of the plan{rate}"
