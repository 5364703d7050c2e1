"""The answer to "Which layer?": the one at risk, or what stands out or breaks first where none does."""

from __future__ import annotations

import numpy as np

from gradscope.diagnosis.model import Finding
from gradscope.diagnosis.offenders import named
from gradscope.diagnosis.window import GREW, growth_before, of_the_plan
from gradscope.report.model import Answer, Report
from gradscope.report.ranks import apart
from gradscope.report.rows import trials
from gradscope.report.text import sentences, visible
from gradscope.runs.run import Run
from gradscope.runs.schema import ROOT

FIRST = "GS101"
"""The rule that tells what was nonfinite first."""
DEPTH = "GS304"
"""The rule that tells of gradients that grow from layer to layer."""
DATA = "GS307"
"""The rule that tells of inputs and targets of an odd size."""
OUTLIER = "GS207"
"""The rule that tells which sample of the data stands out."""
ACCUSING = (FIRST, "GS302", "GS305")
"""Rules whose subject is the layer where it began, though it need not stand out from its peers."""


def layer(report: Report) -> Answer:
    """The layer most at risk; where none stands out, the one that a finding accuses."""
    question, ranked, found = "Which layer?", report.diagnosis.layers, accused(report)
    if (data := report.found(DATA)) and data.severity != "info" and all(one.level == "low" for one in ranked):
        return Answer(question, "None stands out, but the data does", sentences((data.message, data.advice)))
    if found:
        sure = "Perhaps " if any(one.name == found[0] and one.level == "medium" for one in ranked) else ""
        return Answer(question, sure + visible(found[0]), sentences((without_subject(found[1], found[0]), found[2])))
    rank = apart(report.diagnosis)
    if rank and rank.severity != "info":
        told = (without_subject(rank.message, rank.subject), rank.advice)
        return Answer(question, f"None: it began on {rank.subject}", sentences(told))
    if report.diagnosis.verdict.may_explode and (broken := _sample(report)):
        what = "a batch" if broken.unit is None else "a sample"
        return Answer(question, f"None stands out, but {what} does", sentences((broken.message, broken.advice)))
    if (along := report.found(DEPTH)) and along.severity != "info":
        way = "grows" if (along.value or 0.0) > 1 else "fades"
        return Answer(question, f"All of them: it {way} from layer to layer", sentences((along.message, along.advice)))
    if (outside := report.found(FIRST)) and outside.subject is None:
        return Answer(
            question, "None for certain: the loss was nonfinite first", sentences((outside.message, outside.advice))
        )
    if outside and outside.subject is not None:
        least = "Not known" if report.unranked else "None stands out"
        told = (without_subject(outside.message, outside.subject), outside.advice)
        return Answer(question, f"{least}, but {visible(outside.subject)} breaks first", sentences(told))
    if not ranked:
        return Answer(question, "No layer was measured", ())
    if report.unranked:
        return Answer(question, "Not known", sentences((report.unranked, "measure them with: gradscope analyze")))
    if broke := _broke_ahead(report):
        return Answer(question, f"None stands out, but {visible(broke[0])} breaks first", sentences((broke[1],)))
    return Answer(question, "None stands out", ())


def _broke_ahead(report: Report) -> tuple[str, str] | None:
    """The layer that went nonfinite first where the plan is rehearsed, and how; None where the clip in use spares it."""
    verdict = report.diagnosis.verdict
    if verdict.clipped_at is not None and verdict.verdict in ("stable", "thin-headroom"):
        return None
    for trial in trials(report.run, "rehearsal"):
        seen = trial.header.first_nonfinite
        if of_the_plan(trial) and seen is not None and seen.layer and seen.went_first not in ("input", "loss"):
            return seen.layer, f"in its rehearsal {visible(named(seen))} is nonfinite first"
    return None


def _sample(report: Report) -> Finding | None:
    """The sample to suspect: one that makes something nonfinite before one that only stands out."""
    samples = [one for one in report.diagnosis.findings if one.code == OUTLIER]
    return next((one for one in samples if one.value is None), next(iter(samples), None))


def accused(report: Report) -> tuple[str, str, str] | None:
    """The layer to look at first, what was seen in it, and what to do; None where there is none."""
    for one in report.diagnosis.layers:
        if one.level != "low":
            return one.name, one.message, one.advice
    for finding in report.diagnosis.findings:
        if finding.code == FIRST and _grown_before(report.run, finding.first_step):
            continue
        if finding.code in ACCUSING and finding.severity != "info" and finding.subject is not None:
            return finding.subject, finding.message, finding.advice
    return None


def _grown_before(run: Run, step: int | None) -> bool:
    """Whether the gradient had grown before a step: then what breaks first there ends an explosion, and did not begin it."""
    row = int(np.searchsorted(run.step, step)) if step is not None else 0
    growth = growth_before(run, row)
    return growth is not None and growth > GREW


def without_subject(message: str, subject: str | None) -> str:
    """A message without the layer it begins with, for where the layer is named already."""
    name = ROOT if subject == "" else subject
    for prefix in (f"{name}: ", f"{name} ") if name else ():
        if message.startswith(prefix):
            return message[len(prefix) :][:1].upper() + message[len(prefix) + 1 :]
    return message
