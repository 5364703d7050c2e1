"""The conductor of `analyze`: read, record a window, rehearse, verify, report. Every conclusion is read back from disk."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gradscope.capture.along_time import AlongTimeProbe
from gradscope.capture.gains import GainProbe
from gradscope.capture.header import header_for
from gradscope.capture.loop import StepSeen, run_steps
from gradscope.capture.recorder import Recorder
from gradscope.capture.snapshot import CannotSnapshotError, Snapshot, take
from gradscope.capture.sweep import run_sweep
from gradscope.capture.trials import UNCHANGED, both, longer_warmup, run_trial, scaled_layer
from gradscope.capture.updates import UpdateProbe
from gradscope.diagnosis.plan import next_rehearsals
from gradscope.diagnosis.verdict import judge
from gradscope.errors import GradscopeError
from gradscope.recommendation.plan import next_candidates
from gradscope.recommendation.remedies import next_remedies
from gradscope.report.build import build_report
from gradscope.runs.reader import load_run
from gradscope.runs.run import Run
from gradscope.runs.schema import Ending, Trial
from gradscope.runs.writer import write_header
from gradscope.workload import Overrides, read_workload

if TYPE_CHECKING:
    from gradscope.report.model import Report
    from gradscope.workload.model import Workload

PROBED = (0, 1, 2, 5)
PROBED_EVERY = 10
REHEARSAL_SHARE, VERIFICATION_SHARE = 0.5, 0.6
"""Of the time left, what rehearsals and then the proving of thresholds may take; remedies have the rest."""

Planner = Callable[[Run, float], tuple[Trial, ...]]


class Watcher(Protocol):
    """Who is told of progress."""

    def read(self, workload: Workload) -> None:
        """The spec was read."""

    def say(self, text: str) -> None:
        """A line to show."""

    def stage(self, name: str, steps: int) -> None:
        """A stage of so many steps begins."""

    def step(self, seen: StepSeen) -> None:
        """One optimizer step was taken."""


class _Silent:
    def read(self, workload: Workload) -> None: ...
    def say(self, text: str) -> None: ...
    def stage(self, name: str, steps: int) -> None: ...
    def step(self, seen: StepSeen) -> None: ...


@dataclass
class _Session:
    """One analysis under way."""

    workload: Workload
    recorder: Recorder
    watcher: Watcher
    ends_at: float
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    step_s: float = 0.0

    @property
    def directory(self) -> Path:
        return self.recorder.directory

    def note(self, text: str) -> None:
        """A sentence that every report of this run will show."""
        self.recorder.update_header(notes=(*self.recorder.header.notes, text))
        self.watcher.say(text)

    def allowed(self, share: float) -> float:
        """Training steps that fit into this share of the time left."""
        left = max(0.0, self.ends_at - time.monotonic())
        return left * share / self.step_s if self.step_s > 0 else float("inf")


def analyze(
    target: str,
    *,
    steps: int = 50,
    seed: int = 0,
    rehearse: bool = True,
    verify: bool = True,
    budget: float = 300.0,
    seeds: int = 1,
    overrides: Overrides | None = None,
    watcher: Watcher | None = None,
) -> Report:
    """Record `steps` training steps of the workload that `target` names, and report.

    `rehearse`: also rehearse the rest of the plan, to foresee. `verify`: also prove thresholds on rehearsals. Both together
    take at most about `budget` seconds. `seeds`: repeat with so many seeds from `seed` on; the report is the first one's and
    says how many agree. Every run is kept in `.gradscope/runs`, also when something fails.

    Raises:
        SpecError: the target cannot be read into a workload.
        UserCodeError: the user's code raised; what was recorded until then is kept.
        UsageError: the run cannot be written.
    """
    asked = overrides or Overrides()
    directories = [
        _analyze_once(target, steps, rehearse, verify, budget / seeds, replace(asked, seed=one), watcher or _Silent())
        for one in range(seed, seed + seeds)
    ]
    first = load_run(directories[0])
    if seeds > 1:
        verdicts = Counter(judge(load_run(directory)).verdict for directory in directories)
        agree = ", ".join(f"{word} in {count} of {seeds}" for word, count in verdicts.most_common())
        write_header(first.path, replace(first.header, notes=(*first.header.notes, f"{seeds} seeds: {agree}")))
    return build_report(load_run(directories[0]))


def _analyze_once(
    target: str, steps: int, rehearse: bool, verify: bool, budget: float, overrides: Overrides, watcher: Watcher
) -> Path:
    """One seed's run; its directory."""
    workload = read_workload(target, overrides=overrides)
    watcher.read(workload)
    settings = {"target": target, "steps": steps, "overrides": {k: _plain(v) for k, v in vars(overrides).items()}}
    header = header_for(workload, sys.argv, settings=settings)
    recorder = Recorder(workload.model, workload.optimizers, name=workload.name, header=header)
    session = _Session(workload, recorder, watcher, time.monotonic() + budget)
    _snapshot(session, "initial", rehearse or verify)
    ending = _record(session, steps)
    if ending.how != "interrupted":
        _snapshot(session, "window", bool(session.snapshots))
        _try(session, rehearse, verify)
    return session.directory


