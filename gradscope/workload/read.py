"""Reading a spec file into a workload: the one door of this package."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from gradscope.errors import SpecError
from gradscope.runs.schema import Piece, Plan
from gradscope.workload.calls import call_user
from gradscope.workload.data import Data, no_data, read_data
from gradscope.workload.forward import forward_error, on_a_copy, split_batch
from gradscope.workload.losses import read_training
from gradscope.workload.model import Batches, DataEndedError, Workload
from gradscope.workload.models import LOSS_NAMES, device_of, is_lightning, is_uninitialized, model_piece, read_model
from gradscope.workload.move import to_device
from gradscope.workload.optimizers import OPTIMIZER_NAMES, SCHEDULER_NAMES, Scheduled, read_optimizers, read_schedulers
from gradscope.workload.overrides import Overrides
from gradscope.workload.plan import make_plan, setting
from gradscope.workload.rng import seed_everything
from gradscope.workload.schedule import EveryFew
from gradscope.workload.steps import scalar_problem
from gradscope.workload.synthetic import read_synthetic
from gradscope.workload.target import Source, Spec, find_source, import_source

EPOCH_UNKNOWN = 1000
"""Optimizer steps an epoch is taken to have where the data does not say."""
SETTINGS = ("training_step", "total_steps", "max_norm", "precision", "accumulate", "batch_size")
OPTIONAL = (LOSS_NAMES, OPTIMIZER_NAMES, SCHEDULER_NAMES, *((name,) for name in SETTINGS))
NEARLY = 0.85
"""How alike two names are, by difflib, to be taken for one misspelled."""


def read_workload(target: str, *, overrides: Overrides | None = None) -> Workload:
    """Read `path/model.py[:NAME]` or `pkg.module[:NAME]`, everything seeded before the file is imported.

    The workload's `pieces` say how each part was read and from which line.

    Raises:
        SpecError: the file cannot be read into a workload; the message says what to write instead.
        UserCodeError: the user's own code raised; its exception is the `__cause__`.
    """
    given = overrides or Overrides()
    source = find_source(target)
    seed = _seed(source, given)
    seed_everything(seed)
    spec = import_source(source)
    model, found = read_model(spec)
    if is_lightning(model):
        call_user(lambda: model.setup("fit"), f"{type(model).__name__}.setup()", spec.path)  # type: ignore[operator]  # Lightning's
    device = setting(spec, given, "device") or device_of(model)
    model.to(device)
    data = _data(spec, model, given, seed)
    _check_first(spec, model, data, device)
    optimizers = read_optimizers(spec, model)
    training = read_training(spec, model, data, device)
    schedulers, where = _schedulers(read_schedulers(spec, optimizers), data)
    base, told = _base_plan(spec, given, data), _told(spec, given)
    plan, schedulers, lines = make_plan(base, optimizers.values, schedulers, where, told, seed)
    read = model_piece(model, found), _data_piece(data, given), training.piece, optimizers.piece
    pieces = (*read, *lines, *_nearly_read(spec))
    return Workload(
        name=spec.module.__name__.rpartition(".")[2],
        source=target,
        model=model,
        training_step=training.step,
        batches=data.batches,
        optimizers=optimizers.values,
        schedulers=schedulers,
        plan=plan,
        pieces=pieces,
        seed=seed,
        device=device,
        synthetic_data=data.synthetic,
        inferred_loss=training.inferred,
    )


def try_first_step(workload: Workload) -> float:
    """The loss of the first batch, on a copy of the model: does the training step work at all?

    Raises:
        SpecError: the loss is not a scalar, or has no gradient.
        UserCodeError: the training step raised; the message names the layer and the line.
    """
    near = Path(workload.source.partition(":")[0])
    batch = to_device(workload.batches.at(0), workload.device)
    try:
        loss = on_a_copy(workload.model, lambda twin: workload.training_step(twin, batch))
    except SpecError as error:
        raise SpecError(f"{near.name}: {error}") from None
    except Exception as error:
        raise forward_error(near, batch, error) from error
    problem = scalar_problem(loss)
    if problem:
        raise SpecError(f"{near.name}: the loss {problem}")
    return float(loss.detach())


def _seed(source: Source, overrides: Overrides) -> int:
    """The seed, known before the file runs: the override, else a literal `seed = …` in the file, else 0."""
    seed = overrides.seed if overrides.seed is not None else source.literal("seed")
    if isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0:
        return seed
    if seed is None:
        return 0
    where = "--seed" if overrides.seed is not None else f"{source.path.name}: seed"
    raise SpecError(f"{where} is {seed!r}; it must be a whole number, at least 0")


def _data(spec: Spec, model: nn.Module, overrides: Overrides, seed: int) -> Data:
    size = setting(spec, overrides, "batch_size")
    data = read_data(
        spec, model, data=_text(overrides.data), target=overrides.target_column, batch_size=size, seed=seed
    )
    data = data or read_synthetic(spec, size, seed)
    if data is None:
        raise no_data(spec)
    return data


def _text(data: object) -> str | None:
    return None if data is None else str(data)


def _check_first(spec: Spec, model: nn.Module, data: Data, device: torch.device) -> None:
    """Draw the first batch, so that empty data is an error now, and give lazy modules their shapes."""
    try:
        batch = call_user(lambda: data.batches.at(0), f"reading the first batch of `{data.text}`", spec.path)
    except DataEndedError as error:
        raise SpecError(f"{data.source}: `{data.text}`: {error}") from error
    if not is_uninitialized(model):
        return
    batch = to_device(batch, device)
    try:
        arguments, keywords, _ = split_batch(model, batch)
        with torch.no_grad():
            model(*arguments, **keywords)
    except Exception as error:
        raise forward_error(spec.path, batch, error) from error


def _schedulers(found: tuple[Scheduled, ...], data: Data) -> tuple[tuple[Any, ...], str]:
    """Schedulers that are stepped once an epoch are wrapped so that they can be stepped once a step."""
    length = getattr(data.batches, "epoch_length", None) or EPOCH_UNKNOWN
    ready = [s.value if s.every == 1 else EveryFew(s.value, s.every or length) for s in found]
    return tuple(ready), found[0].source if found else ""


def _base_plan(spec: Spec, overrides: Overrides, data: Data) -> Plan:
    precision = setting(spec, overrides, "precision") or "fp32"
    accumulate = setting(spec, overrides, "accumulate") or 1
    return Plan(
        total_steps=setting(spec, overrides, "total_steps"),
        max_norm=setting(spec, overrides, "max_norm"),
        batch_size=_rows(data.batches),
        precision=precision,
        accumulate=accumulate,
    )


def _told(spec: Spec, overrides: Overrides) -> str:
    return "--total-steps" if overrides.total_steps is not None else spec.where("total_steps")


def _nearly_read(spec: Spec) -> list[Piece]:
    """Names of the file that are nearly one that is missing, and for which a default would stand unnoticed."""
    missing = [names for names in OPTIONAL if all(spec.get(name) is None for name in names)]
    wanted = [name for names in missing for name in names]
    own = [name for name in spec.lines if not isinstance(spec.get(name), type | ModuleType | None)]
    near = {name: get_close_matches(name, wanted, 1, NEARLY) for name in own}
    return [
        Piece("not read", name, spec.where(name), f"did you mean `{close[0]}`?")
        for name, close in near.items()
        if close
    ]


def _rows(batches: Batches) -> int | None:
    """Rows of the first batch: the first size of its first tensor."""
    held = [batches.at(0)]
    while held:
        part = held.pop(0)
        if isinstance(part, torch.Tensor | np.ndarray):
            return int(part.shape[0]) if part.ndim else None
        if isinstance(part, dict):
            held[:0] = part.values()
        elif isinstance(part, tuple | list):
            held[:0] = part
    return None


def _data_piece(data: Data, overrides: Overrides) -> Piece:
    source = f"--data {overrides.data}" if overrides.data is not None else data.source
    return Piece("data", data.text, source, data.form)
