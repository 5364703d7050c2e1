"""Thresholds that were tried: what each candidate trial ended with, and which one won.

A candidate is tried on a time-compressed training from the initial state: N steps stand for a horizon of H. N steps at the
same learning rates go √(H/N) times less far in a random walk of clipped steps, so the trial clips at max_norm × √(H/N).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from gradscope.diagnosis.series import median, unscaled_norms, usable
from gradscope.diagnosis.window import is_nonfinite
from gradscope.recommendation.model import Candidate
from gradscope.recommendation.percentiles import clipped_fraction, mean_retained_step
from gradscope.runs.run import Run
from gradscope.runs.schema import Trial

LAST, LAST_SHARE = 20, 10
EARLY = 5
DIVERGED = 10.0
"""A last loss above this multiple of the first."""
TIE = 1.02
"""Losses this close are equal: no clipping is preferred, then the one that the first stage ranked higher."""
BEST, HALFWAY, RUNNER_UP = FINALS = ("final-best", "final-halfway", "final-runner-up")
"""The trials of the second stage, by their place in the first."""


def candidates(run: Run) -> tuple[Candidate, ...]:
    """Every trial of kind "candidate" that came to its end, the longest and of those the best first.

    The longest trials decide: the one with the lowest median of its last |loss| is chosen; no clipping where that is as
    good; among equals, the one that the first stage ranked higher.
    """
    tried = sorted((_candidate(name, trial) for name, trial in finished(run).items()), key=_by_length_and_loss)
    if not tried or tried[0].loss is None:
        return tuple(tried)
    longest = [one for one in tried if one.steps == tried[0].steps and one.loss is not None]
    winner = _settle(longest, tried[0].loss)
    return tuple(dataclasses.replace(one, chosen=one is winner) for one in tried)


def _settle(longest: list[Candidate], least: float) -> Candidate:
    for one in longest:
        if one.max_norm is None and (one.loss or 0.0) <= TIE * least:
            return one
    equal = [one for one in longest if (one.loss or 0.0) <= TIE * least]
    return min(equal, key=lambda one: FINALS.index(one.trial) if one.trial in FINALS else len(FINALS))


def finished(run: Run) -> dict[str, Run]:
    """The trials of kind "candidate" that came to their end, by name."""
    made = {name: (one, one.header.trial) for name, one in sorted(run.trials.items()) if len(one.step)}
    return {
        name: one
        for name, (one, about) in made.items()
        if about and about.kind == "candidate" and (is_nonfinite(one) or one.header.ending.how == "finished")
    }


def stretch(trial: Trial) -> float:
    """√(H/N) of a compressed trial from the initial state; 1 where nothing is compressed."""
    if not trial.indexes or trial.start != "initial":
        return 1.0
    return math.sqrt((trial.indexes[-1] + 1) / len(trial.indexes))


def recommended(trial: Trial) -> float | None:
    """The threshold that a candidate trial stands for."""
    return None if trial.max_norm is None else trial.max_norm / stretch(trial)


def final_loss(trial: Run) -> float:
    """The median |loss| of the last tenth of a trial, of 20 steps at least; infinite where it became nonfinite."""
    loss = median(np.abs(trial.loss[-max(LAST, len(trial.loss) // LAST_SHARE) :]))
    return float("inf") if is_nonfinite(trial) or np.isnan(loss) else loss


def diverged(trial: Run) -> bool:
    """Whether it became nonfinite, or ended above ten times its first losses."""
    return not final_loss(trial) <= DIVERGED * median(np.abs(trial.loss[:EARLY]))


def _candidate(name: str, trial: Run) -> Candidate:
    about = trial.header.trial or Trial("candidate", name)
    loss, norms = final_loss(trial), unscaled_norms(trial)[usable(trial)]
    clips = about.max_norm is not None and len(norms) > 0
    limit = about.max_norm or 0.0
    return Candidate(
        max_norm=recommended(about),
        origin=about.note or name,
        trial=name,
        loss=loss if math.isfinite(loss) else None,
        clipped_fraction=clipped_fraction(norms, limit) if clips else 0.0,
        mean_retained_step=mean_retained_step(norms, limit) if clips else 1.0,
        steps=len(about.indexes),
        diverged=diverged(trial),
    )


def _by_length_and_loss(one: Candidate) -> tuple[float, float, float]:
    size = math.inf if one.max_norm is None else one.max_norm
    return -one.steps, math.inf if one.loss is None else one.loss, size
