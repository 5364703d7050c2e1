"""`gradscope record SCRIPT [ARGS…]`: run a training script unchanged, and record every optimizer step of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradscope.errors import NothingMeasuredError, ScriptInterrupted, UsageError

if TYPE_CHECKING:
    from gradscope.integrations.script import Recorded


def record_command(
    script: Annotated[
        list[str],
        typer.Argument(metavar="SCRIPT [ARGS...]", help="The script, or with -m the module, and its arguments."),
    ],
    module: Annotated[bool, typer.Option("-m", "--module", help="SCRIPT is a module, as for python -m.")] = False,
    name: Annotated[
        str | None,
        typer.Option("--name", envvar="GRADSCOPE_NAME", help="What the run is called; by default the script."),
    ] = None,
    every: Annotated[
        int, typer.Option("--every", min=1, envvar="GRADSCOPE_EVERY", help="Record each so-many-th step.")
    ] = 1,
    max_rows: Annotated[
        int | None,
        typer.Option(
            "--max-rows", min=2, envvar="GRADSCOPE_MAX_ROWS", help="Thin the file out once it holds so many steps."
        ),
    ] = None,
) -> None:
    """Run a training script unchanged and record every optimizer step. Options after SCRIPT are the script's own.

    Ends as the script ends; with 5 where it ended well but took no step that could be recorded.
    """
    if script[0].startswith("-"):
        raise UsageError(
            f"no option {script[0]}; options of the script come after it: gradscope record [OPTIONS] SCRIPT ..."
        )
    from gradscope.integrations.say import say
    from gradscope.integrations.script import record_script

    recorded = record_script(script, module=module, name=name, every=every, max_rows=max_rows)
    if recorded.runs and recorded.missing is None:
        _show(recorded)
    elif recorded.missing is None:
        pass  # another process writes the run, and shows it
    elif recorded.exit_code == 0:
        raise NothingMeasuredError(f"nothing was recorded: {recorded.missing}")
    else:
        say(f"gradscope: nothing was recorded: {recorded.missing}")
    if recorded.interrupted:
        raise ScriptInterrupted
    raise typer.Exit(recorded.exit_code)


def _show(recorded: Recorded) -> None:
    """The report on stderr: stdout is the script's. Whatever goes wrong here does not change how the script ended."""
    from gradscope.integrations.say import say
    from gradscope.runs.catalogue import name_latest

    shown, words = recorded.runs[0], dict.fromkeys(recorded.runs, "")
    try:
        if len(recorded.runs) > 1:
            verdicts = {run: _verdict(run) for run in recorded.runs}
            shown = min(recorded.runs, key=lambda run: verdicts[run][0])
            words = {run: f" ({word})" for run, (_, word) in verdicts.items()}
            name_latest(shown)
        say("\n" + _report(shown))
    except Exception as error:
        say(f"gradscope: the run is recorded, its report failed ({type(error).__name__}: {error})")
    for run, word in words.items():
        say(f"recorded {run}{word}")
    say(f"next: gradscope report {shown.name} --open")


def _verdict(run: Path) -> tuple[tuple[int, int], str]:
    """Its place among all, the worst verdict and the most findings first, and what tells it from the others."""
    from gradscope.diagnosis.diagnose import diagnose
    from gradscope.diagnosis.range_test import training_of
    from gradscope.report.text import plural
    from gradscope.report.titles import TITLES, titled, tone
    from gradscope.runs.reader import load_run

    loaded = training_of(load_run(run))
    found = diagnose(loaded)
    grave = [one.code for one in found.findings if one.severity != "info"]
    optimizer = loaded.header.optimizer.type if loaded.header.optimizer else "no optimizer"
    told = [titled(loaded, found.verdict)[1], *grave, optimizer, plural(len(loaded.header.parameters), "tensor")]
    return ([*TITLES].index(tone(loaded, found.verdict)), -len(grave)), ", ".join(told)


def _report(run: Path) -> str:
    from gradscope.report.build import build_report
    from gradscope.report.renderers import console
    from gradscope.report.terminal import terminal_of
    from gradscope.runs.reader import load_run

    return console.render(build_report(load_run(run)), terminal_of(sys.stderr))
