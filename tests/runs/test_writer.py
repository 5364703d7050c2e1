import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradscope.errors import RunFormatError
from gradscope.runs import files, messages, tables, writer
from gradscope.runs.reader import load_run, read_header
from gradscope.runs.schema import Ending, Offender, Trial
from gradscope.runs.writer import RunWriter
from tests.builders import make_header

MOST = float(np.finfo(np.float32).max)
NUMBERS = st.lists(st.floats(0, 1e39), min_size=3, max_size=3).map(np.array)
ROW = st.fixed_dictionaries(
    {
        "step": st.integers(0, 2**60),
        "loss": st.floats(),
        "lr": st.lists(st.floats(0, 10), max_size=3),
        "skipped": st.booleans(),
        "nonfinite": st.integers(0, 2**60),
        "micro_steps": st.integers(1, 2**31 - 1),
        "loss_scale": st.floats(),
        "grad_norm": NUMBERS,
        "grad_max": NUMBERS,
    }
).map(lambda row: row | {"global_norm": float(np.linalg.norm([*row["grad_norm"], *row["grad_max"]]))})


@pytest.fixture
def run(tmp_path):
    """A writer whose flusher sleeps through the test, so that only the test writes."""
    one = RunWriter(tmp_path / "run", make_header())
    yield one
    one.close()


def append(to: RunWriter, step: int, **row) -> None:
    values = {"loss": 1.0, "global_norm": 2.0, "grad_norm": np.full(3, 2.0), "grad_max": np.ones(3)} | row
    to.append(step=step, **values)


def test_a_run_comes_back_as_it_was_written(run):
    append(run, 0, lr=(0.1,), loss_scale=8.0, max_norm=1.0, skipped=True, nonfinite=2, micro_steps=4)
    append(run, 1, lr=(0.2, 0.3), loss=0.5)
    run.probe(1, "forward_gain", ["fc1", "fc2", "elsewhere"], [1.5, 2.5, 3.5])
    run.probe(1, "along_time", ["rnn"], [3.0], [7])
    run.close(Ending("interrupted", 1))
    back = load_run(run.directory)
    assert back.header == run.header
    assert back.header.ending == Ending("interrupted", 1)
    assert back.step.tolist() == [0, 1]
    assert back.loss.tolist() == [1.0, 0.5]
    assert (back.loss_scale[0], back.max_norm[0], back.nonfinite[0], back.micro_steps[0]) == (8.0, 1.0, 2, 4)
    assert np.isnan(back.loss_scale[1])
    assert np.isnan(back.max_norm[1])
    assert back.skipped.tolist() == [True, False]
    assert back.lr[1].tolist() == [0.2, 0.3]
    assert back.lr[0, 0] == 0.1
    assert np.isnan(back.lr[0, 1])
    assert back.grad_norm.tolist() == [[2.0] * 3] * 2
    assert (back.elapsed_s >= 0).all()
    assert back.probes.select("along_time").index.tolist() == [7]
    steps, gains = back.probes.matrix("forward_gain", ["fc2", "fc1", "fc3"])
    assert steps.tolist() == [1]
    assert gains[0, :2].tolist() == [2.5, 1.5]
    assert np.isnan(gains[0, 2])
    assert back.notes == ()
    assert back.id == "run"


@given(st.lists(st.lists(ROW, max_size=20), max_size=24))
def test_rows_come_back_however_many_are_written_together(flushes):
    with tempfile.TemporaryDirectory() as folder:
        one = RunWriter(Path(folder) / "run", make_header())
        for rows in flushes:
            for row in rows:
                append(one, **row)
            one.flush()
        one.close()
        back, rows = load_run(one.directory), [row for flush in flushes for row in flush]
        assert back.notes == ()
        for name in ("step", "loss", "skipped", "nonfinite", "micro_steps", "loss_scale", "global_norm"):
            assert np.array_equal(getattr(back, name), [row[name] for row in rows], equal_nan=True)
        assert [rates[~np.isnan(rates)].tolist() for rates in back.lr] == [row["lr"] for row in rows]
        for name in ("grad_norm", "grad_max"):
            wide = np.array([row[name] for row in rows], float).reshape(-1, 3)
            assert np.array_equal(np.asarray(getattr(back, name)), np.clip(wide, -MOST, MOST).astype(np.float32))


def test_nonfinite_values_are_kept_and_large_ones_stay_finite(run):
    wide = np.array([np.nan, np.inf, 1e300])
    append(run, 0, grad_norm=wide, grad_max=np.array([1e-40, -np.inf, 1.0]), global_norm=1e300)
    append(run, 1, grad_norm=np.array([1, np.nan, np.inf], np.float32), loss=float("nan"), global_norm=float("inf"))
    run.close()
    back = load_run(run.directory)
    assert np.isnan(back.grad_norm[0, 0])
    assert np.isinf(back.grad_norm[0, 1])
    assert back.grad_norm[0, 2] == np.finfo(np.float32).max
    assert back.grad_max[0, 0] == pytest.approx(1e-40, rel=1e-4)
    assert back.grad_max[0, 1] == -np.inf
    assert np.isnan(back.loss[1])
    assert np.isinf(back.global_norm[1])
    assert back.measured.tolist() == [True, False]


def test_layers_gather_their_parameters(run):
    run.close()
    header = make_header(("b", "a"))
    twice = RunWriter(run.directory.parent / "two", header)
    append(twice, 0, grad_norm=np.array([3.0, np.nan]), grad_max=np.ones(2))
    twice.close()
    back = load_run(twice.directory)
    assert [layer.name for layer in back.layers] == ["b", "a"]
    assert back.layer_grad_norm[0, 0] == 3.0
    assert np.isnan(back.layer_grad_norm[0, 1])


