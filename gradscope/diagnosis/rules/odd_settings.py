"""GS414 odd-settings: an optimizer set far from usual.

What it detects
    SGD with a momentum above .95; Adam with beta1² ≥ beta2 or an eps below 1e-10; weight decay that takes more than 2 % of
    every weight at a step.
Why it matters
    Each makes steps far larger than the learning rate says, or undoes what they learn; a lower learning rate or a threshold
    only softens it.
How it decides
    By the settings that the (first) optimizer was made with. A gradient acts 1 / (1 − momentum) times in all. Adam's step
    m/√v is bounded, by the Cauchy–Schwarz inequality, only where beta1² < beta2. Weights decay by learning rate × weight
    decay a step, over 1 − momentum with SGD. A warning where the training explodes, or will, loses what it learned or
    learns nothing; else an information. No unit.
Known problems
    Settings of single parameter groups are not seen.
What to do
    Use the usual value. Where remedies are tried, that is among them.
References
    Kingma, Ba 2015, Adam, §2.1; Zhang et al. 2022, Adam can converge without any modification on update rules;
    Loshchilov, Hutter 2019, Decoupled weight decay regularization.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.model import CannotRunError, Finding, Rule
from gradscope.diagnosis.series import finding
from gradscope.diagnosis.settings import odd_settings
from gradscope.diagnosis.severity import severity_of
from gradscope.runs.run import Run

CODE, NAME = "GS414", "odd-settings"


def check(run: Run) -> Iterator[Finding]:
    """One finding a setting."""
    if run.header.optimizer is None:
        raise CannotRunError("the optimizer is not known")
    for one in odd_settings(run):
        advice = f"Use {one.key}={one.usual}, unless it is so on purpose."
        yield finding(CODE, NAME, severity_of(run), f"{one.told}.", advice)


RULE = Rule(CODE, NAME, check)
