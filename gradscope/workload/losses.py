"""Finding the loss: the spec's training step, its loss, what the output carries, or what the targets speak for."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradscope.errors import SpecError, UserCodeError
from gradscope.runs.schema import Piece
from gradscope.workload.calls import call_user, positional, required, title, user_line
from gradscope.workload.data import Data
from gradscope.workload.forward import describe, forward_error, logits_in, loss_in, on_a_copy
from gradscope.workload.inference import CannotInferError, infer_loss
from gradscope.workload.models import LOSS_NAMES, is_lightning
from gradscope.workload.move import to_device
from gradscope.workload.steps import (
    CriterionStep,
    Step,
    inferred_step,
    lightning_step,
    output_step,
    own_target,
    scalar_problem,
    split,
)
from gradscope.workload.synthetic import SyntheticBatches, with_targets
from gradscope.workload.target import Spec


@dataclass(frozen=True)
class Training:
    """How a batch becomes a loss, the line that says so, and whether that was inferred."""

    step: Step
    piece: Piece
    inferred: bool = False


def read_training(spec: Spec, model: nn.Module, data: Data, device: torch.device) -> Training:
    """The training step. One made here is tried on the first batch, on a copy of the model; the user's own is not run.

    Raises:
        SpecError: it cannot be known what the loss is, the batch's form says nothing about the target, or the loss is
            not a scalar with a gradient.
        UserCodeError: the model or the loss raised on the first batch.
    """
    own = spec.get("training_step")
    if own is not None:
        return _own_step(own, spec)
    if is_lightning(model) and _defines(model, "training_step"):
        return _lightning(model, spec)
    name = _loss_name(spec)
    criterion: Any = _criterion(spec, name, device) if name else None
    batch, output = _tried(spec, model, data, device)
    if isinstance(data.batches, SyntheticBatches) and _needs_targets(batch, output, name):
        logits = logits_in(output)
        assert logits is not None
        with_targets(data.batches, logits.detach().cpu(), criterion)
        batch = to_device(data.batches.at(0), device)
    if name is None:
        return _inferred(spec, model, batch, output)
    _check_criterion(spec, name, criterion, model, batch, output)
    return Training(CriterionStep(criterion), Piece("loss", _shown(criterion), spec.where(name)))


def _own_step(step: Any, spec: Spec) -> Training:
    where = spec.where("training_step")
    if not callable(step):
        raise SpecError(f"{where}: `training_step` is a {type(step).__name__}; write def training_step(model, batch)")
    needed = required(step)
    if needed is not None and (len(needed) > 2 or not _takes_two(step)):
        names = ", ".join(inspect.signature(step).parameters)
        raise SpecError(
            f"{where}: training_step takes ({names}); it is called as training_step(model, batch) and returns the loss"
        )
    return Training(step, Piece("loss", "training_step", where))


def _takes_two(step: Any) -> bool:
    try:
        inspect.signature(step).bind(None, None)
    except TypeError:
        return False
    return True


def _defines(model: nn.Module, name: str) -> bool:
    return any(name in vars(kind) for kind in type(model).__mro__ if "lightning" not in kind.__module__.split(".")[0])


def _lightning(model: Any, spec: Spec) -> Training:
    kind = type(model).__name__
    if not model.automatic_optimization:
        raise SpecError(
            f"{spec.path.name}: {kind} optimizes by hand (automatic_optimization=False); write "
            "`def training_step(model, batch): …` in the file and return one loss"
        )
    step = lightning_step(with_index=len(positional(model.training_step)) > 1)
    return Training(step, Piece("loss", f"{kind}.training_step", spec.path.name, "LightningModule"))


def _loss_name(spec: Spec) -> str | None:
    distinct: dict[int, str] = {}
    for name in LOSS_NAMES:
        if callable(spec.get(name)):
            distinct.setdefault(id(spec.get(name)), name)
    if len(distinct) > 1:
        names = " and ".join(f"`{n}` ({spec.where(n)})" for n in distinct.values())
        raise SpecError(
            f"{spec.path.name}: {len(distinct)} losses: {names}; keep one, or write `training_step(model, batch)`"
        )
    return next(iter(distinct.values()), None)


def _criterion(spec: Spec, name: str, device: torch.device) -> Any:
    value = spec.get(name)
    if isinstance(value, type):
        value = call_user(value, f"{value.__name__}() ({spec.where(name)})", spec.path)
    needed = required(value.forward if isinstance(value, nn.Module) else value)
    if needed is not None and len(needed) > 2:
        raise SpecError(
            f"{spec.where(name)}: `{name}` needs {len(needed)} arguments ({', '.join(p.name for p in needed)}); a loss "
            "takes (output, target). For more, write `training_step(model, batch)`"
        )
    return value.to(device) if isinstance(value, nn.Module) else value


def _tried(spec: Spec, model: nn.Module, data: Data, device: torch.device) -> tuple[Any, Any]:
    """The first batch, and the output of a copy of the model for it."""
    batch = to_device(data.batches.at(0), device)
    try:
        arguments, keywords, _ = split(model, batch)
        return batch, on_a_copy(model, lambda twin: twin(*arguments, **keywords))
    except SpecError as error:
        raise SpecError(f"{data.source}: {error}") from None
    except Exception as error:
        raise forward_error(spec.path, batch, error) from error


def _needs_targets(batch: Any, output: Any, name: str | None) -> bool:
    """Whether a synthetic batch must get a target: not where the output has a loss, nor for next-token prediction."""
    logits = logits_in(output)
    if logits is None or loss_in(output) is not None:
        return False
    tokens = isinstance(batch, torch.Tensor) and not batch.is_floating_point()
    return name is not None or not (tokens and logits.shape[:-1] == batch.shape)


def _check_criterion(spec: Spec, name: str, criterion: Any, model: nn.Module, batch: Any, output: Any) -> None:
    arguments, keywords, target = split(model, batch)
    target = own_target(arguments, keywords) if target is None else target
    where = spec.where(name)
    try:
        loss = criterion(output, target)
    except Exception as error:
        line = user_line(error, spec.path)
        raise UserCodeError(
            f"{where}: `{name}` raised {type(error).__name__}{f' at {line}' if line else ''} for output {describe(output)} "
            f"and target {describe(target)}: {error}"
        ) from error
    problem = scalar_problem(loss)
    if problem:
        raise SpecError(f"{where}: the loss {problem}")


def _inferred(spec: Spec, model: nn.Module, batch: Any, output: Any) -> Training:
    override = "set `loss` to override"
    carried = loss_in(output)
    if carried is not None:
        problem = scalar_problem(carried)
        if problem:
            raise SpecError(f"{spec.path.name}: the model's own loss {problem}")
        kind = "the model's scalar output" if isinstance(output, torch.Tensor) else "output.loss"
        return Training(output_step, Piece("loss", kind, "the model", override))
    arguments, keywords, target = split(model, batch)
    logits = logits_in(output)
    try:
        if logits is None:
            raise CannotInferError(f"the model returns {describe(output)}")
        found = infer_loss(logits, target, own_target(arguments, keywords))
    except CannotInferError as error:
        raise SpecError(
            f"{spec.path.name}: the loss cannot be inferred: {error}; set `loss = …` (a function of output and target) or "
            "write `def training_step(model, batch): …`"
        ) from None
    if not logits.requires_grad:
        raise SpecError(
            f"{spec.path.name}: the model's output has no gradient; is it detached, or made under torch.no_grad()?"
        )
    piece = Piece("loss", found.name, "inferred", f"{found.why}; {override}")
    return Training(inferred_step(found), piece, inferred=True)


def _shown(criterion: Any) -> str:
    text = repr(criterion) if isinstance(criterion, nn.Module) else title(criterion)
    return text if len(text) <= 40 and "\n" not in text else title(criterion)
