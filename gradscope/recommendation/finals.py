"""The final trials of thresholds: pure functions of what was tried before, from a threshold's name to its value.

First the best of the grid, half a decade to either side of it, no clipping unless it diverged, and the runner-up where it is
near; then on from the winner while a side of it is untried; last the winner once more, 1 % lower, and in another order of
the batches where that is random: a training that is chaos there shows it. No clipping is an infinite threshold.
"""

from __future__ import annotations

import math

from gradscope.recommendation.candidates import ORDERS, TIE, above, same_threshold, worn_out
from gradscope.recommendation.model import Candidate

NEAR = 1.5
SIDE = 10**0.5
WALKS, REPEATS, LOWER = 3, 3, 0.99
AGAIN, SHUFFLED = "final-again-", "final-shuffled-"

Grid = dict[float, float]
"""Final losses by threshold."""
Asked = dict[str, float]
"""Thresholds to try, by the names of their trials."""


def first_finals(grid: Grid, top: float) -> Asked:
    """The best of the grid, its sides up to `top`, no clipping, the runner-up; nothing where all of the grid diverged."""
    least = min(grid.values())
    if not math.isfinite(least):
        return {}
    best = max(limit for limit, loss in grid.items() if loss <= above(least, TIE))
    others = [limit for limit in grid if limit not in (best, math.inf) and grid[limit] <= above(least, NEAR)]
    sides = [top] if math.isinf(best) else [best * SIDE, best / SIDE]
    asked = {"final-best": best} | {f"final-side-{i}": side for i, side in enumerate(sides, 1)}
    if math.isfinite(grid[math.inf]) and best != math.inf:
        asked["final-none"] = math.inf
    if others:
        asked["final-runner-up"] = min(others, key=lambda limit: (grid[limit], -limit))
    return asked


def walk(tried: list[Candidate], top: float) -> Asked:
    """The untried sides of the winner, up to `top`; not more than three steps in all."""
    best = _winner(tried)
    walked = sum(one.trial.startswith("final-walk") for one in tried)
    if best is None or walked >= WALKS:
        return {}
    sides = [limit for limit in (best * SIDE, best / SIDE) if limit <= top and not _tried_towards(limit, best, tried)]
    return {f"final-walk-{walked + i}": limit for i, limit in enumerate(sides, 1)}


def repeat(tried: list[Candidate]) -> Asked:
    """The winner a little lower, unless it was tried so already; three times at most."""
    best, again = _winner(tried), sum(one.trial.startswith(AGAIN) for one in tried)
    in_order = [one for one in tried if not one.shuffled]
    if best is None or again >= REPEATS or sum(same_threshold(one, best) for one in in_order) > 1:
        return {}
    return {f"{AGAIN}{again + 1}": best * LOWER}


def reorder(tried: list[Candidate]) -> Asked:
    """The winner in another order of the batches, until it broke or held in three; no clipping where anything diverged."""
    best, done = _winner(tried), sum(one.shuffled for one in tried)
    if not any(one.chosen and not one.diverged for one in tried):
        return {}
    if (best is None and not any(one.diverged for one in tried)) or (best is not None and worn_out(tried)):
        return {}
    of_best = [one for one in tried if one.shuffled and same_threshold(one, best)]
    return {f"{SHUFFLED}{done + 1}": math.inf if best is None else best} if len(of_best) < ORDERS else {}


def _winner(tried: list[Candidate]) -> float | None:
    """Its threshold; None where none held or no clipping won."""
    return next((one.max_norm for one in tried if one.chosen), None)


def _tried_towards(limit: float, best: float, tried: list[Candidate]) -> bool:
    low, high = sorted((best, limit))
    apart = (one.max_norm for one in tried if one.max_norm is not None and not same_threshold(one, best))
    return any(low / 1.01 <= one <= high * 1.01 for one in apart)
