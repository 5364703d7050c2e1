"""One optimizer step, and a window of them."""

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from gradscope.capture.header import header_for
from gradscope.capture.loop import AFTERMATH, run_steps, step_once
from gradscope.capture.recorder import Recorder
from gradscope.diagnosis.diagnose import diagnose
from gradscope.errors import SpecError, UserCodeError
from gradscope.runs.reader import load_run
from gradscope.runs.schema import Ending, Plan
from tests.capture.small_workloads import Fixed, mse, regression, workload


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def record(work, tmp_path, steps=5, **options):
    with Recorder(
        work.model, work.optimizers, directory=tmp_path / "run", header=header_for(work, ["test"])
    ) as recorder:
        ending = run_steps(work, recorder, range(steps), **options)
        recorder.close(ending)
    return load_run(tmp_path / "run"), ending


def by_hand(work, steps, max_norm=None):
    """The same training in a plain loop; returns losses and norms."""
    losses, norms = [], []
    for step in range(steps):
        work.model.zero_grad()
        batches = [work.batches.at(step * work.plan.accumulate + i) for i in range(work.plan.accumulate)]
        parts = [work.training_step(work.model, batch) for batch in batches]
        for part in parts:
            (part / len(parts)).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(work.model.parameters(), max_norm or math.inf).item())
        work.optimizers[0].step()
        for schedule in work.schedulers:
            schedule.step()
        losses.append(sum(part.item() for part in parts) / len(parts))
    return losses, norms


