import re

import pytest

from gradscope.errors import RunNotFoundError, UsageError
from gradscope.runs.catalogue import find_run, home, list_runs, new_run_directory
from gradscope.runs.writer import RunWriter
from tests.builders import make_header


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.delenv("GRADSCOPE_DIR", raising=False)
    monkeypatch.chdir(tmp_path)


def record(name="net"):
    directory = new_run_directory(name)
    RunWriter(directory, make_header()).close()
    return directory


def test_runs_live_in_the_current_directory_or_where_told(tmp_path, monkeypatch):
    assert home() == tmp_path / ".gradscope"
    assert home(tmp_path / "other") == tmp_path / "other" / ".gradscope"
    monkeypatch.setenv("GRADSCOPE_DIR", str(tmp_path / "chosen"))
    assert home() == tmp_path / "chosen"
    assert record().parent == tmp_path / "chosen" / "runs"


def test_a_run_is_named_after_time_and_name(tmp_path):
    directory = new_run_directory("../my net/é" + "x" * 100)
    assert re.fullmatch(r"\d{8}T\d{6}Z-my-net-x{33}-[0-9a-f]{4}", directory.name)
    assert not directory.exists()
    assert re.search(r"-run-[0-9a-f]{4}$", new_run_directory("///").name)
    assert (tmp_path / ".gradscope" / ".gitignore").read_text() == "*\n"


def test_the_last_one_begun_is_the_latest():
    with pytest.raises(RunNotFoundError, match=r"no runs in .*gradscope analyze"):
        find_run()
    first, second = record("b"), record("a")
    assert set(list_runs()) == {first, second}
    assert find_run() == find_run("latest") == second
    new_run_directory("never written")
    assert find_run() == list_runs()[-1]
    (home() / "latest").unlink()
    assert find_run() == list_runs()[-1]


def test_a_run_is_found_by_path_id_and_prefix(tmp_path, monkeypatch):
    first, second = record("one"), record("two")
    assert find_run(str(first)) == first
    assert find_run(first.name) == first
    assert find_run(second.name[:-1]) == second
    monkeypatch.chdir(tmp_path.parent)
    assert find_run(first.name, tmp_path) == first


def test_what_is_not_found_is_said_exactly(tmp_path):
    first, second = record("one"), record("two")
    common = first.name[:2]
    with pytest.raises(
        RunNotFoundError, match=f"2 runs begin with '{common}': {first.name}, {second.name}|{second.name}"
    ):
        find_run(common)
    with pytest.raises(RunNotFoundError, match=r"no run 'xyz' in .*gradscope runs"):
        find_run("xyz")
    with pytest.raises(RunNotFoundError, match=r"is not a gradscope run: it has no run\.json"):
        find_run(str(tmp_path))


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRADSCOPE_DIR", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot write runs to .*file.*set GRADSCOPE_DIR"):
        new_run_directory("net")
