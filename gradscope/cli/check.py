"""`gradscope check TARGET`: how is my file read? Nothing is trained."""

from __future__ import annotations

from typing import Annotated

import typer

from gradscope.cli.options import TargetArgument, emit, tell
from gradscope.cli.training import (
    AccumulateOption,
    BatchSizeOption,
    ColumnOption,
    DataOption,
    DeviceOption,
    MaxNormOption,
    PrecisionOption,
    SeedOption,
    TotalStepsOption,
    overrides,
    pieces_table,
)


def check_command(
    target: TargetArgument,
    data: DataOption = None,
    target_column: ColumnOption = None,
    seed: SeedOption = None,
    total_steps: TotalStepsOption = None,
    max_norm: MaxNormOption = None,
    batch_size: BatchSizeOption = None,
    precision: PrecisionOption = None,
    accumulate: AccumulateOption = None,
    device: DeviceOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also list the layers.")] = False,
) -> None:
    """Show how a spec file is read, without training."""
    from gradscope.capture.describe import describe
    from gradscope.workload import read_workload

    workload = read_workload(
        target,
        overrides=overrides(
            data=data,
            target_column=target_column,
            seed=seed,
            total_steps=total_steps,
            max_norm=max_norm,
            batch_size=batch_size,
            precision=precision,
            accumulate=accumulate,
            device=device,
        ),
    )
    emit(pieces_table(workload.pieces), None)
    if verbose:
        parameters, _ = describe(workload.model, workload.optimizers)[:2]
        emit("\n".join(f"  {p.name}  {tuple(p.shape)}  {p.dtype}" for p in parameters), None)
    tell(f"next: gradscope analyze {target}")
