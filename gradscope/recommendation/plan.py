"""Which thresholds to try next: a pure function of the run on disk, asked again until it wants nothing more.

First a window clipped conservatively, at a tenth of its first norm: its norms are not the explosion's own. Their median m
(in quarter decades from the first norm, so that rounding noise does not move it) is the center of a grid. Then, each from
the initial state: no clipping, 10 m, m, m/10, m/100, m/1000 and the threshold in use; on the whole plan where that is at
most 400 steps, else on 100 steps that stand for it. Then the finals. A threshold that an unclipped trial never reached is
not tried: it would be the same trial.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from gradscope.diagnosis.plan import AFFORDED, even
from gradscope.diagnosis.rehearsals import horizon, stretch
from gradscope.diagnosis.series import number, unscaled_norms, usable
from gradscope.recommendation.basis import choose_basis
from gradscope.recommendation.candidates import (
    FIRST,
    candidates,
    final_loss,
    finished,
    largest_norm,
    plan_fails,
    same_threshold,
    surely,
)
from gradscope.recommendation.finals import SHUFFLED, Asked, Grid, first_finals, reorder, repeat, walk
from gradscope.recommendation.model import Candidate
from gradscope.recommendation.percentiles import thresholds
from gradscope.runs.run import Run
from gradscope.runs.schema import Trial

CONSERVATIVE = 0.1
DECADES = (1, 0, -1, -2, -3)
WINDOW_STEPS, FINAL, LEAST = 50, 400, 20
"""Steps of the clipped window (whatever the recorded one broke off at), of a final trial (and of a plan that is tried in
full at once); the least of any.
"""
MOST_WHOLE = 4
"""Thresholds that are tried on the whole plan."""
TRIALS = 8
"""About how many trials the first stage takes; the finals get what is left."""
LEAST_NORMS = 5
DEAD = 1e-20
"""Of the first norm: below this nothing is learned."""
WINDOW, NONE = "clipped-window", "clip-none"


def next_candidates(run: Run, allowed: float = float("inf")) -> tuple[Trial, ...]:
    """The next trials (kinds window and candidate) within `allowed` training steps; empty when none is needed.

    Shortened first when time is short: the finals, then the first stage.
    """
    norms = unscaled_norms(run)[usable(run)]
    if not len(norms) or allowed < LEAST:
        return ()
    steps = int(min(allowed, 1e9))
    if WINDOW not in run.trials:
        limit = CONSERVATIVE * float(norms[0])
        indexes = tuple(range(min(WINDOW_STEPS, steps, horizon(run))))
        return (Trial("window", WINDOW, max_norm=limit, start="initial", indexes=indexes),)
    middle = center(run)
    if middle is None:
        return ()
    if NONE not in run.trials:
        whole = horizon(run) if horizon(run) <= FINAL else FIRST
        return (_trial(run, NONE, None, min(whole, max(LEAST, steps // TRIALS)), "no clipping"),)
    first = [one for one in _first_stage(run, middle).values() if not _same_as_unclipped(run, one, NONE)]
    missing = tuple(one for one in first if one.name not in run.trials)
    return missing or _finals(run, middle, steps) or _in_full(run, steps)


def _in_full(run: Run, steps: int) -> tuple[Trial, ...]:
    """The threshold in use and the best of the shorter trials, then the next best as long as none held on the whole plan."""
    tried, length = candidates(run), horizon(run)
    whole = [one for one in tried if one.steps == length]
    wanted = list(_for_the_whole_plan(run, [one for one in tried if one.steps < length]))
    needed = wanted if all(one.diverged for one in whole) else wanted[:2] if run.header.plan.max_norm else []
    left = [one for one in needed if not any(same_threshold(other, one[0]) for other in whole)]
    if not left or len(whole) >= MOST_WHOLE or not plan_fails(run) or length > min(steps, AFFORDED):
        return ()
    limit, origin = left[0]
    return (_trial(run, f"whole-{len(whole) + 1}", limit, length, f"{origin}, on the whole plan"),)


def _for_the_whole_plan(run: Run, shorter: list[Candidate]) -> Iterator[tuple[float, str]]:
    """The threshold in use, then those that held and clipped in shorter trials, of the longest the best first."""
    if run.header.plan.max_norm:
        yield run.header.plan.max_norm, "the threshold in use today"

    def place(one: Candidate) -> tuple[int, float]:
        return -one.steps, surely(one, [other for other in shorter if other.steps == one.steps])

    for one in sorted(shorter, key=place):
        if one.max_norm and one.clipped_fraction and not one.diverged:
            yield one.max_norm, one.origin


def percentile_candidates(run: Run, percentiles: tuple[float, ...], allowed: float = float("inf")) -> tuple[Trial, ...]:
    """Trials of the run's own percentiles as thresholds, as long as the longest trial so far; those not tried yet.

    Raises:
        NothingMeasuredError: no step has a usable norm.
    """
    longest = max((len(one.indexes) for one in _candidate_trials(run).values()), default=min(FIRST, horizon(run)))
    wanted = [
        _trial(run, f"percentile-{found.percentile:g}", found.max_norm, longest, f"percentile {found.percentile:g}")
        for found in thresholds(choose_basis(run, "norm").sizes, percentiles)
    ]
    new = [one for one in wanted if one.name not in run.trials]
    return tuple(new[: int(min(allowed, 1e9) / longest)])


def center(run: Run) -> float | None:
    """The median norm of the conservatively clipped window, in quarter decades from its first; None where it has too few,
    those of a network that died under it left out.
    """
    window = run.trials[WINDOW]
    kept = unscaled_norms(window)[usable(window)]
    kept = kept[kept > DEAD * kept[:1]]
    if len(kept) < LEAST_NORMS:
        return None
    decades = np.log10(np.median(kept)) - np.log10(kept[0])
    return float(kept[0] * 10.0 ** (np.round(4 * decades) / 4))


def _first_stage(run: Run, middle: float) -> dict[float, Trial]:
    """The trials beside that without clipping, by the threshold they stand for."""
    about = run.trials[NONE].header.trial
    length = len(about.indexes) if about else FIRST
    limits = {middle * 10.0**k: (f"clip-{10.0**k:g}", f"{10.0**k:g} × a clipped window's median norm") for k in DECADES}
    in_use = run.header.plan.max_norm
    if in_use is not None and in_use > 0:
        limits[in_use] = ("clip-in-use", "the threshold in use today")
    return {limit: _trial(run, name, limit, length, note) for limit, (name, note) in limits.items()}


def _finals(run: Run, middle: float, steps: int) -> tuple[Trial, ...]:
    about = run.trials[NONE].header.trial
    first, top = len(about.indexes) if about else FIRST, middle * 10.0 ** (DECADES[0] + 0.5)
    asked = first_finals(_grid(run, middle), top)
    length = _begun(run) or min(FINAL, steps // max(1, len(asked)), horizon(run))
    if not asked or length < min(horizon(run), 2 * first):
        return ()
    tried = [one for one in candidates(run) if one.steps == length]
    new = _new(run, asked, length) or _new(run, _clips_instead(run, middle, top, tried), length)
    if not new:
        new = _new(run, walk(tried, top), length) or _new(run, repeat(tried), length)
        if not new and run.header.shuffled:
            new = tuple(_reordered(_final(run, *one, length)) for one in reorder(tried).items())
    return new[: steps // length]


def _clips_instead(run: Run, middle: float, top: float, tried: list[Candidate]) -> Asked:
    """The finals without no clipping, where that diverged in another order of the batches."""
    if not any(one.shuffled and one.diverged and one.max_norm is None for one in tried):
        return {}
    asked = first_finals(_grid(run, middle) | {math.inf: math.inf}, top)
    return {name.replace("final-", "final-clip-"): limit for name, limit in asked.items()}


def _begun(run: Run) -> int:
    """The length of the finals that were tried already, which the others must have to be compared; 0 before the first."""
    finals = (len(one.indexes) for name, one in _candidate_trials(run).items() if name.startswith("final-"))
    return max(finals, default=0)


def _new(run: Run, asked: Asked, length: int) -> tuple[Trial, ...]:
    """Those not tried yet at this length; no clipping first and alone, since it may make others needless."""
    if not asked:
        return ()
    wanted = [_final(run, name, limit, length) for name, limit in asked.items()]
    tried = {(one.max_norm, one.indexes): name for name, one in _candidate_trials(run).items() if not one.shuffled}
    new = [one for one in wanted if one.name not in run.trials and (one.max_norm, one.indexes) not in tried]
    unclipped = tuple(one for one in new if one.max_norm is None)
    same = tried.get((None, wanted[0].indexes), "")
    return unclipped or tuple(one for one in new if not _same_as_unclipped(run, one, same))


def _candidate_trials(run: Run) -> dict[str, Trial]:
    made = {name: one.header.trial for name, one in run.trials.items()}
    return {name: one for name, one in made.items() if one and one.kind == "candidate"}


def _grid(run: Run, middle: float) -> Grid:
    """The first stage's outcomes. A threshold that was not tried, because it is the same as none, is left out."""
    done = finished(run)
    tried = {limit: done[one.name] for limit, one in _first_stage(run, middle).items() if one.name in done}
    return {math.inf: final_loss(run, run.trials[NONE])} | {limit: final_loss(run, one) for limit, one in tried.items()}


