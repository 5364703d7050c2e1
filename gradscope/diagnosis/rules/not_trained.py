"""GS306 not-trained: trainable parameters that no step changes.

What it detects
    Parameters that require a gradient and are in no optimizer, or in a group whose learning rate is 0 at every step.
Why it matters
    They stay as they began, while their gradients are computed: the rest has to learn around them.
How it decides
    Counts trainable parameters outside of every parameter group, and those of groups with a rate of 0 throughout. Unit:
    parameters. Limit: 0. Frozen parameters are meant to stay and are not counted.
Known problems
    A group may wait for a schedule that begins after the recorded steps.
What to do
    Give them to the optimizer, or a rate; if they are to stay, set `requires_grad_(False)`, which saves their gradients.
References
    PyTorch, torch.optim: per-parameter options.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.model import CannotRunError, Finding, Rule
from gradscope.diagnosis.series import count, finding, listed
from gradscope.runs.run import Run

CODE, NAME = "GS306", "not-trained"
NAMED = 3


def check(run: Run) -> Iterator[Finding]:
    """One finding for those in no optimizer, and one for those at a rate of 0."""
    optimizer, parameters = run.header.optimizer, run.header.parameters
    if optimizer is None:
        raise CannotRunError("the optimizer is not known")
    held = {i for group in optimizer.groups for i in group.parameters}
    outside = [i for i, one in enumerate(parameters) if one.trainable and i not in held]
    rates = np.fmax.reduce(run.lr, axis=0, initial=-np.inf)
    still = [
        i
        for group, rate in zip(optimizer.groups, rates, strict=False)
        for i in group.parameters
        if rate == 0 and parameters[i].trainable
    ]
    yield from _finding(run, outside, "in no optimizer", "Give them to the optimizer")
    yield from _finding(run, still, "trained at a learning rate of 0 throughout", "Give their group a learning rate")


def _finding(run: Run, found: list[int], why: str, advice: str) -> Iterator[Finding]:
    if not found:
        return
    names = [run.header.parameters[i].name for i in found]
    verb = "is" if len(names) == 1 else "are"
    yield finding(
        CODE,
        NAME,
        "warning",
        f"{count(len(names), 'trainable parameter')} {verb} {why}: {listed(names, NAMED)}.",
        f"{advice}; if they are to stay as they are, set requires_grad_(False).",
        subject=names[0] if len(names) == 1 else None,
        value=len(names),
        limit=0.0,
        unit="parameters",
    )


RULE = Rule(CODE, NAME, check)
