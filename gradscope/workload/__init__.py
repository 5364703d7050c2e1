"""From a spec file to a workload: model, data, loss, optimizer, plan. This side imports torch, when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradscope.workload.overrides import Overrides

if TYPE_CHECKING:
    from gradscope.workload.read import read_workload

__all__ = ["Overrides", "read_workload"]


def __getattr__(name: str) -> Any:
    if name != "read_workload":
        raise AttributeError(f"module 'gradscope.workload' has no attribute {name!r}")
    from gradscope.workload.read import read_workload

    return read_workload
