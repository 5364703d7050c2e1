"""What `record` makes of scripts that clip, scale, accumulate and step in every way there is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from gradscope.runs import events
from tests.integrations.scripts import record

LOOP = """
optimizer = torch.optim.SGD(params, lr=0.05)
for i in range(6):
    optimizer.zero_grad()
    loss = loss_of(model, i)
    loss.backward()
    seen["losses"].append(loss.item())
    seen["norms"].append(norm_of(model))
    {clip}
    optimizer.step()
"""


SEEN = 'seen["norms"].append(norm_of(model))'


def looped(clip: str) -> str:
    return LOOP.format(clip=clip.replace("\n", "\n    "))


def changed(change: str, then: str = "pass") -> str:
    """The loop with a change of the gradients, after which the norms are those that count."""
    return looped(f"{change}\n{SEEN}\n{then}").replace(SEEN, "pass", 1)


BY_HAND = """total = norm_of(model)
if total > 3.0:
    for p in params:
        {shrink}"""

CLIPS = {
    "none": "pass",
    "clip_grad_norm_": "nn.utils.clip_grad_norm_(params, 3.0)",
    "a generator": "nn.utils.clip_grad_norm_(model.parameters(), 3.0)",
    "imported before": "clip(model.parameters(), 3.0)",
    "one tensor at a time": "[nn.utils.clip_grad_norm_(p, 3.0) for p in params]",
    "clip_grad_value_": "nn.utils.clip_grad_value_(params, 0.1)",
    "two calls": "total = nn.utils.get_total_norm([p.grad for p in params])\n"
    "nn.utils.clip_grads_with_norm_(params, 3.0, total)",
    "another norm": "nn.utils.clip_grad_norm_(params, 1.0, norm_type='inf')",
    "not foreach": "nn.utils.clip_grad_norm_(params, 3.0, foreach=False)",
    "by hand": BY_HAND.format(shrink="p.grad.mul_(3.0 / total)"),
    "by hand, through data": BY_HAND.format(shrink="p.grad.data *= 3.0 / total"),
    "by hand, new tensors": BY_HAND.format(shrink="p.grad = p.grad * (3.0 / total)"),
    "by value, by hand": "for p in params:\n    p.grad.data.clamp_(-0.1, 0.1)",
    "deprecated": "import warnings\nwith warnings.catch_warnings():\n"
    "    warnings.simplefilter('ignore')\n    nn.utils.clip_grad_norm(params, 3.0)",
}
LIMITED = {"clip_grad_norm_", "a generator", "imported before", "two calls", "not foreach", "deprecated"}


@pytest.mark.parametrize("name", CLIPS)
def test_norms_are_those_before_any_clipping(name: str, tmp_path: Path) -> None:
    body = "from torch.nn.utils import clip_grad_norm_ as clip\n" + looped(CLIPS[name])
    done = record(tmp_path, body)
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)
    np.testing.assert_allclose(done.run.loss, done.seen["losses"], rtol=1e-6)
    assert done.recorded.exit_code == 0
    assert done.recorded.missing is None
    if name in LIMITED:
        np.testing.assert_array_equal(done.run.max_norm, 3.0)
    elif not name.startswith(("by hand", "one tensor")):
        assert np.isnan(done.run.max_norm).all()


@pytest.mark.parametrize("name", ["by hand", "by hand, through data", "by hand, new tensors"])
def test_a_clip_by_hand_is_seen(name: str, tmp_path: Path) -> None:
    done = record(tmp_path, looped(CLIPS[name]))
    noted = {step: value for step, _, value in done.events(events.CLIP_BY_HAND)}
    clipped = [i for i, norm in enumerate(done.seen["norms"]) if norm > 3.0]
    assert sorted(noted) == clipped
    assert noted == pytest.approx({i: 3.0 / done.seen["norms"][i] for i in clipped}, rel=1e-4)
    np.testing.assert_allclose(done.run.max_norm[clipped[0] :], 3.0, rtol=1e-4)


def test_clips_that_are_not_by_the_l2_norm_are_noted(tmp_path: Path) -> None:
    value = record(tmp_path / "value", looped(CLIPS["clip_grad_value_"]))
    assert value.events(events.CLIP_BY_VALUE) == [(i, "", 0.1) for i in range(6)]
    other = record(tmp_path / "other", looped(CLIPS["another norm"]))
    assert other.events(events.CLIP_OTHER_NORM) == [(i, "1.0", math.inf) for i in range(6)]


@pytest.mark.parametrize(
    ("change", "event"),
    [("for p in params:\n    p.grad /= 8", None), ("for p in params:\n    p.grad += 1", events.GRADIENTS_CHANGED)],
)
def test_other_changes_to_gradients_are_part_of_them(change: str, event: str | None, tmp_path: Path) -> None:
    done = record(tmp_path, changed(change))
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)
    assert bool(done.run.probes.probe.tolist()) == (event is not None)
    if event:
        assert [step for step, _, _ in done.events(event)] == [0]


@pytest.mark.parametrize("place", range(4))
def test_a_change_to_a_single_gradient_is_part_of_it(place: int, tmp_path: Path) -> None:
    done = record(tmp_path, changed(f"params[{place}].grad += 1"))
    assert len(done.seen["norms"]) == 6
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)
    assert [step for step, _, _ in done.events(events.GRADIENTS_CHANGED)] == [0]


DIVIDED = """
optimizer = torch.optim.SGD(params, lr=0.01)
for i in range(24):
    n = {n}
    optimizer.zero_grad()
    (loss_of(model, i) * n).backward()
    for p in params:
        p.grad.mul_(1 / n)
    seen["norms"].append(norm_of(model))
    if i >= {first} and i % 3 and seen["norms"][-1] > 2.0:
        for p in params:
            p.grad.mul_(2.0 / seen["norms"][-1])
    seen["after"] = [*seen.get("after", []), norm_of(model)]
    optimizer.step()
