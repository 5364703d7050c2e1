"""After every test: no hook, no patched function, no open recorder is left behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HOOK_TABLES = (
    ("torch.nn.modules.module", "_global_forward_hooks"),
    ("torch.nn.modules.module", "_global_forward_pre_hooks"),
    ("torch.nn.modules.module", "_global_backward_hooks"),
    ("torch.nn.modules.module", "_global_backward_pre_hooks"),
    ("torch.optim.optimizer", "_global_optimizer_pre_hooks"),
    ("torch.optim.optimizer", "_global_optimizer_post_hooks"),
)
FUNCTIONS = (
    ("torch.nn.utils", "clip_grad_norm_"),
    ("torch.nn.utils", "clip_grad_value_"),
    ("torch.nn.utils", "get_total_norm"),
    ("torch.nn.utils", "clip_grads_with_norm_"),
    ("torch.nn.utils.clip_grad", "clip_grad_norm_"),
    ("torch.autograd", "backward"),
    ("torch", "Tensor.backward"),
    ("torch.amp", "GradScaler.step"),
    ("torch.amp", "GradScaler.unscale_"),
    ("torch.amp", "GradScaler.update"),
)


def _state() -> dict[str, Any]:
    """What must be the same after a test as before it; only of modules that are loaded."""
    state: dict[str, Any] = {}
    for module, name in HOOK_TABLES:
        if module in sys.modules:
            state[f"{module}.{name}"] = tuple(getattr(sys.modules[module], name))
    for module, name in FUNCTIONS:
        if module in sys.modules:
            function: Any = sys.modules[module]
            for part in name.split("."):
                function = getattr(function, part)
            state[f"{module}.{name}"] = (function, getattr(function, "__code__", None))
    if "gradscope.capture.recorder" in sys.modules:
        state["open recorders"] = tuple(sys.modules["gradscope.capture.recorder"].active)
    return state


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = _state()
    yield
    after = _state()
    changed = [name for name in before if after[name] != before[name]]
    assert not changed, f"left behind: {changed}"


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own GRADSCOPE_* variables change no test."""
    import os

    for name in [name for name in os.environ if name.startswith("GRADSCOPE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, where runs go to `.gradscope`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
