"""Rehearsals that failed, gone through again as the plan clips today: the training that the user would really have."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from gradscope.diagnosis.rehearsals import Rehearsed, broken_off, ended, horizon, judged, played, recommended, reference
from gradscope.runs.run import Run
from gradscope.runs.schema import Trial

AS_TODAY = "-clipped"
SAME_LIMIT = 0.02


def clipped_again(run: Run, trial: Trial) -> Trial | None:
    """`trial` clipped as the plan is, at max_norm × √compression, as it is for thresholds (`stretch`)."""
    limit, indexes = run.header.plan.max_norm, trial.indexes
    if not limit or not indexes:
        return None
    covered = indexes[-1] - indexes[0] + 1
    note = "" if covered == len(indexes) else f"clipped at {limit:g} × √({covered} / {len(indexes)})"
    name, limit = trial.name + AS_TODAY, limit * math.sqrt(covered / len(indexes))
    return replace(trial, name=name, max_norm=limit, note="; ".join(filter(None, (trial.note, note))))


def as_clipped_today(run: Run, unclipped: list[Rehearsed]) -> list[Rehearsed] | None:
    """The rehearsals, each that failed as it goes where it is clipped as the plan is. None where the plan does not clip, or
    one that failed was not gone through so.
    """
    clips = [one for one in played(run) if one.max_norm is not None]
    again = {one.name.removesuffix(AS_TODAY): one for one in clips}
    whole = next(_whole_as_today(run), None)
    clipped = [_clipped(one, again, whole) if one.failed else one for one in unclipped]
    found = {one.name: one for one in (*clipped, *(one for one in clips if one.perturbed)) if one is not None}
    return [*found.values()] if None not in clipped and any(one.max_norm for one in found.values()) else None


def _clipped(one: Rehearsed, again: dict[str, Rehearsed], whole: Rehearsed | None) -> Rehearsed | None:
    return whole if whole and one.kind == "rehearsal" and one.lr_factor == 1.0 else again.get(one.name)


def _whole_as_today(run: Run) -> Iterator[Rehearsed]:
    """The trial of the whole plan, from its start, at the threshold in use, where it held."""
    for one in held_as_today(run):
        if one.length == horizon(run):
            yield replace(one, kind="rehearsal")


def held_as_today(run: Run) -> Iterator[Rehearsed]:
    """The trials from the initial state at the threshold in use, or what stands for it on fewer steps, that held."""
    base, limit = reference(run), run.header.plan.max_norm
    for trial in run.trials.values():
        made = trial.header.trial
        if limit and made and made.kind == "candidate" and made.indexes and (stands_for := recommended(made)):
            as_today = abs(stands_for / limit - 1) < SAME_LIMIT and ended(trial) and not broken_off(trial)
            if as_today and not (found := judged(run, trial, base, made)).failed:
                yield found
