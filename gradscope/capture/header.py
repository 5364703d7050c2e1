"""The header of a run, and how a run ends."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from gradscope.capture.describe import describe
from gradscope.capture.distributed import world_size
from gradscope.runs.schema import Ending, Header
from gradscope.workload.model import Workload


def header_for(workload: Workload, command: Sequence[str], **changes: Any) -> Header:
    """The header of a run of `workload` begun by `command`; `changes` replace fields."""
    parameters, optimizer, _ = describe(workload.model, workload.optimizers)
    fields = {
        "parameters": parameters,
        "optimizer": optimizer,
        "plan": workload.plan,
        "pieces": workload.pieces,
        "seed": workload.seed,
        "synthetic_data": workload.synthetic_data,
        "inferred_loss": workload.inferred_loss,
        "shuffled": workload.batches.shuffled,
    }
    plain = new_header(workload.name, "analyze", workload.source, world_size(), command)
    return replace(plain, **fields | changes)


def new_header(
    name: str, recorded_by: str, source: str, world_size: int = 1, command: Sequence[str] | None = None
) -> Header:
    """A header without parameters; the recorder adds them. `command`: by default how this process was started."""
    return Header(
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=source,
        command=tuple(sys.argv if command is None else command),
        parameters=(),
        recorded_by=recorded_by,
        world_size=world_size,
        versions=versions(),
        pid=os.getpid(),
    )


def ending_of(error: BaseException | None, step: int, message: str | None = None) -> Ending:
    """How a run ended that `error` ended; `message` where there was none."""
    if error is None:
        return Ending("finished", step, message)
    if isinstance(error, KeyboardInterrupt):
        return Ending("interrupted", step)
    return Ending("failed", step, f"{type(error).__name__}: {error}")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    try:
        own = version("gradscope-cli")
    except PackageNotFoundError:
        own = "unknown"
    return {"gradscope": own, "torch": torch.__version__, "python": platform.python_version()}
