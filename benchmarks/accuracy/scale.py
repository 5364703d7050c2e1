"""Whether gradscope says the same of the same training at another scale of its loss.

With loss × c a training is the same at lr / c (SGD), or at eps × c (Adam): bit for bit where c is a power of two. Other
factors round every number otherwise, and so the trainings themselves drift apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

POWERS, DECIMALS = (2.0**-20, 2.0**27), (1e-6, 1e8)
NEAR = 1e-3
"""How far two thresholds relative to the norms may be apart, relatively."""

Said = Callable[..., dict[str, Any]]


class Answer(NamedTuple):
    """What is said of a training. `threshold`: divided by the factor of the loss."""

    verdict: str
    first: tuple[str, str] | None
    threshold: float | None


def answer(said: Said, name: str, factor: float) -> Answer:
    """What `said` reports of this case with its loss multiplied."""
    report = said(name, True, factor)
    layers, threshold = report["layers"], (report["recommendation"] or {}).get("max_norm")
    first = (layers[0]["name"], layers[0]["level"]) if layers else None
    return Answer(report["verdict"], first, None if threshold is None else threshold / factor)


def jobs(names: Sequence[str]) -> list[tuple[str, float]]:
    """Every case by powers of two, every second one by others too."""
    return [*product(names, (1.0, *POWERS)), *product(names[1::2], DECIMALS)]


def print_scale(asked: Iterable[tuple[str, float]], answers: Iterable[Answer]) -> None:
    """For each kind of factor: of how many trainings the same was said at all of them."""
    known = dict(zip(asked, answers, strict=True))
    print("\n| loss × | trainings | same verdict | same first layer | same threshold |\n|---|---|---|---|---|")
    for factors in (POWERS, DECIMALS):
        names = [name for name, factor in known if factor == factors[0]]
        pairs = [[(known[name, 1.0], known[name, factor]) for factor in factors] for name in names]
        verdicts = sum(all(a.verdict == b.verdict for a, b in pair) for pair in pairs)
        firsts = sum(all(a.first == b.first for a, b in pair) for pair in pairs)
        thresholds = sum(all(_near(a.threshold, b.threshold) for a, b in pair) for pair in pairs)
        print(f"| {' and '.join(f'{f:.3g}' for f in factors)} | {len(names)} | {verdicts} | {firsts} | {thresholds} |")


def _near(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else abs(b / a - 1) < NEAR
