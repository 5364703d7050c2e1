"""The options that change how a spec is read, shared by `analyze` and `check`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gradscope.runs.schema import Piece
    from gradscope.workload import Overrides

DataOption = Annotated[
    Path | None, typer.Option("--data", envvar="GRADSCOPE_DATA", help="A .csv, .npz, .pt or .parquet file.")
]
ColumnOption = Annotated[
    str | None, typer.Option("--target", envvar="GRADSCOPE_TARGET", help="The column of --data to predict.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", envvar="GRADSCOPE_SEED", help="Default: the spec's, else 0.")]
TotalStepsOption = Annotated[
    int | None,
    typer.Option("--total-steps", envvar="GRADSCOPE_TOTAL_STEPS", help="Planned optimizer steps of the real training."),
]
MaxNormOption = Annotated[
    float | None, typer.Option("--max-norm", envvar="GRADSCOPE_MAX_NORM", help="The clipping threshold used today.")
]
BatchSizeOption = Annotated[int | None, typer.Option("--batch-size", envvar="GRADSCOPE_BATCH_SIZE")]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", envvar="GRADSCOPE_PRECISION", help="fp32, bf16 or fp16.")
]
AccumulateOption = Annotated[
    int | None, typer.Option("--accumulate", envvar="GRADSCOPE_ACCUMULATE", help="Micro-batches an optimizer step.")
]
DeviceOption = Annotated[str | None, typer.Option("--device", envvar="GRADSCOPE_DEVICE", help="cpu, cuda, mps.")]


def overrides(**given: Any) -> Overrides:
    """The options that were given, as Overrides."""
    from gradscope.workload import Overrides

    return Overrides(**{key: value for key, value in given.items() if value is not None})


def pieces_table(pieces: Iterable[Piece]) -> str:
    """How the file was read, a line a piece with its source."""
    rows = [(p.piece, p.value, ", ".join(part for part in (p.source, p.detail) if part)) for p in pieces]
    wide = max((len(value) for _, value, _ in rows), default=0)
    return "\n".join(f"{piece:<10} {value:<{min(wide, 36)}}  {source}".rstrip() for piece, value, source in rows)
