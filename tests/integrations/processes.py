"""Commands run in processes of their own, and the run that one of them recorded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from gradscope.runs.reader import load_run
from gradscope.runs.run import Run

ROOT = Path(__file__).parents[2]


ABORTED = b"terminate called without an active exception"
"""Said by torch's gloo threads, now and then, at the exit of a process on a busy machine: seen of bare scripts too."""
TRIES = 3


def run(folder: Path, *command: str, code: int = 0, **options: object) -> subprocess.CompletedProcess[bytes]:
    """`python COMMAND` in `folder`, without this process's own settings of gradscope; it must end with `code`.

    Once more, with nothing recorded, where gloo aborted it.
    """
    done = _once(folder, *command, **options)
    for _ in range(1, TRIES):
        if done.returncode == code or ABORTED not in done.stderr:
            break
        shutil.rmtree(folder / ".gradscope", ignore_errors=True)
        done = _once(folder, *command, **options)
    assert done.returncode == code, done.stderr.decode()
    return done


def _once(folder: Path, *command: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GRADSCOPE_")}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**plain, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
        timeout=300,
        **options,
    )


def recorded(folder: Path) -> Run:
    """The only run in the folder."""
    (only,) = (folder / ".gradscope" / "runs").iterdir()
    return load_run(only)
