"""Makes the report of a run: its diagnosis, its threshold, what was tried, and what none of it can know."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from gradscope.diagnosis.diagnose import diagnose
from gradscope.diagnosis.model import Diagnosis
from gradscope.diagnosis.range_test import training_of
from gradscope.diagnosis.window import unseen_losses
from gradscope.errors import NothingMeasuredError
from gradscope.recommendation import recommend
from gradscope.recommendation.model import Recommendation, Threshold
from gradscope.report.model import Report
from gradscope.report.remedies import remedies
from gradscope.report.rows import trials
from gradscope.report.text import plural
from gradscope.runs.run import Run

FEW_STEPS = 50
RUNGS = tuple(float(percentile) for percentile in range(101))


def build_report(run: Run, *, percentiles: tuple[float, ...] = (95.0,)) -> Report:
    """The report of `run`; without one usable norm it has no recommendation and says so.

    Raises:
        UsageError: a percentile outside 0–100.
    """
    run = training_of(run)
    diagnosis = diagnose(run)
    recommendation, ladder = _recommend(run, percentiles)
    return Report(
        run=run,
        diagnosis=diagnosis,
        recommendation=recommendation,
        caveats=tuple(dict.fromkeys(_caveats(run, diagnosis, recommendation))),
        remedies=remedies(run),
        ladder=ladder,
    )


def _recommend(run: Run, percentiles: tuple[float, ...]) -> tuple[Recommendation | None, tuple[Threshold, ...]]:
    try:
        answer = recommend(run, (*percentiles, *RUNGS), per_layer=True, proven=True)
    except NothingMeasuredError:
        return None, ()
    asked, ladder = answer.thresholds[: len(percentiles)], answer.thresholds[len(percentiles) :]
    return dataclasses.replace(answer, thresholds=asked), ladder


def _caveats(run: Run, diagnosis: Diagnosis, recommendation: Recommendation | None) -> Iterator[str]:
    header = run.header
    yield from run.notes
    if recommendation is None:
        yield "No step has a finite gradient norm above zero: there is nothing to take a threshold from."
    else:
        yield from recommendation.caveats
    if not trials(run, "rehearsal") and diagnosis.verdict.verdict != "exploding":
        yield "Only the recorded steps were looked at; norms in a window cannot foresee a later explosion."
    if len(run.step) < FEW_STEPS:
        yield f"The window is short: {plural(len(run.step), 'step')}, where {FEW_STEPS} are usual."
    if header.plan.total_steps is None:
        constant = ": the learning-rate schedule was taken as constant" if trials(run, "rehearsal") else ""
        yield f"The planned number of steps is unknown{constant}."
    if header.world_size > 1:
        yield f"Rank 0 of {header.world_size} recorded: norms are of the whole gradient, the loss is of its batches alone."
    if header.synthetic_data:
        yield "The data were made up to fit the model's input; gradients on real data differ."
    if header.on_policy:
        yield (
            "The data function calls the model: the first rehearsal draws as the training will, where it is not compressed; "
            "all other trials take the batches drawn for it, which their own model would not have made."
            if trials(run, "rehearsal")
            else "The data function calls the model."
        )
    if header.inferred_loss:
        yield "The loss was inferred from the targets; set `loss` in the spec if it is another one."
    if header.gradients_are == "scaled":
        yield "The gradients carry the loss scale: they were read before it was taken out."
    tried = recommendation is not None and (recommendation.verified or any(c.chosen for c in recommendation.candidates))
    if recommendation is not None and recommendation.max_norm is not None and not tried:
        yield f"The threshold was not tried on a training: {_how_to_try(run)}."
    if header.ending.how == "finished" and header.ending.message:
        yield f"The recording ended at step {header.ending.step}: {header.ending.message}."
    if not header.ending.known:
        yield f"The run was not closed: killed, or still being recorded. {plural(len(run.step), 'step')} reached the disk."
    if header.ending.how in ("interrupted", "failed"):
        why = header.ending.message or (
            "by a keyboard interrupt" if header.ending.how == "interrupted" else "no reason was given"
        )
        yield f"The run ended early ({header.ending.how}): {why.rstrip('.')}."
    if unseen := int(unseen_losses(run).sum()):
        how_many = "any step" if unseen == len(run.step) else plural(unseen, "step")
        yield f"The loss of {how_many} was not seen, so that norms alone are judged there."
    if (run.micro_steps > 1).any():
        yield (
            "Several backward passes made a step: its loss is the mean of what they got. Where the script, or Accelerate, "
            "divides each by their number, or where they were parts of one loss, the true loss is that many times larger."
        )
    if header.unmeasured:
        yield f"{plural(len(header.unmeasured), 'layer')} could not be probed; the table of layers says why."
    yield from (note[:1].upper() + note[1:] for note in header.notes)


def _how_to_try(run: Run) -> str:
    if "target" in run.header.settings:
        return "gradscope recommend --verify proves it"
    return "gradscope analyze tries thresholds, once a spec file describes the training (gradscope init)"
