"""GS205 rank-apart: in distributed training, one rank's loss breaks or jumps before the others'.

What it detects
    A rank whose own loss is nonfinite first, jumps alone, or always lies above the other ranks'.
Why it matters
    Data-parallel ranks hold the same weights and add up their gradients, so one bad batch on one rank ruins the step of all;
    a step later every rank looks alike. Only the losses before the sum tell whose data it was.
How it decides
    By the loss that each rank computed from its own batches. Nonfinite: at the first step where any is, some are and some
    are not. Else, before that step, d = log10 of |loss| over the median of the ranks (of two, over the other one), on
    steps that all ranks recorded. A jump: d > 1 (10 ×) and d > 6 × (1.4826 · the median |d| + .05), from 10 steps on.
    Above: the median d of a rank over 20 steps or more is above log10 1.5, and d > 0 on 90 % of them. Unit: multiples of
    the others' loss.
Known problems
    Under tensor or pipeline parallelism ranks share a batch, so that none can stand out. Of two ranks nothing tells the odd
    one but that its loss is the larger one. A rank on a host that does not see the run's folder is missing.
What to do
    Look at the batch that this rank read at that step, and at what is peculiar to its share of the data. The same rank in
    one run after another, whatever it reads, points to its device.
References
    PyTorch DistributedDataParallel: gradients are averaged over the ranks in the backward pass, the loss is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.model import CannotRunError, Finding, Rule, Severity
from gradscope.diagnosis.ranks import LEAST, Apart, RankLosses, beside_others, named, rank_losses, spread, went_first
from gradscope.diagnosis.series import Indexes, count, finding, median, number, percent
from gradscope.runs.run import Floats, Run

CODE, NAME = RULE_NAME = "GS205", "rank-apart"
LOOK = "Look at the batch that this rank read at that step: the other ranks had the same weights."


@dataclass(frozen=True)
class Settings:
    """`factor` and `z` of a jump among `least` steps; `above` on a `share` of `enough` steps."""

    factor: float = 10.0
    z: float = 6.0
    least: int = LEAST
    above: float = 1.5
    share: float = 0.9
    enough: int = 20


DEFAULTS = Settings()


def check(run: Run, settings: Settings = DEFAULTS) -> Iterator[Finding]:
    """One finding at most: the gravest of the three."""
    losses = rank_losses(run)
    if losses is None:
        if run.header.world_size > 1:
            raise CannotRunError("the losses of one rank at most were recorded")
        return
    if first := went_first(losses):
        yield _nonfinite(losses, first)
        return
    rows, deviations = beside_others(losses)
    if len(rows) >= settings.least:
        yield from _jump(losses, rows, deviations, settings) or _above(losses, rows, deviations, settings)


def _nonfinite(losses: RankLosses, first: Apart) -> Finding:
    who, one = named(first.ranks), len(first.ranks) == 1
    what = "its loss is the first nonfinite one" if one else "their losses are the first nonfinite ones"
    own = losses.broken[:, [losses.ranks.index(rank) for rank in first.ranks]]
    return finding(
        *RULE_NAME,
        "critical",
        f"{who}: {what}, at step {first.step}; on {named(first.rest)} the loss of that step is finite.",
        LOOK,
        subject=who,
        steps=(first.step, first.step),
        value=int(own.any(axis=1).sum()),
        limit=0.0,
        unit="steps",
    )


def _jump(losses: RankLosses, rows: Indexes, apart: Floats, settings: Settings) -> list[Finding]:
    limit = max(float(np.log10(settings.factor)), settings.z * spread(apart))
    jumps = np.argwhere(apart > limit)
    if not len(jumps):
        return []
    row, place = jumps[0]
    who, factor = f"rank {losses.ranks[place]}", float(10 ** apart[row, place])
    steps = losses.step[rows[jumps[jumps[:, 1] == place][:, 0]]]
    value = number(float(losses.loss[rows[row], place]))
    said = f"its loss jumps alone, to {value} at step {steps[0]}, {number(factor)} × that of the other ranks"
    often = f" (so far from them at {count(len(steps), 'step')} of {len(rows)})" if len(steps) > 1 else ""
    return [_loss_of(who, "warning", said + often, LOOK, (int(steps[0]), int(steps[-1])), factor, 10**limit)]


def _above(losses: RankLosses, rows: Indexes, apart: Floats, settings: Settings) -> list[Finding]:
    shares = (apart > 0).mean(axis=0)
    usual = np.where(shares < settings.share, 0.0, [median(column) for column in apart.T])
    place = int(np.argmax(usual))
    factor = float(10 ** usual[place])
    if len(rows) < settings.enough or factor <= settings.above:
        return []
    over = f"above them at {percent(float(shares[place]))} of {len(rows)} steps"
    said = f"its loss is {number(factor)} × that of the other ranks in the median, {over}"
    advice = "See whether this rank reads other data than the others; if it is meant to, nothing is wrong."
    steps = (int(losses.step[rows[0]]), int(losses.step[rows[-1]]))
    return [_loss_of(f"rank {losses.ranks[place]}", "info", said, advice, steps, factor, settings.above)]


def _loss_of(
    who: str, severity: Severity, said: str, advice: str, steps: tuple[int, int], factor: float, limit: float
) -> Finding:
    return finding(
        *RULE_NAME,
        severity,
        f"{who}: {said}.",
        advice,
        subject=who,
        steps=steps,
        value=factor,
        limit=limit,
        unit="times the other ranks",
    )


RULE = Rule(CODE, NAME, check)
