"""Names a model's parameters and layers, and finds the live tensors behind the names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from gradscope.runs.schema import Group, Optimizer, Parameter

_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
UNOWNED = "(no module)"

Models = nn.Module | Mapping[str, nn.Module]


class Description(NamedTuple):
    """What is recorded: `tensors[i]` is the live tensor that `parameters[i]` names."""

    parameters: tuple[Parameter, ...]
    optimizer: Optimizer | None
    tensors: tuple[torch.Tensor, ...]


class _Found(NamedTuple):
    tensor: torch.Tensor
    names: list[str]
    layer: str
    type: str
    order: int


def describe(model: Models, optimizers: Sequence[torch.optim.Optimizer] = ()) -> Description:
    """Every parameter of `model`, once, in registration order, then those that only an optimizer holds.

    Several models come as a mapping; their names then begin with the key. `order` is the layer's place in registration
    until a forward pass was seen. Names leave out what wraps a module (torch.compile, DDP, FSDP, checkpointing).
    """
    found: dict[int, _Found] = {}
    for order, (layer, module) in enumerate(layer_modules(model).items()):
        for name, tensor in module.named_parameters(recurse=False):
            full = f"{layer}.{name}" if layer else name
            known = found.setdefault(id(tensor), _Found(tensor, [], layer, _kind(module), order))
            known.names.append(full)
    for i, held in enumerate(_held(optimizers)):
        if id(held) not in found:
            found[id(held)] = _Found(held, [f"{UNOWNED}.{i}"], UNOWNED, type(held).__name__, len(found))
    parameters = tuple(_parameter(one) for one in found.values())
    places = {key: i for i, key in enumerate(found)}
    return Description(parameters, describe_optimizer(optimizers, places), tuple(one.tensor for one in found.values()))


def layer_modules(model: Models) -> dict[str, nn.Module]:
    """The modules that own parameters, by the name a run gives their layer, in registration order."""
    models = {"": model} if isinstance(model, nn.Module) else dict(model)
    layers: dict[str, nn.Module] = {}
    for key, root in models.items():
        for path, module in unwrap(root).named_modules():
            if any(True for _ in module.named_parameters(recurse=False)):
                layers[".".join(part for part in (key, clean_name(path)) if part)] = module
    return layers


def has_matrix(module: nn.Module) -> bool:
    """Whether it owns a parameter of two or more dimensions."""
    return any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))


def clean_name(path: str) -> str:
    """A dotted path without the parts that wrappers add."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def _kind(module: nn.Module) -> str:
    """The module's own class; `fully_shard` puts one of its own in front of that."""
    kind = type(module)
    return kind.__bases__[-1].__name__ if kind.__bases__[0].__name__ == "FSDPModule" else kind.__name__


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own model inside torch.compile, DataParallel, DistributedDataParallel and Lightning's Fabric."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", getattr(model, "_original_module", None)), nn.Module):
            model = inner
        else:
            return model


def describe_optimizer(optimizers: Sequence[torch.optim.Optimizer], places: Mapping[int, int]) -> Optimizer | None:
    """The optimizers as one, groups in order. `places` maps the id of a tensor to its index."""
    if not optimizers:
        return None
    groups = tuple(
        Group(float(group.get("lr", math.nan)), tuple(places[id(p)] for p in group["params"] if id(p) in places), which)
        for which, optimizer in enumerate(optimizers)
        for group in optimizer.param_groups
    )
    return Optimizer(" + ".join(type(one).__name__ for one in optimizers), groups, _settings(optimizers[0]))


def _settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in optimizer.defaults.items()}
    return {key: v for key, v in plain.items() if v is None or isinstance(v, bool | int | float | str | list)}


def _held(optimizers: Sequence[torch.optim.Optimizer]) -> Iterable[torch.Tensor]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            yield from group["params"]


class ForwardOrder:
    """Light hooks that note in which order the layers run; gone after `end`. Compiled modules are left alone."""

    def __init__(self, model: Models) -> None:
        self._seen: dict[str, None] = {}
        roots = [model] if isinstance(model, nn.Module) else list(model.values())
        compiled = any(_compiled(module) for root in roots for module in root.modules())
        layers = {} if compiled else layer_modules(model)
        self._handles = [
            module.register_forward_pre_hook(self._note(layer))
            for layer, module in layers.items()
            if not isinstance(module, torch.jit.ScriptModule)
        ]

    def _note(self, layer: str) -> Callable[[nn.Module, Any], None]:
        def note(_module: nn.Module, _inputs: Any) -> None:
            self._seen.setdefault(layer)

        return note

    def end(self, parameters: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
        """Take the hooks away; `parameters` with the order that was seen.

        A layer that did not run as a module of its own keeps its place behind the one registered before it.
        """
        for handle in self._handles:
            handle.remove()
        if not self._seen:
            return parameters
        order = list(self._seen)
        before: str | None = None
        for layer in dict.fromkeys(parameter.layer for parameter in parameters):
            if layer not in self._seen:
                order.insert(order.index(before) + 1 if before is not None else 0, layer)
            before = layer
        places = {layer: place for place, layer in enumerate(order)}
        return tuple(replace(parameter, order=places[parameter.layer]) for parameter in parameters)


def _compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _parameter(found: _Found) -> Parameter:
    return Parameter(
        name=found.names[0],
        layer=found.layer,
        type=found.type,
        shape=tuple(found.tensor.shape),
        dtype=str(found.tensor.dtype).removeprefix("torch."),
        order=found.order,
        trainable=found.tensor.requires_grad,
        shared_with=tuple(found.names[1:]),
    )
