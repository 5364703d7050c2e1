"""Thresholds that were tried: what each candidate trial ended with, and which one won."""

from __future__ import annotations

import dataclasses

import numpy as np

from gradscope.diagnosis.rehearsals import reference
from gradscope.diagnosis.series import median, unscaled_norms, usable
from gradscope.diagnosis.window import nonfinite_losses, nonfinite_steps
from gradscope.recommendation.model import Candidate
from gradscope.recommendation.percentiles import clipped_fraction
from gradscope.runs.run import Run

LAST = 20
DIVERGED = 3.0


def candidates(run: Run) -> tuple[Candidate, ...]:
    """Every trial of kind "candidate", the best first; the one with the lowest median of its last 20 |loss| is chosen."""
    tried = [
        _candidate(run, name, trial)
        for name, trial in sorted(run.trials.items())
        if _is_candidate(trial) and len(trial.step)
    ]
    ranked = sorted(tried, key=lambda c: (c.loss is None, c.loss or 0.0, -(c.max_norm or np.inf)))
    if ranked and ranked[0].loss is not None:
        ranked[0] = dataclasses.replace(ranked[0], chosen=True)
    return tuple(ranked)


def _is_candidate(trial: Run) -> bool:
    return trial.header.trial is not None and trial.header.trial.kind == "candidate"


def _candidate(run: Run, name: str, trial: Run) -> Candidate:
    about = trial.header.trial
    limit = about.max_norm if about else None
    loss = median(np.abs(trial.loss[-LAST:]))
    broken = bool((nonfinite_steps(trial) | nonfinite_losses(trial)).any()) or not np.isfinite(loss)
    diverged = broken or loss > DIVERGED * reference(run).first_loss
    norms = unscaled_norms(trial)[usable(trial)]
    fraction = clipped_fraction(norms, limit) if limit is not None and len(norms) else 0.0
    origin = (about.note if about else "") or name
    return Candidate(limit, origin, name, None if diverged else loss, fraction, diverged)
