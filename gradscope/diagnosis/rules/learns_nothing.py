"""GS204 learns-nothing: the loss stays where it began, or ends where guessing would be.

What it detects
    A training that learns nothing though nothing explodes: its loss does not fall, or ends at chance.
Why it matters
    It is no explosion and raises no other alarm, yet the run is lost: a dead or saturated network, a learning rate far too
    small, labels that do not belong to the inputs.
How it decides
    Over the recorded steps followed by the rehearsal at the planned learning rate, where there is one; at least 100 steps
    together, since short windows prove nothing. It fires when one of these is below 3 % even with two standard errors more:
    * how far the loss falls: 10 equal parts, the best median of a part against that of the first. Unit: share of the first.
    * how far the loss with the samples' own targets lies below that with the targets of other samples, at the end of the
      rehearsal: median over its last 10 batches, if that is also within two standard errors or below .5 %, and if the loss
      does not fall by 3 % from the third quarter of the steps to the last. Unit: share of the latter. A model at chance does
      as well on either, wherever its loss began. Where it is above 3 %, something was learned, and a loss that stands still
      is no reason.
    Less than 400 steps of a plan that was compressed give an "info" in place of a warning. A training that explodes is not
    judged; nor are targets where a loss is not above zero, as a game's or a reward's may be.
    A loss that was below half of where it ends is told as a collapse: then something was learned and lost again.
Known problems
    A loss with a large constant in it (some likelihoods) seems to stand still; so do adversarial losses. A slow start looks
    the same as long as it lasts. Where nothing can be predicted, guessing is all there is to learn.
What to do
    Check that inputs and targets belong together, try to overfit a single batch, and look for layers without a gradient.
References
    Measured on 293 small trainings that do not explode.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.model import CannotRunError, Finding, Rule
from gradscope.diagnosis.rehearsals import horizon
from gradscope.diagnosis.series import count, deviation, finding, number, percent
from gradscope.diagnosis.verdict import judge
from gradscope.diagnosis.window import of_the_plan
from gradscope.runs.run import Floats, Run

CODE, NAME = "GS204", "learns-nothing"
ADVICE = "Check that inputs and targets belong together; try to overfit one batch; look for layers without a gradient."
LOWER = "It had learned: lower the learning rate where the loss comes back up, or clip."
GAME = "The loss of a game, as a GAN's, or one with a large constant in it may stand still and be well."
COLLAPSED = 0.5
"""A loss that was below half of the one it ends at had learned something."""
EXPLODES = ("exploding", "will-explode")
MEDIAN_ERROR = 1.2533
"""Standard error of a median, in those of a mean."""


@dataclass(frozen=True)
class Settings:
    """`share` of the loss that it must fall by, or that own targets must do better by; below `none` they do no better;
    `parts` the losses are cut into; `least` losses needed; `enough` for a warning where the plan was compressed.
    """

    share: float = 0.03
    none: float = 0.005
    parts: int = 10
    least: int = 100
    enough: int = 400


DEFAULTS = Settings()


@dataclass(frozen=True)
class _Lower:
    """By which share of `before` the loss `after` is lower, and the standard error of that."""

    before: float
    after: float
    share: float
    error: float

    def less_than(self, limit: float) -> bool:
        """Whether that is certain, by two standard errors."""
        return self.share + 2 * self.error < limit

    def at_least(self, limit: float) -> bool:
        """Whether that is certain, by two standard errors."""
        return self.share - 2 * self.error >= limit


def check(run: Run, settings: Settings = DEFAULTS) -> Iterator[Finding]:
    """One finding when the loss never left its beginning, or ends at chance."""
    trial = _rehearsal(run)
    window = run.loss[np.isfinite(run.loss)]
    losses = window if trial is None else np.concatenate([window, trial.loss])
    if len(losses) < settings.least:
        raise CannotRunError(f"{count(len(losses), 'loss value')}, rehearsals included; {settings.least} are needed")
    if judge(run).verdict in EXPLODES:
        return
    fall, lead = _fall(losses, settings.parts), _lead(trial) if trial else None
    advice = ADVICE
    falls = _fall(losses[len(losses) // 2 :], 2).at_least(settings.share)
    if lead and not falls and lead.less_than(settings.share) and lead.share < max(2 * lead.error, settings.none):
        lower, unit = lead, "share of the loss with others' targets"
        said = "ends at chance:"
        if fall.after < COLLAPSED * lead.after:
            said, advice = f"collapses: it falls to a loss of {number(fall.after)} and {said}", LOWER
        said = f"The training {said} its loss is {number(lead.after)} with the targets of its inputs, and "
        said += f"{number(lead.before)} with those of other samples, after"
    elif fall.less_than(settings.share) and not (lead and lead.at_least(settings.share)):
        lower, unit = fall, "share of the first loss"
        said = f"The loss does not fall: {number(fall.before)} at the start, {number(fall.after)} at best "
        said += f"({percent(fall.share)} lower) over"
        advice = f"{ADVICE} {GAME}"
    else:
        return
    yield finding(
        CODE,
        NAME,
        "warning" if trial is None or _long(run, trial, settings.enough) else "info",
        f"{said} {_steps(len(window), trial)}.",
        advice,
        steps=(int(run.step[0]), int(run.step[-1])),
        value=lower.share,
        limit=settings.share,
        unit=unit,
    )


def _fall(losses: Floats, count: int) -> _Lower:
    """The best part against the first."""
    parts = np.array_split(losses, count)
    medians = np.array([np.median(part) for part in parts])
    noise = deviation(np.concatenate([p - m for p, m in zip(parts, medians, strict=True)]))
    first, best = float(medians[0]), float(medians.min())
    scale = abs(first) or 1.0
    return _Lower(first, best, (first - best) / scale, MEDIAN_ERROR * noise / float(np.sqrt(len(parts[0]))) / scale)


def _lead(trial: Run) -> _Lower | None:
    """Own targets against others' at the end of a rehearsal, where both were measured and are above zero."""
    own, others = trial.probes.matrix("target_loss", ["own", "others"])[1].T
    if not len(own) or not (np.minimum(own, others) > 0).all():
        return None
    shares = (others - own) / others
    middle = float(np.median(shares))
    error = MEDIAN_ERROR * deviation(shares - middle) / float(np.sqrt(len(shares)))
    before = float(np.median(others))
    return _Lower(before, before * (1 - middle), middle, error)


def _rehearsal(run: Run) -> Run | None:
    """The first finite rehearsal at the planned rate."""
    planned = (trial for trial in run.trials.values() if of_the_plan(trial))
    return next((trial for trial in planned if np.isfinite(trial.loss).all()), None)


def _long(run: Run, trial: Run, enough: int) -> bool:
    """Whether so many steps were rehearsed, or all that are left of the plan."""
    return len(trial.step) >= min(enough, horizon(run) - len(run.step))


def _steps(recorded: int, trial: Run | None) -> str:
    rehearsed = f" and {len(trial.step)} rehearsed ones" if trial else ""
    return f"{count(recorded, 'recorded step')}{rehearsed}"


RULE = Rule(CODE, NAME, check)
