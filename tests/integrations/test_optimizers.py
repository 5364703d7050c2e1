"""Optimizers in every number: none, one over a part, several over one model, adversaries, one inside another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradscope.diagnosis.diagnose import diagnose
from tests.integrations.scripts import Done, record


def test_adversaries_are_two_runs(tmp_path: Path) -> None:
    body = """
    judge = nn.Linear(1, 1)
    one, two = torch.optim.Adam(judge.parameters()), torch.optim.Adam(params)
    seen["judge"] = []
    for i in range(4):
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(i))
        made = model(inputs)
        one.zero_grad()
        (judge(made.detach()).mean() - judge(inputs.sum(1, keepdim=True)).mean()).backward()
        seen["judge"].append(norm_of(judge))
        one.step()
        two.zero_grad()
        loss = -judge(made).mean()
        loss.backward()
        seen["norms"].append(norm_of(model))
        seen["losses"].append(loss.item())
        two.step()
    """
    done = record(tmp_path, body)
    judge, maker = sorted(done.runs, key=lambda run: len(run.header.parameters))
    np.testing.assert_allclose(judge.global_norm, done.seen["judge"], rtol=1e-6)
    np.testing.assert_allclose(maker.global_norm, done.seen["norms"], rtol=1e-6)
    np.testing.assert_allclose(maker.loss, done.seen["losses"], rtol=1e-6)


def test_halves_of_one_model_keep_to_themselves(tmp_path: Path) -> None:
    body = """
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.maker, self.judge = make(), nn.Sequential(nn.Linear(1, 1))
    both = Both()
    one, two = torch.optim.Adam(both.judge.parameters()), torch.optim.Adam(both.maker.parameters())
    for i in range(3):
        inputs = torch.randn(8, 6)
        one.zero_grad()
        both.judge(both.maker(inputs).detach()).mean().backward()
        one.step()
        two.zero_grad()
        both.judge(both.maker(inputs)).mean().backward()
        two.step()
    """
    names = [[parameter.name for parameter in run.header.parameters] for run in record(tmp_path, body).runs]
    assert sorted(names) == [
        ["judge.0.weight", "judge.0.bias"],
        ["maker.0.weight", "maker.0.bias", "maker.2.weight", "maker.2.bias"],
    ]


def test_two_optimizers_after_one_backward_are_one_run(tmp_path: Path) -> None:
    body = """
    one, two = torch.optim.SGD(params[:2], lr=0.1), torch.optim.Adam(params[2:], lr=0.01)
    for i in range(4):
        one.zero_grad(); two.zero_grad()
        loss_of(model, i).backward()
        seen["norms"].append(norm_of(model))
        one.step(); two.step()
    """
    done = record(tmp_path, body)
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)
    np.testing.assert_allclose(done.run.lr, [[0.1, 0.01]] * 4)


def test_encoder_and_decoder_are_one_run_with_the_largest_first(tmp_path: Path) -> None:
    body = """
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(1, 1)
        def forward(self, x):
            return self.out(x)
    head = Small()
    one, two = torch.optim.SGD(head.parameters(), lr=0.1), torch.optim.SGD(params, lr=0.1)
    for i in range(3):
        one.zero_grad(); two.zero_grad()
        head(model(torch.randn(8, 6))).mean().backward()
        one.step(); two.step()
    """
    run = record(tmp_path, body).run
    assert [p.name for p in run.header.parameters][:1] + [p.name for p in run.header.parameters][-1:] == [
        "0.weight",
        "Small.out.bias",
    ]
    assert run.header.parameters[-1].order == 2


def test_models_trained_in_turn_are_runs_in_turn(tmp_path: Path) -> None:
    body = """
    import gc, weakref
    for j in range(3):
        model = make()
        gone = weakref.ref(model[0].weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for i in range(2 + j):
            optimizer.zero_grad(); loss_of(model, i).backward(); optimizer.step()
        if j < 2:
            del model, optimizer
        params = []
    gc.collect()
    """
    done = record(tmp_path, body)
    assert [len(run.step) for run in done.runs] == [4, 3, 2]
    assert all(run.header.ending.how == "finished" for run in done.runs)


def test_memory_of_a_deleted_model_is_given_back(tmp_path: Path) -> None:
    body = """
    import gc, weakref
    def once():
        net = make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for i in range(2):
            optimizer.zero_grad(); loss_of(net, i).backward(); optimizer.step()
        return weakref.ref(net[0].weight)
    gone = once()
    optimizer = torch.optim.SGD(params, lr=0.1)
    loss_of(model, 0).backward()
    gc.collect()
    seen["gone"] = gone() is None
    """
    assert record(tmp_path, body).seen["gone"]


def test_a_deleted_optimizer_over_the_same_model_goes_on(tmp_path: Path) -> None:
    body = """
    for lr in (0.1, 0.01):
        optimizer = torch.optim.SGD(params, lr=lr)
        for i in range(3):
            optimizer.zero_grad(); loss_of(model, i).backward(); optimizer.step()
    """
    run = record(tmp_path, body).run
    assert len(run.step) == 6
    np.testing.assert_allclose(run.lr[-1], 0.01)


def test_an_optimizer_that_calls_another(tmp_path: Path) -> None:
    body = """
    class Twice(torch.optim.Optimizer):
        def __init__(self, inner):
            super().__init__(inner.param_groups[0]["params"], {"lr": 0.1})
            self.inner = inner
        def step(self, closure=None):
            self.inner.step()
    optimizer = Twice(torch.optim.SGD(params, lr=0.1))
    for i in range(3):
        optimizer.zero_grad(); loss_of(model, i).backward(); optimizer.step()
    """
    assert len(record(tmp_path, body).run.step) == 3


def test_part_of_a_model_frozen_tied_and_unused(tmp_path: Path) -> None:
    body = """
    model[0].weight.requires_grad_(False)
    model.append(nn.Linear(1, 1))
    model.unused = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for i in range(3):
        optimizer.zero_grad()
        model[3](model[2](model[1](model[0](torch.ones(1, 6))))).sum().backward()
        seen["norms"].append(norm_of(model)); optimizer.step()
    """
    done = record(tmp_path, body)
    named = {
        p.name: (p.trainable, bool(np.isnan(done.run.grad_norm[:, i]).all()))
        for i, p in enumerate(done.run.header.parameters)
    }
    assert named["0.weight"] == (False, True)
    assert named["unused.weight"] == (True, True)
    assert named["2.weight"] == (True, False)
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)


def test_a_script_without_an_optimizer(tmp_path: Path) -> None:
    body = """
    for i in range(5):
        model.zero_grad()
        loss_of(model, i).backward()
        seen["norms"].append(nn.utils.clip_grad_norm_(params, 1.0).item())
        with torch.no_grad():
            for p in params:
                p -= 0.05 * p.grad
    """
    done = record(tmp_path, body)
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-5)
    assert done.run.header.optimizer is None
    assert not done.run.skipped.any()


MAKER_FIRST = """
judge = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 1))
one, two = torch.optim.Adam(params), torch.optim.Adam(judge.parameters())
seen["judge"], seen["judged"] = [], []
for i in range(4):
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(i))
    one.zero_grad()
    loss = (judge(model(inputs)) - 1).square().mean()
    loss.backward()
    seen["norms"].append(norm_of(model))
    seen["losses"].append(loss.item())
    {clip}
    one.step()
    {after}
    two.zero_grad()
    loss = judge(inputs.sum(1, keepdim=True)).square().mean() + (judge(model(inputs).detach()) - 1).square().mean()
    loss.backward()
    seen["judge"].append(norm_of(judge))
    seen["judged"].append(loss.item())
    two.step()
