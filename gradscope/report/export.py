"""The recorded numbers for other tools: a table file, TensorBoard, or Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gradscope.errors import UsageError
from gradscope.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd

TRACKERS = ("tensorboard", "wandb")


def frame(run: Run) -> pd.DataFrame:
    """A row a step: step, elapsed_s, loss, lr, global_norm, …, and `grad_norm/<layer>` for each layer (L2)."""
    import pandas as pd

    columns = {
        name: getattr(run, name) for name in ("step", "elapsed_s", "loss", "global_norm", "loss_scale", "max_norm")
    }
    columns |= {"skipped": run.skipped, "nonfinite": run.nonfinite, "micro_steps": run.micro_steps}
    columns |= {f"lr/{group}": run.lr[:, group] for group in range(run.lr.shape[1])}
    columns |= {f"grad_norm/{layer.name}": run.layer_grad_norm[:, i] for i, layer in enumerate(run.layers)}
    return pd.DataFrame(columns)


def to_file(run: Run, path: Path) -> None:
    """Write `frame(run)` as .parquet, .csv or .json (a list of records).

    Raises:
        UsageError: another suffix, or a file that cannot be written.
    """
    writers = {
        ".parquet": lambda table: table.to_parquet(path),
        ".csv": lambda table: table.to_csv(path, index=False),
        ".json": lambda table: table.to_json(path, orient="records"),
    }
    if path.suffix not in writers:
        raise UsageError(f"{path}: unknown suffix {path.suffix!r}; write .parquet, .csv or .json")
    try:
        writers[path.suffix](frame(run))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error}") from error


def to_tracker(run: Run, tracker: str) -> str:
    """Log every finite number as a scalar; says where it went.

    Raises:
        UsageError: an unknown tracker, or its package is not installed.
    """
    if tracker not in TRACKERS:
        raise UsageError(f"--to {tracker!r}: write {' or '.join(TRACKERS)}")
    try:
        return _to_tensorboard(run) if tracker == "tensorboard" else _to_wandb(run)
    except ImportError as error:
        raise UsageError(f"{tracker} is not installed; install it with: pip install {tracker}") from error


def _to_tensorboard(run: Run) -> str:
    from tensorboard.summary import Writer

    folder = Path("tensorboard") / run.id
    writer = Writer(str(folder))
    for step, name, value in _scalars(run):
        writer.add_scalar(f"gradscope/{name}", value, step)
    writer.close()
    return f"{folder}; look with: tensorboard --logdir tensorboard"


def _to_wandb(run: Run) -> str:
    import wandb

    with wandb.init(project="gradscope", name=run.id) as session:
        for step, name, value in _scalars(run):
            session.log({name: value}, step=step)
        return str(session.url or session.dir)


def _scalars(run: Run) -> Iterator[tuple[int, str, float]]:
    table = frame(run).drop(columns=["skipped"])
    for row in table.to_dict("records"):
        step = int(row.pop("step"))
        for name, value in row.items():
            if abs(value) < float("inf"):
                yield step, str(name), float(value)
