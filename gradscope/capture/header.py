"""The header of a run of a workload."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from gradscope.capture.describe import describe
from gradscope.capture.distributed import world_size
from gradscope.runs.schema import Header
from gradscope.workload.model import Workload


def header_for(workload: Workload, command: Sequence[str], **changes: Any) -> Header:
    """The header of a run of `workload` begun by `command`; `changes` replace fields."""
    parameters, optimizer, _ = describe(workload.model, workload.optimizers)
    fields = {
        "name": workload.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": workload.source,
        "command": tuple(command),
        "parameters": parameters,
        "optimizer": optimizer,
        "plan": workload.plan,
        "pieces": workload.pieces,
        "seed": workload.seed,
        "world_size": world_size(),
        "synthetic_data": workload.synthetic_data,
        "inferred_loss": workload.inferred_loss,
        "versions": versions(),
        "pid": os.getpid(),
    }
    return Header(**fields | changes)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    try:
        own = version("gradscope-cli")
    except PackageNotFoundError:
        own = "unknown"
    return {"gradscope": own, "torch": torch.__version__, "python": platform.python_version()}
