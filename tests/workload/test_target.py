from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gradscope.errors import SpecError, UserCodeError
from gradscope.workload import read_workload
from gradscope.workload.target import find_source, import_source
from tests.workload.conftest import Write

MODEL = "model = nn.Linear(4, 2)\ndata = (torch.zeros(8, 4), torch.zeros(8, dtype=torch.long))\n"


def test_a_file_is_imported_under_its_real_name_with_its_folder_on_the_path(write: Write, tmp_path: Path) -> None:
    write("", "helper_beside.py", head="VALUE = 4\n")
    spec = import_source(find_source(write("import helper_beside\n" + MODEL, "net_a.py")))
    assert spec.module.__name__ == "net_a"
    assert sys.modules["net_a"] is spec.module
    assert sys.path[0] == str(tmp_path)
    assert spec.where("model") == "net_a.py:6"
    assert spec.where("helper_beside") == "net_a.py:5"
    assert spec.where("absent") == "net_a.py"


def test_reading_leaves_no_bytecode_and_a_changed_file_is_read_again(write: Write, tmp_path: Path) -> None:
    assert read_workload(write(MODEL)).model.in_features == 4
    changed = MODEL.replace("nn.Linear(4, 2)", "nn.Linear(4, 3)")
    assert read_workload(write(changed)).model.out_features == 3
    assert not (tmp_path / "__pycache__").exists()


def test_a_file_in_a_package_is_imported_as_part_of_it(write: Write) -> None:
    write("", "pkg_a/__init__.py", head="")
    write("", "pkg_a/parts.py", head="WIDTH = 4\n")
    target = write(
        "from .parts import WIDTH\nmodel = nn.Linear(WIDTH, 2)\ndata = [torch.ones(3, 4)]\nloss = lambda o, t: o.sum()",
        "pkg_a/net.py",
    )
    workload = read_workload(target)
    assert type(workload.model).__module__ == "torch.nn.modules.linear"
    assert sys.modules["pkg_a"].net is sys.modules["pkg_a.net"]


def test_a_module_name_is_found_from_here(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("", "pkg_b/__init__.py", head="")
    write(MODEL + "other = nn.Linear(4, 3)\n", "pkg_b/net.py")
    monkeypatch.chdir(tmp_path)
    assert read_workload("pkg_b.net").name == "net"
    assert read_workload("pkg_b.net:other").model.out_features == 3
    write(MODEL, "pkg_c/__init__.py")
    assert read_workload("pkg_c").model.out_features == 2


def test_names_bound_in_blocks_have_their_lines(write: Write) -> None:
    body = """if True:
    a = 1
with open(__file__) as b:
    pass
for c in (1,):
    (d, e) = 1, 2
try:
    def f(): inner = 1
except ValueError:
    pass
g: int = 3
h = lambda: [hidden for hidden in ()]
a = 2
"""
    spec = import_source(find_source(write(body, "lines_a.py")))
    assert [spec.lines.get(n) for n in "abcdefg"] == [17, 7, 9, 10, 10, 12, 15]
    assert "inner" not in spec.lines


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("broken.py", "x = (\n", r"broken\.py:1: syntax error: '\(' was never closed\n    x = \("),
        ("nul.py", "x = 1\0", r"nul\.py.*: syntax error"),
        (
            "random.py",
            "",
            r"random\.py: its name hides Python's own module `random`; rename it, for example to my_random",
        ),
        ("torch.py", "", r"torch\.py: a module `torch` is already loaded \(.*torch.*\); rename it"),
        ("my-net.py", "", r"`my-net` is not a name that Python can import; rename it"),
        ("net.txt", "", r"net\.txt: not a Python file; give the \.py file"),
    ],
)
def test_files_that_cannot_be_read(write: Write, name: str, text: str, message: str) -> None:
    target = write(text, name, head="")
    with pytest.raises(SpecError, match=message):
        read_workload(target)


def test_a_binary_file_and_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "blob.py").write_bytes(b"\xff\xfe\x00\x80\x81")
    with pytest.raises(SpecError, match=r"blob\.py"):
        read_workload(str(tmp_path / "blob.py"))
    (tmp_path / "latin.py").write_bytes(b"a = 1\nb = 2\nc = 3\nd = '\xe9'\n")
    with pytest.raises(SpecError, match=r"latin\.py: not Python text"):
        read_workload(str(tmp_path / "latin.py"))
    with pytest.raises(SpecError, match=r"a folder; give the \.py file"):
        read_workload(str(tmp_path))
    with pytest.raises(SpecError, match=r"nowhere\.py: no such file; `gradscope init`"):
        read_workload("nowhere.py")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(SpecError, match="a folder"):
        read_workload(str(tmp_path / "folder.py"))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_module_here", "no module `no_such_module_here` with a .py file"),
        ("no_such_package.net", r"no module `no_such_package\.net`"),
        ("not a name", "neither a file nor the name of a module"),
        ("sys", "no module `sys` with a .py file"),
        ("model.py:1x", "`1x` after the colon is not a name; write model.py:NAME"),
    ],
)
def test_targets_that_mean_nothing(target: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_workload(target)


def test_a_module_whose_package_needs_what_is_missing_says_so(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("import nothing_like_this\n", "pkg_d/__init__.py", head="")
    write(MODEL, "pkg_d/net.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="No module named 'nothing_like_this'"):
        read_workload("pkg_d.net")
    write("1 / 0\n", "pkg_e/__init__.py", head="")
    write(MODEL, "pkg_e/net.py")
    with pytest.raises(UserCodeError, match=r"ZeroDivisionError at __init__\.py:1"):
        read_workload(str(tmp_path / "pkg_e" / "net.py"))
    with pytest.raises(UserCodeError, match=r"looking for pkg_e\.net raised ZeroDivisionError"):
        read_workload("pkg_e.net")


def test_a_nested_import_error_is_shown_as_it_is(write: Write) -> None:
    write("import nothing_like_this\n", "helper_b.py", head="")
    with pytest.raises(
        UserCodeError,
        match=r"importing model\.py raised ModuleNotFoundError at helper_b\.py:1: No module named 'nothing_like_this'",
    ) as caught:
        read_workload(write("import helper_b\n"))
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert caught.value.exit_code == 3


def test_a_file_that_raises_or_exits_names_its_line(write: Write) -> None:
    with pytest.raises(UserCodeError, match=r"importing model\.py raised ValueError at model\.py:6: no"):
        read_workload(write("x = 1\nraise ValueError('no')\n"))
    assert "model" not in sys.modules
    with pytest.raises(UserCodeError, match=r"called sys\.exit\(3\) at model\.py:5; put what is not for import under"):
        read_workload(write("import sys; sys.exit(3)\n"))


def test_a_name_that_the_file_does_not_have(write: Write) -> None:
    with pytest.raises(SpecError, match=r"model\.py has no `other`; it has .*model, data"):
        read_workload(write(MODEL) + ":other")
    with pytest.raises(SpecError, match="it has no names at all"):
        read_workload(write("", "bare_a.py", head="") + ":other")


def test_an_unreadable_file_says_why(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write(MODEL)

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(SpecError, match="cannot be read: Permission denied"):
        read_workload(target)


def test_a_windows_path_is_no_name() -> None:
    with pytest.raises(SpecError, match=r"C:\\spec\.py: no such file"):
        find_source("C:\\spec.py")