"""


@pytest.mark.parametrize("after", ["pass", "one.zero_grad()"])
@pytest.mark.parametrize("clip", ["pass", "nn.utils.clip_grad_norm_(params, 0.01)"])
def test_adversaries_that_begin_with_the_one_whose_gradients_reach_both(clip: str, after: str, tmp_path: Path) -> None:
    done = record(tmp_path, MAKER_FIRST.format(clip=clip, after=after))
    maker, judge = sorted(done.runs, key=lambda run: len(run.header.parameters))
    np.testing.assert_allclose(maker.global_norm, done.seen["norms"], rtol=1e-6)
    np.testing.assert_allclose(maker.loss, done.seen["losses"], rtol=1e-6)
    np.testing.assert_allclose(judge.global_norm, done.seen["judge"], rtol=1e-6)
    np.testing.assert_allclose(judge.loss, done.seen["judged"], rtol=1e-6)
    names = sorted(path.name.split("-", 1)[1][:-5] for path in (tmp_path / ".gradscope" / "runs").iterdir())
    assert names == ["train-judge", "train-model"]


STEPS = """
for i in range(4):
    optimizer.zero_grad()
    loss = loss_of(model, i)
    loss.backward()
    seen["losses"].append(loss.item())
    seen["norms"].append(norm_of({part}))
    {clip}
    optimizer.step()
