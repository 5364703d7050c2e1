"""What a diagnosis says: findings, layers at risk, and a verdict. Plain data; `to_json` of runs.schema makes it JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from gradscope.runs.run import Run

Severity = Literal["info", "warning", "critical"]
Level = Literal["high", "medium", "low"]
VerdictWord = Literal["exploding", "will-explode", "thin-headroom", "stable", "unknown"]
EXPLODES: tuple[VerdictWord, ...] = ("exploding", "will-explode")
ALARMS: tuple[VerdictWord, ...] = (*EXPLODES, "thin-headroom")


@dataclass(frozen=True)
class Finding:
    """One thing a rule found. `subject` is the layer, parameter or rank, None for the whole network.

    `value` and `limit` are in `unit`; `message` says what was seen, `advice` what to do about it.
    """

    code: str
    rule: str
    severity: Severity
    subject: str | None
    first_step: int | None
    last_step: int | None
    value: float | None
    limit: float | None
    unit: str | None
    message: str
    advice: str


class CannotRunError(Exception):
    """Raised by a rule that cannot judge this run; its text is the reason that the report gives."""


@dataclass(frozen=True)
class Rule:
    """A rule: its code, its name, and one pure function over a run. The module's docstring is its documentation."""

    code: str
    name: str
    check: Callable[[Run], Iterator[Finding]]


@dataclass(frozen=True)
class Unable:
    """A rule that could not run, and why."""

    code: str
    rule: str
    reason: str


@dataclass(frozen=True)
class LayerRisk:
    """One layer's place in the ranking. `factor` is against `peers`, the median of comparable layers.

    `component`: which measurement decided (forward gain, backward gain, initialisation, update/weight); `evidence` holds
    every number it rests on, by name. `weights`: the one parameter, or rows of it, that a bad initialisation lies in.
    """

    name: str
    type: str
    level: Level
    score: float
    component: str | None
    factor: float | None
    peers: float | None
    message: str
    advice: str
    evidence: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Will it explode? `explosion_score`: larger is worse, comparable across models; 108 for what explodes already, None
    without rehearsals otherwise.

    `lr_headroom`: the smallest tried multiple of the planned learning rate that failed (None: none failed); a failure at the
    planned rate itself that nothing confirms counts as 2, one that is a matter of chance as 1.
    `first_step`: where an explosion seen in the window begins. `reasons`: in plain words, what it rests on. `clipped_at`:
    the threshold in use, where rehearsals that failed without it were clipped at it and decided; None: unclipped. `chance`:
    what decides where it explodes by chance.
    """

    verdict: VerdictWord
    explosion_score: float | None = None
    lr_headroom: float | None = None
    first_step: int | None = None
    reasons: tuple[str, ...] = ()
    clipped_at: float | None = None
    chance: str = "rounding"

    @property
    def by_chance(self) -> bool:
        """Whether the plan explodes in some of its trials and not in others that differ by rounding, or in their order."""
        return self.verdict == "thin-headroom" and self.lr_headroom == 1.0

    @property
    def may_explode(self) -> bool:
        """Whether the plan explodes as it is, if only by chance."""
        return self.verdict in EXPLODES or self.by_chance


@dataclass(frozen=True)
class Diagnosis:
    """Everything the reading side concludes about explosion from one run directory."""

    verdict: Verdict
    layers: tuple[LayerRisk, ...]
    findings: tuple[Finding, ...]
    unable: tuple[Unable, ...] = ()
