"""GS303 no-gradient: parameters that never got a gradient.

What it detects
    Trainable parameters without a gradient at every recorded step.
Why it matters
    They stay at their initial values: a branch that is never called, a detached tensor, a layer left out of the loss.
How it decides
    Counts trainable parameters whose gradient norm is absent in all steps without nonfinite values. Unit: parameters.
    Default limit: 0. Frozen parameters are meant to have none and are not counted.
Known problems
    Branches used only later in training (experts, auxiliary heads) look unused in a short window.
What to do
    If they are meant to be trained, look for `detach()`, `no_grad` or an unused output; otherwise freeze them, which saves
    memory.
References
    PyTorch, `find_unused_parameters` of DistributedDataParallel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.model import CannotRunError, Finding, Rule
from gradscope.diagnosis.series import count, finding, listed
from gradscope.runs.run import Run

CODE, NAME = "GS303", "no-gradient"


@dataclass(frozen=True)
class Settings:
    """`named`: how many parameters the message names."""

    named: int = 3


DEFAULTS = Settings()


def check(run: Run, settings: Settings = DEFAULTS) -> Iterator[Finding]:
    """One finding for all parameters without a gradient."""
    clean = run.nonfinite == 0
    if not clean.any():
        raise CannotRunError("no step without nonfinite gradients")
    absent = ~run.ever(lambda norms: ~np.isnan(norms), np.flatnonzero(clean))
    trainable = np.array([p.trainable for p in run.header.parameters], bool)
    names = [run.header.parameters[i].name for i in np.flatnonzero(absent & trainable)]
    if not names:
        return
    yield finding(
        CODE,
        NAME,
        "warning",
        f"{count(len(names), 'trainable parameter')} of {int(trainable.sum())} never got a gradient in "
        f"{count(int(clean.sum()), 'step')}: {listed(names, settings.named)}.",
        "If they are meant to be trained, look for detach(), no_grad or an unused output; otherwise freeze them.",
        subject=names[0] if len(names) == 1 else None,
        steps=(int(run.step[clean][0]), int(run.step[clean][-1])),
        value=len(names),
        limit=0.0,
        unit="parameters",
    )


RULE = Rule(CODE, NAME, check)
