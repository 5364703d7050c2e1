"""The recorder's verbs, and what is in the run afterwards."""

import math
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from torch import nn

from gradscope import Recorder
from gradscope.capture import recorder as module
from gradscope.capture.later import Later
from gradscope.capture.norms_device import DeviceNorms
from gradscope.capture.rows import MOST_WAITING
from gradscope.errors import UsageError
from gradscope.runs.reader import load_run
from gradscope.runs.schema import Offender, Trial


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def backward(model, scale=1.0):
    model.zero_grad()
    loss = model(torch.ones(2, 3)).pow(2).mean() * scale
    loss.backward()
    return loss


def test_a_loop_of_ones_own(model, tmp_path):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    totals = []
    with Recorder(model, optimizer, directory=tmp_path / "run") as recorder:
        assert recorder.writes
        assert math.isnan(recorder.global_norm)
        for step in range(3):
            loss = backward(model)
            recorder.observe(loss, batch=step)
            recorder.observe(loss.item() + 2)
            totals.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())
            assert recorder.measure(max_norm=5.0).global_norm == pytest.approx(totals[-1], rel=1e-6)
            optimizer.step()
            schedule.step()
            recorder.finish_step()
            assert recorder.global_norm == pytest.approx(totals[-1], rel=1e-6)
    run = load_run(tmp_path / "run")
    assert run.header.ending.how == "finished"
    assert run.header.ending.step == 3
    assert run.header.recorded_by == "Recorder"
    assert run.header.overhead_s > 0
    assert run.global_norm == pytest.approx(totals, rel=1e-6)
    assert run.lr[:, 0].tolist() == [0.1, 0.05, 0.025]
    assert run.micro_steps.tolist() == [2, 2, 2]
    assert run.max_norm.tolist() == [5.0] * 3
    assert run.grad_norm.shape == (3, 4)
    assert run.header.optimizer.type == "SGD"


def test_a_step_that_was_not_measured_is_read_at_its_end(model, tmp_path):
    with Recorder(model, directory=tmp_path / "run") as recorder:
        backward(model)
        recorder.finish_step(lr=[0.3])
    run = load_run(tmp_path / "run")
    assert run.global_norm[0] > 0
    assert np.isnan(run.loss[0])
    assert run.lr.tolist() == [[0.3]]


@pytest.mark.parametrize("measured", [False, True])
def test_a_clip_that_came_before_the_reading_is_told(model, tmp_path, measured):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    with Recorder(model, optimizer, directory=tmp_path / "run") as recorder:
        for step in range(4):
            recorder.observe(backward(model))
            if measured:
                recorder.measure(max_norm=1e-3)
            if step > 1:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
            recorder.finish_step()
            assert measured or recorder.header.measured_at == ("post_clip" if step > 1 else "pre_clip")
    header = load_run(tmp_path / "run").header
    assert header.measured_at == ("pre_clip" if measured else "post_clip")
    assert ["call measure(max_norm=…) before you clip" in note for note in header.notes] == [True] * (not measured)


