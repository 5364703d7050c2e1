"""Finds the live models behind an optimizer's parameters, and the order in which a forward pass used them."""

from __future__ import annotations

import dataclasses
import gc
import math
import sys
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import nn

from gradscope.capture.describe import clean_name, unwrap
from gradscope.runs.schema import Parameter

WIDEST = 200_000
"""Nodes of an autograd graph after which the walk gives up: order is registration order then."""


def models_of(parameters: Sequence[torch.Tensor], elsewhere: Iterable[int] = ()) -> dict[str, nn.Module]:
    """The live modules that own `parameters`, by the prefix of their names, the largest first; it has no prefix.

    `elsewhere`: ids of parameters that other optimizers hold. A model that has some of those too is narrowed down to its
    parts without them, so that each of two adversaries keeps to its own half.
    """
    wanted, other = {id(p) for p in parameters}, set(elsewhere)
    roots = _roots(wanted)
    found: dict[str, nn.Module] = {}
    for root in sorted(roots, key=_size, reverse=True):
        if not wanted & _ids(root):
            continue
        parts = _without(root, wanted, other) if other & _ids(root) else {"": root}
        prefix = _free_name(type(root).__name__, found) if found else ""
        for path, part in parts.items():
            found[".".join(filter(None, (prefix, path)))] = part
        wanted -= {i for part in parts.values() for i in _ids(part)}
    return found


def variable_of(models: Iterable[nn.Module]) -> str:
    """The variable of the script that holds the first of these models; "" where none does, or several do."""
    model = next(iter(models), None)
    script = vars(sys.modules["__main__"])
    names = [name for name, value in script.items() if value is model and not name.startswith("_")]
    return names[0] if model is not None and len(names) == 1 else ""


def in_shards(models: Iterable[nn.Module]) -> bool:
    """Whether FullyShardedDataParallel keeps the gradients of some module in parts, each in another process."""
    found = sys.modules.get("torch.distributed.fsdp.fully_sharded_data_parallel")
    if found is None:
        return False
    wrappers = [one for model in models for one in model.modules() if isinstance(one, found.FullyShardedDataParallel)]
    return any(one.sharding_strategy != found.ShardingStrategy.NO_SHARD for one in wrappers)


def _roots(wanted: set[int]) -> list[nn.Module]:
    """Modules over some wanted parameter that no other live module contains, without their wrappers."""
    modules = [one for one in gc.get_objects() if issubclass(type(one), nn.Module) and "_modules" in vars(one)]
    inner = {id(child) for module in modules for child in module._modules.values() if child is not None}
    tops = [module for module in modules if id(module) not in inner]
    return [unwrap(top) for top in tops if wanted & _ids(top)]


def _without(root: nn.Module, wanted: set[int], other: set[int]) -> dict[str, nn.Module]:
    """The largest submodules that hold wanted parameters and none of the others, by path."""
    parts: dict[str, nn.Module] = {}
    for path, module in root.named_modules():
        name = clean_name(path)
        if any(not done or name == done or name.startswith(done + ".") for done in parts):
            continue
        own = _ids(module)
        if own & wanted and not own & (other - wanted):
            parts[name] = module
    return parts or {"": root}


def _ids(module: nn.Module) -> set[int]:
    return {id(p) for p in module.parameters()}


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _free_name(name: str, taken: Iterable[str]) -> str:
    used = {key.split(".")[0] for key in taken}
    if name not in used:
        return name
    return next(f"{name}{i}" for i in range(2, len(used) + 3) if f"{name}{i}" not in used)


def forward_order(outputs: Iterable[Any]) -> dict[int, int]:
    """The place in the forward pass of every leaf that `outputs` were computed from, by the leaf's id: smaller is earlier.

    Read from the graph without running it; empty where the graph is too large. Autograd numbers its nodes as they are made.
    """
    first: dict[int, int] = {}
    pending = [node for node in (getattr(output, "grad_fn", None) for output in outputs) if node is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        for following, _ in node.next_functions:
            if following is None:
                continue
            if (leaf := getattr(following, "variable", None)) is not None:
                place = node._sequence_nr()
                first[id(leaf)] = min(first.get(id(leaf), place), place)
            elif following not in seen:
                seen.add(following)
                pending.append(following)
        if len(seen) > WIDEST:
            return {}
    return first


def in_order(
    parameters: Sequence[Parameter], tensors: Sequence[torch.Tensor], first: dict[int, int]
) -> tuple[Parameter, ...]:
    """The parameters with their layers in the order in which the forward pass met their tensors (see `forward_order`)."""
    places: dict[str, float] = {}
    last = -1.0
    for parameter, tensor in zip(parameters, tensors, strict=True):
        if id(tensor) in first:
            last = first[id(tensor)]
            places[parameter.layer] = min(places.get(parameter.layer, math.inf), last)
        else:
            places.setdefault(parameter.layer, last)
    ranks = {layer: rank for rank, layer in enumerate(sorted(places, key=lambda layer: places[layer]))}
    return tuple(dataclasses.replace(one, order=ranks[one.layer]) for one in parameters)


TRAINERS = {
    "transformers": ("transformers.trainer.",),
    "lightning-manual": tuple(
        f"{name}.loops.optimization.manual." for name in ("lightning.pytorch", "pytorch_lightning")
    ),
    "lightning": ("lightning.pytorch.", "pytorch_lightning."),
    "accelerate": ("accelerate.",),
}
"""Modules of each framework; one that calls another stands before it."""


def trainer() -> str | None:
    """The framework whose code is calling, by the modules on the stack."""
    frame: FrameType | None = sys._getframe()
    names = []
    while frame is not None:
        names.append(f"{frame.f_globals.get('__name__', '')}.")
        frame = frame.f_back
    return next((one for one, begins in TRAINERS.items() if any(name.startswith(begins) for name in names)), None)