def halved(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("max_norm", [None, 0.2])
def test_the_same_training_as_a_plain_loop(tmp_path, accumulate, max_norm):
    works = [workload(small(), schedulers=halved, plan=Plan(accumulate=accumulate)) for _ in range(2)]
    seen = []
    run, ending = record(works[0], tmp_path, max_norm=max_norm, on_step=seen.append)
    losses, norms = by_hand(works[1], 5, max_norm)
    assert run.loss == pytest.approx(losses, rel=1e-6)
    assert run.global_norm == pytest.approx(norms, rel=1e-5)
    for one, two in zip(works[0].model.parameters(), works[1].model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert ending == Ending("finished", 5) == run.header.ending
    assert run.micro_steps.tolist() == [accumulate] * 5
    assert run.lr[:, 0] == pytest.approx(0.01 * 0.5 ** np.arange(5))
    assert run.max_norm == pytest.approx([math.nan if max_norm is None else max_norm] * 5, nan_ok=True)
    assert [one.index for one in seen] == list(range(5))
    assert [one.loss for one in seen] == pytest.approx(losses, rel=1e-6)
    assert seen[2].reading.global_norm == seen[2].global_norm == run.global_norm[2]


def test_steps_of_the_plan_in_any_order_without_the_schedule(tmp_path):
    work = workload(small(), schedulers=halved, plan=Plan(accumulate=2))
    with Recorder(work.model, work.optimizers, directory=tmp_path / "run") as recorder:
        for index in (7, 3):
            step_once(work, index, recorder, trial=True)
    assert work.batches.asked == [14, 15, 6, 7]
    assert load_run(tmp_path / "run").lr[:, 0].tolist() == [0.01, 0.01]


def test_gradients_outside_the_optimizer_do_not_pile_up(tmp_path):
    work = workload(small(), optimizers=lambda model: torch.optim.SGD(model[2].parameters(), lr=0.0))
    run, _ = record(work, tmp_path, steps=3)
    work.batches.make = lambda _: regression(torch.Generator().manual_seed(0))
    again, _ = record(
        workload(small(), lambda m: torch.optim.SGD(m[2].parameters(), lr=0.0), batches=work.batches), tmp_path / "b", 3
    )
    assert again.grad_norm[0] == pytest.approx(again.grad_norm[2])
    assert np.isfinite(run.grad_norm).all()


def test_lbfgs_evaluates_its_closure(tmp_path):
    batches = Fixed(lambda _: regression(torch.Generator().manual_seed(0)))
    work = workload(small(), lambda model: torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4), batches=batches)
    run, _ = record(work, tmp_path, steps=4, max_norm=10.0)
    assert len(run.step) == 4
    assert run.loss[-1] < run.loss[0]
    assert run.micro_steps.tolist() == [1] * 4


def test_two_optimizers_both_step(tmp_path):
    work = workload(small())
    work.optimizers = tuple(torch.optim.SGD(work.model[i].parameters(), lr=0.1 * (i + 1)) for i in (0, 2))
    before = [p.clone() for p in work.model.parameters()]
    run, _ = record(work, tmp_path, steps=1)
    assert run.lr.tolist() == [[0.1, pytest.approx(0.3)]]
    assert not any(torch.equal(a, b) for a, b in zip(before, work.model.parameters(), strict=True))


def test_bf16_runs_under_autocast(tmp_path):
    kinds = []

    def step(model, batch):
        out = model(batch[0])
        kinds.append(out.dtype)
        return (out.float() - batch[1]).pow(2).mean()

    run, _ = record(workload(small(), training_step=step, plan=Plan(precision="bf16")), tmp_path)
    assert set(kinds) == {torch.bfloat16}
    assert np.isnan(run.loss_scale).all()


@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_fp16_norms_are_unscaled_and_skips_are_no_explosion(tmp_path, max_norm):
    work = workload(small(), schedulers=halved, plan=Plan(precision="fp16"))
    reference = workload(small())
    work.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    run, ending = record(work, tmp_path, steps=40, max_norm=max_norm)
    assert run.skipped[0]
    assert not run.skipped[-1]
    assert ending.how == "finished"
    assert run.header.first_nonfinite is None
    assert run.loss_scale.tolist() == [2.0 ** (40 - n) for n in np.cumsum(run.skipped) - run.skipped]
    first = int(np.argmin(run.skipped))
    mse(reference.model, reference.batches.at(first)).backward()
    plain = torch.nn.utils.get_total_norm([p.grad for p in reference.model.parameters()]).item()
    assert run.global_norm[first] == pytest.approx(plain, rel=0.05)
    assert run.lr[:, 0].tolist() == [0.01 * 0.5**n for n in np.cumsum(~run.skipped) - ~run.skipped]


def test_fp16_gets_a_scaler_of_its_own(tmp_path):
    work = workload(small(), plan=Plan(precision="fp16"))
    run, _ = record(work, tmp_path, steps=2)
    assert work.scaler is not None
    assert run.loss_scale[0] == 65536.0


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_a_nonfinite_loss_ends_the_window_a_few_steps_later(tmp_path, factor):
    work = workload(small(), lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    calls = []

    def step(model, batch):
        calls.append(1)
        return mse(model, batch) * (factor if len(calls) > 3 else 1.0)

    work.training_step = step
    run, ending = record(work, tmp_path, steps=50)
    assert ending == Ending("nonfinite", 3) == run.header.ending
    assert run.step.tolist() == list(range(3 + AFTERMATH + 1))
    assert run.header.first_nonfinite.step == 3
    assert run.header.first_nonfinite.went_first == "loss"
    assert run.header.first_nonfinite.batch == 3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_data_that_are_nonfinite_are_blamed_themselves(tmp_path, accumulate):
    def batch(generator):
        x, y = regression(generator)
        return (x * math.inf if generator.initial_seed() == 5 else x), y

    work = workload(small(), batches=Fixed(batch), plan=Plan(accumulate=accumulate))
    run, _ = record(work, tmp_path, steps=20)
    found = run.header.first_nonfinite
    assert (found.went_first, found.layer, found.step, found.batch) == ("input", None, 5 // accumulate, 5)
    (finding,) = (one for one in diagnose(run).findings if one.code == "GS101")
    assert "the data were nonfinite first, batch 5" in finding.message
    assert "Repair" in finding.advice


def test_a_nonfinite_gradient_names_its_layer(tmp_path):
    work = workload(small())
    work.model[0].weight.register_hook(lambda grad: grad * math.nan)
    run, ending = record(work, tmp_path, steps=2)
    assert ending == Ending("nonfinite", 0)
    assert run.header.first_nonfinite.layer == "0"
    assert run.header.first_nonfinite.went_first == "gradient"


def test_the_end_of_the_data_ends_the_window(tmp_path):
    run, ending = record(workload(small(), batches=Fixed(regression, length=3)), tmp_path)
    assert ending == Ending("finished", 3, "the data ended")
    assert run.step.tolist() == [0, 1, 2]


def test_ctrl_c_keeps_what_was_recorded(tmp_path):
    def press(seen):
        if seen.position == 2:
            raise KeyboardInterrupt

    run, ending = record(workload(small()), tmp_path, on_step=press)
    assert ending.how == run.header.ending.how == "interrupted"
    assert run.step.tolist() == [0, 1, 2]


class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8))
        self.head = nn.Linear(9, 1)

    def forward(self, x):
        return self.head(self.body(x))


def fails(work, tmp_path):
    with pytest.raises(UserCodeError) as caught, Recorder(work.model, directory=tmp_path / "run") as recorder:
        run_steps(work, recorder, range(3))
    assert caught.value.run_path == str(tmp_path / "run")
    assert load_run(tmp_path / "run").header.ending.how == "failed"
    return str(caught.value)


def test_an_error_names_layer_shape_file_and_step(tmp_path):
    message = fails(workload(Wrong()), tmp_path)
    assert message.startswith(
        "small.py: step 0 raised RuntimeError in layer head (Linear(in_features=9, out_features=1"
    )
    assert "given (8, 4)" not in message
    assert "given (8, 8)" in message
    assert f"{__file__}:" in message
    assert "mat1 and mat2" in message


def test_an_error_outside_of_any_layer_names_its_line(tmp_path):
    def step(model, batch):
        raise KeyError("labels")

    message = fails(workload(small(), training_step=step), tmp_path)
    assert "in layer" not in message
    assert f"{__file__}:" in message


def test_an_error_without_a_frame_of_the_user(tmp_path):
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise ArithmeticError("in backward")

    message = fails(workload(small(), training_step=lambda m, b: Fails.apply(mse(m, b))), tmp_path)
    assert "ArithmeticError" in message

    work = workload(small())
    work.batches = None
    assert "AttributeError: 'NoneType'" in fails(work, tmp_path / "again")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda m, b: 3.0, "the loss is a float, not a tensor"),
        (lambda m, b: m(b[0]), r"the loss has shape \(8, 1\), not one number; reduce it"),
        (lambda m, b: mse(m, b).detach(), "the loss has no gradient"),
    ],
)
def test_a_loss_that_cannot_be_used(tmp_path, loss, message):
    work = workload(small(), training_step=loss)
    with pytest.raises(SpecError, match=message), Recorder(work.model, directory=tmp_path / "run") as recorder:
        run_steps(work, recorder, range(3))


