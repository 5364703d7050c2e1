"""Runs a Python script or module as the interpreter itself would. Imports neither torch nor numpy."""

from __future__ import annotations

import builtins
import importlib.machinery
import importlib.util
import io
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

from gradscope.errors import UsageError
from gradscope.integrations.say import say

OWN_FOLDER = str(Path(__file__).parent.parent)
INTERRUPTED = 130


@dataclass(frozen=True)
class Finish:
    """How a program ended: its exit code, the exception that it did not catch, and its code if it came to run."""

    exit_code: int
    error: BaseException | None = None
    code: CodeType | None = None


@dataclass(frozen=True)
class _Program:
    """`get_code` compiles it. `argument_zero` and `search_path` are what `sys.argv[0]` and `sys.path[0]` will be."""

    get_code: Callable[[], Any]
    file: str | None
    argument_zero: str
    search_path: str
    package: str | None
    spec: importlib.machinery.ModuleSpec | None
    loader: Any


def run_program(target: str, arguments: Sequence[str], *, module: bool, on_end: Callable[[Finish], None]) -> Finish:
    """Run the script at the path `target`, or with `module` the module of that name, as `__main__`.

    `on_end` is called while that `__main__` is still in place. An exception that the program does not catch is shown as
    python shows it, without a frame of ours.

    Raises:
        UsageError: there is nothing to run by that name.
    """
    code: CodeType | None = None
    with _prepared(target, arguments, module) as main:
        try:
            program = _find_module(target) if module else _find_script(target)
            _place(program, main)
            code = program.get_code()
            if code is None:
                raise UsageError(f"{target} has no code that can be run")
            exec(code, main.__dict__)
            _join_threads()
            finish = Finish(0)
        except BaseException as error:
            if isinstance(error, UsageError) and without_our_frames(error.__traceback__) is None:
                raise
            finish = Finish(_exit_code(error)) if isinstance(error, SystemExit) else _uncaught(error)
        finish = replace(finish, code=code)
        on_end(finish)
    return finish


def without_our_frames(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of gradscope, and of the import system where an import failed."""
    following = None
    for link in reversed(list(_links(trace))):
        if not link.tb_frame.f_code.co_filename.startswith((OWN_FOLDER, "<frozen importlib")):
            following = TracebackType(following, link.tb_frame, link.tb_lasti, link.tb_lineno)
    return following


def _uncaught(error: BaseException) -> Finish:
    trace = without_our_frames(error.__traceback__)
    sys.excepthook(type(error), error.with_traceback(trace), trace)
    return Finish(INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1, error)


def _links(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _find_script(path: str) -> _Program:
    if not Path(path).exists():
        raise UsageError(f"no script at {path}")
    if spec := _main_inside(path):
        loader: Any = spec.loader
        place = str(Path(path).absolute())
        return _Program(lambda: loader.get_code("__main__"), spec.origin, path, place, "", spec, loader)
    full = path if Path(path).is_absolute() else f"{Path.cwd()}/{path}"
    loader = importlib.machinery.SourceFileLoader("__main__", full)
    return _Program(lambda: _compile(full), full, path, str(Path(full).resolve().parent), None, None, loader)


def _compile(path: str) -> Any:
    with io.open_code(path) as file:
        return compile(file.read(), path, "exec", dont_inherit=True)


def _main_inside(path: str) -> importlib.machinery.ModuleSpec | None:
    """The `__main__` of a folder or an archive; None for a plain file."""
    importer = pkgutil.get_importer(str(Path(path).absolute()))
    if importer is None:
        return None
    spec = importer.find_spec("__main__")
    if spec is None:
        raise UsageError(f"{path} holds no __main__.py to run")
    return spec


def _find_module(name: str) -> _Program:
    spec = _spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = _spec(f"{name}.__main__")
    loader: Any = spec and spec.loader
    if spec is None or not hasattr(loader, "get_code"):
        raise UsageError(f"no module {name!r} that can be run; the folders searched begin with {Path.cwd()}")
    origin = spec.origin or name
    return _Program(lambda: loader.get_code(spec.name), origin, origin, str(Path.cwd()), spec.parent, spec, loader)


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name + ".").startswith(error.name + "."):
            return None
        raise


@contextmanager
def _prepared(target: str, arguments: Sequence[str], module: bool) -> Iterator[ModuleType]:
    before = sys.modules["__main__"], sys.argv[:], sys.path[:]
    main = sys.modules["__main__"] = ModuleType("__main__")
    sys.argv[:] = ["-m" if module else target, *arguments]
    if not sys.flags.safe_path:
        sys.path[:1] = [str(Path.cwd())]
    try:
        yield main
    finally:
        sys.modules["__main__"], sys.argv[:], sys.path[:] = before


def _place(program: _Program, main: ModuleType) -> None:
    main.__dict__.update(__builtins__=builtins, __package__=program.package, __spec__=program.spec, __cached__=None)
    main.__dict__.update(__loader__=program.loader, __annotations__={})
    if program.file is not None:
        main.__file__ = program.file
    sys.argv[0] = program.argument_zero
    if not sys.flags.safe_path:
        sys.path[0] = program.search_path


def _join_threads() -> None:
    ours = (threading.current_thread(), threading.main_thread())
    for thread in threading.enumerate():
        if thread not in ours and not thread.daemon:
            thread.join()


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return int(error.code or 0)
    say(str(error.code))
    return 1
