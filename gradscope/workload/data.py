"""Finding the data in a spec file, in whatever form it has, and turning it into batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from gradscope.errors import SpecError
from gradscope.workload.arrays import array_batches, columns_of, frame_columns, is_array, is_frame
from gradscope.workload.batches import IndexedBatches, StreamBatches, loader_batches
from gradscope.workload.calls import call_user, required, title
from gradscope.workload.files import SUFFIXES, load_file, pair_of
from gradscope.workload.model import Batches
from gradscope.workload.move import copied
from gradscope.workload.target import Spec

DATA_NAMES = (
    "data",
    "train_loader",
    "train_dataloader",
    "dataloader",
    "loader",
    "dataset",
    "train_dataset",
    "datamodule",
    "batches",
)
BATCH_SIZE = 32


@dataclass(frozen=True)
class Data:
    """The batches and how they were found. `form` says what kind of data it is, for the line that is printed."""

    batches: Batches
    text: str
    source: str
    form: str
    synthetic: bool = False


@dataclass(frozen=True)
class _Reading:
    """What turning one form into batches needs to know."""

    spec: Spec
    where: str
    text: str
    batch_size: int | None
    target: str | None
    seed: int

    @property
    def rows(self) -> int:
        return self.batch_size or BATCH_SIZE


def read_data(
    spec: Spec, model: nn.Module, *, data: str | None, target: str | None, batch_size: int | None, seed: int
) -> Data | None:
    """The data named by `data` (a file or a name of the spec), else found in the spec, else None.

    Raises:
        SpecError: several possible data, a form that is not understood, a damaged file, or nothing in it.
        UserCodeError: the user's code raised while the data was made.
    """
    target = target if target is not None else spec.get("target") if isinstance(spec.get("target"), str) else None
    reading = _Reading(spec, "", "", batch_size, target, seed)
    if data is not None and not _is_name(spec, data):
        return _file(Path(data), replace(reading, text=Path(data).name, where=str(data)))
    name = data if data is not None else _choose(spec)
    if name is not None:
        return _read(spec.get(name), replace(reading, text=name, where=spec.where(name)))
    loader = getattr(model, "train_dataloader", None)
    if loader is not None and not _is_lightning_stub(model):
        made = call_user(loader, "model.train_dataloader()", spec.path)
        return _read(made, replace(reading, text="model.train_dataloader()", where=spec.path.name))
    return None


def no_data(spec: Spec) -> SpecError:
    """The error for a spec without any data."""
    return SpecError(
        f"{spec.path.name}: no data; name it `data` (a DataLoader, a Dataset, a function that returns an iterator, or "
        "(X, y)), give a file with --data FILE --target COLUMN, or set `input_shape` to measure on synthetic data"
    )


def _is_name(spec: Spec, data: str) -> bool:
    return data.isidentifier() and spec.get(data) is not None


def _is_lightning_stub(model: nn.Module) -> bool:
    return not any(
        "train_dataloader" in vars(kind) for kind in type(model).__mro__ if "lightning" not in kind.__module__
    )


def _choose(spec: Spec) -> str | None:
    """The one data name of the spec; what another of them is made from or reads gives way to it."""
    found = {name: spec.get(name) for name in DATA_NAMES if _may_be_data(spec.get(name))}
    within = {id(part) for value in found.values() for part in _inside(value)}
    read = {name for value in found.values() for name in getattr(getattr(value, "__code__", None), "co_names", ())}
    distinct: dict[int, str] = {}
    for name, value in found.items():
        parts = {id(part) for part in value} if isinstance(value, tuple) else {id(value)}
        if name not in read and id(value) not in within and not parts <= within:
            distinct.setdefault(id(value), name)
    if len(distinct) > 1:
        places = ", ".join(f"`{name}` ({spec.where(name)})" for name in distinct.values())
        commands = "".join(f"\n    gradscope analyze {spec.target} --data {name}" for name in distinct.values())
        raise SpecError(f"{spec.path.name}: {len(distinct)} possible data: {places}; say which one:{commands}")
    return next(iter(distinct.values()), None)


def _may_be_data(value: Any) -> bool:
    if isinstance(value, str | Path):
        return Path(value).suffix in SUFFIXES
    return value is not None and not isinstance(value, ModuleType | nn.Module | int | float)


def _inside(value: Any) -> Iterator[Any]:
    """What a loader or a dataset wraps: its dataset, the datasets that one is made of, their tensors."""
    if not isinstance(value, DataLoader | Dataset):
        return
    yield from getattr(value, "tensors", ())
    for part in (getattr(value, "dataset", None), *getattr(value, "datasets", ())):
        if part is not None:
            yield part
            yield from _inside(part)


def _file(path: Path, reading: _Reading) -> Data:
    beside = reading.spec.path.parent / path
    path = path if path.exists() or not beside.exists() else beside
    held = _read(load_file(path, reading.target), replace(reading, where=str(path)))
    return replace(held, text=path.name, source=str(path))


def _read(value: Any, reading: _Reading) -> Data:
    """One value in any of the forms that are understood."""
    if isinstance(value, str | Path):
        return _file(Path(value), reading)
    for matches, read in _FORMS:
        if matches(value):
            batches, form = read(value, reading)
            if isinstance(batches, Data):
                return batches
            return Data(batches, reading.text, reading.where, form)
    raise SpecError(
        f"{reading.where}: `{reading.text}` is a {type(value).__name__}, which is no data; give a DataLoader, a Dataset, "
        "an iterable of batches, a function that returns an iterator, (X, y), a DataFrame or a file name"
    )


Read = Callable[[Any, _Reading], tuple[Any, str]]


def _loader(value: DataLoader[Any], reading: _Reading) -> tuple[Batches, str]:
    size = value.batch_size or getattr(value.batch_sampler or value.sampler, "batch_size", None)
    return loader_batches(value, reading.seed), f"DataLoader{f', batch {size}' if size else ''}"


def _dataset(value: Any, reading: _Reading) -> tuple[Batches, str]:
    kind = type(value).__name__
    kind = kind if kind.endswith("Dataset") else f"{kind} (Dataset)"
    if isinstance(value, IterableDataset):
        stream: DataLoader[Any] = DataLoader(value, batch_size=reading.rows)
        return loader_batches(stream, reading.seed), f"{kind}, batch {reading.rows}"
    rows = call_user(lambda: len(value), f"len({reading.text}) ({reading.where})", reading.spec.path)
    if not rows:
        raise SpecError(f"{reading.where}: the data is empty: len({reading.text}) is 0")
    loader = DataLoader(value, batch_size=reading.rows, shuffle=True, drop_last=rows >= reading.rows)
    return loader_batches(loader, reading.seed), f"{kind}, {rows} rows, shuffled, batch {min(rows, reading.rows)}"


def _hugging_face(value: Any, reading: _Reading) -> tuple[Any, str]:
    if isinstance(value, Mapping):
        if "train" not in value:
            raise SpecError(
                f"{reading.where}: no split `train` among {', '.join(value)}; write {reading.text}[SPLIT] in the file"
            )
        value = value["train"]
    tensors = value.with_format("torch")
    row: dict[str, Any] = call_user(
        lambda: next(iter(tensors), {}), f"reading `{reading.text}` ({reading.where})", reading.spec.path
    )
    kept = [name for name, cell in row.items() if isinstance(cell, torch.Tensor)]
    left = [name for name in row if name not in kept]
    batches, form = _dataset(tensors.select_columns(kept) if left else tensors, reading)
    if reading.target is not None:
        batches = _Paired(batches, reading.target, reading.where)
    return batches, f"Hugging Face {form}" + (f"; left out: {', '.join(left)}" if left else "")


@dataclass
class _Paired:
    """Dict batches as (x, y), for a named target column."""

    inner: Batches
    target: str
    where: str

    @property
    def shuffled(self) -> bool:
        return self.inner.shuffled

    def at(self, index: int) -> Any:
        return pair_of(self.inner.at(index), self.target, self.where)

    def reach(self, index: int) -> bool:
        return self.inner.reach(index)

    def places(self, index: int) -> list[int]:
        return self.inner.places(index)


def _module(value: Any, reading: _Reading) -> tuple[Any, str]:
    """A Lightning DataModule, or anything with `train_dataloader()`."""
    value = call_user(value, f"{title(value)}()", reading.spec.path) if isinstance(value, type) else value
    for step in ("prepare_data", "setup"):
        method = getattr(value, step, None)
        if method is not None:
            arguments = ("fit",) if step == "setup" else ()
            call_user(partial(method, *arguments), f"{title(value)}.{step}()", reading.spec.path)
    loader = call_user(value.train_dataloader, f"{title(value)}.train_dataloader()", reading.spec.path)
    data = _read(loader, reading)
    return replace(data, form=f"{type(value).__name__}, {data.form}"), ""


def _frame(value: Any, reading: _Reading) -> tuple[Batches, str]:
    columns = frame_columns(value, reading.target, reading.where)
    return array_batches(columns, reading.rows, reading.seed), (
        f"{len(value)} rows, {columns[0].shape[1]} columns to predict `{reading.target}`, shuffled, "
        f"batch {min(len(value), reading.rows)}"
    )


def _arrays(value: Any, reading: _Reading) -> tuple[Batches, str]:
    columns = columns_of(value, reading.where)
    parts = list(columns.values()) if isinstance(columns, dict) else list(columns)
    rows = len(parts[0])
    shape = " and ".join(str(tuple(part.shape)) for part in parts)
    return array_batches(
        columns, reading.rows, reading.seed
    ), f"arrays {shape}, shuffled, batch {min(rows, reading.rows)}"


def _sequence(value: Sequence[Any], reading: _Reading) -> tuple[Batches, str]:
    if not len(value):
        raise SpecError(f"{reading.where}: the data is empty: `{reading.text}` has no batch")
    if _is_row(value[0]) and reading.spec.get("training_step") is None:
        return _dataset(value, reading)
    batches = IndexedBatches(lambda i: copied(value[i]), lambda _: iter(range(len(value))), reading.seed, len(value))
    return batches, f"{type(value).__name__} of {len(value)} batches"


def _is_row(part: Any) -> bool:
    """Whether it is one sample, not a batch: its target is a single number."""
    return isinstance(part, tuple | list) and len(part) > 1 and _is_number(part[-1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (
        isinstance(value, torch.Tensor | np.ndarray | np.generic) and value.ndim == 0
    )


def _function(value: Any, reading: _Reading) -> tuple[Any, str]:
    needed = required(value)
    if needed:
        raise SpecError(
            f"{reading.where}: `{reading.text}` needs arguments ({', '.join(p.name for p in needed)}); "
            "give a function without any, or call it in the file"
        )
    first = call_user(value, f"{reading.text}() ({reading.where})", reading.spec.path)
    if not isinstance(first, Iterator):
        if first is None or first is value:
            raise SpecError(f"{reading.where}: {reading.text}() returned {first!r}, not data")
        return _read(first, replace(reading, text=f"{reading.text}()")), ""
    waiting = [first]
    return StreamBatches(
        lambda _: waiting.pop() if waiting else iter(value()), reading.seed
    ), "function, a fresh iterator a call"


def _iterable(value: Any, reading: _Reading) -> tuple[Batches, str]:
    if isinstance(value, Iterator):
        return StreamBatches(lambda number: value if number == 0 else None, reading.seed), "iterator, can be read once"
    return StreamBatches(lambda _: iter(value), reading.seed), f"{type(value).__name__}, iterable"


def _is_hugging_face(value: Any) -> bool:
    return type(value).__module__.split(".")[0] == "datasets" and hasattr(value, "with_format")


_FORMS: tuple[tuple[Callable[[Any], bool], Read], ...] = (
    (lambda v: isinstance(v, DataLoader), _loader),
    (_is_hugging_face, _hugging_face),
    (lambda v: hasattr(v, "train_dataloader"), _module),
    (lambda v: isinstance(v, Dataset), _dataset),
    (is_frame, _frame),
    (is_array, _arrays),
    (lambda v: isinstance(v, tuple) and bool(v) and all(is_array(p) for p in v), _arrays),
    (lambda v: isinstance(v, Mapping) and bool(v) and all(is_array(p) for p in v.values()), _arrays),
    (lambda v: isinstance(v, type) or inspect.isroutine(v) or (callable(v) and not hasattr(v, "__iter__")), _function),
    (lambda v: isinstance(v, list | tuple), _sequence),
    (lambda v: hasattr(v, "__iter__") and not isinstance(v, Mapping | torch.Tensor | bytes), _iterable),
)
