"""The command line: one file a command, parse, call one function, print, exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer

from gradscope import __version__
from gradscope.cli.analyze import analyze_command
from gradscope.cli.check import check_command
from gradscope.cli.compare import compare_command
from gradscope.cli.config import load_config, per_command
from gradscope.cli.explain import explain_command
from gradscope.cli.export import export_command
from gradscope.cli.init import init_command
from gradscope.cli.recommend import recommend_command
from gradscope.cli.record import record_command
from gradscope.cli.report import report_command
from gradscope.cli.runs import runs_command
from gradscope.cli.show import show_command
from gradscope.cli.watch import watch_command
from gradscope.errors import GradscopeError

COMMANDS: dict[str, Callable[..., None]] = {
    "analyze": analyze_command,
    "record": record_command,
    "recommend": recommend_command,
    "report": report_command,
    "show": show_command,
    "runs": runs_command,
    "compare": compare_command,
    "export": export_command,
    "watch": watch_command,
    "explain": explain_command,
    "check": check_command,
    "init": init_command,
}
PASSES_ARGUMENTS_ON = {"allow_interspersed_args": False, "ignore_unknown_options": True}

app = typer.Typer(
    name="gradscope",
    help="Which layer starts an explosion, whether it is about to happen, and which clipping threshold holds.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _command in COMMANDS.items():
    app.command(_name, context_settings=PASSES_ARGUMENTS_ON if _name == "record" else None)(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gradscope {__version__}")
        raise typer.Exit


@app.callback(epilog="Start with:  gradscope analyze model.py   or   gradscope record train.py")
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; every error of ours becomes one message on stderr and its exit code."""
    try:
        app(prog_name="gradscope", default_map=per_command(load_config()))
    except GradscopeError as error:
        sys.stderr.write(f"gradscope: {error}\n")
        sys.exit(error.exit_code)
    except Exception:
        traceback.print_exc()
        sys.stderr.write("gradscope: a bug of ours, not of your code; please report it with the lines above\n")
        sys.exit(GradscopeError.exit_code)
