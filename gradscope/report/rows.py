"""The rows of a report's tables, ready to be shown by any renderer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.diagnosis.model import Level
from gradscope.diagnosis.rehearsals import played
from gradscope.diagnosis.window import late_loss
from gradscope.report.model import Report
from gradscope.runs.run import Run
from gradscope.runs.schema import Trial


@dataclass(frozen=True)
class LayerRow:
    """A layer's place in the ranking and its recorded norms; `place` counts from 1, `size` is in elements."""

    place: int
    name: str
    type: str
    level: Level | None
    score: float | None
    component: str | None
    factor: float | None
    message: str
    advice: str
    evidence: dict[str, Any]
    order: int
    size: int
    median: float | None
    maximum: float | None
    final: float | None
    nonfinite_steps: int


def layer_rows(report: Report) -> list[LayerRow]:
    """Every layer, most at risk first; layers that were not ranked follow in forward order."""
    layers = {layer.name: i for i, layer in enumerate(report.run.layers)}
    ranked = {risk.name: risk for risk in report.diagnosis.layers}
    names = [*ranked, *(name for name in layers if name not in ranked)]
    return [_layer_row(report, place, name, layers.get(name)) for place, name in enumerate(names, 1)]


def _layer_row(report: Report, place: int, name: str, index: int | None) -> LayerRow:
    risk, cells, run = report.risk(name), report.cells, report.run
    judged = None if report.unranked else risk
    layer = run.layers[index] if index is not None else None
    sizes = [math.prod(run.header.parameters[i].shape) for i in layer.parameters] if layer else []
    norms = (cells.median, cells.maximum, cells.final)
    median, maximum, final = (_known(values[index]) if index is not None else None for values in norms)
    return LayerRow(
        place=place,
        name=name,
        type=layer.type if layer else (risk.type if risk else ""),
        level=judged.level if judged else None,
        score=judged.score if judged else None,
        component=risk.component if risk else None,
        factor=risk.factor if risk else None,
        message=judged.message if judged else "",
        advice=judged.advice if judged else "",
        evidence=risk.evidence if risk else {},
        order=layer.order if layer else 0,
        size=sum(sizes),
        median=median,
        maximum=maximum,
        final=final,
        nonfinite_steps=int(cells.nonfinite_steps[index]) if index is not None else 0,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


@dataclass(frozen=True)
class TrialRow:
    """One trial run. `loss`: where the last tenth of its losses lies; `norm`: its largest finite gradient norm."""

    name: str
    kind: str
    title: str
    note: str
    steps: int
    loss: float | None
    norm: float | None
    outcome: str


def trial_rows(report: Report, *kinds: str) -> list[TrialRow]:
    """The trials of these kinds, in the order of their learning rate and name."""
    judged = {trial.name: trial.failed for trial in played(report.run)}
    return [_trial_row(child, judged) for child in trials(report.run, *kinds)]


def trials(run: Run, *kinds: str) -> list[Run]:
    """The child runs of these kinds that took a step, ordered by kind, learning-rate factor, draw and name."""

    def place(child: Run) -> tuple[Any, ...]:
        trial = child.header.trial
        return (kinds.index(trial.kind), trial.lr_factor, trial.draw, trial.name) if trial else ()

    chosen = [
        child
        for child in run.trials.values()
        if child.header.trial and child.header.trial.kind in kinds and len(child.step)
    ]
    return sorted(chosen, key=place)


def title_of(child: Run) -> str:
    """`rehearsal ×2`, `worst-batch replay`, or the trial's own name."""
    trial = child.header.trial
    if trial is None:
        return child.header.name
    if trial.kind == "rehearsal":
        _, _, variant = trial.name.partition("-")
        return f"rehearsal ×{trial.lr_factor:g}" + (f", {variant}" if variant else "")
    return {"replay": "worst-batch replay", "window": "window, clipped low"}.get(trial.kind, trial.name)


def _trial_row(child: Run, judged: dict[str, bool]) -> TrialRow:
    trial = child.header.trial or Trial("", child.header.name)
    norms = child.global_norm[np.isfinite(child.global_norm)]
    finite = bool(np.isfinite(child.loss).all()) and bool(np.isfinite(child.global_norm[~child.skipped]).all())
    word = {True: "✖ failed", False: "● held", None: ""}[judged.get(trial.name)]
    return TrialRow(
        name=trial.name,
        kind=trial.kind,
        title=title_of(child),
        note=trial.note,
        steps=len(child.step),
        loss=_known(late_loss(child)) if finite else None,
        norm=float(norms.max()) if len(norms) else None,
        outcome=", ".join(part for part in (word, "" if finite else "nonfinite") if part) or "–",
    )
