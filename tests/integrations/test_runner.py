"""Programs of every kind, run in this process."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gradscope.errors import UsageError
from gradscope.integrations.runner import Finish, run_program
from gradscope.integrations.script import record_script

SPEAKS = "import sys\nprint(__name__, __package__, sys.argv[1:], sys.path[0])\n"


def run(target: str, *arguments: str, module: bool = False) -> Finish:
    ends: list[Finish] = []
    before = sys.modules["__main__"], sys.argv[:], sys.path[:]
    finish = run_program(target, arguments, module=module, on_end=ends.append)
    assert (sys.modules["__main__"], sys.argv, sys.path) == before
    assert ends == [finish]
    return finish


@pytest.fixture
def folder(here: Path) -> Path:
    inner = here / "some_package"
    inner.mkdir()
    (inner / "__init__.py").write_text("")
    (inner / "__main__.py").write_text(SPEAKS)
    (inner / "module.py").write_text(SPEAKS)
    (inner / "broken.py").write_text("import some_package.nothing")
    (here / "script.py").write_text(SPEAKS)
    with zipfile.ZipFile(here / "archive.zip", "w") as archive:
        archive.writestr("__main__.py", SPEAKS)
    return here


@pytest.mark.parametrize(
    ("target", "module", "package", "place"),
    [
        ("script.py", False, None, "."),
        ("some_package", False, "", "some_package"),
        ("archive.zip", False, "", "archive.zip"),
        ("some_package", True, "some_package", "."),
        ("some_package.module", True, "some_package", "."),
    ],
)
def test_a_program_finds_its_place(
    target: str, module: bool, package: str | None, place: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(target, "--a", "b", module=module).exit_code == 0
    assert capsys.readouterr().out == f"__main__ {package} ['--a', 'b'] {(folder / place).resolve()}\n"


@pytest.mark.parametrize(
    ("target", "module"), [("none.py", False), ("empty", False), ("none", True), ("none.at.all", True)]
)
def test_nothing_to_run(target: str, module: bool, folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(UsageError):
        run(target, module=module)


def test_a_module_without_code(folder: Path) -> None:
    with pytest.raises(UsageError, match="sys has no code"):
        run("sys", module=True)


ENDS = {
    "pass": (0, None, ""),
    "raise SystemExit": (0, None, ""),
    "raise SystemExit(3)": (3, None, ""),
    "raise SystemExit('words')": (1, None, "words\n"),
    "raise KeyError(1)": (1, KeyError, "KeyError: 1"),
    "raise KeyboardInterrupt": (130, KeyboardInterrupt, "KeyboardInterrupt"),
    "x = (": (1, SyntaxError, "SyntaxError"),
    "import none_such": (1, ModuleNotFoundError, "No module named 'none_such'"),
    "from gradscope.errors import UsageError; raise UsageError('its own')": (1, UsageError, "its own"),
}


@pytest.mark.parametrize("text", ENDS)
def test_how_programs_end(text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "script.py").write_text(text)
    code, error, words = ENDS[text]
    finish = run("script.py")
    assert (finish.exit_code, type(finish.error)) == (code, error or type(None))
    assert words in capsys.readouterr().err


def test_an_import_that_fails_on_the_way_to_a_module(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("some_package.broken", module=True).exit_code == 1
    assert "some_package.nothing" in capsys.readouterr().err


def test_a_safe_path_stays(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Flags:
        safe_path = True

    monkeypatch.setattr("sys.flags", Flags)
    assert run("script.py").exit_code == 0
    assert capsys.readouterr().out.split()[-1] == sys.path[0]


@pytest.mark.parametrize("text", ["import torch\nprint(torch.stub)", "import json, torch\ndel torch"])
def test_listening_begins_when_torch_is_imported(
    text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("stub = 'a stub'\n")
    (folder / "script.py").write_text(text)
    finders = list(sys.meta_path)
    begun: list[Any] = []
    monkeypatch.setattr("gradscope.integrations.script._Recording._listen", lambda self: begun.append(self))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    done = record_script(["script.py"])
    sys.modules.pop("torch", None)
    monkeypatch.undo()
    assert done.exit_code == 0, capsys.readouterr().err
    assert len(begun) == 1
    assert sys.meta_path == finders


def test_no_torch_to_be_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "script.py").write_text("import importlib.util\nassert importlib.util.find_spec('torch') is None")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr("sys.path", [str(folder)])
    assert record_script(["script.py"]).missing == "the script never imported torch"
