"""Training steps `(model, batch) → loss` made from what a spec gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradscope.errors import SpecError
from gradscope.workload.forward import logits_in, loss_in, split_batch
from gradscope.workload.inference import IGNORED, Inferred

Step = Callable[[nn.Module, Any], torch.Tensor]


@dataclass(frozen=True)
class CriterionStep:
    """The loss of the model's output and the batch's target; a batch without a target is its own."""

    criterion: Callable[[Any, Any], torch.Tensor]

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The criterion's value for one batch."""
        arguments, keywords, target = split(model, batch)
        output = model(*arguments, **keywords)
        return self.criterion(output, own_target(arguments, keywords) if target is None else target)


def inferred_step(found: Inferred) -> Step:
    """The inferred loss of the model's logits and the batch's target."""

    def criterion(output: Any, target: Any) -> torch.Tensor:
        logits = logits_in(output)
        assert logits is not None
        return found.loss(logits, target)

    return CriterionStep(criterion)


def output_step(model: nn.Module, batch: Any) -> torch.Tensor:
    """The loss that the model's output carries."""
    arguments, keywords, _ = split(model, batch)
    loss = loss_in(model(*arguments, **keywords))
    if loss is None:
        raise SpecError("the model's output had a loss for the first batch and has none now")
    return loss


def lightning_step(with_index: bool) -> Step:
    """A LightningModule's own training_step, without a trainer."""

    def step(model: Any, batch: Any) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*self.trainer.*", category=UserWarning)
            result = model.training_step(batch, 0) if with_index else model.training_step(batch)
        loss: torch.Tensor = result["loss"] if isinstance(result, Mapping) else result
        return loss

    return step


def split(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """`split_batch`. Raises SpecError for a batch whose form says nothing about input and target."""
    try:
        return split_batch(model, batch)
    except TypeError as error:
        raise SpecError(
            f"a batch is a {error}, which does not say what is input and what is target; write "
            "`def training_step(model, batch): …` in the file and return the loss"
        ) from None


def own_target(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    """What a batch without a target is compared with: its input; for token ids, with padding marked as not counting."""
    if arguments:
        return arguments[0]
    tokens, mask = keywords.get("input_ids"), keywords.get("attention_mask")
    return tokens if tokens is None or mask is None else tokens.masked_fill(mask == 0, IGNORED)


def scalar_problem(loss: Any) -> str | None:
    """Why a value is no loss that can be trained on, or None."""
    if not isinstance(loss, torch.Tensor):
        return f"is a {type(loss).__name__}, not a tensor; return a scalar tensor"
    if loss.numel() != 1:
        return f"has shape {tuple(loss.shape)}, not one number; reduce it, for example with .mean()"
    if not loss.requires_grad:
        return (
            "has no gradient; it must be computed from the model's trainable parameters, outside torch.no_grad() and "
            "without .detach() or .item()"
        )
    return None
