"""Clipping that records: bit for bit what torch does, and the norms from before it."""

import copy
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from gradscope import clip_grad_norm_
from gradscope.capture.clipping import clip_scale_free
from gradscope.capture.recorder import Recorder
from gradscope.runs.reader import load_run

LIMITS = (1e30, 1.0, 1e-3, 0.0, -1.0, math.nan, math.inf)


def nets():
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(40, 130), nn.Tanh(), nn.Linear(130, 40), nn.LayerNorm(40))
    return one, copy.deepcopy(one)


def backward(model, scale=1.0, seed=1):
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    (model(x).pow(3).mean() * scale).backward()


def same(one, two):
    return all(
        (a.grad is None and b.grad is None) or torch.equal(a.grad.nan_to_num(1.25), b.grad.nan_to_num(1.25))
        for a, b in zip(one.parameters(), two.parameters(), strict=True)
    )


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize(
    "options", [{}, {"norm_type": 1.0}, {"norm_type": math.inf}, {"foreach": False}, {"foreach": True}]
)
def test_the_result_is_torchs_bit_for_bit(tmp_path, limit, options):
    recorded, plain = nets()
    with Recorder(recorded, directory=tmp_path / "run") as recorder:
        for step, scale in enumerate((1.0, 1e-20, 1e20, 1.0)):
            for model in (recorded, plain):
                backward(model, scale, step)
            before = [p.grad.double().norm().item() for p in recorded.parameters()]
            got = clip_grad_norm_(recorded.parameters(), limit, **options)
            expected = torch.nn.utils.clip_grad_norm_(plain.parameters(), limit, **options)
            assert torch.equal(got, expected)
            assert same(recorded, plain)
            recorder.finish_step()
            assert recorder.global_norm == pytest.approx(math.hypot(*before), rel=1e-6)
    run = load_run(tmp_path / "run")
    assert run.max_norm == pytest.approx([math.nan if "norm_type" in options else limit] * 4, nan_ok=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_gradients_are_read_before_the_clip_spreads_them(tmp_path, bad):
    recorded, plain = nets()
    with Recorder(recorded, directory=tmp_path / "run") as recorder:
        for model in (recorded, plain):
            backward(model)
            model[2].weight.grad[0, :3] = bad
        got = clip_grad_norm_(recorded.parameters(), 1.0)
        torch.testing.assert_close(got, torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0), equal_nan=True)
        assert same(recorded, plain)
        recorder.finish_step()
    run = load_run(tmp_path / "run")
    assert run.nonfinite.tolist() == [3]
    assert torch.isfinite(torch.tensor(run.grad_norm[0])).tolist() == [True, True, False, True, True, True]
    assert run.header.first_nonfinite.parameter == "2.weight"


def test_an_error_for_nonfinite_gradients_is_torchs_own(tmp_path):
    recorded, _ = nets()
    with Recorder(recorded, directory=tmp_path / "run"):
        backward(recorded)
        recorded[0].bias.grad[0] = math.inf
        with pytest.raises(RuntimeError, match="non-finite"):
            clip_grad_norm_(recorded.parameters(), 1.0, error_if_nonfinite=True)


def test_some_of_the_parameters_more_than_them_and_one(tmp_path):
    recorded, plain = nets()
    other, other_plain = nn.Linear(3, 3), nn.Linear(3, 3)
    other_plain.load_state_dict(other.state_dict())
    with Recorder(recorded, directory=tmp_path / "run") as recorder:
        for choose in (
            lambda net, more: list(net[2].parameters()),
            lambda net, more: [*net.parameters(), *more.parameters()],
            lambda net, more: list(net.parameters())[::-1],
            lambda net, more: net[0].weight,
            lambda net, more: [net[0].weight, net[0].weight],
        ):
            for net, more in ((recorded, other), (plain, other_plain)):
                backward(net)
                more.zero_grad()
                more(torch.ones(2, 3)).sum().backward()
            whole = math.hypot(*(p.grad.double().norm().item() for p in recorded.parameters()))
            got = clip_grad_norm_(choose(recorded, other), 0.01)
            assert torch.equal(got, torch.nn.utils.clip_grad_norm_(choose(plain, other_plain), 0.01))
            assert same(recorded, plain)
            assert same(other, other_plain)
            assert recorder.reading.global_norm == pytest.approx(whole, rel=1e-6)
            recorder.finish_step()


