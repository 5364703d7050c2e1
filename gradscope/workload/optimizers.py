"""The optimizers and schedulers of a spec, made where they are factories, checked against the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gradscope.errors import SpecError
from gradscope.runs.schema import Piece
from gradscope.workload.calls import call_user, positional, required, title
from gradscope.workload.models import is_lightning
from gradscope.workload.target import Spec

OPTIMIZER_NAMES = ("optimizer", "make_optimizer", "configure_optimizers")
SCHEDULER_NAMES = ("scheduler", "lr_scheduler")
DEFAULT_LR = 1e-3
_PARAMETERS = ("p", "ps", "params", "parameters", "param_groups", "weights")


@dataclass(frozen=True)
class Scheduled:
    """A scheduler, where it came from, and every how many optimizer steps it is stepped."""

    value: Any
    source: str
    every: int = 1


@dataclass(frozen=True)
class Optimizers:
    """The optimizers, the line about them, and schedulers that came with them (Lightning's `configure_optimizers`)."""

    values: tuple[Optimizer, ...]
    piece: Piece
    schedulers: tuple[Scheduled, ...] = ()


def read_optimizers(spec: Spec, model: nn.Module) -> Optimizers:
    """The spec's optimizer; AdamW at 1e-3 where it names none.

    Raises:
        SpecError: not an optimizer, or one over parameters that are not the model's.
        UserCodeError: making it raised.
    """
    named = [
        name for name in OPTIMIZER_NAMES if spec.get(name) is not None and not isinstance(spec.get(name), ModuleType)
    ]
    if named:
        return _from_spec(spec, model, named[0])
    if is_lightning(model):
        module: Any = model
        name = f"{type(model).__name__}.configure_optimizers"
        configured = call_user(module.configure_optimizers, f"{name}()", spec.path)
        if configured is not None:
            return _optimizers(configured, model, name, spec.path.name)
    default = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=DEFAULT_LR)
    piece = Piece("optimizer", "AdamW", "default", f"lr {DEFAULT_LR:g}; set `optimizer` to override")
    return Optimizers((default,), piece)


def _from_spec(spec: Spec, model: nn.Module, name: str) -> Optimizers:
    value, where = spec.get(name), spec.where(name)
    if callable(value) and not isinstance(value, Optimizer):
        value = _make(value, spec, model, name, where)
    return _optimizers(value, model, name, where)


def _make(value: Any, spec: Spec, model: nn.Module, name: str, where: str) -> Any:
    needed = required(value)
    if isinstance(value, type) and issubclass(value, Optimizer):
        return call_user(lambda: value(_trainable(model)), f"{name}(parameters) ({where})", spec.path)  # type: ignore[call-arg]  # a subclass's
    if needed is not None and len(needed) > 1:
        raise SpecError(
            f"{where}: `{name}` needs {len(needed)} arguments ({', '.join(p.name for p in needed)}); it is called with the "
            "model, or with its parameters where its argument is called `params`"
        )
    argument = _first_argument(value)
    if argument is None:
        return call_user(value, f"{name}() ({where})", spec.path)
    given: Any = _trainable(model) if argument in _PARAMETERS else model
    return call_user(lambda: value(given), f"{name}({argument}) ({where})", spec.path)


def _first_argument(function: Any) -> str | None:
    needed = required(function)
    if needed:
        return needed[0].name
    names = [p.name for p in positional(function)]
    return names[0] if names and names[0] in (*_PARAMETERS, "model", "net", "module") else None


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _optimizers(value: Any, model: nn.Module, name: str, where: str) -> Optimizers:
    optimizers, schedulers = _unpack(value, where)
    if not optimizers or not all(isinstance(one, Optimizer) for one in optimizers):
        wrong = next((type(one).__name__ for one in optimizers if not isinstance(one, Optimizer)), type(value).__name__)
        raise SpecError(f"{where}: `{name}` gives a {wrong}, not a torch.optim.Optimizer")
    held = [p for one in optimizers for group in one.param_groups for p in group["params"]]
    _check_owned(held, model, name, where)
    rates = sorted(
        {
            float(group.get("initial_lr", group["lr"]))
            for one in optimizers
            for group in one.param_groups
            if "lr" in group
        }
    )
    shown = f"lr {rates[0]:g}" if len(rates) == 1 else f"lr {rates[0]:g} to {rates[-1]:g}" if rates else "no lr"
    missing = len({id(p) for p in _trainable(model)} - {id(p) for p in held})
    detail = shown + (f"; {missing} trainable parameters are not in it" if missing else "")
    text = " and ".join(type(one).__name__ for one in optimizers)
    return Optimizers(tuple(optimizers), Piece("optimizer", text, where, detail), tuple(schedulers))


