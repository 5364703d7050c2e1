"""What was measured, and where: the plain facts of a run as (term, value) pairs."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import numpy as np

from gradscope.diagnosis.offenders import named as first_named
from gradscope.diagnosis.ranks import first_ranks, named
from gradscope.report.model import Report
from gradscope.report.text import number, plural, share, visible
from gradscope.runs.run import Run
from gradscope.runs.schema import Offender

Facts = list[tuple[str, str]]
MEASURED_AT = {"pre_clip": "before clipping", "post_clip": "after clipping (post-clip)"}


def measured(report: Report) -> Facts:
    """What the run recorded."""
    run, header = report.run, report.run.header
    elements = sum(math.prod(p.shape) for p in header.parameters)
    trainable = sum(math.prod(p.shape) for p in header.parameters if p.trainable)
    plan = f"{header.plan.total_steps:,}" if header.plan.total_steps else "an unknown number"
    facts = [
        ("Steps", f"{plural(len(run.step), 'step')} of {plan} planned" + _every(header.every)),
        ("Norms read", f"{MEASURED_AT[header.measured_at]}, gradients {header.gradients_are}"),
        ("Parameters", f"{plural(elements, 'element')} in {plural(len(header.parameters), 'tensor')}, "
                       f"{plural(len(run.layers), 'layer')}; {share(trainable / elements if elements else None)} trainable"),
        ("Optimizer", _optimizer(report)),
        ("Clipping today", number(in_use(run)) if in_use(run) else "none known"),
        ("Precision", _precision(run)),
        ("Ended", _ending(report)),
    ]  # fmt: skip
    if header.world_size > 1:
        facts.append(("Ranks", _ranks(run)))
    if run.skipped.any():
        facts.append(("Skipped", plural(int(run.skipped.sum()), "step")))
    if header.first_nonfinite:
        facts.append(("First nonfinite", _first_nonfinite(run, header.first_nonfinite)))
    return facts


def _precision(run: Run) -> str:
    """What `analyze` trained in; of a script only what its parameters and its gradient scaler tell."""
    if run.header.recorded_by == "analyze":
        return run.header.plan.precision
    kinds = " and ".join(sorted({p.dtype for p in run.header.parameters}))
    scaled = ", with a gradient scaler" if np.isfinite(run.loss_scale).any() else ""
    return f"{kinds} parameters{scaled}; autocast is not seen"


def _ranks(run: Run) -> str:
    whole = f"{run.header.world_size}; norms are of the whole gradient, over all ranks; rank 0 wrote them"
    missing = run.header.world_size - 1 - len(run.ranks)
    return whole + (f"; the losses of {plural(missing, 'other rank')} are not in the run" if missing > 0 else "")


def _first_nonfinite(run: Run, offender: Offender) -> str:
    ranks = first_ranks(run)
    if ranks and 0 not in ranks.ranks and ranks.step <= offender.step:
        return f"loss of {named(ranks.ranks)} at step {ranks.step}"
    return f"{visible(first_named(offender))}, at step {offender.step}"


def _every(every: int) -> str:
    return f", 1 of {every} recorded" if every > 1 else ""


def _optimizer(report: Report) -> str:
    optimizer = report.run.header.optimizer
    if optimizer is None:
        return "unknown"
    rates = ", ".join(number(rate) for rate in dict.fromkeys(group.lr for group in optimizer.groups))
    return f"{visible(optimizer.type)}, learning rate {rates} at the first step" if rates else visible(optimizer.type)


def _ending(report: Report) -> str:
    ending = report.run.header.ending
    said = ending.how if ending.known else "not closed: killed, or still recording"
    return f"{said}{f': {visible(ending.message)}' if ending.message else ''}"


def environment(report: Report) -> Facts:
    """Where, how and with what the run was made."""
    header = report.run.header
    last = report.run.elapsed_s[-1] if len(report.run.elapsed_s) else math.nan
    paid = "unknown" if header.overhead_s is None else f"{number(header.overhead_s)} s"
    if header.overhead_s is not None and last > 0:
        paid += f" of {number(float(last))} s ({share(header.overhead_s / float(last))})"
    return [
        ("Command", visible(shlex.join((*(Path(part).name for part in header.command[:1]), *header.command[1:])))),
        ("Source", visible(header.source)),
        ("Recorded", f"{header.created}, by {header.recorded_by}"),
        ("Seed", "not set" if header.seed is None else str(header.seed)),
        ("Processes", str(header.world_size)),
        ("Reading the gradients", paid),
        ("Run", visible(str(report.run.id))),
        ("Run format", f"schema {header.schema_version}"),
        ("Versions", ", ".join(f"{visible(name)} {visible(version)}" for name, version in header.versions.items())),
    ]


def in_use(run: Run) -> float | None:
    """The clipping threshold in force: the recorded one, else the planned one."""
    recorded = run.max_norm[np.isfinite(run.max_norm) & (run.max_norm > 0)]
    return float(np.median(recorded)) if len(recorded) else run.header.plan.max_norm