def test_a_recorder_that_is_never_closed_is_at_the_end_of_the_process(tmp_path):
    program = """
        import torch, gradscope
        model = torch.nn.Linear(3, 1)
        recorder = gradscope.Recorder(model, directory=__import__("pathlib").Path("run"))
        for _ in range(5):
            model(torch.ones(2, 3)).sum().backward()
            recorder.finish_step()
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, check=True)
    run = load_run(tmp_path / "run")
    assert len(run.step) == 5
    assert (run.header.ending.how, run.header.ending.step) == ("interrupted", 5)
    assert "before the recorder was closed" in run.header.ending.message


def test_gradients_are_unscaled(model, tmp_path):
    with Recorder(model, directory=tmp_path / "run") as recorder:
        backward(model)
        plain = recorder.measure().global_norm
        recorder.finish_step()
        backward(model, 1024.0)
        assert recorder.measure(scale=1024.0).global_norm == pytest.approx(plain, rel=1e-5)
        recorder.finish_step()
        recorder.measure(loss_scale=8.0)
        recorder.finish_step(skipped=True)
        assert recorder.last_skipped
    run = load_run(tmp_path / "run")
    assert run.loss_scale.tolist()[1:] == [1024.0, 8.0]
    assert run.skipped.tolist() == [False, False, True]


def test_only_every_so_many_steps(model, tmp_path):
    with Recorder(model, directory=tmp_path / "run", every=3) as recorder:
        for step in range(7):
            assert recorder.due == (step % 3 == 0)
            backward(model, step + 1.0)
            before = recorder.last
            reading = recorder.measure()
            assert recorder.due or reading is before
            recorder.finish_step()
    run = load_run(tmp_path / "run")
    assert run.step.tolist() == [0, 3, 6]
    assert run.header.every == 3
    assert run.global_norm[1] == pytest.approx(4 * run.global_norm[0], rel=1e-5)


def test_a_bounded_file_keeps_the_whole_run(model, tmp_path):
    with Recorder(model, directory=tmp_path / "run", max_rows=8) as recorder:
        backward(model)
        for _ in range(100):
            recorder.finish_step()
    run = load_run(tmp_path / "run")
    assert run.step.tolist() == list(range(0, 100, 16))
    assert run.header.every == 16


def test_taking_abandoning_and_forgetting(model, tmp_path):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, directory=tmp_path / "run") as recorder:
        loss = backward(model)
        reading = recorder.measure()
        recorder.take(None)
        assert recorder.reading is None
        backward(model, 2.0)
        assert recorder.measure().global_norm == pytest.approx(2 * reading.global_norm, rel=1e-5)
        recorder.take(reading)
        assert recorder.reading is reading
        recorder.observe(loss)
        recorder.abandon()
        recorder.release_optimizers()
        recorder.finish_step()
    run = load_run(tmp_path / "run")
    assert np.isnan(run.loss[0])
    assert run.lr.shape == (1, 0)


def test_missing_and_frozen_gradients_are_not_numbers(model, tmp_path):
    model[0].weight.requires_grad_(False)
    with Recorder(model, directory=tmp_path / "run") as recorder:
        backward(model)
        model[2].bias.grad = None
        recorder.finish_step()
        model.zero_grad()
        recorder.finish_step()
    run = load_run(tmp_path / "run")
    assert np.isnan(run.grad_norm[0]).tolist() == [True, False, False, True]
    assert np.isfinite(run.global_norm[0])
    assert np.isnan(run.global_norm[1])


def test_the_first_nonfinite_gradient_in_backward_order(model, tmp_path):
    with Recorder(model, directory=tmp_path / "run") as recorder:
        for step in range(4):
            loss = backward(model)
            recorder.observe(loss, batch=10 + step)
            if step >= 2:
                model[0].bias.grad[0] = math.nan
                model[2].weight.grad[0, :2] = math.inf
            recorder.finish_step()
            assert (recorder.header.first_nonfinite is None) == (step < 2)
    run = load_run(tmp_path / "run")
    assert run.nonfinite.tolist() == [0, 0, 3, 3]
    assert run.header.first_nonfinite == Offender(2, "2", "2.weight", "gradient", 0, 12)


def test_a_nonfinite_loss_goes_first(model, tmp_path):
    with Recorder(model, directory=tmp_path / "run") as recorder:
        backward(model)
        recorder.observe(1.0, batch=4)
        recorder.observe(math.inf, batch=5)
        recorder.observe(math.nan, batch=6)
        recorder.finish_step()
    assert load_run(tmp_path / "run").header.first_nonfinite == Offender(0, None, None, "loss", 1, 5)


def test_a_skipped_step_is_no_offence(model, tmp_path):
    with Recorder(model, directory=tmp_path / "run") as recorder:
        backward(model, math.inf)
        recorder.finish_step(skipped=True)
    run = load_run(tmp_path / "run")
    assert run.header.first_nonfinite is None
    assert run.nonfinite[0] > 0


@pytest.mark.parametrize(("error", "how"), [(KeyboardInterrupt(), "interrupted"), (ValueError("boom"), "failed")])
def test_an_exception_leaves_a_readable_run(model, tmp_path, error, how):
    def train():
        with Recorder(model, directory=tmp_path / "run") as recorder:
            backward(model)
            recorder.finish_step()
            raise error

    with pytest.raises(type(error)):
        train()
    run = load_run(tmp_path / "run")
    assert (run.header.ending.how, run.header.ending.step) == (how, 1)
    assert run.step.tolist() == [0]
    assert module.active == []


def test_closing_twice_and_before_a_forward(model, tmp_path):
    recorder = Recorder(model, directory=tmp_path / "run")
    assert any(one._forward_pre_hooks for one in model.modules())
    recorder.close()
    recorder.close()
    assert not any(one._forward_pre_hooks for one in model.modules())


def test_the_order_of_layers_is_learnt_from_the_first_forward(tmp_path):
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(2, 1), nn.Linear(2, 2)

        def forward(self, x):
            return self.last(self.first(x))

    model = Crossed()
    with Recorder(model, directory=tmp_path / "run") as recorder:
        model(torch.ones(2)).sum().backward()
        recorder.finish_step()
    assert [layer.name for layer in load_run(tmp_path / "run").layers] == ["first", "last"]


def test_a_trial_is_recorded_inside(model, tmp_path):
    with Recorder(model, directory=tmp_path / "run", every=5) as recorder:
        child = recorder.trial(Trial("rehearsal", "x1", lr_factor=2.0), notes=("a note",))
        backward(model)
        child.finish_step()
        child.finish_step()
        child.probe("forward_gain", ["0"], [1.0], step=1)
        child.close()
    run = load_run(tmp_path / "run")
    assert run.trials["x1"].step.tolist() == [0, 1]
    assert run.trials["x1"].header.notes == ("a note",)
    assert run.trials["x1"].probes.step.tolist() == [1]
    assert len(run.step) == 0


def test_probes_and_header_changes_reach_the_run(model, tmp_path):
    with Recorder(model, directory=tmp_path / "run") as recorder:
        recorder.probe("along_time", ["rnn"], [2.0], [7])
        recorder.update_header(measured_at="post_clip")
        assert recorder.header.measured_at == "post_clip"
    run = load_run(tmp_path / "run")
    assert run.probes.index.tolist() == [7]
    assert run.header.measured_at == "post_clip"


def test_the_default_directory_is_new_each_time(model, here):
    with Recorder(model, name="my net") as one, Recorder(model, name="my net") as two:
        assert one.directory != two.directory
        assert one.directory.parent == here / ".gradscope" / "runs"


def test_a_model_without_parameters(tmp_path):
    with pytest.raises(UsageError, match="no parameters"):
        Recorder(nn.Tanh(), directory=tmp_path / "run")


def test_a_directory_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write a run to .*: Not a directory"):
        Recorder(model, directory=tmp_path / "file" / "run")
    assert not any(one._forward_pre_hooks for one in model.modules())


def test_other_ranks_write_nothing(model, here, monkeypatch):
    monkeypatch.setattr(module, "rank", lambda: 1)
    with Recorder(model) as recorder:
        assert not recorder.writes
        with pytest.raises(UsageError, match="rank 1 writes no run"):
            _ = recorder.directory
        backward(model)
        recorder.observe(1.0)
        assert recorder.measure().global_norm > 0
        recorder.probe("forward_gain", ["0"], [1.0])
        recorder.finish_step()
        recorder.update_header(measured_at="post_clip")
        assert recorder.header.measured_at == "post_clip"
        child = recorder.trial(Trial("rehearsal", "x1"))
        assert child.header.trial.name == "x1"
        child.close()
    assert not (here / ".gradscope").exists()


def test_steps_that_are_put_aside_reach_the_file_by_themselves(model, tmp_path):
    """In their order, and each with the time at which it ended."""
    with Recorder(model, directory=tmp_path / "run") as recorder:
        for _ in range(2 * MOST_WAITING + 3):
            backward(model)
            recorder.finish_step()
        time.sleep(0.02)
        backward(model)
        recorder.finish_step()
        deadline = time.monotonic() + 30
        while len(load_run(recorder.directory).step) < recorder.step:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        run = load_run(recorder.directory)
    assert run.step.tolist() == list(range(recorder.step))
    assert run.elapsed_s[-1] - run.elapsed_s[-2] >= 0.02
    assert (np.diff(run.elapsed_s) > 0).all()


class Event:
    """Stands for a CUDA event."""

    done = False

    def query(self):
        return self.done

    def synchronize(self):
        """Wait."""


def test_rows_of_a_device_are_written_in_order_once_they_arrived(model, tmp_path, monkeypatch):
    """The device's path, driven on the CPU: nothing waits, nothing is lost."""
    events = []
    plain = Later.__init__

    def late(self, values):
        plain(self, values)
        self._event = Event()
        events.append(self._event)

    monkeypatch.setattr(Later, "__init__", late)
    directory, losses = tmp_path / "run", []

    def written():
        recorder._writer.flush()
        return len(load_run(directory).step)

    with Recorder(model, directory=directory) as recorder:
        recorder._norms = DeviceNorms(recorder.tensors)
        for step in range(5):
            loss = backward(model, step + 1.0)
            losses.append(loss.item())
            recorder.observe(loss)
            recorder.finish_step()
        assert written() == 0
        for event in events[1:3]:
            event.done = True
        recorder._rows.drain()
        assert written() == 0
        events[0].done = True
        recorder._rows.drain()
        assert written() == 3
    run = load_run(directory)
    assert run.step.tolist() == list(range(5))
    assert run.loss.tolist() == pytest.approx(losses)
    assert run.global_norm == pytest.approx(run.global_norm[0] * np.arange(1, 6), rel=1e-5)


def test_a_loss_on_a_device_is_not_waited_for(model, tmp_path):
    with Recorder(model, directory=tmp_path / "run") as recorder:
        recorder.observe(torch.ones((), device="meta"))
        recorder.abandon()


def test_tensors_on_a_device_are_read_there(tmp_path):
    with Recorder(nn.Linear(2, 2, device="meta"), directory=tmp_path / "run") as recorder:
        assert isinstance(recorder._norms, DeviceNorms)
