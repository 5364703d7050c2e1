"""Reads a run directory back. A torn tail is read up to its last whole row, and said so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gradscope.errors import RunFormatError, RunNotFoundError
from gradscope.runs import tables
from gradscope.runs.run import ProbeTable, Run
from gradscope.runs.schema import SCHEMA_VERSION, Header, from_json


def load_run(path: str | Path) -> Run:
    """Read the run directory `path` with its trials.

    Raises:
        RunNotFoundError: there is no such directory.
        RunFormatError: it is not a run, is damaged, or was written by a newer gradscope.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise RunNotFoundError(f"no run directory at {directory}; list the recorded runs with: gradscope runs")
    header = read_header(directory)
    parameters = len(header.parameters)
    steps, torn = _read_stream(directory / tables.STEPS_FILE, tables.steps_schema(parameters))
    probes, probes_torn = _read_stream(directory / tables.PROBES_FILE, tables.PROBES)
    notes = [note for note in (torn, probes_torn) if note]
    children = sorted((directory / tables.TRIALS_DIR).glob(f"*/{tables.HEADER_FILE}"))
    trials = {}
    for child in children:
        try:
            trials[child.parent.name] = load_run(child.parent)
        except RunFormatError as error:
            notes.append(f"a trial was left out: {error}")
    return _run(directory, header, steps, probes, trials, tuple(notes))


def read_header(directory: Path) -> Header:
    """Read `run.json` alone.

    Raises:
        RunFormatError: as for `load_run`.
    """
    path = directory / tables.HEADER_FILE
    if not path.is_file():
        raise RunFormatError(f"{directory} is not a gradscope run: it has no {tables.HEADER_FILE}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["schema_version"]
        if version > SCHEMA_VERSION:
            raise RunFormatError(
                f"{path}: written by a newer gradscope (schema {version}, this one reads up to {SCHEMA_VERSION}); "
                "upgrade gradscope to open it"
            )
        return from_json(Header, data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunFormatError(f"{path}: not a readable run header ({error}); record the run again") from error


def _read_stream(path: Path, schema: pa.Schema) -> tuple[pa.Table, str | None]:
    """Every whole batch of an Arrow stream, and a note when its tail is torn."""
    batches: list[pa.RecordBatch] = []
    try:
        with pa.OSFile(str(path), "rb") as file:
            if file.size() == 0:
                return schema.empty_table(), None
            reader = pa.ipc.open_stream(file)
            found = reader.schema
            if not found.equals(schema):
                raise RunFormatError(f"{path}: its columns are not those that run.json tells of; record the run again")
            for batch in reader:
                batch.validate(full=True)
                batches.append(batch)
    except FileNotFoundError:
        raise RunFormatError(f"{path}: missing; the run directory is damaged") from None
    except (pa.ArrowException, OSError) as error:
        if not batches and path.stat().st_size > 64 and not _is_stream(path):
            raise RunFormatError(f"{path}: not an Arrow stream ({error})") from error
        whole = sum(batch.num_rows for batch in batches)
        return pa.Table.from_batches(batches, schema), f"{path.name} ends in a torn row: read up to row {whole}"
    return pa.Table.from_batches(batches, schema), None


def _is_stream(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\xff\xff\xff\xff"


def _run(
    directory: Path, header: Header, steps: pa.Table, probes: pa.Table, trials: dict[str, Run], notes: tuple[str, ...]
) -> Run:
    def column(name: str) -> Any:
        return _numbers(steps[name])

    def matrix(name: str) -> Any:
        parts = [chunk.values for chunk in steps[name].chunks]
        return _numbers(pa.chunked_array(parts, pa.float32())).reshape(steps.num_rows, len(header.parameters))

    table = ProbeTable(
        _numbers(probes["step"]),
        np.asarray(probes["probe"].to_pylist(), dtype=object),
        np.asarray(probes["subject"].to_pylist(), dtype=object),
        _numbers(probes["index"]),
        _numbers(probes["value"]),
    )
    scalars = ("step", "elapsed_s", "loss", "global_norm", "loss_scale", "max_norm", "nonfinite", "micro_steps")
    return Run(
        path=directory,
        header=header,
        **{name: column(name) for name in scalars},
        lr=_lrs(steps["lr"]),
        skipped=np.asarray(steps["skipped"].to_pylist(), dtype=bool),
        grad_norm=matrix("grad_norm"),
        grad_max=matrix("grad_max"),
        probes=table,
        trials=trials,
        notes=notes,
    )


def _numbers(column: pa.ChunkedArray) -> Any:
    """A numeric column as an array. `to_numpy` would load pandas."""
    parts = [np.from_dlpack(chunk) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.empty(0, column.type.to_pandas_dtype())


def _lrs(column: pa.ChunkedArray) -> Any:
    """Learning rates as (T, G); a group that came later is NaN before."""
    counts = np.concatenate([np.empty(0, int), *(np.from_dlpack(chunk.value_lengths()) for chunk in column.chunks)])
    rates = np.full((len(column), int(counts.max(initial=0))), np.nan)
    held = pa.chunked_array([chunk.flatten() for chunk in column.chunks], pa.float64())
    rates[np.arange(rates.shape[1]) < counts[:, None]] = _numbers(held)
    return rates
