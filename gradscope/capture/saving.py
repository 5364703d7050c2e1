"""Walks through live objects, copies what they hold, and can put it back in place."""

from __future__ import annotations

import collections
import enum
import functools
import inspect
import random
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, np.generic, enum.Enum, types.ModuleType)
_LEFT_ALONE = (DataLoader, Dataset, Sampler)
_HOLDS_STATE = {"types", "argparse", "collections"}
"""Modules of the standard library whose plain objects are looked into; the others hold files, locks, threads and code."""
_LOGGERS = {
    "wandb",
    "tensorboard",
    "tensorboardX",
    "mlflow",
    "comet_ml",
    "neptune",
    "tqdm",
    "rich",
    "pandas",
    "pyarrow",
}
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class CannotSnapshotError(Exception):
    """Part of the training cannot be copied or put back; `part` names it. Go on without rehearsing."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"{part} {reason}")
        self.part = part


class Saving:
    """Everything visited, copied at the time of the visit. What is reached twice is copied once."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}
        self._restores: list[tuple[str, Callable[[], object]]] = []
        self._copies: list[torch.Tensor] = []

    @property
    def nbytes(self) -> int:
        """Memory that the copies of tensors take."""
        return sum(copy.numel() * copy.element_size() for copy in self._copies)

    def restore(self) -> None:
        """Put everything back.

        Raises:
            CannotSnapshotError: something cannot be put back, or did not come back as it was.
        """
        with torch.no_grad():
            for part, restore in self._restores:
                try:
                    restore()
                except CannotSnapshotError:
                    raise
                except Exception as error:
                    raise CannotSnapshotError(part, f"cannot be put back: {error}") from error

    def attribute(self, holder: Any, name: str) -> None:
        """Save one attribute of an object, and what it holds."""
        value = getattr(holder, name)
        self.visit(value, name)
        self._later(name, lambda: setattr(holder, name, value))

    def visit(self, value: Any, part: str) -> None:
        """Save `value`, which error messages call `part`.

        Raises:
            CannotSnapshotError: it cannot be copied or wound back.
        """
        if isinstance(value, _PLAIN) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        for kind, save in _SAVERS:
            if isinstance(value, kind):
                save(self, value, part)
                return
        if inspect.isgenerator(value) or (hasattr(value, "__next__") and not hasattr(value, "__dict__")):
            raise CannotSnapshotError(part, f"is a {type(value).__name__}, which cannot be wound back")
        if not isinstance(value, _LEFT_ALONE) and _has_state(type(value)):
            self._object(value, part)

    def _later(self, part: str, restore: Callable[[], object]) -> None:
        self._restores.append((part, restore))

    def _tensor(self, tensor: torch.Tensor, part: str) -> None:
        try:
            memory = tensor.detach()
            copy = _copy(memory)
        except Exception as error:
            raise CannotSnapshotError(part, f"cannot be copied: {error}") from error
        self._copies.append(copy)
        gradient = tensor.grad if tensor.is_leaf else None
        self.visit(gradient, f"{part}.grad")
        leaf, wants = tensor.is_leaf, tensor.requires_grad

        def restore() -> None:
            if not _same_memory(tensor, memory):
                tensor.data = memory
            _write(tensor, copy, part)
            if leaf:
                tensor.requires_grad_(wants).grad = gradient

        self._later(part, restore)

    def _dict(self, value: dict[Any, Any], part: str) -> None:
        before = dict(value)
        for key, item in before.items():
            self.visit(item, f"{part}.{key}" if isinstance(key, str | int) else part)

        def restore() -> None:
            value.clear()
            value.update(before)

        self._later(part, restore)

    def _list(self, value: list[Any] | collections.deque[Any], part: str) -> None:
        before = list(value)
        self._tuple(tuple(before), part)

        def restore() -> None:
            value.clear()
            value.extend(before)

        self._later(part, restore)

    def _tuple(self, value: tuple[Any, ...], part: str) -> None:
        for i, item in enumerate(value):
            self.visit(item, f"{part}[{i}]")

    def _set(self, value: set[Any], part: str) -> None:
        before = set(value)

        def restore() -> None:
            value.clear()
            value.update(before)

        self._later(part, restore)

    def _array(self, value: np.ndarray[Any, Any], part: str) -> None:
        before = value.copy()
        if value.flags.writeable:
            self._later(part, lambda: np.copyto(value, before))

    def _torch_generator(self, value: torch.Generator, part: str) -> None:
        state = value.get_state()
        self._later(part, lambda: value.set_state(state))

    def _numpy_generator(self, value: np.random.Generator, part: str) -> None:
        state = value.bit_generator.state
        self._later(part, lambda: setattr(value.bit_generator, "state", state))

    def _numpy_random_state(self, value: np.random.RandomState, part: str) -> None:
        state = value.get_state()
        self._later(part, lambda: value.set_state(state))

    def _python_random(self, value: random.Random, part: str) -> None:
        state = value.getstate()
        self._later(part, lambda: value.setstate(state))

    def _module(self, value: nn.Module, part: str) -> None:
        for name, tensor in (*value.named_parameters(recurse=False), *value.named_buffers(recurse=False)):
            self.visit(tensor, f"{part}.{name}")
        self._object(value, part)

    def _object(self, value: Any, part: str) -> None:
        """Its attributes, except hooks and functions: those may have been placed or taken away for good since."""
        for name in _slots(type(value)):
            if hasattr(value, name):
                self._slot(value, name, part)
        own = getattr(value, "__dict__", None)
        if not isinstance(own, dict):
            return
        before = {name: item for name, item in own.items() if _counts(name, item)}
        for name, item in before.items():
            self.visit(item, _joined(part, name))

        def restore() -> None:
            for name in [name for name, item in own.items() if name not in before and _counts(name, item)]:
                del own[name]
            own.update(before)

        self._later(part, restore)

    def _slot(self, value: Any, name: str, part: str) -> None:
        item = getattr(value, name)
        self.visit(item, f"{part}.{name}")
        if item is not getattr(type(value), name, None):
            self._later(part, lambda: object.__setattr__(value, name, item))

    def _function(self, value: types.FunctionType, part: str) -> None:
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            self._cell(cell, f"{part}'s {name}")
        if value.__module__.partition(".")[0] in {"torch", "gradscope", "numpy"}:
            return
        for name in _names(value.__code__):
            if name in value.__globals__:
                self._global(value.__globals__, name)

    def _cell(self, cell: types.CellType, part: str) -> None:
        try:
            item = cell.cell_contents
        except ValueError:
            return
        self.visit(item, part)
        self._later(part, lambda: setattr(cell, "cell_contents", item))

    def _global(self, names: dict[str, Any], name: str) -> None:
        item = names[name]
        if isinstance(item, types.FunctionType) and item.__globals__ is not names:
            return
        self.visit(item, f"global {name}")
        if not isinstance(item, (*_FUNCTIONS, type, types.ModuleType)):
            self._later(f"global {name}", lambda: names.__setitem__(name, item))

    def _method(self, value: types.MethodType, part: str) -> None:
        self.visit(value.__self__, part)
        self.visit(value.__func__, part)

    def _partial(self, value: functools.partial[Any], part: str) -> None:
        for held in (value.func, value.args, value.keywords):
            self.visit(held, part)

    def _nothing(self, value: Any, part: str) -> None:
        """Nothing to save."""


