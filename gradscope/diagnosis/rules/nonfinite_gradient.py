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

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gradscope.diagnosis.model import CannotRunError, Finding, Rule
from gradscope.diagnosis.offenders import named as first_named
from gradscope.diagnosis.ranks import first_ranks, named
from gradscope.diagnosis.series import count, finding, read_at, uses_scaler
from gradscope.diagnosis.window import nonfinite_losses, nonfinite_steps, what_to_do
from gradscope.runs.run import Run
from gradscope.runs.schema import Offender, Parameter

CODE, NAME = "GS101", "nonfinite-gradient"
LOSS = "that step's targets and how the loss is computed from them"
HALF = " In float16 nothing above 65,504 fits; in bfloat16 it does."
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
        DATA_ADVICE if origin.look is None else what_to_do(run, row, origin.look) + (HALF if _in_half(run) else ""),
        subject=origin.layer,
        steps=(int(run.step[row]), int(run.step[rows[-1]])),
        value=elements,
        limit=0.0,
        unit="nonfinite elements",
    )


def _in_half(run: Run) -> bool:
    """Whether some of it is computed in float16."""
    return uses_scaler(run) or any(parameter.dtype == "float16" for parameter in run.header.parameters)


def first_nonfinite_parameter(run: Run, row: int) -> Parameter | None:
    """The parameter of highest order among those newly nonfinite at `row`; None when none is."""
    norms = run.norms[row]
    bad = ~np.isfinite(norms)
    new = bad & (np.isinf(norms) | run.ever(np.isfinite))
    chosen = np.flatnonzero(new if new.any() else bad)
    parameters = run.header.parameters
    return max((parameters[i] for i in chosen), key=lambda p: p.order, default=None)


class _Origin(NamedTuple):
    """The layer where it began, how to say so, and where to look; None: at the data."""

    layer: str | None
    said: str
    look: str | None


def _origin(run: Run, row: int) -> _Origin:
    ranks = first_ranks(run)
    if ranks and 0 not in ranks.ranks and ranks.step <= int(run.step[row]):
        one = named(ranks.ranks)
        return _Origin(
            None, f"the loss of {one} was nonfinite first, at step {ranks.step}", f"the batch of {one} there"
        )
    seen = run.header.first_nonfinite
    if seen is not None and seen.step == int(run.step[row]):
        return _as_seen(run, row, seen)
    losses = nonfinite_losses(run)[: row + 1]
    if losses.any():
        first = run.step[int(np.argmax(losses))]
        return _Origin(None, f"the loss was nonfinite before any gradient, at step {first}", LOSS)
    parameter = first_nonfinite_parameter(run, row)
    if parameter is None:
        return _Origin(None, "the global norm overflowed, though no single parameter did", "the largest norms")
    said = f"it began in {parameter.layer} ({parameter.name}), the first in backward order"
    return _in_backward(run, row, parameter.layer, said)


def _as_seen(run: Run, row: int, seen: Offender) -> _Origin:
    """As the recorder saw it."""
    batch = "" if seen.batch is None else f", batch {seen.batch}"
    if seen.went_first == "loss":
        return _Origin(None, f"the loss was nonfinite before any gradient{batch}", LOSS)
    if seen.went_first == "input":
        were = "was" if seen.layer else "were"
        return _Origin(None, f"{first_named(seen)} {were} nonfinite first{batch}", None)
    if seen.went_first == "activation" and seen.parameter:
        said = f"{first_named(seen)} were nonfinite themselves{batch}"
        return _Origin(seen.layer, said, "what wrote them: the step before, or the script")
    what = first_named(dataclasses.replace(seen, parameter=None) if seen.layer else seen)
    said = f"{what} went first{batch}"
    if seen.went_first == "operation":
        return _Origin(seen.layer, said, "what that operation was given")
    if seen.went_first == "gradient" and seen.layer:
        return _in_backward(run, row, seen.layer, said)
    return _Origin(seen.layer, said, f"what {seen.layer or 'the network'} computes from that step's batch")


def _in_backward(run: Run, row: int, layer: str, said: str) -> _Origin:
    """With the layer that the backward pass came from, where its own gradient was finite."""
    norms = zip(run.header.parameters, run.norms[row], strict=True)
    order = {one.layer: one.order for one in run.header.parameters}
    behind = [
        (one.order, one.layer) for one, norm in norms if np.isfinite(norm) and one.order > order.get(layer, np.inf)
    ]
    if not behind:
        return _Origin(
            layer, said, f"what {layer} computes from that step's batch, and what is computed from its output"
        )
    other = min(behind)[1]
    return _Origin(
        layer, f"{said}, while that of {other}, next behind it, was finite", f"what is computed from {layer} to {other}"
    )


RULE = Rule(CODE, NAME, check)
