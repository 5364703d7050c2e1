"""Where runs live: `.gradscope/runs/<UTC time>-<name>-<4 hex>/`, with `latest` naming the last one begun, or shown."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path

from gradscope.errors import RunNotFoundError, UsageError
from gradscope.runs import files

HOME = ".gradscope"


def home(root: Path | None = None) -> Path:
    """The folder that holds the runs: `$GRADSCOPE_DIR`, else `.gradscope` in `root` (default: the current directory)."""
    chosen = os.environ.get("GRADSCOPE_DIR")
    return Path(chosen) if chosen else (root or Path.cwd()) / HOME


def new_run_directory(name: str, root: Path | None = None) -> Path:
    """A fresh path for a run, not yet created; `latest` names it from now on.

    Raises:
        UsageError: the folder cannot be written.
    """
    base = home(root)
    stem = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.") or "run"
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{stem[:40]}-{os.urandom(2).hex()}"
    try:
        (base / "runs").mkdir(parents=True, exist_ok=True)
        (base / ".gitignore").write_text("*\n", encoding="utf-8")
        name_latest(base / "runs" / run_id)
    except OSError as error:
        raise UsageError(
            f"cannot write runs to {base}: {error.strerror}; set GRADSCOPE_DIR to a folder that can be written"
        ) from error
    return base / "runs" / run_id


def name_latest(run: Path) -> None:
    """Let `latest` name this run of a folder of runs."""
    (run.parent.parent / "latest").write_text(run.name + "\n", encoding="utf-8")


def list_runs(root: Path | None = None) -> list[Path]:
    """Every run directory, oldest first."""
    return sorted(path.parent for path in (home(root) / "runs").glob(f"*/{files.HEADER_FILE}"))


def find_run(reference: str | None = None, root: Path | None = None) -> Path:
    """The run directory for a path, an id, a unique prefix of one, or `latest` (the default).

    Raises:
        RunNotFoundError: none fits, or several do.
    """
    if reference and (Path(reference) / files.HEADER_FILE).is_file():
        return Path(reference)
    if reference and reference != "latest":
        return _by_prefix(reference, list_runs(root), home(root))
    return _latest(root)


def _latest(root: Path | None) -> Path:
    base, runs = home(root), list_runs(root)
    if not runs:
        raise RunNotFoundError(f"no runs in {base}; record one with: gradscope analyze model.py")
    named = base / "latest"
    chosen = base / "runs" / named.read_text(encoding="utf-8").strip() if named.is_file() else runs[-1]
    return chosen if chosen in runs else runs[-1]


def _by_prefix(reference: str, runs: list[Path], base: Path) -> Path:
    exact = [run for run in runs if run.name == reference]
    fitting = exact or [run for run in runs if run.name.startswith(reference)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(run.name for run in fitting[:5])
        raise RunNotFoundError(f"{len(fitting)} runs begin with {reference!r}: {names}; write more of the id")
    if Path(reference).is_dir():
        raise RunNotFoundError(f"{reference} is not a gradscope run: it has no {files.HEADER_FILE}")
    raise RunNotFoundError(f"no run {reference!r} in {base}; list them with: gradscope runs")


def is_gone(pid: int | None) -> bool:
    """Whether the process that writes the run no longer exists."""
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
