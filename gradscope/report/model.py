"""The report: all that a renderer needs, made from a run directory alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gradscope.diagnosis.model import Diagnosis, Finding, LayerRisk
from gradscope.diagnosis.ranks import RankLosses, rank_losses
from gradscope.recommendation.model import Recommendation, Threshold
from gradscope.report.cells import Cells, make_cells
from gradscope.report.ranks import RankRow, rank_rows
from gradscope.runs.run import Run
from gradscope.runs.schema import to_json

REPORT_SCHEMA_VERSION = 1
RANKING = "GS301"
"""The rule that cannot run where layers cannot be ranked."""


@dataclass(frozen=True)
class Remedy:
    """A change that was tried on the plan. `loss`: median |loss| of its last steps, None if it diverged.

    `steps`: those of its trial, of those `planned`. `vain`: the training as it is held on these too.
    """

    name: str
    trial: str
    held: bool
    loss: float | None
    snippet: str
    best: bool = False
    steps: int = 0
    planned: int = 0
    vain: bool = False

    @property
    def whole(self) -> bool:
        """Whether its trial was to take every step of the plan."""
        return self.steps >= self.planned

    @property
    def length(self) -> str:
        """The steps of its trial, and of how many of the plan."""
        return f"{self.steps:,}" if self.whole else f"{self.steps:,} of {self.planned:,}"

    @property
    def outcome(self) -> str:
        """In two words."""
        if not self.held:
            return "✖ failed"
        return "○ held, as without it" if self.vain else "● held"


@dataclass(frozen=True)
class Answer:
    """One question, its answer in few words, and what stands behind it, a sentence each."""

    question: str
    answer: str
    details: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """A run with everything concluded from it. `caveats`: what these conclusions cannot know, in plain words.

    `ladder`: the threshold of every whole percentile, for choosing among them.
    """

    run: Run = field(repr=False)
    diagnosis: Diagnosis
    recommendation: Recommendation | None
    caveats: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    ladder: tuple[Threshold, ...] = field(default=(), repr=False)

    @cached_property
    def cells(self) -> Cells:
        """The run's gradient norms, layer by step, pooled to be looked at."""
        return make_cells(self.run)

    @cached_property
    def rank_losses(self) -> RankLosses | None:
        """The loss of every rank at every step, where several were recorded."""
        return rank_losses(self.run)

    @cached_property
    def ranks(self) -> list[RankRow]:
        """A row for each of these ranks."""
        return rank_rows(self.rank_losses)

    def found(self, code: str) -> Finding | None:
        """The first finding of a rule."""
        return next((one for one in self.diagnosis.findings if one.code == code), None)

    def risk(self, layer: str) -> LayerRisk | None:
        """One layer's place in the ranking; None for a layer that was not ranked."""
        return self._risks.get(layer)

    @cached_property
    def _risks(self) -> dict[str, LayerRisk]:
        return {risk.name: risk for risk in self.diagnosis.layers}

    @property
    def unranked(self) -> str | None:
        """Why the layers of this run could not be ranked, if they could not."""
        if any(risk.level != "low" for risk in self.diagnosis.layers):
            return None
        return next((unable.reason for unable in self.diagnosis.unable if unable.code == RANKING), None)

    def _repr_html_(self) -> str:
        """The page inside a frame of its own: its scripts and styles cannot touch the notebook around it."""
        from gradscope.report.renderers.inline import render

        return render(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values; `schema_version` changes when a key does.

        The recommendation's `low` and `high` bound its `max_norm`, so both are None where a proven threshold took the
        place of the asked percentile; the percentile's own interval is in `thresholds`.
        """
        verdict, thresholds = self.diagnosis.verdict, self.recommendation and self.recommendation.thresholds
        asked = thresholds[0] if thresholds else None
        recommendation = to_json(self.recommendation) if self.recommendation else None
        if self.recommendation is not None and recommendation is not None:
            own = asked if asked and asked.max_norm == self.recommendation.max_norm else None
            recommendation |= {
                "percentile": asked and asked.percentile,
                "low": own and own.low,
                "high": own and own.high,
            }
        return {
            "schema_version": REPORT_SCHEMA_VERSION,
            "run": {"id": self.run.id, "path": str(self.run.path), **_header(self.run)},
            **to_json(verdict),
            "layers": [to_json(layer) for layer in self.diagnosis.layers],
            "findings": [to_json(finding) for finding in self.diagnosis.findings],
            "unable": [to_json(unable) for unable in self.diagnosis.unable],
            "recommendation": recommendation,
            "ranks": [to_json(row) for row in self.ranks],
            "remedies": [to_json(remedy) for remedy in self.remedies],
            "caveats": list(self.caveats),
        }


def _header(run: Run) -> dict[str, Any]:
    header = to_json(run.header)
    return {"steps": len(run.step), "notes": list(run.notes), **{k: header[k] for k in header if k != "parameters"}}
