"""Reads a run directory back. A torn tail is read up to its last whole row, and said so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gradscope.errors import RunFormatError, RunNotFoundError
from gradscope.runs import files, tables
from gradscope.runs.ranks import read_ranks
from gradscope.runs.run import ProbeTable, Run
from gradscope.runs.schema import SCHEMA_VERSION, Header, from_json
from gradscope.runs.stream import ForeignStreamError, Rows, StoredMatrix, read_stream

IN_MEMORY = 1 << 23
"""A file of so many bytes is read whole; of a larger one the wide columns stay on disk, and the file open."""


def load_run(path: str | Path, known: Mapping[str, Run] | None = None) -> Run:
    """Read the run directory `path` with its trials; those of `known` that had ended are taken as they are.

    Raises:
        RunNotFoundError: there is no such directory.
        RunFormatError: it is not a run, is damaged, or was written by a newer gradscope.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise RunNotFoundError(f"no run directory at {directory}; list the recorded runs with: gradscope runs")
    header = read_header(directory)
    parameters = len(header.parameters)
    steps, matrices, torn = _read(
        directory / files.STEPS_FILE, tables.steps_schema(parameters), ("grad_norm", "grad_max")
    )
    probes, _, probes_torn = _read(directory / files.PROBES_FILE, tables.PROBES)
    notes = torn + probes_torn
    children = sorted((directory / files.TRIALS_DIR).glob(f"*/{files.HEADER_FILE}"))
    trials = {}
    for child in children:
        before = known.get(child.parent.name) if known else None
        try:
            trials[child.parent.name] = before if before and before.header.ending.known else load_run(child.parent)
        except RunFormatError as error:
            notes.append(f"a trial was left out: {error}")
    return _run(directory, header, steps, matrices, probes, trials, tuple(notes))


def read_header(directory: Path) -> Header:
    """Read `run.json` alone.

    Raises:
        RunFormatError: as for `load_run`.
    """
    path = directory / files.HEADER_FILE
    if not path.is_file():
        raise RunFormatError(f"{directory} is not a gradscope run: it has no {files.HEADER_FILE}")
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


def _read(path: Path, schema: pa.Schema, wide: tuple[str, ...] = ()) -> tuple[pa.Table, list[Rows], list[str]]:
    """The narrow columns of a stream, its wide ones as matrices, and a note when its tail is torn."""
    try:
        file = pa.OSFile(str(path), "rb")
        found = read_stream(file, schema, wide)
    except FileNotFoundError:
        raise RunFormatError(f"{path}: missing; the run directory is damaged") from None
    except ForeignStreamError:
        raise RunFormatError(
            f"{path}: its columns are not those that run.json tells of; record the run again"
        ) from None
    rows, size = found.table.num_rows, file.size()
    if found.torn and not rows and size > 64 and not _is_stream(path):
        raise RunFormatError(f"{path}: not an Arrow stream ({found.torn})") from found.torn
    notes = [f"{path.name} ends in a torn row: read up to row {rows}"] if found.torn else []
    stored = [StoredMatrix(file, found.pieces[name], found.counts, schema.field(name).type.list_size) for name in wide]
    if size > IN_MEMORY:
        return found.table, [*stored], notes
    matrices: list[Rows] = [np.asarray(matrix) for matrix in stored]
    file.close()
    return found.table, matrices, notes


def _is_stream(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\xff\xff\xff\xff"


def _run(
    directory: Path,
    header: Header,
    steps: pa.Table,
    matrices: list[Rows],
    probes: pa.Table,
    trials: dict[str, Run],
    notes: tuple[str, ...],
) -> Run:
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
        **{name: _numbers(steps[name]) for name in scalars},
        lr=_lrs(steps["lr"]),
        skipped=np.asarray(steps["skipped"].to_pylist(), dtype=bool),
        norms=matrices[0],
        peaks=matrices[1],
        probes=table,
        trials=trials,
        ranks=read_ranks(directory),
        notes=notes,
    )


def _numbers(column: pa.ChunkedArray) -> Any:
    """A numeric column as an array. `to_numpy` would load pandas."""
    parts = [np.from_dlpack(chunk) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.empty(0, column.type.to_pandas_dtype())


def _lrs(column: pa.ChunkedArray) -> Any:
    """Learning rates as (T, G); a group that came later is NaN before. `flatten` would load pyarrow.compute."""
    offsets = [np.from_dlpack(chunk.offsets) for chunk in column.chunks]
    held = [
        np.from_dlpack(chunk.values)[places[0] : places[-1]]
        for chunk, places in zip(column.chunks, offsets, strict=True)
    ]
    counts = np.concatenate([np.empty(0, int), *map(np.diff, offsets)])
    rates = np.full((len(column), int(counts.max(initial=0))), np.nan)
    rates[np.arange(rates.shape[1]) < counts[:, None]] = np.concatenate([np.empty(0), *held])
    return rates
