"""How the ranks beside rank 0 write their own losses into the run that rank 0 writes.

Nothing is sent in a step: rank 0 leaves its directory in the store through which the processes met, and each other rank
looks there until it has found it. A rank that cannot reach the directory, on a host with other disks, writes nothing.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch.distributed as dist

from gradscope.capture.distributed import rank, world_size
from gradscope.capture.rows import Row
from gradscope.runs.ranks import rank_file, record
from gradscope.runs.schema import Parameter

LOOKS = 20
"""Steps in which a rank looks for the directory before it gives up."""

_met: Counter[int] = Counter()


def meet(directory: Path | None, parameters: Sequence[Parameter]) -> OtherRank | None:
    """Tell the other ranks the directory of the run (rank 0), or be the one who will be told it; None alone.

    Recordings of the same parameters belong together in the order in which each rank begins them.
    """
    store = _store() if world_size() > 1 else None
    if store is None:
        return None
    names = zlib.crc32("\n".join(parameter.name for parameter in parameters).encode())
    key = f"gradscope/{names}/{_met[names]}"
    _met[names] += 1
    if directory is None:
        return OtherRank(store, key)
    with contextlib.suppress(RuntimeError):
        store.set(key, str(directory.resolve()))
    return None


def _store() -> Any:
    """The store of the default process group; None for a backend without one."""
    return dist.distributed_c10d._get_default_store()


class OtherRank:
    """Writes the losses of this rank, as soon as it knows where to."""

    def __init__(self, store: Any, key: str) -> None:
        self._store, self._key, self._rank, self._pid = store, key, rank(), os.getpid()
        self._looks, self._early = LOOKS, b""
        self._file: BinaryIO | None = None

    def write(self, row: Row) -> None:
        """Add the loss of a step, if it has one."""
        if not row.known or os.getpid() != self._pid:
            return
        if self._file is None and self._looks:
            self._look()
        with contextlib.suppress(OSError):
            if self._file:
                self._file.write(self._early + record(row.step, row.loss))
                self._early = b""
            elif self._looks:
                self._early += record(row.step, row.loss)

    def _look(self) -> None:
        """Open the file if rank 0 has said where; where that is not to be reached, never look again."""
        self._looks -= 1
        try:
            if self._store.check([self._key]):
                path = rank_file(Path(self._store.get(self._key).decode()), self._rank)
                path.parent.mkdir(exist_ok=True)
                self._file = path.open("ab", buffering=0)
        except (RuntimeError, OSError):
            self._looks = 0

    def close(self) -> None:
        """Close the file; nothing more is written."""
        self._looks = 0
        if self._file:
            self._file.close()
            self._file = None