def test_a_run_without_parameters_or_rows_is_readable(tmp_path):
    RunWriter(tmp_path / "empty", make_header(())).close()
    back = load_run(tmp_path / "empty")
    assert len(back.step) == 0
    assert back.lr.shape == (0, 0)
    assert back.layer_grad_norm.shape == (0, 0)


def test_more_rows_than_the_buffer_holds(run):
    for step in range(messages.MOST_ROWS + 10):
        append(run, step)
    run.flush()
    assert len(load_run(run.directory).step) == messages.MOST_ROWS + 10
    run.close()
    assert load_run(run.directory).header.ending == Ending("finished", messages.MOST_ROWS + 10)


def test_a_second_close_does_nothing(run):
    run.close(Ending("failed", 3, "boom"))
    run.close(Ending("finished", 4))
    assert load_run(run.directory).header.ending == Ending("failed", 3, "boom")


def test_closing_can_change_the_header(run):
    run.update_header(first_nonfinite=Offender(3, "fc1", "fc1.weight", "gradient"))
    run.close(overhead_s=1.5)
    header = read_header(run.directory)
    assert header.overhead_s == 1.5
    assert header.first_nonfinite == Offender(3, "fc1", "fc1.weight", "gradient")


def test_a_trial_is_a_run_inside_the_run(run):
    child = run.trial(Trial("rehearsal", "x1", indexes=(50, 60)), every=1)
    append(child, 0)
    child.close(Ending("finished", 1))
    back = load_run(run.directory)
    assert back.trials["x1"].header.trial == Trial("rehearsal", "x1", indexes=(50, 60))
    assert back.trials["x1"].step.tolist() == [0]


def test_thinning_keeps_every_second_row(run):
    for step in range(10):
        append(run, step)
    run.thin(2)
    append(run, 10)
    run.thin(4)
    append(run, 12)
    run.close()
    back = load_run(run.directory)
    assert back.step.tolist() == [0, 4, 8, 12]
    assert back.notes == ()


def test_rows_are_written_without_being_asked(run):
    assert writer.FLUSH_SECONDS <= 0.25
    append(run, 0)
    deadline = time.monotonic() + 30
    while not len(load_run(run.directory).step) and time.monotonic() < deadline:
        time.sleep(0.02)
    back = load_run(run.directory)
    assert back.step.tolist() == [0]
    assert back.header.ending.how == "recording"


CHILD = """
import sys, time
from pathlib import Path
import numpy as np
from gradscope.runs.writer import RunWriter
from tests.builders import make_header
run = RunWriter(Path(sys.argv[1]), make_header())
for step in range(10**9):
    run.append(step=step, loss=1.0, global_norm=1.0, grad_norm=np.ones(3), grad_max=np.ones(3))
    if step == 99:
        print("taken", flush=True)
    if step >= 99:
        time.sleep(0.01)
"""


def test_a_kill_loses_at_most_a_quarter_of_a_second(tmp_path):
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "run")], cwd=root, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "taken\n"
        deadline = time.monotonic() + 60
        while _rows(tmp_path / "run") < 100 and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    back = load_run(tmp_path / "run")
    assert len(back.step) >= 100
    assert back.step.tolist() == list(range(len(back.step)))
    assert back.header.ending.how == "recording"


def _rows(directory: Path) -> int:
    return len(load_run(directory).step)


def use_all_verbs(run):
    for step in range(messages.MOST_ROWS + 5):
        append(run, step)
    run.probe(0, "forward_gain", ["fc1"], [1.0])
    run.update_header(overhead_s=9.0)
    run.thin(2)
    run.flush()
    run.close()


@pytest.mark.parametrize("really", [True, False])
def test_a_forked_child_writes_nothing(run, really, monkeypatch):
    append(run, 0)
    if really:
        pid = os.fork()
        if pid == 0:
            use_all_verbs(run)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    else:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        use_all_verbs(run)
        monkeypatch.undo()
        run.header = make_header()
    run.close()
    back = load_run(run.directory)
    assert back.step.tolist() == [0]
    assert len(back.probes.step) == 0
    assert back.header.overhead_s is None


@pytest.mark.parametrize("stream", ["_steps", "_probe_file"])
def test_a_full_disk_stops_the_writing_not_the_training(run, stream, monkeypatch):
    append(run, 0)
    run.flush()

    class Full:
        def write(self, message):
            raise OSError(28, "No space left on device")

        def close(self):
            raise OSError("closing failed too")

    monkeypatch.setattr(run, stream, Full())
    for step in (1, 2):
        append(run, step)
        run.probe(step, "forward_gain", ["fc1"], [1.0])
        run.flush()
    run.close()
    back = load_run(run.directory)
    assert back.notes == ()
    assert back.header.notes == ("writing stopped early: No space left on device",)
    assert back.step.tolist()[0] == 0


def test_the_header_is_replaced_whole(run, monkeypatch):
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        run.update_header(overhead_s=1.0)
    monkeypatch.undo()
    assert read_header(run.directory).overhead_s is None


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        RunWriter(tmp_path / "file" / "run", make_header())
    RunWriter(tmp_path / "run", make_header()).close()
    with pytest.raises(FileExistsError):
        RunWriter(tmp_path / "run", make_header())


def test_the_files_are_plain_arrow_streams(run):
    append(run, 0)
    run.close()
    with pa.OSFile(str(run.directory / files.STEPS_FILE)) as file:
        table = pa.ipc.open_stream(file).read_all()
    assert table.schema == tables.steps_schema(3)
    with pytest.raises(RunFormatError, match="has no"):
        read_header(run.directory.parent)