def _check_owned(held: list[Any], model: nn.Module, name: str, where: str) -> None:
    own = {id(p) for p in model.parameters()}
    foreign = [p for p in held if id(p) not in own]
    if not foreign:
        return
    count = "none" if len(foreign) == len(held) else f"only {len(held) - len(foreign)}"
    shapes = ", ".join(str(tuple(p.shape)) for p in foreign[:3])
    raise SpecError(
        f"{where}: `{name}` holds {len(held)} parameters, of which {count} {'is' if count != 'none' else 'are'} the model's "
        f"(others have shapes {shapes}); make it from this model, or as a function: {name} = lambda model: …"
    )


def _unpack(value: Any, where: str) -> tuple[list[Any], list[Scheduled]]:
    """Optimizers and schedulers of everything that `configure_optimizers` may return."""
    if isinstance(value, Mapping):
        given = value.get("lr_scheduler")
        return [value.get("optimizer")], [] if given is None else [_scheduled(given, where)]
    if isinstance(value, tuple | list):
        if len(value) == 2 and isinstance(value[0], tuple | list):
            return list(value[0]), [_scheduled(one, where) for one in value[1]]
        pairs = [_unpack(one, where) if isinstance(one, Mapping) else ([one], []) for one in value]
        return [o for pair in pairs for o in pair[0]], [s for pair in pairs for s in pair[1]]
    return [value], []


def _scheduled(given: Any, where: str) -> Scheduled:
    """Lightning steps a scheduler once an epoch unless its `interval` says step; `every=0` stands for an epoch."""
    if not isinstance(given, Mapping):
        return Scheduled(given, where, 0)
    frequency = int(given.get("frequency", 1))
    return Scheduled(given["scheduler"], where, frequency if given.get("interval") == "step" else 0)


def read_schedulers(spec: Spec, optimizers: Optimizers) -> tuple[Scheduled, ...]:
    """The spec's schedulers, stepped once an optimizer step; else those that came with the optimizers.

    Raises:
        SpecError: not a scheduler, or one over another optimizer.
        UserCodeError: making it raised.
    """
    found = [n for n in SCHEDULER_NAMES if spec.get(n) is not None and not isinstance(spec.get(n), ModuleType)]
    if not found:
        return tuple(_checked(one, optimizers) for one in optimizers.schedulers)
    name, where = found[0], spec.where(found[0])
    value = spec.get(name)
    if (callable(value) and not hasattr(value, "step")) or isinstance(value, type):
        value = _make_scheduler(value, spec, optimizers, name, where)
    values = value if isinstance(value, tuple | list) else (value,)
    return tuple(_checked(Scheduled(one, where), optimizers) for one in values)


def _make_scheduler(value: Callable[..., Any], spec: Spec, optimizers: Optimizers, name: str, where: str) -> Any:
    needed = required(value)
    if needed is not None and len(needed) > 1:
        raise SpecError(
            f"{where}: `{title(value)}` needs {len(needed)} arguments ({', '.join(p.name for p in needed)}); `{name}` is "
            "called with the optimizer alone"
        )
    return call_user(lambda: value(optimizers.values[0]), f"{name}(optimizer) ({where})", spec.path)


def _checked(scheduled: Scheduled, optimizers: Optimizers) -> Scheduled:
    value, where = scheduled.value, scheduled.source
    if not callable(getattr(value, "step", None)):
        raise SpecError(f"{where}: the scheduler is a {type(value).__name__}, which has no step()")
    over = getattr(value, "optimizer", None)
    if over is not None and not any(over is one for one in optimizers.values):
        raise SpecError(
            f"{where}: the scheduler is over another optimizer than `{type(optimizers.values[0]).__name__}` of this file; "
            "name its own one `optimizer`, or make it as a function: scheduler = lambda optimizer: …"
        )
    return scheduled
