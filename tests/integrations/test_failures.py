"""The script behaves as without gradscope, whatever goes wrong, and what was recorded is there."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from gradscope.capture.rows import Row, write_row
from gradscope.errors import UsageError
from gradscope.integrations import session as sessions
from gradscope.integrations import torch_calls
from gradscope.integrations.guard import Threads
from gradscope.integrations.patches import Patches
from gradscope.integrations.script import record_script
from gradscope.integrations.track import Track
from gradscope.runs.reader import load_run
from gradscope.runs.writer import RunWriter
from tests.integrations.scripts import record, write

TRAIN = """
optimizer = torch.optim.SGD(params, lr=0.05)
for i in range(4):
    optimizer.zero_grad(); loss_of(model, i).backward()
    seen["norms"].append(nn.utils.clip_grad_norm_(params, 1.0).item())
    optimizer.step()
"""
HURT = ["before_backward", "after_backward", "before_step", "after_step", "clipped", "read"]


@pytest.mark.parametrize("method", HURT)
def test_an_error_of_ours_ends_the_recording_alone(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = record(tmp_path / "bare", TRAIN)
    capsys.readouterr()

    def fail(self: Track, *_: Any, **__: Any) -> None:
        if self.recorder.step == (0 if method == "read" else 2):
            raise ZeroDivisionError("ours")

    original = getattr(Track, method)
    monkeypatch.setattr(Track, method, lambda self, *a, **k: fail(self) or original(self, *a, **k))
    hurt = record(tmp_path / "hurt", TRAIN)
    assert hurt.seen == bare.seen
    assert hurt.recorded.exit_code == 0
    told = capsys.readouterr().err.splitlines()
    assert told == ["gradscope: recording stopped, the script goes on (ZeroDivisionError: ours)"]
    assert len(hurt.run.step) == (0 if method == "read" else 2)
    assert "ZeroDivisionError" in str(hurt.run.header.ending.message)
    assert (hurt.recorded.missing is None) == (method != "read")


def test_an_error_in_the_shared_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    bare = record(tmp_path / "bare", TRAIN)
    monkeypatch.setattr("gradscope.integrations.clip_calls.clip_recorded", fail)
    assert record(tmp_path / "hurt", TRAIN).seen == bare.seen


def test_a_failing_close_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Track.close

    def fail(self: Track, *given: Any) -> None:
        original(self, *given)
        raise ZeroDivisionError

    monkeypatch.setattr(Track, "close", fail)
    assert record(tmp_path, TRAIN).recorded.exit_code == 0
    assert "recording stopped" in capsys.readouterr().err


def test_an_error_while_rows_are_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = write_row

    def fail(writer: RunWriter, row: Row) -> None:
        if row.step == 2:
            raise ZeroDivisionError("ours")
        original(writer, row)

    bare = record(tmp_path / "bare", TRAIN)
    capsys.readouterr()
    monkeypatch.setattr("gradscope.capture.recorder.write_row", fail)
    hurt = record(tmp_path / "hurt", TRAIN)
    assert hurt.seen == bare.seen
    assert hurt.recorded.exit_code == 0
    assert "recording stopped, the script goes on (ZeroDivisionError: ours)" in capsys.readouterr().err
    assert hurt.run.step.tolist() == [0, 1]
    assert hurt.run.header.ending.how != "recording"


def test_listening_that_cannot_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(torch_calls, "install", fail)
    done = record(tmp_path, TRAIN)
    assert done.seen["norms"]
    assert done.recorded.missing is not None
    assert "nothing is recorded, the script goes on" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRADSCOPE_DIR", str(tmp_path / "file"))
    done = record(tmp_path, TRAIN)
    assert done.seen["norms"]
    assert "cannot write runs" in str(done.recorded.missing)


NOTHING = {
    "pass": "never called backward",
    "loss_of(model, 0).backward()": "no torch optimizer or clipping function",
    "o = torch.optim.SGD(params, lr=0.1); loss_of(model, 0).backward()": "no optimizer step was taken",
}


@pytest.mark.parametrize("body", NOTHING)
def test_why_nothing_was_recorded(body: str, tmp_path: Path) -> None:
    assert NOTHING[body] in str(record(tmp_path, body).recorded.missing)


def test_steps_inside_the_backward_pass_are_not_recorded(tmp_path: Path) -> None:
    body = """
    one = {p: torch.optim.SGD([p], lr=0.05) for p in params}
    def step(p):
        one[p].step(); one[p].zero_grad()
    for p in params:
        p.register_post_accumulate_grad_hook(step)
    for i in range(3):
        loss = loss_of(model, i); loss.backward(); seen["losses"].append(loss.item())
    """
    done = record(tmp_path, body)
    assert "inside backward()" in str(done.recorded.missing)
    assert done.recorded.exit_code == 0
    assert done.runs == []


def test_a_script_that_raises_is_shown_without_our_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = TRAIN + "    if i == 2:\n        loss_of(model, i).backward(torch.ones(3))"
    done = record(tmp_path, body)
    told = capsys.readouterr().err
    assert done.recorded.exit_code == 1
    assert "gradscope" not in told.replace(str(tmp_path), "")
    assert "loss_of(model, i).backward(torch.ones(3))" in told
    assert len(done.run.step) == 3
    assert done.run.header.ending.how == "failed"


def test_os_exit_keeps_what_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class LeftError(BaseException):
        pass

    def leave(status: int) -> None:
        raise LeftError(status)

    monkeypatch.setattr("os._exit", leave)
    done = record(tmp_path, TRAIN + "\nimport os; os._exit(3)")
    assert done.run.header.ending.message == "os._exit(3)"
    assert len(done.run.step) == 4


def test_a_thread_that_trains_is_waited_for(tmp_path: Path) -> None:
    body = "def work():\n" + "".join(f"    {line}\n" for line in TRAIN.splitlines())
    done = record(tmp_path, body + "import threading; threading.Thread(target=work).start()")
    assert len(done.run.step) == 4
    assert threading.active_count() < 20


def test_a_forked_child_is_not_recorded(tmp_path: Path) -> None:
    session = sessions.Session(torch_header())
    patches = torch_calls.install(session)
    patches.undo()
    torch_calls.forget(session)
    assert not session.armed


def torch_header() -> Any:
    from gradscope.capture.header import new_header

    return new_header("test", "record", "test")


def test_torch_is_waited_for(tmp_path: Path) -> None:
    path = write(tmp_path, "print(sys.modules.get('torch'))", head="import sys\n", tail="")
    before = sys.modules.pop("torch")
    try:
        finders = list(sys.meta_path)
        done = record_script([str(path)], root=tmp_path)
    finally:
        sys.modules["torch"] = before
    assert done.missing == "the script never imported torch"
    assert sys.meta_path == finders


def test_patches_come_off_in_reverse() -> None:
    class Owner:
        def method(self) -> int:
            return 1

    class Child(Owner):
        pass

    patches = Patches()
    patches.attribute(Owner, "method", lambda original: lambda self: original(self) + 1)
    patches.attribute(Child, "method", lambda original: lambda self: original(self) * 10)
    patches.attribute(Owner, "missing", lambda original: original)
    assert not patches.wrapped(len, lambda original: original)
    assert Child().method() == 20
    patches.undo()
    patches.undo()
    assert Child().method() == 1
    assert "method" not in vars(Child)


def test_two_recordings_one_after_the_other(tmp_path: Path) -> None:
    runs = [record(tmp_path / name, TRAIN).run for name in "ab"]
    assert runs[0].global_norm.tolist() == runs[1].global_norm.tolist()


def test_a_name_for_each_run(tmp_path: Path) -> None:
    path = write(tmp_path, TRAIN)
    done = record_script([str(path), str(tmp_path / "seen.json")], root=tmp_path, name="mine")
    run = load_run(done.runs[0])
    assert run.header.name == "mine"
    assert run.header.command[:2] == ("gradscope", "record")
    assert run.header.versions["torch"] == torch.__version__


def test_what_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no script at"):
        record_script([str(tmp_path / "none.py")])


THREADS = """
import threading
turns = [threading.Semaphore(1), threading.Semaphore(0)]
def train(k, part, alternate):
    optimizer = torch.optim.SGD(part.parameters(), lr=0.05)
    for i in range(6):
        turns[k].acquire() if alternate else None
        optimizer.zero_grad(); loss_of(part, 100 * k + i).backward(); optimizer.step()
        turns[1 - k].release()
both = [threading.Thread(target=train, args=(k, part, {alternate})) for k, part in enumerate((model, make()))]
for one in both:
    one.start()
    {alternate} or one.join()
for one in both:
    one.join()
"""


@pytest.mark.parametrize("breaks", [False, True])
def test_threads_that_train_at_once_are_not_told_apart(
    breaks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if breaks:  # what may happen in any of our methods once two threads are in them
        real = Threads.returned
        monkeypatch.setattr(Threads, "returned", lambda self: real(self) and 1 / 0)
    assert record(tmp_path, THREADS.format(alternate=True)).recorded.exit_code == 0
    assert "recording stopped, the script goes on (it trains in several threads at once" in capsys.readouterr().err


def test_threads_that_train_one_after_another_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = record(tmp_path, THREADS.format(alternate=False)).recorded
    assert "recording stopped" not in capsys.readouterr().err
    assert [len(load_run(run).step) for run in found.runs] == [6, 6]
