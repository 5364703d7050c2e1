"""The ranks of a distributed training beside each other: a row each, and what to say of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.model import Diagnosis, Finding
from gradscope.diagnosis.ranks import LEAST, RankLosses
from gradscope.diagnosis.series import level
from gradscope.report.text import number, plural, visible

RANK_COLUMNS = ("Rank", "Steps", "Median loss", "Worst finite loss", "At step", "Nonfinite steps", "First nonfinite")
APART = "GS205"
"""The rule that accuses a rank."""


@dataclass(frozen=True)
class RankRow:
    """One rank's own losses. `worst` is the largest finite |loss|, with its sign, at step `worst_step`."""

    rank: int
    steps: int
    median: float | None
    worst: float | None
    worst_step: int | None
    nonfinite_steps: int
    first_nonfinite: int | None


def rank_rows(losses: RankLosses | None) -> list[RankRow]:
    """Every rank whose losses were recorded, in order; none where those of one at most were."""
    if losses is None:
        return []
    rows = []
    for place, rank in enumerate(losses.ranks):
        own, loss = losses.known[:, place], losses.loss[:, place]
        finite, broken = np.flatnonzero(np.isfinite(loss)), np.flatnonzero(losses.broken[:, place])
        worst = finite[np.argmax(np.abs(loss[finite]))] if len(finite) else None
        rows.append(
            RankRow(
                rank=rank,
                steps=int(own.sum()),
                median=level(loss) if len(finite) else None,
                worst=None if worst is None else float(loss[worst]),
                worst_step=None if worst is None else int(losses.step[worst]),
                nonfinite_steps=len(broken),
                first_nonfinite=int(losses.step[broken[0]]) if len(broken) else None,
            )
        )
    return rows


def rank_cells(rows: list[RankRow]) -> list[tuple[str, ...]]:
    """The rows as text, a cell for each of RANK_COLUMNS."""
    return [
        (str(row.rank), str(row.steps), number(row.median), number(row.worst), _step(row.worst_step),
         str(row.nonfinite_steps), _step(row.first_nonfinite))
        for row in rows
    ]  # fmt: skip


def _step(step: int | None) -> str:
    return "–" if step is None else str(step)


def apart(diagnosis: Diagnosis) -> Finding | None:
    """What a rule found against one rank."""
    return next((finding for finding in diagnosis.findings if finding.code == APART), None)


def ranks_said(rows: list[RankRow], diagnosis: Diagnosis) -> str:
    """Which rank stands out, or that none does."""
    found = apart(diagnosis)
    if found:
        return visible(found.message[:1].upper() + found.message[1:])
    steps = max((row.steps for row in rows), default=0)
    if any(row.nonfinite_steps for row in rows):
        return "No rank stands out: the losses of all become nonfinite at the same step."
    if steps < LEAST:
        return f"No rank's loss is nonfinite; {plural(steps, 'step')} are too few to tell whether one lies apart."
    return f"No rank stands out: their losses stay beside each other over {plural(steps, 'step')}."
