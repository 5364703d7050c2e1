"""Writes a run as it happens: rows are gathered and written every quarter of a second, so a kill loses no more."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradscope.runs import files, tables
from gradscope.runs.messages import END_OF_STREAM, StepRows
from gradscope.runs.schema import Ending, Header, Trial, to_json

FLUSH_SECONDS = 0.25


class RunWriter:
    """One run directory being written, by one thread but for `gather`; a forked child never writes.

    When the disk fails later on, what was written stays, nothing more is, and `close` says so in the header's notes.
    `gather` is called before rows are written, mostly by the writer's own thread, to append those that wait elsewhere.

    Raises:
        OSError: the directory exists, or cannot be created or written.
    """

    def __init__(self, directory: Path, header: Header) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self.header = header
        self._pid = os.getpid()
        self._started = time.monotonic()
        self.gather: Callable[[], object] = lambda: None
        self._count = 0
        self._failure: str | None = None
        self._lock = threading.Lock()
        self._rows = StepRows(len(header.parameters))
        self._probes: list[tuple[int, str, str, int, float]] = []
        self._steps = self._open(files.STEPS_FILE, self._rows.schema)
        self._probe_file = self._open(files.PROBES_FILE, tables.PROBES)
        self._closed = threading.Event()
        self._flusher = threading.Thread(target=self._flush_often, name="gradscope-writer", daemon=True)
        write_header(directory, header)
        self._flusher.start()

    def _open(self, name: str, schema: pa.Schema) -> Any:
        file = pa.OSFile(str(self.directory / name), "wb")
        file.write(schema.serialize())
        return file

    def append(
        self,
        *,
        step: int,
        loss: float,
        global_norm: float,
        grad_norm: NDArray[Any],
        grad_max: NDArray[Any],
        lr: Sequence[float] = (),
        loss_scale: float = float("nan"),
        max_norm: float = float("nan"),
        skipped: bool = False,
        nonfinite: int = 0,
        micro_steps: int = 1,
        ended: float | None = None,
    ) -> None:
        """Add the row of one optimizer step. `ended`: when, by `time.monotonic()`; by default now.

        `grad_norm` and `grad_max` have one entry a parameter (NaN: no gradient); they are kept as they are until written.
        """
        if os.getpid() != self._pid:
            return
        elapsed = (time.monotonic() if ended is None else ended) - self._started
        scalars = (step, elapsed, loss, tuple(lr), global_norm, loss_scale, max_norm, skipped, nonfinite, micro_steps)
        with self._lock:
            self._rows.add(scalars, grad_norm, grad_max)
            self._count += 1
            if self._rows.full:
                self._write_rows()

    def probe(
        self,
        step: int,
        probe: str,
        subjects: Sequence[str],
        values: Sequence[float],
        index: Sequence[int] | None = None,
    ) -> None:
        """Add one measurement a subject. `index` is the time step of an along-time probe, else 0."""
        if os.getpid() != self._pid:
            return
        places = index if index is not None else [0] * len(subjects)
        with self._lock:
            self._probes += [
                (step, probe, s, int(i), float(v)) for s, i, v in zip(subjects, places, values, strict=True)
            ]

    def update_header(self, **changes: Any) -> None:
        """Replace fields of the header, on disk at once."""
        if os.getpid() != self._pid:
            self.header = dataclasses.replace(self.header, **changes)
            return
        with self._lock:
            self.header = dataclasses.replace(self.header, **changes)
            write_header(self.directory, self.header)

    def trial(self, trial: Trial, **changes: Any) -> RunWriter:
        """A child run in `trials/<name>/`, with this run's header but for `changes`."""
        header = dataclasses.replace(self.header, trial=trial, ending=Ending(), **changes)
        return RunWriter(self.directory / files.TRIALS_DIR / trial.name, header)

    def flush(self) -> None:
        """Write every row so far."""
        if os.getpid() == self._pid:
            self.gather()
            with self._lock:
                self._write_rows()

    def thin(self, every: int) -> None:
        """Keep only the rows whose step is a multiple of `every`. A reader sees the old file or the new one."""
        if os.getpid() == self._pid:
            with self._lock:
                self._write_rows()
                self._guarded(lambda: self._rewrite(every))

    def _rewrite(self, every: int) -> None:
        path = self.directory / files.STEPS_FILE
        scratch = path.with_suffix(".tmp")
        thinned, count = self._open(scratch.name, self._rows.schema), 0
        with pa.OSFile(str(path), "rb") as file:
            for batch in pa.ipc.open_stream(file):
                kept = batch.take(np.flatnonzero(batch["step"].to_numpy() % every == 0))
                thinned.write(kept.serialize())
                count += kept.num_rows
        scratch.replace(path)
        self._steps.close()
        self._steps, self._count = thinned, count

    def close(self, ending: Ending | None = None, **changes: Any) -> None:
        """Write what is left and how the run ended, with further `changes` of the header. A second call does nothing."""
        if self._closed.is_set() or os.getpid() != self._pid:
            return
        self._closed.set()
        self._flusher.join()
        with self._lock:
            self._write_rows()
        for file in (self._steps, self._probe_file):
            self._guarded(partial(file.write, END_OF_STREAM))
            self._guarded(file.close)
        if self._failure:
            changes["notes"] = (*self.header.notes, f"writing stopped early: {self._failure}")
        self._guarded(lambda: self.update_header(ending=ending or Ending("finished", self._count), **changes))

    def _guarded(self, write: Callable[[], object]) -> None:
        """Keep a failing disk from failing the training."""
        try:
            write()
        except OSError as error:
            self._failure = self._failure or error.strerror or str(error)

    def _flush_often(self) -> None:
        while not self._closed.wait(FLUSH_SECONDS):
            with contextlib.suppress(Exception):  # met again, and reported, where the training's own thread gathers
                self.flush()

    def _write_rows(self) -> None:
        if self._rows.count:
            rows = self._rows.take()
            if not self._failure:
                self._guarded(lambda: self._steps.write(rows))
        if self._probes:
            columns = zip(zip(*self._probes, strict=True), tables.PROBES.types, strict=True)
            batch = pa.RecordBatch.from_arrays([pa.array(c, t) for c, t in columns], schema=tables.PROBES)
            self._probes = []
            if not self._failure:
                self._guarded(lambda: self._probe_file.write(batch.serialize()))


def write_header(directory: Path, header: Header) -> None:
    """Write `run.json` so that a reader sees the old one or the new one, never half."""
    path = directory / files.HEADER_FILE
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(to_json(header), indent=1, default=str), encoding="utf-8")
    scratch.replace(path)
