"""The conductor of `analyze`: read, record a window, rehearse, verify, report. Every conclusion is read back from disk."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gradscope.analysis.session import Reopened, Session, Silent, Watcher, kept_on_interrupt, snapshot, stages
from gradscope.capture.along_time import AlongTimeProbe
from gradscope.capture.data import DataProbe
from gradscope.capture.gains import GainProbe
from gradscope.capture.header import header_for
from gradscope.capture.labels import LabelProbe
from gradscope.capture.loop import run_steps
from gradscope.capture.memory import kept_memory
from gradscope.capture.recorder import Recorder
from gradscope.capture.updates import UpdateProbe
from gradscope.diagnosis.outliers import next_looks
from gradscope.diagnosis.plan import next_rehearsals
from gradscope.diagnosis.verdict import judge
from gradscope.errors import GradscopeError, UsageError
from gradscope.recommendation.plan import next_candidates, percentile_candidates
from gradscope.recommendation.remedies import next_remedies
from gradscope.report.build import build_report
from gradscope.runs.reader import load_run
from gradscope.runs.run import Run
from gradscope.runs.schema import Ending
from gradscope.runs.writer import write_header
from gradscope.workload import Overrides, read_workload
from gradscope.workload.on_policy import watching_draws

if TYPE_CHECKING:
    from gradscope.report.model import Report

__all__ = ["analyze", "verify_run"]

PROBED = (0, 1, 2, 5)
PROBED_EVERY = 10
REHEARSAL_SHARE, VERIFICATION_SHARE = 0.5, 0.6
"""Of the time left, what rehearsals and then the proving of thresholds may take; remedies have the rest."""


def analyze(
    target: str,
    *,
    steps: int = 50,
    seed: int | None = 0,
    rehearse: bool = True,
    verify: bool = True,
    budget: float = 300.0,
    seeds: int = 1,
    overrides: Overrides | None = None,
    watcher: Watcher | None = None,
) -> Report:
    """Record `steps` training steps of the workload that `target` names, and report.

    `rehearse`: also rehearse the rest of the plan, to foresee. `verify`: also prove thresholds on rehearsals. Both together
    take at most about `budget` seconds. `seed` None: the spec's own. `seeds`: repeat with so many seeds from `seed` on; the
    report is the first one's and says how many agree. Every run is kept in `.gradscope/runs`, also when something fails.

    Raises:
        SpecError: the target cannot be read into a workload.
        UserCodeError: the user's code raised; what was recorded until then is kept.
        UsageError: the run cannot be written.
    """
    asked = overrides or Overrides()
    with kept_memory():
        directories = [
            _analyze_once(
                target, steps, rehearse, verify, budget / seeds, replace(asked, seed=one), watcher or Silent()
            )
            for one in ([seed] if seeds == 1 else range(seed or 0, (seed or 0) + seeds))
        ]
    first = load_run(directories[0])
    if seeds > 1:
        verdicts = Counter(judge(load_run(directory)).verdict for directory in directories)
        write_header(first.path, replace(first.header, seeds=dict(verdicts.most_common())))
    return build_report(load_run(directories[0]))


def _analyze_once(
    target: str, steps: int, rehearse: bool, verify: bool, budget: float, overrides: Overrides, watcher: Watcher
) -> Path:
    """One seed's run; its directory."""
    workload = read_workload(target, overrides=overrides)
    watcher.read(workload)
    settings = {
        "target": _absolute(target),
        "steps": steps,
        "overrides": {k: _plain(v) for k, v in vars(overrides).items()},
    }
    header = header_for(workload, sys.argv, settings=settings)
    recorder = Recorder(workload.model, workload.optimizers, name=workload.name, header=header)
    session = Session(workload, recorder, watcher, time.monotonic() + budget)
    if rehearse or verify:
        snapshot(session, "initial")
    with watching_draws(workload) as called:
        ending = _record(session, recorder, steps)
    if called:
        recorder.update_header(on_policy=True)
    if ending.how != "interrupted":
        _try(session, rehearse, verify)
    return session.directory


def verify_run(
    run: Run, *, percentiles: tuple[float, ...] = (95.0,), budget: float = 300.0, watcher: Watcher | None = None
) -> Run:
    """Prove the percentiles of an analyzed run as thresholds, on trials of its own spec that are added to its directory.

    Raises:
        UsageError: the run was not made by `analyze`, so that its training cannot be repeated.
        SpecError: its spec can no longer be read.
    """
    settings = run.header.settings
    if "target" not in settings:
        raise UsageError(
            f"run {run.id} was recorded by {run.header.recorded_by}, which keeps no spec to train again; "
            "describe the training in a spec file (gradscope init) and run: gradscope analyze model.py"
        )
    workload = read_workload(settings["target"], overrides=Overrides(**settings["overrides"]))
    session = Session(workload, Reopened(run, workload), watcher or Silent(), time.monotonic() + budget)
    snapshot(session, "initial")
    if session.snapshots:
        with kept_memory(), kept_on_interrupt(session):
            stages(session, "verification", next_candidates, VERIFICATION_SHARE)
            stages(session, "percentiles", lambda run, allowed: percentile_candidates(run, percentiles, allowed), 1.0)
    return load_run(run.path)


def _record(session: Session, recorder: Recorder, steps: int) -> Ending:
    """The instrumented window: every step recorded, layers probed on some."""
    workload = session.workload
    probes = (
        GainProbe(workload.model),
        UpdateProbe(workload.model, workload.optimizers),
        AlongTimeProbe(workload.model),
        DataProbe(workload),
        LabelProbe(workload),
    )
    session.watcher.stage("window", steps)
    ending = Ending("failed", 0)
    try:
        ending = run_steps(
            workload,
            recorder,
            range(steps),
            probes=probes,
            probe_steps={*PROBED, *range(PROBED_EVERY, steps, PROBED_EVERY)},
            max_norm=workload.plan.max_norm,
            on_step=session.watcher.step,
        )
    except GradscopeError as error:
        ending = Ending("failed", recorder.step, str(error))
        raise
    finally:
        recorder.update_header(unmeasured={k: v for probe in probes for k, v in probe.unmeasured.items()})
        recorder.close(ending)
    return ending


def _try(session: Session, rehearse: bool, verify: bool) -> None:
    """Rehearsals, then candidates; Ctrl-C keeps what is done."""
    if not session.snapshots:
        return
    snapshot(session, "window")
    if not session.snapshots:
        return
    with kept_on_interrupt(session):
        if rehearse:
            stages(session, "rehearsal", next_rehearsals, REHEARSAL_SHARE)
            stages(session, "batch", next_looks, 1.0)
        if verify:
            stages(session, "verification", next_candidates, VERIFICATION_SHARE)
            stages(session, "remedy", next_remedies, 1.0)


def _absolute(target: str) -> str:
    """The target with its file's path made absolute, so that it is found from any folder."""
    path, suffix, name = target.partition(".py")
    return f"{Path(path + suffix).resolve()}{name}" if suffix else target


def _plain(value: object) -> object:
    return str(value.resolve()) if isinstance(value, Path) else value
