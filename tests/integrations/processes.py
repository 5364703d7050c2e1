"""Commands run in processes of their own, and the run that one of them recorded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gradscope.runs.reader import load_run
from gradscope.runs.run import Run

ROOT = Path(__file__).parents[2]


def run(folder: Path, *command: str, code: int = 0, **options: object) -> subprocess.CompletedProcess[bytes]:
    """`python COMMAND` in `folder`, without this process's own settings of gradscope; it must end with `code`."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GRADSCOPE_")}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**plain, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
        timeout=300,
        **options,
    )
    assert done.returncode == code, done.stderr.decode()
    return done


def recorded(folder: Path) -> Run:
    """The only run in the folder."""
    (only,) = (folder / ".gradscope" / "runs").iterdir()
    return load_run(only)