def _same_as_unclipped(run: Run, trial: Trial, name: str) -> bool:
    """Whether the unclipped trial `name` of the same steps never reached the trial's threshold."""
    unclipped = run.trials.get(name)
    about = unclipped.header.trial if unclipped else None
    if unclipped is None or about is None or about.indexes != trial.indexes or trial.max_norm is None:
        return False
    return math.isfinite(final_loss(run, unclipped)) and largest_norm(unclipped) <= trial.max_norm


def _final(run: Run, name: str, limit: float, length: int) -> Trial:
    if math.isinf(limit):
        return _trial(run, name, None, length, "no clipping, tried longer")
    return _trial(run, name, limit, length, f"{number(limit)}, tried longer")


def _reordered(trial: Trial) -> Trial:
    """The same with its batches in another order, other for each number in its name."""
    note = f"{trial.note.partition(',')[0]}, batches in another order"
    return replace(trial, shuffled=int(trial.name.removeprefix(SHUFFLED)), note=note)


def _trial(run: Run, name: str, max_norm: float | None, length: int, note: str) -> Trial:
    indexes = tuple(int(i) for i in even(0, horizon(run), length))
    plain = Trial("candidate", name, start="initial", indexes=indexes, note=note)
    clip = None if max_norm is None else max_norm * stretch(plain)
    return Trial("candidate", name, max_norm=clip, start="initial", indexes=indexes, note=note)
