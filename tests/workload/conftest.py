"""Spec files written for one test, and the interpreter put back after it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

HEAD = """import torch
from torch import nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
"""
Write = Callable[..., str]


@pytest.fixture(autouse=True)
def _interpreter_put_back() -> Iterator[None]:
    torch.set_num_threads(1)
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file and "pytest-of" in file:
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a spec file under the usual imports; its path. The body's first line is line 5."""

    def spec(body: str, name: str = "model.py", head: str = HEAD) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + body)
        return str(path)

    return spec
