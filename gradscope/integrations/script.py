"""Records an unmodified training script while it runs. Imports torch only when, and if, the script does."""

from __future__ import annotations

import dis
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from gradscope.integrations.runner import Finish, run_program
from gradscope.integrations.say import say

if TYPE_CHECKING:
    from gradscope.integrations.patches import Patches
    from gradscope.integrations.session import Session
    from gradscope.runs.schema import Header


@dataclass(frozen=True)
class Recorded:
    """What came of it. `exit_code` is the script's own; `runs` one directory a training, the first the one to look at.

    `missing`: why no step was recorded, where none was. Both are empty where another process writes the run: another rank
    of the training, or the parent of a forked child that ran on to the end of the script. `interrupted`: by Ctrl-C.
    """

    exit_code: int
    runs: tuple[Path, ...] = ()
    missing: str | None = None
    interrupted: bool = False


def record_script(
    argv: Sequence[str],
    *,
    module: bool = False,
    name: str | None = None,
    every: int = 1,
    max_rows: int | None = None,
    root: Path | None = None,
) -> Recorded:
    """Run `argv` (a script, or with `module` a module, and its arguments) as python would, and record each training in it.

    Raises:
        UsageError: there is no such script or module.
    """
    recording = _Recording(argv, module, name, every, max_rows, (root or Path.cwd()).absolute())
    process = os.getpid()
    with recording:
        finish = run_program(argv[0], argv[1:], module=module, on_end=recording.end)
    interrupted = isinstance(finish.error, KeyboardInterrupt)
    if os.getpid() != process:
        return Recorded(finish.exit_code, interrupted=interrupted)
    return Recorded(finish.exit_code, recording.runs, recording.missing, interrupted)


class _Recording:
    """Waits until the script imports torch, then listens."""

    def __init__(
        self, argv: Sequence[str], module: bool, name: str | None, every: int, max_rows: int | None, root: Path
    ) -> None:
        self._argv, self._module, self._root = tuple(argv), module, root
        self._name = name or (argv[0].rpartition(".")[2] if module else Path(argv[0]).stem)
        self._every, self._max_rows = every, max_rows
        self._session: Session | None = None
        self._patches: Patches | None = None
        self._failure: str | None = None
        self._finder = _AfterTorch(self._listen)

    def __enter__(self) -> None:
        if "torch" in sys.modules:
            self._listen()
        else:
            sys.meta_path.insert(0, self._finder)

    def __exit__(self, *_: object) -> None:
        with suppress(ValueError):
            sys.meta_path.remove(self._finder)
        if self._patches is not None:
            self._patches.undo()

    def end(self, finish: Finish) -> None:
        if self._session is not None:
            from gradscope.capture.header import ending_of

            note = f"the script exited with {finish.exit_code}" if finish.exit_code else None
            self._session.close(lambda step: ending_of(finish.error, step, note), _names(finish.code))

    @property
    def runs(self) -> tuple[Path, ...]:
        return tuple(self._session.best_first()) if self._session else ()

    @property
    def missing(self) -> str | None:
        if self._session is None:
            return self._failure or "the script never imported torch"
        return self._session.missing()

    def _listen(self) -> None:
        try:
            from gradscope.integrations.session import Session
            from gradscope.integrations.torch_calls import install

            self._session = Session(self._header(), root=self._root, every=self._every, max_rows=self._max_rows)
            self._patches = install(self._session)
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}"
            say(f"gradscope: nothing is recorded, the script goes on ({self._failure})")

    def _header(self) -> Header:
        from gradscope.capture.header import new_header

        command = ("gradscope", "record", *(["-m"] if self._module else []), *self._argv)
        return new_header(self._name, "record", self._argv[0], command=command)


class _AfterTorch:
    """An import finder that calls `then` once torch has been imported, and is gone by then."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        loader, run = spec.loader, spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            run(module)
            self._then()

        vars(loader)["exec_module"] = exec_module
        return spec


def _names(code: CodeType | None) -> frozenset[str]:
    """Every name that a program's own file mentions, without those that it gives to something of its own."""
    if code is None:
        return frozenset()
    blocks = [code]
    for block in blocks:
        blocks += [constant for constant in block.co_consts if isinstance(constant, CodeType)]
    mentioned = {name for block in blocks for name in block.co_names}
    return frozenset(mentioned.difference(*map(_own, blocks)))


def _own(code: CodeType) -> set[str]:
    """The names of a block of code, of its arguments, and of what it assigns other than by an import."""
    steps = list(dis.get_instructions(code))
    imported = ("IMPORT_FROM", "IMPORT_NAME")
    stored = {
        str(step.argval)
        for before, step in itertools.pairwise(steps)
        if step.opname.startswith("STORE_") and before.opname not in imported
    }
    return stored | {code.co_name, *code.co_varnames}
