"""Remedies that were tried on a run: which held, and at which loss."""

from __future__ import annotations

import dataclasses

import numpy as np

from gradscope.recommendation.candidates import final_loss
from gradscope.recommendation.remedies import held
from gradscope.report.model import Remedy
from gradscope.report.rows import trials
from gradscope.runs.run import Run


def remedies(run: Run) -> tuple[Remedy, ...]:
    """Every trial of kind "remedy", the best first: judged as tried thresholds are, by its last |losses|.

    A trial's note names the change in its first line; the lines after it are what to paste.
    """
    found = [_remedy(run, child) for child in trials(run, "remedy")]
    ranked = sorted(found, key=lambda r: (not r.held, r.loss if r.loss is not None else np.inf))
    if ranked and ranked[0].held:
        ranked[0] = dataclasses.replace(ranked[0], best=True)
    return tuple(ranked)


def _remedy(run: Run, child: Run) -> Remedy:
    trial = child.header.trial
    name, note = (trial.name, trial.note) if trial else (child.header.name, "")
    change, _, code = note.partition("\n")
    good = held(run, child)
    return Remedy(change or name, name, good, final_loss(run, child) if good else None, code)
