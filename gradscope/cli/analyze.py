"""`gradscope analyze TARGET`: record a window of your training, judge it, and recommend a threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradscope.cli.options import FormatOption, OutputOption, TargetArgument, emit, fails, known_severity, seconds, tell
from gradscope.cli.show import known_output, rendered
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
)


def analyze_command(
    target: TargetArgument,
    steps: Annotated[
        int, typer.Option("--steps", "-n", min=1, envvar="GRADSCOPE_STEPS", help="Instrumented training steps.")
    ] = 50,
    budget: Annotated[
        str,
        typer.Option("--budget", envvar="GRADSCOPE_BUDGET", help="Time for rehearsals and verification: 90s, 5m, 1h."),
    ] = "5m",
    quick: Annotated[
        bool,
        typer.Option("--quick", envvar="GRADSCOPE_QUICK", help="The window alone: no rehearsal, nothing verified."),
    ] = False,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, envvar="GRADSCOPE_SEEDS", help="Repeat with so many seeds; report k of n.")
    ] = 1,
    data: DataOption = None,
    target_column: ColumnOption = None,
    seed: SeedOption = None,
    total_steps: TotalStepsOption = None,
    max_norm: MaxNormOption = None,
    batch_size: BatchSizeOption = None,
    precision: PrecisionOption = None,
    accumulate: AccumulateOption = None,
    device: DeviceOption = None,
    output_format: FormatOption = None,
    output: OutputOption = None,
    html: Annotated[Path | None, typer.Option("--html", help="Also write the page to this file.")] = None,
    fail_on: Annotated[
        str | None,
        typer.Option("--fail-on", envvar="GRADSCOPE_FAIL_ON", help="Exit 1 on a finding: info, warning or critical."),
    ] = None,
) -> None:
    """Record a window of your training, judge it, rehearse what comes, recommend a threshold."""
    from gradscope.analysis import analyze
    from gradscope.cli.live import Live

    fail_on, budget_s = known_severity(fail_on), seconds(budget)
    known_output(output_format, output)
    known_output("html", html)
    with Live() as live:
        report = analyze(
            target,
            steps=steps,
            seed=seed,
            rehearse=not quick,
            verify=not quick,
            budget=budget_s,
            seeds=seeds,
            watcher=live,
            overrides=overrides(
                data=data,
                target_column=target_column,
                total_steps=total_steps,
                max_norm=max_norm,
                batch_size=batch_size,
                precision=precision,
                accumulate=accumulate,
                device=device,
            ),
        )
    emit(rendered(report, output_format, output), output)
    if html is not None:
        emit(rendered(report, "html", html), html)
    tell(f"recorded {report.run.path}\nnext: gradscope report {report.run.id} --open")
    if report.run.header.ending.how == "interrupted":
        raise typer.Exit(130)
    if fails(report, fail_on):
        raise typer.Exit(1)
