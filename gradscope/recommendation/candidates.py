"""Thresholds that were tried: what each candidate trial ended with, and which one won.

A candidate is tried on a time-compressed training from the initial state: N steps stand for a horizon of H. N steps at the
same learning rates go √(H/N) times less far in a random walk of clipped steps, so the trial clips at max_norm × √(H/N).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from gradscope.diagnosis.rehearsals import Rehearsed, bottomless, broken_off, in_full, recommended, rehearsed, stretch
from gradscope.diagnosis.series import MEDIAN_ERROR, deviation, level, median, unscaled_norms, usable
from gradscope.diagnosis.window import is_nonfinite
from gradscope.recommendation.model import Candidate
from gradscope.recommendation.percentiles import clipped_fraction, mean_retained_step
from gradscope.runs.run import Floats, Run, once
from gradscope.runs.schema import Trial

LAST, LAST_SHARE = 20, 10
EARLY = 5
FIRST = 100
"""Steps of a compressed first trial; what is shorter proves nothing of a longer plan."""
DIVERGED = 10.0
"""A last loss above this multiple of the first."""
BLOWN, SOME, FAR_SHARE = 1e3, 5, 0.01
"""So many losses, and such a share of them, above this multiple: what passes through that may not come back another time."""
TIE, NEEDED, WIDEST = 1.02, 1.05, 1.25
"""Losses this close are equal, and the largest threshold is preferred, so that rounding noise does not choose; before all of
them what did not clip, unless clipping ends 5 % lower; or lower by more than trials of one threshold lie apart, up to 25 %,
where the training is chaos.
"""
ORDERS, MOST_IN_ORDERS = 3, 9
"""Other orders of the batches that a winner is tried in, and how often that is done in all."""
SAME = 1.02
"""Thresholds this close are one: the worst of their trials counts."""


@once
def candidates(run: Run) -> tuple[Candidate, ...]:
    """Every trial of kind "candidate" that came to its end, the longest and of those the best first.

    The longest trials decide: the one with the lowest median of its last |loss| is chosen, the worst where a threshold was
    tried again; no clipping where that is as good, or not surely worse on the same batches; among equals, the largest
    threshold. No clipping alone, tried longer before the time was up, decides nothing. Where the plan in full fails without
    clipping, what did not clip is not chosen; where it holds, nor is a threshold between two that diverged; nor is what
    diverged, or ended far higher, with its batches in another order.
    """
    held = max((abs(one.loss) for one in rehearsed_in_full(run) if not one.failed), default=0.0)
    tried = [_candidate(run, name, trial, held) for name, trial in finished(run).items()]
    tried.sort(key=_by_length_and_loss)
    winner = _decided(run, tried)
    return tuple(dataclasses.replace(one, chosen=one is winner) for one in tried)


def _decided(run: Run, tried: list[Candidate]) -> Candidate | None:
    longest = [one for one in tried if one.steps == tried[0].steps]
    if shorter := tried[len(longest) :]:
        before = _decided(run, shorter) if all(one.max_norm is None for one in longest) else None
        if before is not None and before.max_norm is not None and _reached(run, longest[0], before.max_norm):
            return before
    fails = plan_fails(run)
    open_to_choice = [one for one in longest if (one.clipped_fraction or not fails) and not one.shuffled]
    if worn_out(longest):
        open_to_choice = [one for one in open_to_choice if one.max_norm is None or _in_orders(one, longest)]
    if any(one.max_norm is None and not one.diverged for one in open_to_choice):
        open_to_choice = [one for one in open_to_choice if not _alone(one, longest)]
    winner = _settle([(surely(one, longest), one) for one in open_to_choice], _noise(longest))
    unclipped = [one for one in open_to_choice if not one.clipped_fraction and surely(one, longest) < math.inf]
    as_good = [one for one in unclipped if winner and not _worse(run, one.trial, winner.trial)]
    return max(as_good, key=lambda one: one.max_norm is None, default=winner)


def worn_out(tried: Sequence[Candidate]) -> bool:
    """Whether thresholds were tried in other orders of the batches as often as they are to be: then none that was not is
    chosen.
    """
    return sum(one.shuffled and one.max_norm is not None for one in tried) >= MOST_IN_ORDERS


def _in_orders(one: Candidate, longest: list[Candidate]) -> bool:
    return sum(other.shuffled and same_threshold(other, one.max_norm) for other in longest) >= ORDERS


def _alone(one: Candidate, longest: list[Candidate]) -> bool:
    """Whether the next smaller and the next larger threshold both diverged: what holds between them holds by chance."""

    def size(other: Candidate) -> float:
        return math.inf if other.max_norm is None else other.max_norm

    others = [other for other in longest if not same_threshold(other, one.max_norm)]
    larger = min((other for other in others if size(other) > size(one)), key=size, default=None)
    smaller = max((other for other in others if size(other) < size(one)), key=size, default=None)
    return larger is not None and smaller is not None and larger.diverged and smaller.diverged


def _worse(run: Run, trial: str, other: str) -> bool:
    """Whether a trial ends surely higher than another of the same batches: by two standard errors of the median difference
    of their last losses.
    """
    apart = _last(run, run.trials[trial]) - _last(run, run.trials[other])
    middle = median(apart)
    return middle > 2 * MEDIAN_ERROR * deviation(apart - middle) / math.sqrt(len(apart))


def plan_fails(run: Run) -> bool:
    """Whether the rest of the plan was rehearsed in full without clipping, and failed."""
    return any(one.failed for one in rehearsed_in_full(run))


def rehearsed_in_full(run: Run) -> list[Rehearsed]:
    """The rehearsals of the whole rest of the plan, as planned but for clipping."""
    return in_full(rehearsed(run))


def _reached(run: Run, unclipped: Candidate, limit: float) -> bool:
    """Whether clipping at `limit` would have changed this trial without clipping."""
    trial = run.trials[unclipped.trial]
    return trial.header.trial is not None and largest_norm(trial) > limit * stretch(trial.header.trial)


def largest_norm(trial: Run) -> float:
    """The largest finite gradient norm of a trial, unscaled; 0 without one."""
    return float(unscaled_norms(trial)[usable(trial)].max(initial=0.0))


def same_threshold(one: Candidate, limit: float | None) -> bool:
    """Whether a candidate stands for this threshold (None: no clipping)."""
    if one.max_norm is None or limit is None:
        return one.max_norm is limit
    return limit / SAME <= one.max_norm <= limit * SAME


def one_each(tried: Sequence[Candidate]) -> list[Candidate]:
    """The first trial of each threshold."""
    return [one for i, one in enumerate(tried) if not any(same_threshold(other, one.max_norm) for other in tried[:i])]


def surely(one: Candidate, longest: list[Candidate]) -> float:
    """The worst loss of its threshold; in another order of the batches, only one far above that counts."""
    same = [other for other in longest if same_threshold(other, one.max_norm)]
    worst = max(math.inf if other.loss is None else other.loss for other in same if not other.shuffled)
    elsewhere = (math.inf if other.loss is None or other.diverged else other.loss for other in same if other.shuffled)
    return max([worst, *(loss for loss in elsewhere if loss > above(worst, WIDEST))])


def _noise(longest: list[Candidate]) -> float:
    """How far apart, as a factor, trials of one threshold ended; 1 where none was tried again."""
    in_order = [one for one in longest if not one.shuffled]
    pairs = [(one.loss, surely(one, in_order)) for one in in_order if one.loss]
    return min(WIDEST, max((1 + (worst - loss) / abs(loss) for loss, worst in pairs), default=1.0))


def _settle(longest: list[tuple[float, Candidate]], noise: float) -> Candidate | None:
    least = min((loss for loss, _ in longest), default=math.inf)

    def near(factor: float) -> list[Candidate]:
        return [one for loss, one in longest if loss <= above(least, factor) < math.inf]

    unclipped = [one for one in near(max(NEEDED, noise)) if not one.clipped_fraction]
    unclipped.sort(key=lambda one: one.max_norm is not None)
    return next(iter(unclipped), max(near(TIE), key=lambda one: one.max_norm or math.inf, default=None))


def above(loss: float, factor: float) -> float:
    """A loss worse by `factor`, on either side of zero."""
    return loss + (factor - 1) * abs(loss)


def finished(run: Run) -> dict[str, Run]:
    """The trials of kind "candidate" that came to their end, by name."""
    made = {name: (one, one.header.trial) for name, one in sorted(run.trials.items()) if len(one.step)}
    return {
        name: one
        for name, (one, about) in made.items()
        if about and about.kind == "candidate" and (is_nonfinite(one) or one.header.ending.how == "finished")
    }


def final_loss(run: Run, trial: Run) -> float:
    """Where the last tenth of a trial's losses lies, of 20 at least; infinite where it became nonfinite.

    Below zero lower is better, as for likelihoods; where any trial of the run fell without bottom (an adversarial loss), the
    size of the loss counts.
    """
    loss = level(_last(run, trial))
    return math.inf if is_nonfinite(trial) or np.isnan(loss) else loss


def _last(run: Run, trial: Run) -> Floats:
    """The last losses; their sizes where a loss of the run has no bottom."""
    last = trial.loss[-max(LAST, len(trial.loss) // LAST_SHARE) :]
    return np.abs(last) if bottomless(run) else last


def diverged(run: Run, trial: Run, held: float) -> bool:
    """Whether it became nonfinite, or ended above ten times its first losses, and above ten times the loss `held`, at which
    the plan in full held; or blew up on the way.
    """
    usual = max(median(np.abs(trial.loss[:EARLY])), held)
    return not final_loss(run, trial) <= DIVERGED * usual or blew_up(trial, usual)


def blew_up(trial: Run, usual: float) -> bool:
    """Whether losses came to lie far above the usual, one in a hundred or more: an explosion, also where most came back
    down. Not where the first tenth has such losses too: then they are the data's, or of a bad start.
    """
    far = np.abs(trial.loss) > BLOWN * usual
    return bool(far.sum() >= max(SOME, far.size * FAR_SHARE) and not far[: far.size // LAST_SHARE].any())


def _candidate(run: Run, name: str, trial: Run, held: float) -> Candidate:
    about = trial.header.trial or Trial("candidate", name)
    loss, norms = final_loss(run, trial), unscaled_norms(trial)[usable(trial)]
    clips = about.max_norm is not None and len(norms) > 0
    limit = about.max_norm or 0.0
    return Candidate(
        max_norm=recommended(about),
        origin=about.note.partition(";")[0] or name,
        trial=name,
        loss=loss if math.isfinite(loss) else None,
        clipped_fraction=clipped_fraction(norms, limit) if clips else 0.0,
        mean_retained_step=mean_retained_step(norms, limit) if clips else 1.0,
        steps=len(trial.step) if broken_off(trial) else len(about.indexes),
        shuffled=about.shuffled > 0,
        diverged=diverged(run, trial, held),
    )


def _by_length_and_loss(one: Candidate) -> tuple[float, bool, float, float]:
    """The longest first, of those the ones in the plan's own order, of those the best."""
    size = math.inf if one.max_norm is None else one.max_norm
    return -one.steps, one.shuffled, math.inf if one.loss is None else one.loss, size
