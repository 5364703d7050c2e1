"""What really happens: a case trained to its horizon, with or without clipping. No part of gradscope is used here."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from itertools import chain

import torch

from benchmarks.accuracy import corpus, drawn
from benchmarks.accuracy.case import Loaded, build, scaled

EXPLODED, UNCLEAR = 10.0, 3.0


@dataclass(frozen=True)
class Outcome:
    """`explodes` None: unclear, left out. `onset`: the first step from which |loss| stays above. `norms`: pre-clip."""

    losses: tuple[float, ...]
    norms: tuple[float, ...]
    finite: bool

    @property
    def first(self) -> float:
        """Median |loss| of the first five steps."""
        return statistics.median(self.losses[:5])

    @property
    def last(self) -> float:
        """Median |loss| of the last tenth; infinite where the training ended nonfinite."""
        return statistics.median(self.losses[-max(10, len(self.losses) // 10) :]) if self.finite else math.inf

    @property
    def explodes(self) -> bool | None:
        """Ends nonfinite or above ten times its first loss; between three and ten times is unclear."""
        if not self.finite:
            return True
        ratio = self.last / max(self.first, 1e-12 * max(self.losses))
        return True if ratio > EXPLODED else None if ratio > UNCLEAR else False

    @property
    def onset(self) -> int:
        """The first step after which |loss| never comes back below ten times its first."""
        below = [i for i, loss in enumerate(self.losses) if math.isfinite(loss) and loss <= EXPLODED * self.first]
        return below[-1] + 1 if below else 0


def load(name: str, factor: float = 1.0) -> Loaded:
    """The case of that name, its loss multiplied, in the names of a spec file."""
    found = next(case for case in chain(corpus.cases(), drawn.cases()) if case.name == name)
    return build(scaled(found, factor))


def train(name: str, max_norm: float | None = None, policy: object = None, factor: float = 1.0) -> Outcome:
    """Train the case, its loss multiplied, to its horizon. `policy`: a function of the norms so far to a threshold."""
    case = load(name, factor)
    parameters = [p for p in case.model.parameters() if p.requires_grad]
    losses: list[float] = []
    norms: list[float] = []
    batches = case.data()
    for _ in range(case.total_steps):
        case.optimizer.zero_grad()
        loss = case.training_step(case.model, next(batches))
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]).item()
        losses.append(abs(loss.item()))
        norms.append(norm)
        if not (math.isfinite(losses[-1]) and math.isfinite(norm)):
            return Outcome(tuple(losses), tuple(norms), False)
        limit = policy(norms) if callable(policy) else max_norm
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, torch.tensor(norm))
        case.optimizer.step()
        case.scheduler.step()
    return Outcome(tuple(losses), tuple(norms), True)