def verify_run(run: Run, *, percentiles: tuple[float, ...], budget: float, watcher: Watcher | None = None) -> Run:
    """Prove the thresholds of a recorded run on rehearsals of its own spec; the trials are added to its directory."""
    raise NotImplementedError(run, percentiles, budget, watcher)


def _record(session: _Session, steps: int) -> Ending:
    """The instrumented window: every step recorded, layers probed on some."""
    workload, recorder = session.workload, session.recorder
    probes = (
        GainProbe(workload.model),
        UpdateProbe(workload.model, workload.optimizers),
        AlongTimeProbe(workload.model),
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


def _snapshot(session: _Session, moment: str, wanted: bool) -> None:
    if not wanted:
        return
    try:
        session.snapshots[moment] = take(session.workload)
    except CannotSnapshotError as error:
        session.snapshots.clear()
        session.note(f"not rehearsed: {error}")


def _try(session: _Session, rehearse: bool, verify: bool) -> None:
    """Rehearsals, then candidates; Ctrl-C keeps what is done."""
    if not session.snapshots:
        return
    with _kept_on_interrupt(session):
        if rehearse:
            _stages(session, "rehearsal", next_rehearsals, REHEARSAL_SHARE)
        if verify:
            _stages(session, "verification", next_candidates, VERIFICATION_SHARE)
            _stages(session, "remedy", next_remedies, 1.0)


@contextmanager
def _kept_on_interrupt(session: _Session) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        session.note("interrupted: the trials that were not finished are left out")
    except CannotSnapshotError as error:
        session.note(f"trials stopped: {error}")


def _stages(session: _Session, name: str, planner: Planner, share: float) -> None:
    """Run what the planner asks for, read everything back, ask again."""
    while True:
        run = load_run(session.directory)
        session.step_s = float(np.percentile(np.diff(run.elapsed_s), 50)) if len(run.step) > 1 else 0.0
        trials = [t for t in planner(run, session.allowed(share)) if t.name not in run.trials]
        _note_left_out(session, name, planner(run, float("inf")), trials)
        if not trials:
            return
        steps = sum(len(trial.indexes) for trial in trials)
        names = ", ".join(trial.name for trial in trials)
        session.watcher.say(f"{name}: {names}; {steps} steps, about {steps * session.step_s:.0f} s")
        for trial in trials:
            session.watcher.stage(f"{name} {trial.name}", len(trial.indexes))
            _play(session, trial)


def _note_left_out(session: _Session, name: str, wanted: Iterable[Trial], kept: Iterable[Trial]) -> None:
    lengths = {trial.name: len(trial.indexes) for trial in kept}
    left_out, shorter = [], []
    for trial in wanted:
        if trial.name not in lengths:
            left_out.append(trial.name)
        elif lengths[trial.name] < len(trial.indexes):
            shorter.append(f"{trial.name} to {lengths[trial.name]} of {len(trial.indexes)} steps")
    parts = [f"left out {', '.join(left_out)}"] * bool(left_out) + [f"shortened {', '.join(shorter)}"] * bool(shorter)
    if parts:
        session.note(f"{name}, for the budget: {'; '.join(parts)}. A larger --budget has room for them.")


def _play(session: _Session, trial: Trial) -> None:
    where = (session.workload, session.snapshots[trial.start], trial, session.recorder)
    if trial.kind == "sweep":
        run_sweep(*where, on_step=session.watcher.step, deadline=session.ends_at)
        return
    change = longer_warmup(trial.warm_up) if trial.warm_up else UNCHANGED
    if trial.layer:
        change = both(change, scaled_layer(trial.layer, trial.layer_scale))
    run_trial(*where, change=change, on_step=session.watcher.step, deadline=session.ends_at)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
