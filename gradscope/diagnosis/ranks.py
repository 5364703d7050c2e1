"""The losses of several ranks beside each other, and the rank that stands out among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnosis.series import Bools, deviation, log10
from gradscope.diagnosis.window import nonfinite_losses
from gradscope.runs.run import Floats, Run

NAMED = 3
LEAST = 10
"""Steps from which on it can be told whether a finite loss lies apart."""


@dataclass(frozen=True)
class RankLosses:
    """(R,) ranks, (T,) steps that one of them recorded at least, (T, R) losses and whether each was recorded."""

    ranks: tuple[int, ...]
    step: NDArray[np.int64]
    loss: Floats
    known: Bools

    @property
    def broken(self) -> Bools:
        """(T, R): the losses that were recorded and are not finite."""
        return self.known & ~np.isfinite(self.loss)


@dataclass(frozen=True)
class Apart:
    """Ranks whose loss is not finite at `step` while it still is on others, which are `rest`."""

    ranks: tuple[int, ...]
    rest: tuple[int, ...]
    step: int


def rank_losses(run: Run) -> RankLosses | None:
    """The losses of every rank that recorded them; None where those of one rank at most are known."""
    own = np.isfinite(run.loss) | nonfinite_losses(run)
    columns = {0: (run.step[own], run.loss[own])} if own.any() else {}
    columns |= {rank: (one.step, one.loss) for rank, one in run.ranks.items() if len(one.step)}
    if len(columns) < 2:
        return None
    steps = np.unique(np.concatenate([step for step, _ in columns.values()]))
    loss, known = np.full((len(steps), len(columns)), np.nan), np.zeros((len(steps), len(columns)), bool)
    for place, (step, values) in enumerate(columns.values()):
        rows = np.searchsorted(steps, step)
        loss[rows, place], known[rows, place] = values, True
    return RankLosses(tuple(columns), steps, loss, known)


def went_first(losses: RankLosses) -> Apart | None:
    """The ranks that broke first; None where none did, or all at the same step."""
    rows = np.flatnonzero(losses.broken.any(axis=1))
    if not len(rows):
        return None
    broken, known = losses.broken[rows[0]], losses.known[rows[0]]
    first, rest = _chosen(losses, broken), _chosen(losses, known & ~broken)
    return None if not rest else Apart(first, rest, int(losses.step[rows[0]]))


def first_ranks(run: Run) -> Apart | None:
    """`went_first` of a run."""
    losses = rank_losses(run)
    return went_first(losses) if losses else None


def _chosen(losses: RankLosses, which: Bools) -> tuple[int, ...]:
    return tuple(rank for rank, keep in zip(losses.ranks, which, strict=True) if keep)


def beside_others(losses: RankLosses) -> tuple[NDArray[np.int64], Floats]:
    """(n,) rows before anything broke where all ranks are known, and (n, R): log10 of |loss| over the ranks' median.

    Of two ranks each is set against the other.
    """
    whole = losses.known.all(axis=1) & ~np.logical_or.accumulate(losses.broken.any(axis=1))
    logs = log10(np.abs(losses.loss))
    rows = np.flatnonzero(whole & ~np.isnan(logs).any(axis=1))
    logs, count = logs[rows], len(losses.ranks)
    if count == 2:
        return rows, logs - logs[:, ::-1]
    ordered = np.sort(logs, axis=1)
    return rows, logs - (ordered[:, [(count - 1) // 2]] + ordered[:, [count // 2]]) / 2


def spread(deviations: Floats) -> float:
    """How far ranks usually lie apart, in decades: 1.4826 × the median deviation + .05."""
    return deviation(deviations) + 0.05


def named(ranks: tuple[int, ...]) -> str:
    """`rank 3`, `ranks 1 and 2`, `5 ranks (1, 2, 3, …)`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) <= NAMED:
        return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"
    return f"{len(ranks)} ranks ({', '.join(map(str, ranks[:NAMED]))}, …)"