"""


def same_norms(done: Done) -> None:
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)
    np.testing.assert_allclose(done.run.loss, done.seen["losses"] or [np.nan] * len(done.seen["norms"]), rtol=1e-6)


@pytest.mark.parametrize("clip", ["pass", "nn.utils.clip_grad_norm_(model[2].parameters(), 1.0)"])
def test_gradients_that_no_optimizer_uses_are_left_out(clip: str, tmp_path: Path) -> None:
    head = "optimizer = torch.optim.SGD(model[2].parameters(), lr=0.05)"
    done = record(tmp_path, head + STEPS.format(part="model[2]", clip=clip))
    same_norms(done)
    trained = {parameter.name: parameter.trainable for parameter in done.run.header.parameters}
    assert trained == {"0.weight": False, "0.bias": False, "2.weight": True, "2.bias": True}


def test_gradients_that_are_clipped_with_the_rest_are_part_of_them(tmp_path: Path) -> None:
    head = "optimizer = torch.optim.SGD(model[2].parameters(), lr=0.05)"
    clip = "nn.utils.clip_grad_norm_(model.parameters(), 1.0); model.zero_grad()"
    same_norms(record(tmp_path, head + STEPS.format(part="model", clip=clip)))


def test_a_part_that_is_unfrozen_later_counts_from_then_on(tmp_path: Path) -> None:
    body = """
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.05)
    for i in range(6):
        if i == 3:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.01})
        optimizer.zero_grad(); loss_of(model, i).backward()
        seen["norms"].append(norm_of(model))
        optimizer.step()
    """
    done = record(tmp_path, body)
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)


def test_a_subclass_that_calls_the_step_it_overrides(tmp_path: Path) -> None:
    body = """
    torch.optim.SGD(params, lr=0.1).step()
    class Mine(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)
    optimizer = Mine(params, lr=0.05)
    """
    same_norms(record(tmp_path, body + STEPS.format(part="model", clip="pass").replace("\n", "\n    ")))


def test_two_backward_passes_a_step_of_which_the_second_counts(tmp_path: Path) -> None:
    """Sharpness-aware minimization: a step up along the gradient, then one down along that found there."""
    body = """
    class Sharp(torch.optim.Optimizer):
        def __init__(self, params, base):
            super().__init__(params, {})
            self.base = base(self.param_groups, lr=0.05)
        @torch.no_grad()
        def up(self):
            for p in params:
                self.state[p]["old"] = p.clone()
                p.add_(p.grad, alpha=0.01)
            self.zero_grad()
        @torch.no_grad()
        def step(self):
            for p in params:
                p.copy_(self.state[p]["old"])
            self.base.step()
            self.zero_grad()
    optimizer = Sharp(params, torch.optim.SGD)
    for i in range(4):
        loss_of(model, i).backward(); optimizer.up()
        loss = loss_of(model, i); loss.backward()
        seen["norms"].append(norm_of(model)); seen["losses"].append(loss.item())
        optimizer.step()
    """
    same_norms(record(tmp_path, body))


@pytest.mark.parametrize("clip", ["pass", "nn.utils.clip_grad_norm_(params, 1.0)"])
def test_gradients_that_the_script_puts_together_itself(clip: str, tmp_path: Path) -> None:
    body = f"""
    optimizer = torch.optim.SGD(params, lr=0.05)
    for i in range(4):
        tasks = []
        for k in range(2):
            optimizer.zero_grad(); loss_of(model, i + 10 * k).backward()
            tasks.append([p.grad.clone() for p in params])
        for p, a, b in zip(params, *tasks):
            p.grad = a + b
        seen["norms"].append(norm_of(model))
        {clip}
        optimizer.step()
    """
    done = record(tmp_path, body)
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)


@pytest.mark.parametrize("grads", ["torch.autograd.grad(loss_of(model, i), params)"])
def test_gradients_that_no_backward_made(grads: str, tmp_path: Path) -> None:
    body = f"""
    optimizer = torch.optim.SGD(params, lr=0.05)
    for i in range(4):
        for p, grad in zip(params, {grads}):
            p.grad = grad
        seen["norms"].append(norm_of(model))
        optimizer.step()
    """
    done = record(tmp_path, body)
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)
    assert np.isnan(done.run.loss).all()


LOSSES = {
    "no scalar": ("y = model(torch.ones(2, 6)); y.backward(torch.ones_like(y))", None),
    "two at once": ("both = [loss_of(model, i), loss_of(model, i + 9)]; torch.autograd.backward(both)", "sum(both)"),
    "one after the other": (
        "both = [loss_of(model, i), loss_of(model, i + 9)]; [one.backward() for one in both]",
        "sum(both) / 2",
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_the_loss_is(name: str, tmp_path: Path) -> None:
    backward, loss = LOSSES[name]
    body = f"""
    optimizer = torch.optim.SGD(params, lr=0.05)
    for i in range(4):
        optimizer.zero_grad()
        {backward}
        seen["norms"].append(norm_of(model))
        {f'seen["losses"].append(({loss}).item())' if loss else ""}
        optimizer.step()
    """
    done = record(tmp_path, body)
    same_norms(done)
    assert done.run.header.first_nonfinite is None
    assert done.run.micro_steps.tolist() == [2 if name == "one after the other" else 1] * 4


PHASE = """
for i in range({steps}):
    optimizer.zero_grad()
    loss = {loss}
    loss.backward()
    seen["norms"].append(norm_of(model))
    optimizer.step()
