"""Data files: .csv, .parquet, .npz and .pt, without ever unpickling code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradscope.errors import SpecError

INPUT_KEYS = ("x", "X", "data", "inputs", "input", "features", "images", "x_train", "X_train")
TARGET_KEYS = ("y", "Y", "target", "targets", "label", "labels", "y_train")
SUFFIXES = (".csv", ".parquet", ".npz", ".pt", ".pth")


def load_file(path: Path, target: str | None) -> Any:
    """What a data file holds: a DataFrame, a tensor, a tuple `(X, y)`, or a dict of arrays without a known target.

    Raises:
        SpecError: no such file, an unknown suffix, a damaged file, or one that holds pickled objects.
    """
    if not path.exists():
        raise SpecError(f"{path}: no such data file")
    if path.suffix not in SUFFIXES:
        raise SpecError(
            f"{path}: data files are {', '.join(SUFFIXES)}; for other data write `data = …` in the spec file"
        )
    try:
        if path.suffix in (".csv", ".parquet"):
            return _frame(path)
        held = _arrays(path) if path.suffix == ".npz" else torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise SpecError(f"{path}: cannot be read as {path.suffix} data: {_reason(error)}") from error
    return pair_of(held, target, str(path))


def pair_of(held: Any, target: str | None, where: str) -> Any:
    """`(X, y)` from named arrays, where the names say which is which; anything else as it is."""
    if not isinstance(held, Mapping):
        return held
    keys = [str(key) for key in held]
    answer = target if target is not None else next((k for k in TARGET_KEYS if k in held), None)
    if answer is None:
        if len(keys) == 1:
            return held[keys[0]]
        raise SpecError(f"{where}: holds {', '.join(keys)}; say which one is the target: --target NAME")
    if answer not in held:
        raise SpecError(f"{where}: has no `{answer}`; it holds {', '.join(keys)}")
    rest = [key for key in keys if key != answer]
    inputs = rest if len(rest) == 1 else [key for key in INPUT_KEYS if key in rest][:1]
    if not inputs:
        raise SpecError(
            f"{where}: which of {', '.join(rest) or 'nothing'} is the input? Name it `x`, or write (X, y) in the spec"
        )
    return held[inputs[0]], held[answer]


def _frame(path: Path) -> Any:
    import pandas

    return pandas.read_csv(path) if path.suffix == ".csv" else pandas.read_parquet(path)


def _arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as held:
        return {name: held[name] for name in held.files}


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "weights_only" in str(error) or "allow_pickle" in str(error) or "pickled" in str(error):
        return "it holds pickled objects, which could run code; save plain tensors or arrays instead"
    return text
