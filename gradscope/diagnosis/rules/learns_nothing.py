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
      is no reason. What a spec's own training_step takes for targets is not known: there it must not have fallen, either.
    Less than 400 steps of a plan that was compressed give an "info" in place of a warning. A training that explodes is not
    judged; nor are targets where a loss is not above zero, as a game's or a reward's may be. What had learned and lost it is
    told by GS208.
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

from gradscope.diagnosis.learning import (
    ENOUGH,
    SHARE,
    STILL,
    at_chance,
    fall,
    lead,
    long_enough,
    losses_of,
    rehearsal,
    unlearned,
)
from gradscope.diagnosis.model import CannotRunError, Finding, Rule
from gradscope.diagnosis.series import count, finding, number, percent
from gradscope.diagnosis.verdict import judge
from gradscope.runs.run import Run

CODE, NAME = "GS204", "learns-nothing"
ADVICE = "Check that inputs and targets belong together; try to overfit one batch; look for layers without a gradient."
GAME = "The loss of a game (a GAN's), of a policy gradient, or with a large constant in it may stand still and be well."


@dataclass(frozen=True)
class Settings:
    """`share` of the loss that it must fall by; `parts` the losses are cut into; `least` losses needed; `enough` for a
    warning where the plan was compressed.
    """

    share: float = SHARE
    parts: int = STILL
    least: int = 100
    enough: int = ENOUGH


DEFAULTS = Settings()


def check(run: Run, settings: Settings = DEFAULTS) -> Iterator[Finding]:
    """One finding when the loss never left its beginning, or ends at chance."""
    trial, losses = rehearsal(run), losses_of(run)
    if len(losses) < settings.least:
        raise CannotRunError(f"{count(len(losses), 'loss value')}, rehearsals included; {settings.least} are needed")
    if judge(run).may_explode or unlearned(run):
        return
    advice, still = ADVICE, fall(losses, settings.parts)
    if lower := at_chance(run):
        unit = "share of the loss with others' targets"
        said = f"The training ends at chance: its loss is {number(lower.after)} with the targets of its inputs, and "
        said += f"{number(lower.before)} with those of other samples, after"
    elif still.less_than(settings.share) and not _learned(trial, settings.share):
        lower, unit = still, "share of the first loss"
        said = f"The loss does not fall: {number(still.before)} at the start, {number(still.after)} at best "
        said += f"({percent(still.share)} lower) over"
        advice = f"{ADVICE} {GAME}"
    else:
        return
    yield finding(
        CODE,
        NAME,
        "warning" if trial is None or long_enough(run, trial, settings.enough) else "info",
        f"{said} {_steps(int(np.isfinite(run.loss).sum()), trial)}.",
        advice,
        steps=(int(run.step[0]), int(run.step[-1])),
        value=lower.share,
        limit=settings.share,
        unit=unit,
    )


def _learned(trial: Run | None, share: float) -> bool:
    """Whether own targets do surely better than others'."""
    found = lead(trial) if trial is not None else None
    return found is not None and found.at_least(share)


def _steps(recorded: int, trial: Run | None) -> str:
    rehearsed = f" and {len(trial.step)} rehearsed ones" if trial else ""
    return f"{count(recorded, 'recorded step')}{rehearsed}"


RULE = Rule(CODE, NAME, check)
