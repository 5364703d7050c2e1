"""Remedies that were tried on a run: which held, and at which loss."""

from __future__ import annotations

import dataclasses

import numpy as np

from gradscope.diagnosis.rehearsals import horizon
from gradscope.recommendation.candidates import final_loss, finished
from gradscope.recommendation.remedies import WHOLE, held, is_whole
from gradscope.report.model import Remedy
from gradscope.report.rows import trials
from gradscope.runs.run import Run
from gradscope.runs.schema import Trial


def remedies(run: Run) -> tuple[Remedy, ...]:
    """Every remedy that was tried, the best first: judged as tried thresholds are, by its last |losses|, and by its trial on
    the whole plan where there is one.

    A trial's note names the change in its first line; the lines after it are what to paste.
    """
    tried = {child.header.trial.name: child for child in trials(run, "remedy") if child.header.trial}
    last = {name.removesuffix(WHOLE): name for name in sorted(tried)}
    found = [_remedy(run, tried[name]) for name in last.values()]
    ranked = sorted(found, key=lambda r: (not r.held, not r.whole, r.vain, r.loss if r.loss is not None else np.inf))
    if ranked and ranked[0].held and not ranked[0].vain:
        ranked[0] = dataclasses.replace(ranked[0], best=True)
    return tuple(ranked)


def _remedy(run: Run, child: Run) -> Remedy:
    trial = child.header.trial
    assert trial is not None
    change, _, code = trial.note.partition("\n")
    good = held(run, child)
    return Remedy(
        name=change or trial.name,
        trial=trial.name,
        held=good,
        loss=final_loss(run, child) if good else None,
        snippet=code,
        steps=len(trial.indexes),
        planned=horizon(run),
        vain=good and not is_whole(run, child) and _held_unchanged(run, trial),
    )


def _held_unchanged(run: Run, trial: Trial) -> bool:
    """Whether the training as it is held on the steps of this trial too."""
    steps = trial.indexes, trial.shuffled
    tried = [(one, made) for one in finished(run).values() if (made := one.header.trial) and made.max_norm is None]
    return any(held(run, one) for one, made in tried if (made.indexes, made.shuffled) == steps)
