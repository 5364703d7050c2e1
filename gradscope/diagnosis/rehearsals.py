"""What a rehearsal shows: how far loss and norm rose against the window, and whether it failed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.series import median, unscaled_norms, usable
from gradscope.diagnosis.window import nonfinite_losses, nonfinite_steps
from gradscope.runs.run import Run

LATE_LOSSES, EARLY_LOSSES, REFERENCE = 8, 5, 20
LEAST, MOST = -3.0, 12.0


@dataclass(frozen=True)
class Reference:
    """The window's own scale: median |loss| of its last 20 and first 5 steps, and its median norm."""

    loss: float
    first_loss: float
    norm: float


@dataclass(frozen=True)
class Rehearsed:
    """One rehearsal against the window. `loss_rise` and `norm_rise` are log10, within [−3, 12]; nonfinite is 12."""

    name: str
    kind: str
    lr_factor: float
    draw: int
    steps: int
    loss_rise: float
    norm_rise: float
    failed: bool
    nonfinite: bool


def reference(run: Run) -> Reference:
    """The scale that rehearsals of `run` are compared with."""
    size = np.abs(run.loss[np.isfinite(run.loss)])
    norms = unscaled_norms(run)[usable(run)]
    return Reference(median(size[-REFERENCE:]), median(size[:EARLY_LOSSES]), median(norms))


def rehearsed(run: Run) -> list[Rehearsed]:
    """Every unclipped rehearsal and replay among the run's trials that took a step, by name."""
    base = reference(run)
    kinds = ("rehearsal", "replay")
    made = [(name, trial, trial.header.trial) for name, trial in sorted(run.trials.items()) if len(trial.step)]
    return [
        _judge(name, trial, base, about.kind, about.lr_factor, about.draw)
        for name, trial, about in made
        if about and about.kind in kinds and about.max_norm is None
    ]


def _judge(name: str, trial: Run, base: Reference, kind: str, lr_factor: float, draw: int) -> Rehearsed:
    nonfinite = bool((nonfinite_steps(trial) | nonfinite_losses(trial)).any()) or trial.header.ending.how == "nonfinite"
    late = np.inf if nonfinite else median(np.abs(trial.loss[-LATE_LOSSES:]))
    norms = unscaled_norms(trial)[usable(trial)]
    peak = np.inf if nonfinite else float(norms.max(initial=0.0))
    loss_scale = np.fmax(base.loss, base.first_loss / 10)
    far = peak > 1000 * base.norm and late > 0.75 * base.first_loss
    failed = nonfinite or (late > 10 * loss_scale and peak > 30 * base.norm) or far
    return Rehearsed(
        name, kind, lr_factor, draw, len(trial.step), _rise(late, loss_scale), _rise(peak, base.norm), failed, nonfinite
    )


def _rise(value: float, scale: float) -> float:
    """log10(value / scale) within [−3, 12]; 0 where there is nothing to compare."""
    if value == np.inf:
        return MOST
    if not (np.isfinite(value) and np.isfinite(scale) and scale > 0):
        return 0.0
    return float(np.clip(np.log10(max(value, scale * 1e-300) / scale), LEAST, MOST))
