"""One analysis under way: trials are planned from the files, played, and read back, until nothing more is asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gradscope.capture.loop import StepSeen
from gradscope.capture.recorder import Recorder
from gradscope.capture.samples import run_samples
from gradscope.capture.snapshot import CannotSnapshotError, Snapshot, take
from gradscope.capture.sweep import run_sweep
from gradscope.capture.trials import change_of, run_trial
from gradscope.diagnosis.series import count
from gradscope.runs.files import TRIALS_DIR
from gradscope.runs.reader import load_run
from gradscope.runs.run import Run
from gradscope.runs.schema import Ending, Header, Trial
from gradscope.runs.writer import write_header

if TYPE_CHECKING:
    from gradscope.workload.model import Workload

LOOK_SHARE = 0.1
"""Of the time left, what a look into one batch may take."""

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


class Silent:
    """Tells nobody."""

    def read(self, workload: Workload) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def stage(self, name: str, steps: int) -> None:
        """Nothing."""

    def step(self, seen: StepSeen) -> None:
        """Nothing."""


class Reopened:
    """A run that is recorded already, to which trials are added."""

    def __init__(self, run: Run, workload: Workload) -> None:
        self.directory, self.header = run.path, run.header
        self._workload = workload

    def update_header(self, **changes: Any) -> None:
        """Replace fields of the header, on disk at once."""
        self.header = replace(self.header, **changes)
        write_header(self.directory, self.header)

    def trial(self, trial: Trial) -> Recorder:
        """A recorder of a child run."""
        header: Header = replace(self.header, trial=trial, ending=Ending(), first_nonfinite=None, overhead_s=None)
        directory = self.directory / TRIALS_DIR / trial.name
        return Recorder(self._workload.model, self._workload.optimizers, header=header, directory=directory)


@dataclass
class Session:
    """One analysis under way."""

    workload: Workload
    recorder: Recorder | Reopened
    watcher: Watcher
    ends_at: float
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    step_s: float = 0.0

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return self.recorder.directory

    def note(self, text: str) -> None:
        """A sentence that every report of this run will show, once."""
        if text in self.recorder.header.notes:
            return
        self.recorder.update_header(notes=(*self.recorder.header.notes, text))
        self.watcher.say(text)

    def allowed(self, share: float) -> float:
        """Training steps that fit into this share of the time left."""
        left = max(0.0, self.ends_at - time.monotonic())
        return left * share / self.step_s if self.step_s > 0 else float("inf")


def snapshot(session: Session, moment: str) -> None:
    """Keep the training's state of this moment; where that cannot be done, nothing is rehearsed, and the run says why."""
    try:
        session.snapshots[moment] = take(session.workload)
    except CannotSnapshotError as error:
        session.snapshots.clear()
        session.note(f"not rehearsed: {error}")


@contextmanager
def kept_on_interrupt(session: Session) -> Iterator[None]:
    """Ctrl-C, or a state that cannot be put back, ends the trials and keeps what is done."""
    try:
        yield
    except KeyboardInterrupt:
        session.note("interrupted: the trials that were not finished are left out")
    except CannotSnapshotError as error:
        session.note(f"trials stopped: {error}")


def stages(session: Session, name: str, planner: Planner, share: float) -> None:
    """Run what the planner asks for, read everything back, ask again."""
    known: Mapping[str, Run] = {}
    while True:
        run = load_run(session.directory, known)
        known = run.trials
        session.step_s = float(np.percentile(np.diff(run.elapsed_s), 50)) if len(run.step) > 1 else 0.0
        trials = [t for t in planner(run, session.allowed(share)) if t.name not in run.trials]
        _note_left_out(session, name, planner(run, float("inf")), trials, share)
        if not trials:
            return
        steps = sum(len(trial.indexes) for trial in trials)
        names = ", ".join(trial.name for trial in trials)
        session.watcher.say(f"{name}: {names}; {count(steps, 'step')}, about {steps * session.step_s:.0f} s")
        for trial in trials:
            session.watcher.stage(f"{name} {trial.name}", len(trial.indexes))
            _play(session, trial)


def _note_left_out(session: Session, name: str, wanted: Iterable[Trial], kept: Iterable[Trial], share: float) -> None:
    """Say what the budget has no room for, and by how much a larger one has; `share` of it is this stage's."""
    lengths = {trial.name: len(trial.indexes) for trial in kept}
    left_out, shorter, missing = [], [], 0
    for trial in wanted:
        missing += max(0, len(trial.indexes) - lengths.get(trial.name, 0))
        if trial.name not in lengths:
            left_out.append(trial.name)
        elif lengths[trial.name] < len(trial.indexes):
            shorter.append(f"{trial.name} to {lengths[trial.name]} of {len(trial.indexes)} steps")
    parts = [f"left out {', '.join(left_out)}"] * bool(left_out) + [f"shortened {', '.join(shorter)}"] * bool(shorter)
    if parts:
        more = math.ceil(missing * session.step_s / share / 60)
        session.note(f"{name}, for the budget: {'; '.join(parts)}. A --budget larger by {more}m has room for them.")


def _play(session: Session, trial: Trial) -> None:
    where = (session.workload, session.snapshots[trial.start], trial, session.recorder)
    if trial.kind == "sweep":
        run_sweep(*where, on_step=session.watcher.step, deadline=session.ends_at)
        return
    if trial.kind == "samples":
        now = time.monotonic()
        deadline = now + LOOK_SHARE * (session.ends_at - now)
        if run_samples(*where, on_step=session.watcher.step, deadline=deadline).how == "interrupted":
            session.note(f"The batch of step {trial.indexes[0]} was not looked at sample by sample, for the budget.")
        return
    run_trial(*where, change=change_of(trial), on_step=session.watcher.step, deadline=session.ends_at)
