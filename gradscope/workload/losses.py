"""The training step: the spec's own, or one made from its loss, its output, or what its targets speak for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradscope.errors import SpecError
from gradscope.runs.schema import Piece
from gradscope.workload.calls import call_user, positional, required, title
from gradscope.workload.data import Data
from gradscope.workload.forward import (
    describe,
    forward_error,
    logits_in,
    loss_in,
    on_a_copy,
    split_batch,
    unknown_batch,
)
from gradscope.workload.inference import CannotInferError, Inferred, infer_loss
from gradscope.workload.models import LOSS_NAMES, is_lightning
from gradscope.workload.synthetic import SyntheticBatches, with_targets
from gradscope.workload.target import Spec

Step = Callable[[nn.Module, Any], torch.Tensor]


@dataclass(frozen=True)
class Training:
    """How a batch becomes a loss, the line that says so, and whether that was inferred."""

    step: Step
    piece: Piece
    inferred: bool = False


def read_training(spec: Spec, model: nn.Module, data: Data, device: torch.device) -> Training:
    """The training step. A step made here is tried on the first batch, on a copy of the model.

    Raises:
        SpecError: it cannot be known what the loss is, or the batch's form says nothing about the target.
        UserCodeError: the model or the loss raised on the first batch.
    """
    own = spec.get("training_step")
    if own is not None:
        return _own_step(own, spec)
    if is_lightning(model) and _defines(model, "training_step"):
        return _lightning(model, spec)
    name = _loss_name(spec)
    criterion = _criterion(spec, name, device) if name else None
    first = _first(data, device)
    if isinstance(data.batches, SyntheticBatches):
        output = _try(spec, model, first)
        if (
            loss_in(output) is None
            and (logits := logits_in(output)) is not None
            and not _next_tokens(first, logits, name)
        ):
            with_targets(data.batches, logits.detach().cpu(), criterion)
            first = _first(data, device)
    if name is not None:
        return Training(_with(criterion), Piece("loss", _shown(criterion), spec.where(name)))
    return _inferred(spec, first, _try(spec, model, first), model)


def _own_step(step: Any, spec: Spec) -> Training:
    where = spec.where("training_step")
    if not callable(step):
        raise SpecError(f"{where}: `training_step` is a {type(step).__name__}; write def training_step(model, batch)")
    needed, possible = required(step), positional(step)
    if needed is not None and (len(needed) > 2 or (len(possible) < 2 and not _variadic(step))):
        raise SpecError(
            f"{where}: training_step takes ({', '.join(p.name for p in possible)}); it is called as "
            "training_step(model, batch) and returns the loss"
        )
    return Training(step, Piece("loss", "training_step", where))


def _variadic(step: Any) -> bool:
    import inspect

    return any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(step).parameters.values())


def _defines(model: nn.Module, name: str) -> bool:
    return any(name in vars(kind) for kind in type(model).__mro__ if "lightning" not in kind.__module__.split(".")[0])


def _lightning(model: nn.Module, spec: Spec) -> Training:
    if not getattr(model, "automatic_optimization", True):
        raise SpecError(
            f"{spec.path.name}: {type(model).__name__} optimizes by hand (automatic_optimization=False); write "
            "`training_step(model, batch)` in the file and return one loss"
        )
    with_index = len(positional(model.training_step)) > 1

    def step(module: nn.Module, batch: Any) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*self.trainer.*", category=UserWarning)
            result = module.training_step(batch, 0) if with_index else module.training_step(batch)  # type: ignore[operator]
        loss: torch.Tensor = result["loss"] if isinstance(result, Mapping) else result
        return loss

    return Training(step, Piece("loss", f"{type(model).__name__}.training_step", spec.path.name, "LightningModule"))


def _loss_name(spec: Spec) -> str | None:
    named = {name: spec.get(name) for name in LOSS_NAMES if callable(spec.get(name))}
    distinct: dict[int, str] = {}
    for name, value in named.items():
        distinct.setdefault(id(value), name)
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


def _with(criterion: Any) -> Step:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        arguments, keywords, target = _split(model, batch)
        output = model(*arguments, **keywords)
        if target is None:
            target = arguments[0] if arguments else None
        result: torch.Tensor = criterion(output, target)
        return result

    return step


def _split(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    try:
        return split_batch(model, batch)
    except TypeError as error:
        raise SpecError(
            f"a batch is a {error}, which does not say what is input and what is target; write "
            "`training_step(model, batch)` in the file and return the loss"
        ) from None


def _first(data: Data, device: torch.device) -> Any:
    from gradscope.workload.move import to_device

    return to_device(data.batches.at(0), device)


def _try(spec: Spec, model: nn.Module, batch: Any) -> Any:
    """The model's output for the first batch, from a copy of the model."""
    try:
        arguments, keywords, _ = split_batch(model, batch)
    except TypeError:
        raise unknown_batch(spec, batch) from None
    try:
        return on_a_copy(model, lambda twin: twin(*arguments, **keywords))
    except Exception as error:
        raise forward_error(spec, model, batch, error) from error


def _next_tokens(batch: Any, logits: torch.Tensor, name: str | None) -> bool:
    return (
        name is None
        and isinstance(batch, torch.Tensor)
        and not batch.is_floating_point()
        and logits.shape[:-1] == batch.shape
    )


def _inferred(spec: Spec, batch: Any, output: Any, model: nn.Module) -> Training:
    override = "set `loss` to override"
    if loss_in(output) is not None:
        kind = "output.loss" if not isinstance(output, torch.Tensor) else "the model's scalar output"
        return Training(_from_output, Piece("loss", kind, "the model", override))
    arguments, keywords, target = split_batch(model, batch)
    inputs = arguments[0] if arguments else keywords.get("input_ids")
    logits = logits_in(output)
    try:
        if logits is None:
            raise CannotInferError(f"the model returns {describe(output)}")
        found = infer_loss(logits, target, inputs)
    except CannotInferError as error:
        raise SpecError(
            f"{spec.path.name}: the loss cannot be inferred: {error}; set `loss = …` (a function of output and target) or "
            "write `training_step(model, batch)`"
        ) from None
    return Training(_composed(found), Piece("loss", found.name, "inferred", f"{found.why}; {override}"), inferred=True)


def _from_output(model: nn.Module, batch: Any) -> torch.Tensor:
    arguments, keywords, _ = _split(model, batch)
    loss = loss_in(model(*arguments, **keywords))
    if loss is None:
        raise SpecError("the model's output had a loss for the first batch and has none now")
    return loss


def _composed(found: Inferred) -> Step:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        arguments, keywords, target = _split(model, batch)
        logits = logits_in(model(*arguments, **keywords))
        assert logits is not None
        if target is None:
            target = arguments[0] if arguments else _unpadded(keywords)
        return found.loss(logits, target)

    return step


def _unpadded(keywords: Mapping[str, Any]) -> torch.Tensor:
    """Token ids with padding marked as not counting."""
    tokens: torch.Tensor = keywords["input_ids"]
    mask = keywords.get("attention_mask")
    return tokens if mask is None else tokens.masked_fill(mask == 0, -100)


def _shown(criterion: Any) -> str:
    text = repr(criterion) if isinstance(criterion, nn.Module) else title(criterion)
    return text if len(text) <= 40 and "\n" not in text else title(criterion)
