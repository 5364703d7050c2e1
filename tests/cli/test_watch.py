import subprocess
import sys

import numpy as np
import pytest

from gradscope.cli import watch
from gradscope.runs.catalogue import is_gone, new_run_directory
from gradscope.runs.follow import Follower
from gradscope.runs.schema import Ending
from gradscope.runs.writer import RunWriter
from tests.builders import make_header


@pytest.fixture
def writer(here):
    import os

    writer = RunWriter(new_run_directory("watched"), make_header(pid=os.getpid()))
    yield writer
    writer.close()


def append(writer, step, norm=1.0):
    values = np.array([norm, norm / 2, np.nan])
    writer.append(step=step, loss=2.5, global_norm=norm, grad_norm=values, grad_max=values)


def test_lines_and_findings_as_they_appear(writer, capsys):
    watcher = watch.Watcher(Follower(writer.directory))
    append(writer, 0)
    writer.flush()
    assert not watcher.look()
    out = capsys.readouterr().out
    assert out.startswith("step 0  loss 2.5  norm 1  leading: fc1 1, fc2 0.5, fc3 0\n")
    assert not watcher.look()
    assert capsys.readouterr().out == ""
    append(writer, 1, float("inf"))
    writer.close(Ending("failed", 2, "ValueError: boom"))
    assert watcher.look()
    out = capsys.readouterr().out
    assert "the run is over: failed at step 2 (ValueError: boom)" in out
    assert out.count("GS101") == 1


def test_a_run_whose_process_is_gone(writer, capsys):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    writer.update_header(pid=ended.pid)
    assert watch.Watcher(Follower(writer.directory)).look()
    assert "its process is gone" in capsys.readouterr().out


def test_processes_that_cannot_be_asked_about_count_as_there(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr("os.kill", refuse)
    assert not is_gone(1)
    assert not is_gone(None)


def test_the_command_ends_with_the_run(writer, capsys):
    append(writer, 0)
    writer.close()
    watch.watch_command(None, 0.05)
    streams = capsys.readouterr()
    assert "finished at step 1" in streams.out
    assert f"next: gradscope show {writer.directory.name}" in streams.err


def test_ctrl_c_ends_watching(writer, monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    watch.watch_command(None, 0.05)
    assert "next: gradscope show" in capsys.readouterr().err


def test_judging_again_waits_its_share_of_the_time(writer, monkeypatch):
    seen = []
    monkeypatch.setattr(watch, "findings", lambda run: seen.append(run) or ())
    watcher = watch.Watcher(Follower(writer.directory))
    watcher._judge(False)
    watcher._judge_at = float("inf")
    watcher._judge(False)
    assert len(seen) == 1
    watcher._judge(True)
    assert len(seen) == 2


def test_layers_of_a_step_that_is_nonfinite_are_not_zero(writer, capsys):
    append(writer, 1, float("nan"))
    writer.flush()
    watch.Watcher(Follower(writer.directory)).look()
    assert "leading: fc1 nan, fc2 nan, fc3 nan" in capsys.readouterr().out
