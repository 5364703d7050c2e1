"""The command line: one file a command, parse, call one function, print, exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from gradscope import __version__
from gradscope.cli.config import load_config, per_command
from gradscope.cli.options import tell
from gradscope.errors import GradscopeError, ScriptInterrupted

COMMANDS = (
    *("analyze", "record", "recommend", "report", "show", "runs"),
    *("compare", "export", "watch", "explain", "check", "init"),
)
"""Each is the function `<name>_command` of `gradscope.cli.<name>`, in the order of the help screen."""
PASSES_ARGUMENTS_ON = {"allow_interspersed_args": False, "ignore_unknown_options": True}


def _app(names: Iterable[str]) -> typer.Typer:
    """The program with these commands; the modules of the others are not imported."""
    app = typer.Typer(
        name="gradscope",
        help="Which layer starts an explosion, whether it is about to happen, and which clipping threshold holds.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(epilog="Start with:  gradscope analyze model.py   or   gradscope record train.py")(_root)
    for name in names:
        command = getattr(import_module(f"gradscope.cli.{name}"), f"{name}_command")
        app.command(name, context_settings=PASSES_ARGUMENTS_ON if name == "record" else None)(command)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gradscope {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


def _own_frames(cause: BaseException | None) -> str:
    """The lines of the user's own code that led to an exception, as Python prints them; none of ours or of libraries."""
    if cause is None:
        return ""
    foreign = (str(Path(__file__).parents[1]), str(Path(traceback.__file__).parent), "<")
    frames = [
        frame
        for frame in traceback.extract_tb(cause.__traceback__)
        if not frame.filename.startswith(foreign) and "site-packages" not in frame.filename
    ]
    return "".join(traceback.format_list(frames))


def _kept(error: GradscopeError) -> str:
    """Where the partial run is and how to read it, if one was kept."""
    path = getattr(error, "run_path", None)
    return f"\nrecorded {path}\nnext: gradscope show {Path(path).name}" if path else ""


def main() -> None:
    """Run the command line; every error of ours becomes one message on stderr and its exit code.

    A recorded script that Ctrl-C ended ends as python does, by the signal, so that a shell's loop ends with it.
    """
    asked = sys.argv[1:2]
    try:
        app = _app(asked if asked and asked[0] in COMMANDS else COMMANDS)
        app(prog_name="gradscope", default_map=per_command(load_config()))
    except GradscopeError as error:
        tell(f"{_own_frames(error.__cause__)}gradscope: {error}{_kept(error)}")
        sys.exit(error.exit_code)
    except ScriptInterrupted:
        sys.excepthook = lambda *_: None
        raise KeyboardInterrupt from None
    except Exception:
        traceback.print_exc()
        sys.stderr.write("gradscope: a bug of ours, not of your code; please report it with the lines above\n")
        sys.exit(GradscopeError.exit_code)
