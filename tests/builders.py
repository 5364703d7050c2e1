"""Runs made by hand, without torch: for rules, recommendations and renderers."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.runs.ranks import rank_file, record
from gradscope.runs.reader import load_run
from gradscope.runs.run import Run
from gradscope.runs.schema import Ending, Group, Header, Optimizer, Parameter, Plan
from gradscope.runs.writer import RunWriter


def make_header(layers: Sequence[str] = ("fc1", "fc2", "fc3"), **changes: Any) -> Header:
    """A header of so many Linear layers with one weight each, trained by SGD at 0.1."""
    parameters = tuple(
        Parameter(f"{layer}.weight", layer, "Linear", (4, 4), "float32", order) for order, layer in enumerate(layers)
    )
    header = Header(
        name="handmade",
        created="2026-11-23T00:00:00+00:00",
        source="handmade.py",
        command=("gradscope", "analyze", "handmade.py"),
        parameters=parameters,
        optimizer=Optimizer("SGD", (Group(0.1, tuple(range(len(parameters)))),)),
        plan=Plan(total_steps=1000),
        versions={"gradscope": "0", "torch": "2.13.0"},
    )
    return dataclasses.replace(header, **changes)


def make_run(
    folder: Path,
    norms: Sequence[float] | None = None,
    *,
    grad_norm: Any = None,
    loss: Sequence[float] | None = None,
    probes: Sequence[tuple[Any, ...]] = (),
    trials: Mapping[str, tuple[Any, ...]] | None = None,
    trial_probes: Sequence[tuple[Any, ...]] = (),
    ending: Ending | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    ranks: Mapping[int, Sequence[float | None]] | None = None,
    **header: Any,
) -> Run:
    """Write a run and read it back.

    `norms` are the global norms, spread evenly over the layers unless `grad_norm` (T × P) is given. `trials` maps a name
    to (trial, losses, global norms), and an ending where it is not a plain one. `columns` sets further columns of the rows
    (`skipped`, `max_norm`, `lr`, …), `probes` are the arguments of `RunWriter.probe`, in order; `trial_probes` those of
    every trial. `ranks` are the losses of ranks beside 0, from step 0 on; None where one wrote nothing.
    """
    head = make_header(**header)
    count = len(head.parameters)
    if grad_norm is None:
        grad_norm = np.repeat(
            np.asarray([] if norms is None else norms, float)[:, None] / np.sqrt(count), count, axis=1
        )
    matrix = np.asarray(grad_norm, float).reshape(-1, count)
    totals = np.sqrt(np.nansum(matrix**2, axis=1)) if norms is None else np.asarray(norms, float)
    totals = np.where(np.isnan(matrix).any(axis=1) & (norms is None), np.nan, totals)
    writer = RunWriter(folder / f"20261123T000000Z-handmade-{secrets.token_hex(6)}", head)
    _rows(writer, totals, loss if loss is not None else np.ones(len(totals)), matrix, columns or {})
    for probe in probes:
        writer.probe(*probe)
    for trial, losses, trial_norms, *end in (trials or {}).values():
        child = writer.trial(trial)
        _rows(child, np.asarray(trial_norms, float), losses, np.ones((len(losses), count)), {})
        for probe in trial_probes:
            child.probe(*probe)
        child.close(*end)
    writer.close(ending)
    for rank, losses in (ranks or {}).items():
        path = rank_file(writer.directory, rank)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"".join(record(i, value) for i, value in enumerate(losses) if value is not None))
    return load_run(writer.directory)


def _rows(writer: RunWriter, norms: Any, loss: Any, matrix: Any, columns: Mapping[str, Sequence[Any]]) -> None:
    for i, (norm, value) in enumerate(zip(norms, loss, strict=True)):
        row: dict[str, Any] = {"lr": [0.1], "nonfinite": int(not np.isfinite(matrix[i]).all())}
        row |= {name: values[i] for name, values in columns.items()}
        writer.append(
            **{"step": i, "loss": float(value), "global_norm": float(norm)} | row,
            grad_norm=matrix[i],
            grad_max=matrix[i] / 2,
        )