_SAVERS: tuple[tuple[type, Callable[[Saving, Any, str], None]], ...] = (
    (torch.Tensor, Saving._tensor),
    (nn.Module, Saving._module),
    (dict, Saving._dict),
    (list, Saving._list),
    (collections.deque, Saving._list),
    (tuple, Saving._tuple),
    (set, Saving._set),
    (np.ndarray, Saving._array),
    (torch.Generator, Saving._torch_generator),
    (np.random.Generator, Saving._numpy_generator),
    (np.random.RandomState, Saving._numpy_random_state),
    (random.Random, Saving._python_random),
    (types.FunctionType, Saving._function),
    (types.MethodType, Saving._method),
    (functools.partial, Saving._partial),
    (types.BuiltinFunctionType, Saving._nothing),
)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one dtype hold the same bits, NaN and −0 included."""
    if one.is_sparse:
        return same_bits(one._indices(), other._indices()) and same_bits(one._values(), other._values())
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(_bits(one), _bits(other.to(one.device)))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    values = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return values.view(_INTEGERS[values.element_size()])


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy beside the tensor, or in the computer's own memory where its device has no room."""
    try:
        return tensor.clone()
    except torch.OutOfMemoryError:
        return tensor.cpu()


def _write(tensor: torch.Tensor, copy: torch.Tensor, part: str) -> None:
    now = tensor.detach()
    if same_bits(now, copy):
        return
    now.copy_(copy)
    if not same_bits(tensor.detach(), copy):
        raise CannotSnapshotError(part, "could not be put back as it was")


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.layout != torch.strided or other.layout != torch.strided:
        return one.layout == other.layout
    return (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())


def _has_state(kind: type) -> bool:
    package = kind.__module__.partition(".")[0]
    if package in _HOLDS_STATE:
        return True
    return package not in _LOGGERS and package not in sys.stdlib_module_names and "tensorboard" not in kind.__module__


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        names = base.__dict__.get("__slots__", ())
        for name in [names] if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__"):
                yield f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") else name


def _counts(name: str, item: Any) -> bool:
    return "_hooks" not in name and not isinstance(item, _FUNCTIONS)


def _joined(part: str, name: str) -> str:
    return part if name in ("_modules", "_parameters", "_buffers") else f"{part}.{name}"


def _names(code: types.CodeType) -> Iterator[str]:
    """Global names that a function and those written inside it mention."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
