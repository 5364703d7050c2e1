"""Whether gradscope says the same of the same training at another scale of its loss.

With loss × c a training is the same at lr / c (SGD), or at eps × c (Adam): bit for bit where c is a power of two. Other
factors round every number otherwise, so that trainings on the edge, which a last digit decides, become others: whether one
did is measured by plain training, without gradscope.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

from benchmarks.accuracy.outcome import train

POWERS, DECIMALS = (2.0**-20, 2.0**27), (1e-6, 1e8)
NEAR, SAME = 1e-3, 1e-2
"""How far two thresholds relative to the norms may be apart, relatively, and two ends of what is still the same training."""

Said = Callable[..., dict[str, Any]]


class Answer(NamedTuple):
    """What is said of a training, and where plain training ends. `threshold` and `end`: divided by the loss's factor."""

    verdict: str
    first: tuple[str, str] | None
    threshold: float | None
    end: float


def answer(said: Said, name: str, factor: float) -> Answer:
    """What `said` reports of this case with its loss multiplied."""
    report = said(name, True, factor)
    layers, threshold = report["layers"], (report["recommendation"] or {}).get("max_norm")
    first = (layers[0]["name"], layers[0]["level"]) if layers else None
    end = train(name, factor=factor).last / factor
    return Answer(report["verdict"], first, None if threshold is None else threshold / factor, end)


def jobs(names: Sequence[str]) -> list[tuple[str, float]]:
    """Every case by every factor."""
    return list(product(names, (1.0, *POWERS, *DECIMALS)))


def print_scale(asked: Iterable[tuple[str, float]], answers: Iterable[Answer]) -> None:
    """For each kind of factor: of how many trainings that end the same the same was said at all of them."""
    known = dict(zip(asked, answers, strict=True))
    names = list(dict.fromkeys(name for name, _ in known))
    print("\n| loss × | trainings | end the same | same verdict | same first layer | same threshold |")
    print("|---|---|---|---|---|---|")
    for factors in (POWERS, DECIMALS):
        pairs = [[(known[name, 1.0], known[name, factor]) for factor in factors] for name in names]
        same = [pair for pair in pairs if all(_near(a.end, b.end, SAME) for a, b in pair)]
        verdicts = sum(all(a.verdict == b.verdict for a, b in pair) for pair in same)
        firsts = sum(all(a.first == b.first for a, b in pair) for pair in same)
        thresholds = sum(all(_near(a.threshold, b.threshold, NEAR) for a, b in pair) for pair in same)
        cells = " and ".join(f"{f:.3g}" for f in factors), len(pairs), len(same), verdicts, firsts, thresholds
        print(f"| {' | '.join(map(str, cells))} |")
    for name, factor in known:
        a, b = known[name, 1.0], known[name, factor]
        if not (a[:2] == b[:2] and _near(a.threshold, b.threshold, NEAR)):
            print(f"{name} × {factor:.3g}: {a} became {b}")


def _near(a: float | None, b: float | None, relative: float) -> bool:
    if a is None or b is None or not (math.isfinite(a) and math.isfinite(b)):
        return a == b
    return math.isclose(a, b, rel_tol=relative)
