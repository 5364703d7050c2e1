"""GS204 learns-nothing: the loss stays where it began.

What it detects
    A training whose loss does not fall, though nothing explodes: the loss at chance throughout.
Why it matters
    It is no explosion and raises no other alarm, yet the run is lost: a dead or saturated network, a learning rate far too
    small, labels that do not belong to the inputs.
How it decides
    Over the recorded steps followed by the rehearsal at the planned learning rate, where there is one: 10 equal parts; fires
    when the best median of a part, less two standard errors of a median, is still less than 3 % of the |loss| below that of
    the first part. Unit: share of the first loss. At least 100 steps together, since short windows prove nothing.
Known problems
    A loss with a large constant in it (some likelihoods) seems to stand still; so do adversarial losses and a fine-tuning
    that begins at its optimum.
What to do
    Check that inputs and targets belong together, try to overfit a single batch, and look for layers without a gradient.
References
    Measured on 77 trainings of 2,000 steps: six convolution nets without normalisation stayed at chance throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.model import CannotRunError, Finding, Rule
from gradscope.diagnosis.series import count, finding, number, percent
from gradscope.diagnosis.window import explosion
from gradscope.runs.run import Floats, Run

CODE, NAME = "GS204", "learns-nothing"


@dataclass(frozen=True)
class Settings:
    """`share` of the first loss that it must fall by; `parts` the losses are cut into; `least` losses needed."""

    share: float = 0.03
    parts: int = 10
    least: int = 100


DEFAULTS = Settings()


def check(run: Run, settings: Settings = DEFAULTS) -> Iterator[Finding]:
    """One finding when the loss never left its beginning."""
    losses, rehearsed = _losses(run)
    if len(losses) < settings.least:
        raise CannotRunError(f"{count(len(losses), 'loss value')}, rehearsals included; {settings.least} are needed")
    if explosion(run):
        return
    parts = np.array_split(losses, settings.parts)
    medians = np.array([np.median(part) for part in parts])
    noise = 1.4826 * np.median(np.concatenate([np.abs(p - m) for p, m in zip(parts, medians, strict=True)]))
    error = 1.2533 * noise / np.sqrt(len(parts[0]))
    fell = float(medians[0] - medians.min())
    if not fell + 2 * error < settings.share * abs(medians[0]):
        return
    fraction = fell / abs(medians[0])
    over = f"{count(len(losses) - rehearsed, 'recorded step')}" + (
        f" and {rehearsed} rehearsed ones" if rehearsed else ""
    )
    yield finding(
        CODE,
        NAME,
        "warning",
        f"The loss does not fall: {number(medians[0])} at the start, {number(medians.min())} at best "
        f"({percent(fraction)} lower) over {over}.",
        "Check that inputs and targets belong together; try to overfit one batch; look for layers without a gradient.",
        steps=(int(run.step[0]), int(run.step[-1])),
        value=fraction,
        limit=settings.share,
        unit="share of the first loss",
    )


def _losses(run: Run) -> tuple[Floats, int]:
    """Finite losses of the window and of the first finite rehearsal at the planned rate; how many are rehearsed."""
    window = run.loss[np.isfinite(run.loss)]
    for trial in run.trials.values():
        made = trial.header.trial
        planned = made is not None and made.kind == "rehearsal" and made.lr_factor == 1.0 and made.max_norm is None
        if planned and np.isfinite(trial.loss).all():
            return np.concatenate([window, trial.loss]), len(trial.loss)
    return window, 0


RULE = Rule(CODE, NAME, check)
