"""`gradscope recommend`: the clipping threshold from a recorded run, with the evidence behind it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradscope.cli.options import OutputOption, RunArgument, emit, load, seconds, tell
from gradscope.errors import UsageError

if TYPE_CHECKING:
    from gradscope.recommendation.model import Recommendation
    from gradscope.runs.run import Run

FORMATS = ("table", "json")


def recommend_command(
    run: RunArgument = None,
    percentiles: Annotated[
        list[float] | None,
        typer.Option(
            "--percentile",
            "-p",
            envvar="GRADSCOPE_PERCENTILE",
            help="0 to 100, repeatable; without it the proven threshold, else 95.",
        ),
    ] = None,
    by: Annotated[str, typer.Option("--by", help="norm, or value (clip_grad_value_).")] = "norm",
    per_layer: Annotated[bool, typer.Option("--per-layer", help="The same percentile for each layer alone.")] = False,
    framework: Annotated[
        str | None,
        typer.Option(
            "--for", envvar="GRADSCOPE_FRAMEWORK", help="The line to paste: pytorch, lightning, transformers, …"
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the number alone.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Prove the threshold on rehearsals of the run's spec.")
    ] = False,
    budget: Annotated[str, typer.Option("--budget", help="Time that --verify may take, such as 5m.")] = "5m",
    output_format: Annotated[str | None, typer.Option("--format", "-f", help="table or json.")] = None,
    output: OutputOption = None,
) -> None:
    """Recommend a clipping threshold from the recorded norms' percentiles."""
    if by not in ("norm", "value"):
        raise UsageError(f"--by {by!r}: write norm or value")
    recorded = load(run, trains=verify)
    from gradscope.recommendation import recommend

    if verify:
        recorded = _verified(recorded, tuple(percentiles or [95.0]), seconds(budget))
    answer = recommend(recorded, percentiles or None, by=by, per_layer=per_layer)  # type: ignore[arg-type]  # checked above
    shape = _format(output_format, output)
    emit(_text(answer, recorded, quiet, framework, shape, to_terminal=output is None), output)
    if quiet or framework:
        for caveat in answer.caveats:
            tell(f"note: {caveat}")
    if not quiet:
        tell(f"from {recorded.path}")


def _verified(recorded: Any, percentiles: tuple[float, ...], budget: float) -> Any:
    from gradscope.analysis import verify_run
    from gradscope.cli.live import Live

    with Live() as live:
        return verify_run(recorded, percentiles=percentiles, budget=budget, watcher=live)


def _format(chosen: str | None, output: Path | None) -> str:
    name = chosen or ("json" if output is not None and output.suffix == ".json" else "table")
    if name not in FORMATS:
        raise UsageError(f"--format {name!r}: write {' or '.join(FORMATS)}")
    return name


def _text(
    answer: Recommendation, run: Run, quiet: bool, framework: str | None, output_format: str, *, to_terminal: bool
) -> str:
    from gradscope.report.renderers.recommendation import render_recommendation
    from gradscope.report.terminal import PIPE, terminal_of
    from gradscope.runs.schema import to_json

    if framework:
        from gradscope.recommendation.snippets import snippet_for

        return snippet_for(run, framework, answer.max_norm, answer.by)
    if quiet:
        return "none" if answer.max_norm is None else f"{answer.max_norm:.6g}"
    if output_format == "json":
        return json.dumps(to_json(answer), indent=1)
    return render_recommendation(answer, terminal_of(sys.stdout) if to_terminal else PIPE)
