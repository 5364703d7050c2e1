"""GS101 nonfinite-gradient: a gradient became infinite or NaN, and in which layer it began.

What it detects
    The first step whose gradient holds an infinite or NaN value, and the layer where that happened before it spread.
Why it matters
    One NaN reaches every parameter through the optimizer or through clipping by the global norm; afterwards everything is
    NaN and the layer that began it can no longer be told.
How it decides
    At the first such step that was not skipped by a gradient scaler: where the recorder caught the first offender, that
    one; else, among the parameters that are nonfinite there and had a finite gradient (or are infinite), the one of the
    highest order, since the backward pass meets the last layer first and nonfinite values travel from there to the
    front. Unit: nonfinite elements. Default limit: 0. If the loss itself was nonfinite first, every gradient after it
    is, and the finding says so instead of naming a layer; so it does for the data, and for the loss of another rank.
Known problems
    Layers that run beside each other have no true order. In a run that is nonfinite from its very first step a NaN norm
    cannot be told from a parameter without a gradient.
What to do
    Look at the named layer's inputs at that step (division by zero, log or sqrt of 0, exp of a large number, fp16 above
    65504). Lower the learning rate or clip if the gradient grew before it; otherwise guard the operation.
References
    IEEE 754 arithmetic; pytorch/pytorch#46849 asks for exactly this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gradscope.diagnosis.model import CannotRunError, Finding, Rule
from gradscope.diagnosis.ranks import first_ranks, named
from gradscope.diagnosis.series import count, finding, read_at
from gradscope.diagnosis.window import nonfinite_losses, nonfinite_steps
from gradscope.runs.run import Run
from gradscope.runs.schema import Offender, Parameter

CODE, NAME = "GS101", "nonfinite-gradient"
ADVICE = (
    "Look at what it computes from that step's batch; if its gradient grew before, lower the learning rate or clip."
)
DATA_ADVICE = (
    "Repair or leave out the nonfinite values in the data: neither learning rate nor clipping helps against them."
)


@dataclass(frozen=True)
class Settings:
    """`allowed`: steps with a nonfinite gradient that are no finding."""

    allowed: int = 0


DEFAULTS = Settings()


def check(run: Run, settings: Settings = DEFAULTS) -> Iterator[Finding]:
    """One finding for the first nonfinite gradient."""
    if not len(run.step):
        raise CannotRunError("the run holds no steps")
    bad = nonfinite_steps(run)
    rows = np.flatnonzero(bad)
    if len(rows) <= settings.allowed:
        return
    row = int(rows[0])
    origin = _origin(run, row)
    elements = int(run.nonfinite[row])
    held = f"{count(elements, 'element')} at that step, " if elements else ""
    yield finding(
        CODE,
        NAME,
        "critical",
        f"The gradient is nonfinite at step {run.step[row]}: {origin.said} "
        f"({held}{count(len(rows), 'step')} of {len(bad)} in all; norms are {read_at(run)}).",
        origin.advice,
        subject=origin.layer,
        steps=(int(run.step[row]), int(run.step[rows[-1]])),
        value=elements,
        limit=0.0,
        unit="nonfinite elements",
    )


def first_nonfinite_parameter(run: Run, row: int) -> Parameter | None:
    """The parameter of highest order among those newly nonfinite at `row`; None when none is."""
    norms = run.norms[row]
    bad = ~np.isfinite(norms)
    new = bad & (np.isinf(norms) | run.ever(np.isfinite))
    chosen = np.flatnonzero(new if new.any() else bad)
    parameters = run.header.parameters
    return max((parameters[i] for i in chosen), key=lambda p: p.order, default=None)


class _Origin(NamedTuple):
    """The layer where it began, how to say so, and what to do."""

    layer: str | None
    said: str
    advice: str = ADVICE


def _origin(run: Run, row: int) -> _Origin:
    ranks = first_ranks(run)
    if ranks and 0 not in ranks.ranks and ranks.step <= int(run.step[row]):
        return _Origin(None, f"the loss of {named(ranks.ranks)} was nonfinite first, at step {ranks.step}")
    seen = run.header.first_nonfinite
    if seen is not None and seen.step == int(run.step[row]):
        return _as_seen(seen)
    losses = nonfinite_losses(run)[: row + 1]
    if losses.any():
        return _Origin(None, f"the loss was nonfinite before any gradient, at step {run.step[int(np.argmax(losses))]}")
    parameter = first_nonfinite_parameter(run, row)
    if parameter is None:
        return _Origin(None, "the global norm overflowed, though no single parameter did")
    return _Origin(parameter.layer, f"it began in {parameter.layer} ({parameter.name}), the first in backward order")


def _as_seen(seen: Offender) -> _Origin:
    """As the recorder saw it."""
    batch = "" if seen.batch is None else f", batch {seen.batch}"
    if seen.went_first == "loss":
        return _Origin(None, f"the loss was nonfinite before any gradient{batch}")
    if seen.went_first == "input":
        what = f"the input that {seen.layer} reads was" if seen.layer else "the data were"
        return _Origin(None, f"{what} nonfinite first{batch}", DATA_ADVICE)
    where = seen.layer or seen.parameter or "the network"
    return _Origin(seen.layer, f"the {seen.went_first} of {where} went first{batch}")


RULE = Rule(CODE, NAME, check)
