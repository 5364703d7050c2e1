"""Which loss a target's dtype and shape and the model's output speak for. What is inferred is printed as inferred."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

Loss = Callable[[torch.Tensor, Any], torch.Tensor]
IGNORED = -100
"""torch's own mark for targets that do not count."""


@dataclass(frozen=True)
class Inferred:
    """A loss of (output, target), its name and why it is the one."""

    loss: Loss
    name: str
    why: str


class CannotInferError(Exception):
    """Output and target speak for no loss, or for two; the message says which shapes."""


def infer_loss(output: torch.Tensor, target: Any, inputs: Any) -> Inferred:
    """The loss for an output and its target; without a target, next-token prediction or reconstruction of the input.

    Raises:
        CannotInferError: nothing fits, or more than one loss does.
    """
    if not output.is_floating_point():
        raise CannotInferError(f"the model's output is {output.dtype}, not floating point")
    if target is None:
        return _without_target(output, inputs)
    if not isinstance(target, torch.Tensor):
        raise CannotInferError(f"the target is a {type(target).__name__}")
    if target.is_complex():
        raise CannotInferError(f"the targets are {target.dtype}")
    if not target.is_floating_point():
        return _whole_numbers(output, target, inputs)
    return _fractions(output, target)


def _without_target(output: torch.Tensor, inputs: Any) -> Inferred:
    if not isinstance(inputs, torch.Tensor):
        raise CannotInferError("the batch has no target")
    if not inputs.is_floating_point() and output.ndim == inputs.ndim + 1 and output.shape[:-1] == inputs.shape:
        _fits(inputs, output.shape[-1])
        return Inferred(
            _next_token, "next-token cross_entropy", f"token batches without a target, {output.shape[-1]} logits"
        )
    if inputs.is_floating_point() and output.shape == inputs.shape:
        return Inferred(F.mse_loss, "mse_loss to the input", "batches without a target, output shaped like the input")
    raise CannotInferError(f"the batch has no target, and the output is {tuple(output.shape)}")


def _whole_numbers(output: torch.Tensor, target: torch.Tensor, inputs: Any) -> Inferred:
    kind = str(target.dtype).removeprefix("torch.")
    if _squeezed(output, target) is not None and _binary(target):
        return _binary_loss(output, f"{kind} targets of 0 and 1")
    if target.dtype is torch.bool:
        raise CannotInferError(f"bool targets {tuple(target.shape)} and output {tuple(output.shape)}")
    flat = target.squeeze(-1) if target.ndim == output.ndim and target.shape[-1] == 1 else target
    last = output.ndim >= 2 and output.shape[:-1] == flat.shape
    second = output.ndim > 2 and (output.shape[0], *output.shape[2:]) == tuple(flat.shape)
    if last and second:
        raise CannotInferError(
            f"in an output {tuple(output.shape)} for targets {tuple(flat.shape)} two dimensions could be the classes"
        )
    if not last and not second:
        raise CannotInferError(f"{kind} targets {tuple(target.shape)} and output {tuple(output.shape)}")
    dim = output.ndim - 1 if last else 1
    if output.shape[dim] < 2:
        raise CannotInferError(f"{kind} targets up to {int(target.max())} and a single logit")
    _fits(flat, output.shape[dim])
    if (
        isinstance(inputs, torch.Tensor)
        and last
        and flat.ndim > 1
        and inputs.shape == flat.shape
        and torch.equal(inputs, flat)
    ):
        return Inferred(
            _next_token, "next-token cross_entropy", f"targets equal the inputs, {output.shape[dim]} logits"
        )
    return _classes(output, dim, kind)


def _classes(output: torch.Tensor, dim: int, kind: str) -> Inferred:
    count = output.shape[dim]
    shape = _normalised(output, dim)

    def loss(out: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        goal = goal.squeeze(-1) if goal.ndim == out.ndim else goal
        out = out.movedim(dim, 1).float() if dim != 1 else out
        if shape == "logits":
            return F.cross_entropy(out, goal.long())
        return F.nll_loss(out if shape == "log-probabilities" else out.clamp_min(1e-12).log(), goal.long())

    name = {"logits": "cross_entropy", "log-probabilities": "nll_loss", "probabilities": "nll_loss of the log"}[shape]
    return Inferred(loss, name, f"{kind} targets, {count} {shape}")


def _fractions(output: torch.Tensor, target: torch.Tensor) -> Inferred:
    kind = str(target.dtype).removeprefix("torch.")
    if _squeezed(output, target) is None:
        raise CannotInferError(f"{kind} targets {tuple(target.shape)} and output {tuple(output.shape)}")
    if _binary(target):
        rows = output.shape == target.shape and target.ndim == 2 and target.shape[1] > 1
        if rows and bool((target.sum(1) == 1).all()):
            return Inferred(F.cross_entropy, "cross_entropy", f"one-hot {kind} targets, {target.shape[1]} logits")
        return _binary_loss(output, f"{kind} targets of 0 and 1")
    return Inferred(_mse, "mse_loss", f"{kind} targets shaped like the output")


def _binary_loss(output: torch.Tensor, why: str) -> Inferred:
    probabilities = bool(((output >= 0) & (output <= 1)).all())
    function = F.binary_cross_entropy if probabilities else F.binary_cross_entropy_with_logits

    def loss(out: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return function(out, goal.reshape(out.shape).to(out.dtype))

    return Inferred(loss, function.__name__, f"{why}, {'probabilities' if probabilities else 'logits'}")


def _mse(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(output, target.reshape(output.shape).to(output.dtype))


def _next_token(output: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten().long(), ignore_index=IGNORED)


def _squeezed(output: torch.Tensor, target: torch.Tensor) -> torch.Size | None:
    """The target's shape if it is the output's, up to a last dimension of one."""
    shapes = (tuple(output.shape), tuple(output.shape)[:-1] if output.shape[-1:] == (1,) else None)
    short = tuple(target.shape)[:-1] if target.shape[-1:] == (1,) else None
    fits = tuple(target.shape) in shapes or (short is not None and short in shapes)
    return target.shape if fits else None


def _binary(target: torch.Tensor) -> bool:
    return bool(((target == 0) | (target == 1)).all())


def _normalised(output: torch.Tensor, dim: int) -> str:
    """Whether the output is logits, probabilities or log-probabilities along `dim`."""
    values = output.detach().double()
    if bool((values >= 0).all()) and torch.allclose(values.sum(dim), torch.ones((), dtype=values.dtype), atol=1e-4):
        return "probabilities"
    if bool((values <= 0).all()) and torch.allclose(
        values.exp().sum(dim), torch.ones((), dtype=values.dtype), atol=1e-4
    ):
        return "log-probabilities"
    return "logits"


def _fits(target: torch.Tensor, count: int) -> None:
    counted = target[target != IGNORED]
    if counted.numel() and (int(counted.max()) >= count or int(counted.min()) < 0):
        raise CannotInferError(
            f"targets run from {int(counted.min())} to {int(counted.max())}, and {count} logits allow 0 to {count - 1}"
        )
