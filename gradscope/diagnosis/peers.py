"""Standing out from peers: how many decades a value lies above the median of the others, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnosis.series import Indexes
from gradscope.runs.run import Floats

SPREAD_FLOOR = 0.05
"""Decades: peers that agree to 12 % count as equal."""
SHRINK = 3.0
ALIKE = 0.1
"""Decades that make no difference."""
CROWD, FEW = 0.25, 3
"""What more than a quarter of a group have is a recipe, not an accident; initial weights of at least three."""


@dataclass(frozen=True)
class Excess:
    """Of n things: `decades` (log10 of the factor) above the median of the *other* peers; `z`, the same in robust spreads
    (1.4826·MAD + .05); `peers`, how many others there are; `center`, their median in log10. What cannot be compared has
    0, 0, 0 and NaN.
    """

    decades: Floats
    z: Floats
    peers: Floats
    center: Floats

    def shrunk(self) -> Excess:
        """Fewer peers count less: decades × n / (n + 3)."""
        return Excess(self.decades * self.peers / np.maximum(1.0, self.peers + SHRINK), self.z, self.peers, self.center)

    def only_ranked(self, at: NDArray[np.bool_]) -> Excess:
        """The same with no peers `at` some: they stand out, but that cannot accuse them."""
        return replace(self, peers=np.where(at, 0.0, self.peers))


def nothing(count: int) -> Excess:
    """No comparison for any of `count` things."""
    return Excess(np.zeros(count), np.zeros(count), np.zeros(count), np.full(count, np.nan))


def excess(logs: Floats, groups: Iterable[Indexes], *, upper: bool = False) -> Excess:
    """Compare each of `logs` (log10; NaN: not measured) with the others of its group. Groups do not overlap. `upper`: of an
    even number of others the upper median, which is one of them.
    """
    result = nothing(len(logs))
    for group in groups:
        kept = group[np.isfinite(logs[group])]
        if len(kept) < 2:
            continue
        values = logs[kept]
        center = median_of_others(values, upper=upper)
        spread = 1.4826 * _deviation_of_others(values, center) + SPREAD_FLOOR
        result.decades[kept] = values - center
        result.z[kept] = (values - center) / spread
        result.peers[kept] = len(kept) - 1
        result.center[kept] = center
    return result


def company(decades: Floats) -> Indexes:
    """(n,): how many stand out as far as each, itself among them."""
    return len(decades) - np.searchsorted(np.sort(decades), decades - ALIKE)


def uncrowded(found: Excess, groups: Iterable[Indexes]) -> Excess:
    """The same, with 0 decades for what stands out in company."""
    decades = found.decades.copy()
    for group in groups:
        as_far = company(found.decades[group])
        decades[group[(as_far >= FEW) & (as_far > CROWD * len(group))]] = 0.0
    return replace(found, decades=decades)


def choose(found: list[Excess], pick: NDArray[np.int64]) -> Excess:
    """For each thing the comparison that `pick` names."""

    def of(name: str) -> Floats:
        return np.asarray(np.choose(pick, [getattr(one, name) for one in found]), float)

    return Excess(of("decades"), of("z"), of("peers"), of("center"))


def smallest(found: list[Excess]) -> Excess:
    """For each thing the comparison with the fewest decades."""
    return choose(found, np.argmin([one.decades for one in found], axis=0))


def median_of_others(values: Floats, *, upper: bool = False) -> Floats:
    """(n,): the median of all values but the own one, or the upper median; n of at least 2."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values))
    others = len(values) - 1
    low, high = (others - 1) // 2, others // 2
    below, above = ordered[low + (rank <= low)], ordered[high + (rank <= high)]
    return np.asarray(above if upper else (below + above) / 2, float)


def _deviation_of_others(values: Floats, center: Floats) -> Floats:
    """(n,): the median absolute deviation of the others from their own median (which takes three values at most)."""
    result = np.empty(len(values))
    for middle in np.unique(center):
        at = center == middle
        result[at] = median_of_others(np.abs(values - middle))[at]
    return result