"""


def test_gradients_that_are_divided_and_clipped_by_hand(tmp_path: Path) -> None:
    done = record(tmp_path, DIVIDED.format(n=4, first=2))
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-5)
    assert max(done.seen["norms"]) > 2.0
    assert not done.events(events.GRADIENTS_CHANGED)
    assert done.events(events.CLIP_BY_HAND)


def test_a_division_that_varies_is_not_told_from_a_clip_by_hand(tmp_path: Path) -> None:
    done = record(tmp_path, DIVIDED.format(n="200 + 7 * i", first=2))
    np.testing.assert_allclose(done.run.global_norm, done.seen["after"], rtol=1e-5)
    assert len(done.events(events.GRADIENTS_CHANGED)) == 1


def test_a_division_that_shows_after_a_clip_by_hand_is_told(tmp_path: Path) -> None:
    done = record(tmp_path, DIVIDED.format(n=4, first=0).replace("i % 3", "i % 4 < 2").replace("2.0", "0.5"))
    ((late, _, divisor),) = done.events(events.DIVIDED_LATE)
    assert divisor == pytest.approx(4.0, rel=1e-4)
    wrong = np.array(done.run.global_norm) / done.seen["norms"]
    np.testing.assert_allclose(wrong[late:], 1.0, rtol=1e-5)


def test_a_clip_by_hand_far_below_the_norms_is_no_division(tmp_path: Path) -> None:
    body = looped("total = norm_of(model)\nfor p in params:\n    p.grad.mul_(0.01 / total)").replace(
        "range(6)", "range(300)"
    )
    done = record(tmp_path, body)
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)
    np.testing.assert_allclose(done.run.max_norm, 0.01, rtol=1e-4)
    assert {name for name in done.run.probes.probe if name != events.CLIP_BY_HAND} == set()


@pytest.mark.parametrize("place", [0, 2])
def test_gradients_that_the_script_takes_away_are_no_part_of_the_step(place: int, tmp_path: Path) -> None:
    body = changed(f"params[{place}].grad = None if i < 30 else params[{place}].grad")
    done = record(tmp_path, body.replace("range(6)", "range(40)"))
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)


@pytest.mark.parametrize("stop", ["raise RuntimeError('norm')", "break", "sys.exit(1)"])
def test_the_clipped_step_that_a_script_stops_at_is_kept(stop: str, tmp_path: Path) -> None:
    change = f"n = nn.utils.clip_grad_norm_(params, 1.0)\nif i == 4:\n    {stop}"
    run = record(tmp_path, looped(change)).run
    assert run.step.tolist() == [0, 1, 2, 3, 4]
    assert not run.skipped.any()


def test_a_scaled_step_that_overflows_and_is_skipped_by_hand_is_seen(tmp_path: Path) -> None:
    body = """
    optimizer = torch.optim.SGD(params, lr=0.05)
    for i in range(20):
        optimizer.zero_grad()
        (loss_of(model, i) * (1024.0 if i != 15 else 1e39)).backward()
        for p in params:
            p.grad.div_(1024)
        if math.isfinite(norm_of(model)):
            optimizer.step()
    """
    run = record(tmp_path, body).run
    assert np.flatnonzero(run.skipped).tolist() == [15]
    assert run.nonfinite[15] > 0


NOT_CLIPS = {
    "a mask": "params[0].grad[::2] = 0",
    "averaged with those of another process": "for p in params:\n    p.grad.copy_((p.grad + p.grad.flip(0)) / 2)",
    "projected": "for p in params:\n    p.grad = p.grad - 0.5 * p.grad.roll(1, 0)",
}


@pytest.mark.parametrize("name", NOT_CLIPS)
def test_what_may_shrink_gradients_without_being_a_clip(name: str, tmp_path: Path) -> None:
    done = record(tmp_path, changed(NOT_CLIPS[name]))
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)
    assert not done.events(events.CLIP_BY_HAND)
    assert np.isnan(done.run.max_norm).all()


def test_hooks_that_may_change_gradients_are_told(tmp_path: Path) -> None:
    hook = "if not params[0]._backward_hooks:\n    for p in params[:2]: p.register_hook(lambda g: g.clamp(-1e-3, 1e-3))"
    done = record(tmp_path, changed(hook))
    assert done.events(events.GRADIENT_HOOKS) == [(0, "", 2.0)]
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)


def test_gradients_changed_through_data_before_a_clip(tmp_path: Path) -> None:
    change = "for p in params:\n    p.grad.data.div_(150)"
    done = record(tmp_path, changed(change, "nn.utils.clip_grad_norm_(params, 3.0)"))
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)


def test_gradients_that_no_backward_pass_made_are_told(tmp_path: Path) -> None:
    body = """
    optimizer = torch.optim.SGD(params, lr=0.05)
    for i in range(6):
        for p, grad in zip(params, torch.autograd.grad(loss_of(model, i), params)):
            p.grad = grad
        seen["norms"].append(norm_of(model))
        optimizer.step()
    """
    done = record(tmp_path, body)
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)
    assert [step for step, _, _ in done.events(events.GRADIENTS_SET)] == [*range(6)]


def test_a_step_on_gradients_that_are_only_zeroed_sets_none(tmp_path: Path) -> None:
    body = """
    optimizer = torch.optim.SGD(params, lr=0.05)
    for i in range(6):
        optimizer.zero_grad(set_to_none=False)
        if i % 2:
            loss_of(model, i).backward()
        optimizer.step()
    """
    assert not record(tmp_path, body).events(events.GRADIENTS_SET)


def test_parameters_that_no_module_owns(tmp_path: Path) -> None:
    body = """
    w, v = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([w, v], lr=0.1)
    for i in range(3):
        optimizer.zero_grad()
        (w.square().sum() + v.sum()).backward()
        optimizer.step()
    """
    names = [parameter.name for parameter in record(tmp_path, body).run.header.parameters]
    assert len(set(names)) == 2
    assert record(tmp_path / "again", body).run.header.parameters[0].name == names[0]


def test_a_closure_optimizer_is_read_at_the_first_evaluation(tmp_path: Path) -> None:
    body = """
    optimizer = torch.optim.LBFGS(params, lr=0.5, max_iter=4)
    for i in range(4):
        first = []
        def closure():
            optimizer.zero_grad()
            loss = loss_of(model, i)
            loss.backward()
            first.append((loss.item(), norm_of(model)))
            return loss
        optimizer.step(closure) if i % 2 else optimizer.step(closure=closure)
        assert len(first) > 1
        seen["losses"].append(first[0][0])
        seen["norms"].append(first[0][1])
    """
    run = record(tmp_path, body).run
    done = record(tmp_path, body)
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)
    np.testing.assert_allclose(done.run.loss, done.seen["losses"], rtol=1e-6)
    assert run.micro_steps.tolist() == [1] * 4


def test_sparse_gradients(tmp_path: Path) -> None:
    body = """
    model = nn.Embedding(10, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(model.parameters())
    for i in range(3):
        optimizer.zero_grad()
        model(torch.tensor([1, 2, 2])).square().sum().backward()
        seen["norms"].append(model.weight.grad.to_dense().double().norm().item())
        optimizer.step()
    """
    done = record(tmp_path, body)
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)


@pytest.mark.parametrize("option", ["foreach=True", "fused=True", "foreach=False"])
def test_kinds_of_optimizers_with_a_scaler(option: str, tmp_path: Path) -> None:
    body = f"""
    optimizer = torch.optim.AdamW(params, lr=0.01, {option})
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    for i in range(5):
        optimizer.zero_grad()
        loss = loss_of(model, i)
        scaler.scale(loss).backward()
        seen["losses"].append(loss.item())
        seen["norms"].append(norm_of(model) / scaler.get_scale())
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        seen.setdefault("skipped", []).append(scaler.get_scale() < before)
    """
    done = record(tmp_path, body)
    assert any(done.seen["skipped"])
    assert done.run.skipped.tolist() == done.seen["skipped"]
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)
    np.testing.assert_allclose(done.run.loss, done.seen["losses"], rtol=1e-6)


def test_every_other_step_and_a_bounded_file(tmp_path: Path) -> None:
    every = record(tmp_path / "every", looped(CLIPS["clip_grad_norm_"]), every=2)
    assert every.run.step.tolist() == [0, 2, 4]
    np.testing.assert_allclose(every.run.global_norm, every.seen["norms"][::2], rtol=1e-6)
    bounded = record(tmp_path / "bounded", looped("pass"), max_rows=4)
    assert len(bounded.run.step) <= 4
    np.testing.assert_allclose(bounded.run.global_norm, np.asarray(bounded.seen["norms"])[bounded.run.step], rtol=1e-6)


def test_a_batch_thrown_away_is_no_step(tmp_path: Path) -> None:
    body = """
    optimizer = torch.optim.SGD(params, lr=0.05)
    for i in range(5):
        optimizer.zero_grad()
        loss = loss_of(model, i)
        loss.backward()
        if i == 2:
            continue
        seen["losses"].append(loss.item())
        optimizer.step()
    """
    done = record(tmp_path, body)
    np.testing.assert_allclose(done.run.loss, done.seen["losses"], rtol=1e-6)


def test_gradients_of_inputs_alone_are_no_micro_step(tmp_path: Path) -> None:
    body = """
    optimizer = torch.optim.SGD(params, lr=0.05)
    for i in range(3):
        x = torch.ones(2, 6, requires_grad=True)
        model(x).sum().backward(inputs=[x])
        torch.autograd.grad(model(x).sum(), params)
        optimizer.zero_grad()
        loss_of(model, i).backward()
        optimizer.step()
    """
    run = record(tmp_path, body).run
    assert run.micro_steps.tolist() == [1, 1, 1]
    assert np.isfinite(run.loss).all()


def test_the_layers_are_in_the_order_of_the_forward_pass(tmp_path: Path) -> None:
    body = """
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.middle, self.first = nn.Linear(4, 1), nn.GRU(4, 4), nn.Linear(6, 4)
        def forward(self, x):
            return self.last(self.middle(self.first(x))[0])
    model = Backwards()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model(torch.randn(3, 6)).sum().backward()
    optimizer.step()
    """
    assert [layer.name for layer in record(tmp_path, body).run.layers] == ["first", "middle", "last"]


@pytest.mark.parametrize("compiled", ["model", "step", "clip"])
@pytest.mark.filterwarnings("ignore")
def test_what_torch_compiles(compiled: str, tmp_path: Path) -> None:
    body = f"""
    run = torch.compile(model, backend="eager") if {compiled == "model"} else model
    optimizer = torch.optim.SGD(run.parameters(), lr=0.05)
    clip = lambda: nn.utils.clip_grad_norm_(params, 3.0)
    clip = torch.compile(clip, backend="eager") if {compiled == "clip"} else clip
    step = torch.compile(lambda: optimizer.step(), backend="eager") if {compiled == "step"} else optimizer.step
    for i in range(5):
        optimizer.zero_grad()
        loss = loss_of(run, i)
        loss.backward()
        seen["losses"].append(loss.item())
        seen["norms"].append(norm_of(model))
        if {compiled != "step"}:
            clip()
        step()
    """
    done = record(tmp_path, body)
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)
    np.testing.assert_allclose(done.run.loss, done.seen["losses"], rtol=1e-6)
    assert done.run.header.parameters[0].name == "0.weight"
