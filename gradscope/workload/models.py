"""Finding the model in a spec file and making it."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.loss import _Loss
from torch.nn.parameter import UninitializedParameter

from gradscope.errors import SpecError
from gradscope.runs.schema import Piece
from gradscope.workload.calls import call_user, required, title
from gradscope.workload.target import Spec

MODEL_NAMES = ("model", "net", "build_model", "make_model", "create_model", "get_model")
LOSS_NAMES = ("loss", "loss_fn", "criterion")


@dataclass(frozen=True)
class Found:
    """A piece as found in the spec: the object, how to call it, and where it comes from."""

    value: Any
    text: str
    source: str


def read_model(spec: Spec) -> tuple[nn.Module, Found]:
    """The spec's model, made if it is a class or a factory.

    Raises:
        SpecError: no model, several, one that needs arguments, or none of its parameters is trainable.
        UserCodeError: making it raised.
    """
    found = _choose(spec)
    model = _make(spec, found)
    if not any(True for _ in model.parameters()):
        raise SpecError(f"{found.source}: {found.text} has no parameters, so there is nothing to train")
    if not any(p.requires_grad for p in model.parameters()):
        raise SpecError(
            f"{found.source}: {found.text} has no trainable parameters: all {_count(model)} have requires_grad=False; "
            "unfreeze the ones you train"
        )
    if not model.training:
        model.train()
    return model, found


def model_piece(model: nn.Module, found: Found) -> Piece:
    """The line that says how the model was read."""
    layers = sum(1 for m in model.modules() if next(m.parameters(recurse=False), None) is not None)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    detail = f"{_count(model)} parameters, {layers} layer{'s' if layers > 1 else ''}"
    if frozen:
        detail += f", {100 * frozen / sum(p.numel() for p in model.parameters()):.0f} % of it frozen"
    return Piece("model", found.text, found.source, detail)


def is_uninitialized(model: nn.Module) -> bool:
    """Whether a lazy module still waits for its first input."""
    return any(isinstance(p, UninitializedParameter) for p in model.parameters())


def is_lightning(value: Any) -> bool:
    """Whether it is a LightningModule; Lightning itself is never imported here."""
    for package in ("lightning.pytorch", "pytorch_lightning"):
        kind = getattr(sys.modules.get(package), "LightningModule", None)
        if kind is not None and isinstance(value, kind):
            return True
    return False


def _choose(spec: Spec) -> Found:
    if spec.chosen:
        return Found(spec.get(spec.chosen), spec.chosen, spec.where(spec.chosen))
    named = {name: spec.get(name) for name in MODEL_NAMES if _is_model_form(spec.get(name))}
    instances = {n: v for n, v in named.items() if isinstance(v, nn.Module)}
    if named:
        return _one(spec, instances or named)
    others = _instances(spec)
    if others:
        return _one(spec, others)
    classes = _classes(spec)
    if not classes:
        raise SpecError(
            f"{spec.path.name}: no model; name it `model` (an nn.Module, a class or a function without arguments that "
            f"makes one), or say which name: {spec.target}:NAME"
        )
    found = _one(spec, classes)
    only = "the only model" if len(_own_classes(spec)) == 1 else "the only model that no other one uses"
    return Found(found.value, f"{found.text}()", f"class {found.text}, {only} in {spec.path.name}")


def _is_model_form(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return True
    if isinstance(value, type):
        return issubclass(value, nn.Module)
    return inspect.isroutine(value) or (callable(value) and hasattr(value, "func"))


def _one(spec: Spec, candidates: Mapping[str, Any]) -> Found:
    """The only distinct candidate; more than one is an error with the commands that choose."""
    distinct: dict[int, str] = {}
    for name, value in candidates.items():
        distinct.setdefault(id(value), name)
    if len(distinct) > 1:
        places = ", ".join(f"`{name}` ({spec.where(name)})" for name in distinct.values())
        commands = "".join(f"\n    gradscope analyze {spec.target}:{name}" for name in distinct.values())
        raise SpecError(f"{spec.path.name}: {len(distinct)} models: {places}; say which one:{commands}")
    name = next(iter(distinct.values()))
    return Found(candidates[name], name, spec.where(name))


def _instances(spec: Spec) -> dict[str, nn.Module]:
    """Modules at the top level, without losses and without the parts of another one."""
    found = {
        name: value
        for name, value in vars(spec.module).items()
        if isinstance(value, nn.Module) and name not in LOSS_NAMES and not _is_loss(type(value))
    }
    inner = {id(part) for value in found.values() for part in value.modules() if part is not value}
    return {name: value for name, value in found.items() if id(value) not in inner}


def _is_loss(kind: type) -> bool:
    return issubclass(kind, _Loss) or kind.__module__ == "torch.nn.modules.loss" or kind.__name__.endswith("Loss")


def _own_classes(spec: Spec) -> dict[str, type[nn.Module]]:
    return {
        name: value
        for name, value in vars(spec.module).items()
        if isinstance(value, type)
        and issubclass(value, nn.Module)
        and value.__module__ == spec.module.__name__
        and not _is_loss(value)
    }


def _classes(spec: Spec) -> dict[str, type[nn.Module]]:
    """The spec's own model classes that no other class of the file builds on or uses."""
    own = _own_classes(spec)
    bodies = [node for node in spec.tree.body if isinstance(node, ast.ClassDef)]
    used = {
        inner.id
        for body in bodies
        for inner in ast.walk(body)
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load) and inner.id != body.name
    }
    return {name: value for name, value in own.items() if name not in used} or own


def _make(spec: Spec, found: Found) -> nn.Module:
    value, where = found.value, found.source if ":" in found.source else spec.where(found.text.removesuffix("()"))
    if isinstance(value, nn.Module):
        return value
    if not callable(value):
        raise SpecError(f"{where}: `{found.text}` is a {type(value).__name__}, not a model")
    kind = "class" if isinstance(value, type) else "function"
    if isinstance(value, type) and not issubclass(value, nn.Module):
        raise SpecError(f"{where}: `{title(value)}` is a class, but not an nn.Module")
    needed = required(value)
    if needed:
        arguments = ", ".join(p.name for p in needed)
        raise SpecError(
            f"{where}: the {kind} `{title(value)}` needs arguments ({arguments}); make the model in the file: "
            f"model = {title(value)}({', '.join(f'{p.name}=…' for p in needed)})"
        )
    made = call_user(value, f"{title(value)}() ({where})", spec.path)
    if not isinstance(made, nn.Module):
        raise SpecError(f"{where}: {title(value)}() returned a {type(made).__name__}, not an nn.Module")
    return made


def _count(model: nn.Module) -> str:
    return amount(sum(p.numel() for p in model.parameters() if not isinstance(p, UninitializedParameter)))


def amount(number: float) -> str:
    """1 234 567 → `1.2 M`."""
    for limit, unit in ((1e9, " B"), (1e6, " M"), (1e4, " k")):
        if number >= limit:
            return f"{number / (limit if limit > 1e4 else 1e3):.1f}{unit}"
    return f"{number:,.0f}".replace(",", " ")


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lives."""
    return next(model.parameters()).device
