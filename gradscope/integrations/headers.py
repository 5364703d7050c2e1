"""The header of a run that an integration records, and how such a run ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from gradscope.capture.header import versions
from gradscope.runs.schema import Ending, Header


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
