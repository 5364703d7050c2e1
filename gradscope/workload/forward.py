"""From a batch to the model's output: which part is input, which is target, and what the output holds."""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from gradscope.errors import UserCodeError
from gradscope.workload.arrays import tensor_of
from gradscope.workload.calls import required, user_line
from gradscope.workload.move import mapped
from gradscope.workload.rng import preserved

TARGET_KEYS = ("labels", "label", "targets", "target", "y")
_NEEDED: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def split_batch(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """`(arguments, keyword arguments, target)` of a batch; the target is None where the batch has none.

    Raises:
        TypeError: a form of batch that needs a `training_step`.
        SpecError: an array of something else than numbers.
    """
    batch = _tensors(model, batch)
    if isinstance(batch, torch.Tensor):
        return (batch,), {}, None
    if isinstance(batch, Mapping):
        inputs = dict(batch)
        key = next((k for k in TARGET_KEYS if k in inputs), None)
        target = inputs[key] if key else None
        if key and not _accepts(model, key):
            del inputs[key]
        return (), inputs, target
    if isinstance(batch, tuple | list) and batch:
        if len(batch) == 1:
            return (batch[0],), {}, None
        if _needed(model) == len(batch):
            return tuple(batch), {}, batch[-1]
        return tuple(batch[:-1]), {}, batch[-1]
    raise TypeError(type(batch).__name__)


def _tensors(model: nn.Module, batch: Any) -> Any:
    """The batch with its numpy arrays as tensors on the model's device, of the types that arrays of rows get."""

    def tensor(leaf: Any) -> Any:
        return tensor_of(leaf, "a batch").to(next(model.parameters()).device) if isinstance(leaf, np.ndarray) else leaf

    return mapped(batch, tensor)


def _needed(model: nn.Module) -> int:
    """How many inputs the model's forward must be given, looked up once a model; −1 where its signature cannot be read."""
    if model not in _NEEDED:
        parameters = required(model.forward)
        _NEEDED[model] = -1 if parameters is None else len(parameters)
    return _NEEDED[model]


def _accepts(model: nn.Module, key: str) -> bool:
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return True
    return key in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def loss_in(output: Any) -> torch.Tensor | None:
    """The loss an output carries: `.loss`, `["loss"]`, a scalar output, or the only scalar of a tuple."""
    held = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(held, torch.Tensor):
        return held
    parts = output if isinstance(output, tuple | list) else (output,)
    scalars = [p for p in parts if isinstance(p, torch.Tensor) and p.ndim == 0 and p.is_floating_point()]
    return scalars[0] if len(scalars) == 1 else None


def logits_in(output: Any) -> torch.Tensor | None:
    """The predictions of an output: a tensor, `.logits`, `["logits"]`, or the first tensor of a tuple."""
    if isinstance(output, torch.Tensor):
        return output
    held = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(held, torch.Tensor):
        return held
    if isinstance(output, tuple | list):
        return next((part for part in output if isinstance(part, torch.Tensor)), None)
    return None


def on_a_copy(model: nn.Module, use: Callable[[nn.Module], Any]) -> Any:
    """`use(model)` without a trace: on a deep copy, or, where it cannot be copied, with its buffers and mode put back.

    Random state is put back too.
    """
    place = next(model.parameters()).device
    with preserved([place] if place.type == "cuda" else []):
        try:
            twin = copy.deepcopy(model)
        except Exception:
            return _with_buffers_kept(model, use)
        for module in twin.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()  # cuDNN warns where the copy's weights lie apart
        return use(twin)


def _with_buffers_kept(model: nn.Module, use: Callable[[nn.Module], Any]) -> Any:
    kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        return use(model)
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


def forward_error(near: Path, batch: Any, error: Exception) -> UserCodeError:
    """What to say when the model cannot take its first batch: the layer, what it got, and the line."""
    layer = failing_layer(error)
    line = user_line(error, near)
    place = f" at {line}" if line else ""
    inside = f" in layer `{layer[0]}` ({layer[1]})" if layer else ""
    return UserCodeError(
        f"{near.name}: the model cannot take its first batch {describe(batch)}:{inside}{place} "
        f"{type(error).__name__}: {error}\n    If the batch is not (input, target), write "
        "`training_step(model, batch)` and return the loss."
    )


def failing_layer(error: BaseException) -> tuple[str, str] | None:
    """The innermost module whose forward raised: its dotted path in the outermost one, and its class with its input."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "forward"]
    called = [(module, frame.f_locals) for frame in frames if isinstance(module := called_on(frame), nn.Module)]
    if not called:
        return None
    (root, _), (owner, inner) = called[0], called[-1]
    names = {id(module): name for name, module in root.named_modules()}
    given = next((inner[name] for name in ("input", "x", "inputs", "query") if name in inner), None)
    shape = f", given {describe(given)}" if isinstance(given, torch.Tensor) else ""
    return names.get(id(owner)) or type(owner).__name__, f"{_brief(owner)}{shape}"


def called_on(frame: FrameType) -> Any:
    """What a method was called on, whatever it calls that."""
    return frame.f_locals.get(next(iter(frame.f_code.co_varnames), ""))


def _brief(module: Any) -> str:
    text = repr(module)
    return text if len(text) <= 60 and "\n" not in text else type(module).__name__


def describe(batch: Any) -> str:
    """The shapes and dtypes of a batch: `(float32 (32, 3), int64 (32,))`."""
    if isinstance(batch, torch.Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {describe(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, tuple | list):
        return "(" + ", ".join(describe(part) for part in batch[:6]) + (", …" if len(batch) > 6 else "") + ")"
    return type(batch).__name__