def test_gradients_that_are_missing_frozen_or_of_other_types(tmp_path):
    recorded, plain = nets()
    for model in (recorded, plain):
        model[0].weight.requires_grad_(False)
        model[3].bfloat16()
    with Recorder(recorded, directory=tmp_path / "run") as recorder:
        for _ in range(3):
            for model in (recorded, plain):
                x = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
                model.zero_grad()
                (model[:3](x).sum() + model[3](x.bfloat16()).pow(3).sum().float()).backward()
            got = clip_grad_norm_(recorded.parameters(), 0.5)
            assert torch.equal(got, torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5))
            assert same(recorded, plain)
            recorder.finish_step()
    assert math.isnan(load_run(tmp_path / "run").grad_norm[-1, 0])


def test_no_gradients_at_all(tmp_path):
    recorded, _ = nets()
    with Recorder(recorded, directory=tmp_path / "run"):
        assert clip_grad_norm_(recorded.parameters(), 1.0) == 0.0
        assert clip_grad_norm_([], 1.0) == 0.0


def test_without_a_recorder_it_is_torchs():
    recorded, plain = nets()
    for model in (recorded, plain):
        backward(model)
    got = clip_grad_norm_(recorded.parameters(), 0.1)
    assert torch.equal(got, torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.1))
    assert same(recorded, plain)


def test_only_recorders_of_these_parameters_read(tmp_path):
    one, two = nets()
    with Recorder(one, directory=tmp_path / "one") as first, Recorder(two, directory=tmp_path / "two") as second:
        backward(one)
        clip_grad_norm_(one.parameters(), 0.1)
        assert first.reading is not None
        assert second.reading is None


def test_two_recorders_of_one_model_both_read(tmp_path):
    one, _ = nets()
    with Recorder(one, directory=tmp_path / "a") as first, Recorder(one, directory=tmp_path / "b") as second:
        backward(one)
        total = clip_grad_norm_(one.parameters(), 0.1).item()
        assert first.reading.global_norm == pytest.approx(total, rel=1e-5)
        assert second.reading.global_norm == pytest.approx(total, rel=1e-5)


def test_the_first_reading_of_a_step_wins(tmp_path):
    one, _ = nets()
    with Recorder(one, directory=tmp_path / "run") as recorder:
        backward(one)
        total = recorder.measure().global_norm
        clip_grad_norm_(one.parameters(), 0.1)
        clip_grad_norm_(one.parameters(), 0.01)
        assert recorder.reading.global_norm == total


@settings(max_examples=40, deadline=None)
@example(sizes=[1], limit=1.0, exponent=-19)
@example(sizes=[1], limit=1e-30, exponent=-26)
@example(sizes=[1], limit=1.0, exponent=25)
@example(sizes=[1, 1], limit=1.0, exponent=-19)
@given(
    sizes=st.lists(st.sampled_from([1, 3, 70, 2048, 4097, 140_000]), min_size=1, max_size=6),
    limit=st.floats(1e-6, 1e6),
    exponent=st.integers(-30, 30),
)
def test_any_sizes_and_limits(tmp_path_factory, sizes, limit, exponent):
    models = [nn.ParameterList([torch.zeros(size) for size in sizes]) for _ in range(2)]
    with Recorder(models[0], directory=tmp_path_factory.mktemp("clip") / "run") as recorder:
        for step in range(2):
            for model in models:
                generator = torch.Generator().manual_seed(step)
                for parameter in model:
                    parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0**exponent
            got = clip_grad_norm_(models[0].parameters(), limit)
            assert torch.equal(got, torch.nn.utils.clip_grad_norm_(models[1].parameters(), limit))
            assert same(*models)
            recorder.finish_step()


@pytest.mark.parametrize("scale", [2.0**-40, 1.0, 2.0**40])
def test_trials_clip_alike_at_every_scale_of_the_loss(tmp_path, scale):
    """torch's own clipping does not: it adds 1e-6 to the norm."""
    one, plain = nets()
    backward(plain)
    backward(one, scale)
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in plain.parameters()]))
    with Recorder(one, directory=tmp_path / "run") as recorder:
        clip_scale_free(recorder, 0.25 * norm * scale)
    for a, b in zip(one.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad / scale, 0.25 * b.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_trials_clip_as_torch_does_where_a_norm_is_no_size(tmp_path, value):
    one, plain = nets()
    for model in (one, plain):
        backward(model)
        for parameter in model.parameters():
            parameter.grad.fill_(value)
    with Recorder(one, directory=tmp_path / "run") as recorder:
        clip_scale_free(recorder, 1.0)
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    assert same(one, plain)


def test_trials_leave_small_gradients_alone(tmp_path):
    one, plain = nets()
    backward(one)
    backward(plain)
    with Recorder(one, directory=tmp_path / "run") as recorder:
        clip_scale_free(recorder, 1e9)
    assert same(one, plain)