def test_a_loss_of_one_element_is_a_scalar(tmp_path):
    run, _ = record(workload(small(), training_step=lambda m, b: mse(m, b).reshape(1, 1)), tmp_path, steps=2)
    assert np.isfinite(run.loss).all()


class Noting:
    """A probe that notes when it was placed and taken away."""

    unmeasured: ClassVar[dict[str, str]] = {}

    def __init__(self):
        self.calls = []

    def begin(self, step):
        self.calls.append(("begin", step))

    def end(self, step, emit):
        self.calls.append(("end", step))
        emit("forward_gain", ["0"], [step * 1.0])


def test_probes_are_placed_on_their_steps_only(tmp_path):
    probe = Noting()
    run, _ = record(workload(small()), tmp_path, probes=[probe], probe_steps={1, 3})
    assert probe.calls == [("begin", 1), ("end", 1), ("begin", 3), ("end", 3)]
    assert run.probes.step.tolist() == [1, 3]
    assert run.probes.value.tolist() == [1.0, 3.0]


def test_probes_are_taken_away_after_an_error(tmp_path):
    probe = Noting()
    work = workload(Wrong())
    with pytest.raises(UserCodeError), Recorder(work.model, directory=tmp_path / "run") as recorder:
        run_steps(work, recorder, range(3), probes=[probe], probe_steps={0})
    assert probe.calls == [("begin", 0), ("end", 0)]


def test_on_another_rank_the_error_names_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr("gradscope.capture.recorder.rank", lambda: 1)
    work = workload(Wrong())
    with pytest.raises(UserCodeError) as caught, Recorder(work.model) as recorder:
        run_steps(work, recorder, range(3))
    assert caught.value.run_path is None


def test_batches_are_moved_to_the_device(tmp_path):
    devices = []

    def step(model, batch):
        devices.append(batch["x"].device.type)
        return model(torch.ones(2, 4)).sum()

    work = workload(small(), training_step=step, batches=Fixed(lambda generator: {"x": torch.ones(2)}))
    work.device = torch.device("meta")
    record(work, tmp_path, steps=1)
    assert devices == ["meta"]


def test_the_header_of_a_workload():
    work = workload(small(), plan=Plan(total_steps=70), synthetic_data=True)
    header = header_for(work, ["gradscope", "analyze"], recorded_by="test")
    assert header.plan.total_steps == 70
    assert header.command == ("gradscope", "analyze")
    assert header.recorded_by == "test"
    assert header.synthetic_data
    assert header.versions["torch"] == torch.__version__
    assert header.optimizer.type == "Adam"
    assert [parameter.layer for parameter in header.parameters] == ["0", "0", "2", "2"]


def test_versions_without_an_installed_package(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    from gradscope.capture import header

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(header, "version", missing)
    assert header.versions()["gradscope"] == "unknown"