"""
HEAD_REPLACED = "model[2] = nn.Linear(12, 3); optimizer = torch.optim.SGD(model.parameters(), lr=0.02)"


@pytest.mark.parametrize("keep", ["", "old = optimizer"])
def test_a_head_that_is_replaced_goes_on_under_its_name(keep: str, tmp_path: Path) -> None:
    body = (
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.05)\n"
        + PHASE.format(steps=12, loss="loss_of(model, i)")
        + f"{keep}\n{HEAD_REPLACED}\n"
        + PHASE.format(steps=15, loss="nn.functional.cross_entropy(model(torch.randn(9, 6)), torch.arange(9) % 3)")
    )
    done = record(tmp_path, body)
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)
    shapes = {parameter.name: parameter.shape for parameter in done.run.header.parameters}
    assert shapes == {"0.weight": (12, 6), "0.bias": (12,), "2.weight": (3, 12), "2.bias": (3,)}
    (note,) = done.run.header.notes
    assert note == "from step 12, 2.weight and 1 more were replaced by the script and go on under these names."


def test_parameters_that_grow_under_the_same_optimizer(tmp_path: Path) -> None:
    body = """
    points = [nn.Parameter(torch.rand(4, n)) for n in (2, 3)]
    optimizer = torch.optim.Adam([{"params": [p]} for p in points], lr=0.01)
    for i in range(20):
        (points[0].sum(1) * points[1].square().sum(1)).sum().backward()
        seen["norms"].append(math.sqrt(sum(p.grad.double().square().sum().item() for p in points)))
        optimizer.step(); optimizer.zero_grad()
        if i % 5 == 4:
            points = [nn.Parameter(torch.cat([p.data, p.data[:1]])) for p in points]
            for group, p in zip(optimizer.param_groups, points):
                optimizer.state.pop(group["params"][0]); group["params"][0] = p
    """
    done = record(tmp_path, body)
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)
    assert len(done.run.header.notes) == 1
    assert done.run.header.parameters[0].shape == (7, 2)


def test_parameters_that_are_added_begin_another_run(tmp_path: Path) -> None:
    body = (
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.01)\n"
        + PHASE.format(steps=12, loss="loss_of(model, i)")
        + "model.insert(2, nn.Linear(12, 12)); optimizer.add_param_group({'params': model[2].parameters()})\n"
        + PHASE.format(steps=15, loss="loss_of(model, i)")
    )
    before, after = sorted(record(tmp_path, body).runs, key=lambda run: len(run.header.parameters))
    seen = record(tmp_path / "again", body).seen["norms"]
    np.testing.assert_allclose(before.global_norm, seen[:12], rtol=1e-6)
    np.testing.assert_allclose(after.global_norm, seen[12:], rtol=1e-6)
    assert before.header.ending.message == "parameters were added: what follows is another run"
    assert [layer.name for layer in after.layers] == ["0", "2", "3"]


def test_parameters_that_are_added_before_the_first_step(tmp_path: Path) -> None:
    body = (
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.01)\nloss_of(model, 0).backward()\n"
        + "model.insert(2, nn.Linear(12, 12)); optimizer.add_param_group({'params': model[2].parameters()})\n"
        + PHASE.format(steps=3, loss="loss_of(model, i)")
    )
    done = record(tmp_path, body)
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)
    assert len(done.run.header.parameters) == 6


def test_a_layer_in_the_middle_that_is_replaced_in_its_group(tmp_path: Path) -> None:
    body = (
        "model = nn.Sequential(*(nn.Linear(6, width) for width in (6, 6, 1)))\n"
        "optimizer = torch.optim.SGD([{'params': layer.parameters()} for layer in model], lr=0.01)\n"
        "for i in range(40):\n    optimizer.zero_grad()\n"
        "    if i == 22:\n"
        "        model[1] = nn.Linear(6, 6); optimizer.param_groups[1]['params'] = list(model[1].parameters())\n"
        "    loss_of(model, i).backward(); seen['norms'].append(norm_of(model)); optimizer.step()\n"
    )
    done = record(tmp_path, body)
    np.testing.assert_allclose(done.run.global_norm, done.seen["norms"], rtol=1e-6)


def test_what_another_optimizer_trains_from_later_on_is_in_one(tmp_path: Path) -> None:
    body = """
    first, last = model[0], model[2]
    first.requires_grad_(False)
    opt = torch.optim.SGD(last.parameters(), lr=0.05)
    for i in range(8):
        if i == 4:
            first.requires_grad_(True)
            opt = torch.optim.SGD(model.parameters(), lr=0.02)
        opt.zero_grad()
        loss = loss_of(model, i)
        loss.backward()
        seen["norms"].append(norm_of(model))
        opt.step()
    """
    done = record(tmp_path, body)
    (run,) = done.runs
    np.testing.assert_allclose(run.global_norm, done.seen["norms"], rtol=1e-6)
    assert run.header.optimizer is not None
    held = {place for group in run.header.optimizer.groups for place in group.parameters}
    assert held == set(range(len(run.header.parameters)))
    assert "GS306" not in {finding.code for finding in diagnose(run).findings}
