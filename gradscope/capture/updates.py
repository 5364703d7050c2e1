"""Updates: how far one optimizer step moves each parameter, beside how large the parameter is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gradscope.capture.describe import Models, describe
from gradscope.capture.magnitude import l2
from gradscope.capture.probes import Emit


class UpdateProbe:
    """Measures updates on sampled steps. Subjects are parameters, named as in the run's header.

    Emits `weight_norm` (L2, before the step), `update_norm` (L2 of the change over the step; a step that was skipped
    changes nothing) and `parameter_lr` (of the group that holds the parameter, in force at the step). A parameter that no
    optimizer holds has no `parameter_lr`; a frozen one no `update_norm`. Costs a copy of the trainable parameters.
    """

    def __init__(self, model: Models, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        described = describe(model, optimizers)
        self._names = [parameter.name for parameter in described.parameters]
        self._tensors = described.tensors
        self._optimizers = optimizers
        self._before: dict[str, torch.Tensor] = {}
        self._lr: dict[str, float] = {}

    @property
    def unmeasured(self) -> Mapping[str, str]:
        """Nothing: every parameter can be compared with its copy."""
        return {}

    def begin(self, step: int) -> None:
        """Copy the trainable parameters and read their learning rates."""
        del step
        self._before = {name: tensor.detach().clone() for name, tensor in self._named() if tensor.requires_grad}
        self._lr = self._learning_rates()

    def end(self, step: int, emit: Emit) -> None:
        """Compare and forget the copies."""
        del step
        before, self._before = self._before, {}
        if not before:
            return
        sizes = {name: l2(before.get(name, tensor)) for name, tensor in self._named()}
        changes = {name: l2(tensor.detach() - before[name]) for name, tensor in self._named() if name in before}
        for probe, values in (("weight_norm", sizes), ("update_norm", changes), ("parameter_lr", self._lr)):
            emit(probe, list(values), list(values.values()))

    def _named(self) -> list[tuple[str, torch.Tensor]]:
        return list(zip(self._names, self._tensors, strict=True))

    def _learning_rates(self) -> dict[str, float]:
        names = {id(tensor): name for name, tensor in self._named()}
        groups: list[dict[str, Any]] = [group for one in self._optimizers for group in one.param_groups]
        return {
            names[id(tensor)]: float(group["lr"])
            for group in groups
            if "lr" in group
            for tensor in group["params"]
            if id(tensor) in names
        }
