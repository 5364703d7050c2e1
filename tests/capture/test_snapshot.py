"""A training that was rehearsed goes on bit for bit like one that never was."""

from __future__ import annotations

import collections
import functools
import itertools
import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradscope.capture.loop import step_once
from gradscope.capture.recorder import Recorder
from gradscope.capture.saving import Saving, same_bits
from gradscope.capture.snapshot import CannotSnapshotError, take
from gradscope.workload.model import Workload
from tests.capture.small_workloads import Dropped, Fixed, mse, regression, workload

Make = Callable[[], Workload]


def losses(work: Workload, steps: range, tmp_path: Any) -> list[float]:
    with Recorder(work.model, work.optimizers, directory=tmp_path / f"run{len(list(tmp_path.iterdir()))}") as recorder:
        return [step_once(work, i, recorder) for i in steps]


def fresh(make: Make) -> Workload:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    return make()


def warm(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / 20))


def adam_and_batch_norm() -> Workload:
    return workload(schedulers=warm)


def recurrent() -> Workload:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 8, 2, batch_first=True, dropout=0.2), nn.Linear(8, 1)
            self.carried: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out, hidden = self.rnn(x[:, None].expand(-1, 5, -1), self.carried)
            self.carried = hidden.detach()
            return self.head(out[:, -1])

    return workload(Net(), lambda m: torch.optim.SGD(m.parameters(), 0.05, momentum=0.9))


def lbfgs() -> Workload:
    return workload(nn.Linear(4, 1), lambda m: torch.optim.LBFGS(m.parameters(), lr=0.5, max_iter=3, history_size=4))


def half() -> Workload:
    return workload(nn.Linear(4, 1), scaler=torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3))


def parametrized() -> Workload:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8))
    return workload(nn.Sequential(layer, nn.Tanh(), nn.Linear(8, 1)))


class _Stateful:
    """A training step with state of every kind that people keep outside the model."""

    def __init__(self) -> None:
        self.average = torch.zeros(())
        self.recent: collections.deque[float] = collections.deque(maxlen=3)
        self.generator, self.rng, self.py = torch.Generator(), np.random.default_rng(0), random.Random(0)
        self.old, self.array = np.random.RandomState(1), np.zeros(2)
        self.seen: set[int] = set()
        self.notes = SimpleNamespace(count=0)

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        noise = torch.rand((), generator=self.generator) + self.rng.random() + self.py.random() + self.old.rand()
        self.notes.count += 1
        self.array += 1
        self.seen.add(self.notes.count)
        loss = mse(model, batch) * (1 + noise + self.average + len(self.seen) + self.array[0] + len(self.recent))
        self.average = 0.5 * self.average + 0.5 * loss.detach()
        self.recent.append(loss.item())
        return loss


def stateful_object() -> Workload:
    return workload(training_step=_Stateful())


def stateful_closure() -> Workload:
    count, history = 0, [0.0]

    def training_step(model: nn.Module, batch: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        history.append(random.random() + float(np.random.rand()))
        return mse(model, batch) * (count + history[-1] + len(history))

    return workload(training_step=training_step)


_hidden = torch.zeros(())


def _uses_a_global(model: nn.Module, batch: Any) -> torch.Tensor:
    global _hidden
    loss = mse(model, batch) + _hidden
    _hidden = loss.detach() * 0.5
    return loss


def stateful_global() -> Workload:
    global _hidden
    _hidden = torch.zeros(())
    return workload(training_step=functools.partial(_uses_a_global))


MAKERS = [adam_and_batch_norm, recurrent, lbfgs, half, parametrized, stateful_object, stateful_closure, stateful_global]


@pytest.mark.parametrize("make", MAKERS)
def test_a_rehearsed_training_goes_on_as_if_never_rehearsed(make: Make, tmp_path: Any) -> None:
    plain = fresh(make)
    before = [losses(plain, range(5), tmp_path), losses(plain, range(5, 12), tmp_path)]
    tried = fresh(make)
    first = losses(tried, range(5), tmp_path)
    snapshot = take(tried)
    for start in (50, 70):
        losses(tried, range(start, start + 6), tmp_path)
        snapshot.restore()
    assert [first, losses(tried, range(5, 12), tmp_path)] == before


@pytest.mark.parametrize("make", MAKERS)
def test_the_test_above_can_fail(make: Make, tmp_path: Any) -> None:
    before = losses(fresh(make), range(12), tmp_path)[5:]
    tried = fresh(make)
    losses(tried, range(5), tmp_path)
    losses(tried, range(50, 56), tmp_path)
    assert losses(tried, range(5, 12), tmp_path) != before


def test_everything_keeps_its_identity() -> None:
    work = workload(schedulers=warm)
    mse(work.model, work.batches.at(0)).backward()
    work.optimizers[0].step()
    snapshot = take(work)
    parameters = [*work.model.parameters(), *work.model.buffers()]
    gradients = [p.grad for p in work.model.parameters()]
    state = [id(value) for held in work.optimizers[0].state.values() for value in held.values()]
    snapshot.restore()
    assert all(a is b for a, b in zip([*work.model.parameters(), *work.model.buffers()], parameters, strict=True))
    assert all(a is b for a, b in zip([p.grad for p in work.model.parameters()], gradients, strict=True))
    assert [id(value) for held in work.optimizers[0].state.values() for value in held.values()] == state


def test_flags_attributes_and_replaced_tensors_come_back() -> None:
    work = workload()
    model = work.model
    assert isinstance(model, Dropped)
    original, values = model.fc1.weight, model.fc1.weight.detach().clone()
    snapshot = take(work)
    model.eval()
    model.norm.running_mean = torch.ones(8)
    model.fc1.weight.data = torch.zeros(8, 4)
    model.fc2.weight = nn.Parameter(torch.zeros(1, 8))
    model.fc1.bias.requires_grad_(False)
    model.added, model.calls = "new", 99  # type: ignore[assignment]
    del work.optimizers[0].param_groups[0]["eps"]
    snapshot.restore()
    assert model.training
    assert model.fc1.weight is original
    assert torch.equal(original, values)
    assert torch.equal(model.norm.running_mean, torch.zeros(8))
    assert model.fc2.weight.abs().sum() > 0
    assert model.fc1.bias.requires_grad
    assert not hasattr(model, "added")
    assert model.calls == 0
    assert work.optimizers[0].param_groups[0]["eps"] == 1e-8


def test_hooks_are_left_as_they_are() -> None:
    work = workload()
    old = work.model.register_forward_hook(lambda *_: None)
    snapshot = take(work)
    old.remove()
    new = work.model.register_forward_hook(lambda *_: None)
    snapshot.restore()
    assert list(work.model._forward_hooks) == [new.id]


def test_a_scaler_made_after_the_snapshot_is_forgotten() -> None:
    work = workload()
    snapshot = take(work)
    work.scaler = torch.amp.GradScaler("cpu")
    snapshot.restore()
    assert work.scaler is None


def test_slots_come_back() -> None:
    class Counter:
        __slots__ = ("__hidden", "count", "unset")

        def __init__(self) -> None:
            self.count, self.__hidden = 1, [1]

        def bump(self) -> list[int]:
            self.count += 1
            self.__hidden.append(2)
            return self.__hidden

    work = workload()
    work.model.counter = Counter()  # type: ignore[assignment]
    snapshot = take(work)
    hidden = work.model.counter.bump()  # type: ignore[operator,union-attr]
    snapshot.restore()
    assert (work.model.counter.count, hidden) == (1, [1])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("held", "part"),
    [
        ((i for i in range(3)), "model.stream is a generator"),
        (itertools.count(), "model.stream is a count"),
        ([iter([1])], "model.stream[0] is a list_iterator"),
        ({"a": nn.UninitializedParameter()}, "model.stream.a cannot be copied"),
    ],
)
def test_what_cannot_be_wound_back_is_named(held: Any, part: str) -> None:
    work = workload()
    work.model.stream = held
    with pytest.raises(CannotSnapshotError) as caught:
        take(work)
    assert str(caught.value).startswith(part)
    assert part.startswith(caught.value.part)


def test_another_dtype_is_undone() -> None:
    work = workload()
    snapshot = take(work)
    work.model.double()
    snapshot.restore()
    assert {parameter.dtype for parameter in work.model.parameters()} == {torch.float32}


def test_what_cannot_be_put_back_is_named() -> None:
    class Sealed(dict[str, int]):
        def clear(self) -> None:
            raise RuntimeError("sealed")

    work = workload()
    work.model.cache = Sealed(a=1)  # type: ignore[assignment]
    with pytest.raises(CannotSnapshotError, match=r"model\.cache cannot be put back: sealed"):
        take(work).restore()


def test_overlapping_memory_is_noticed() -> None:
    class Sealed(torch.Tensor):
        def copy_(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return self

    saving = Saving()
    sealed = torch.zeros(3).as_subclass(Sealed)
    saving.visit(sealed, "sealed")
    sealed += 1
    with pytest.raises(CannotSnapshotError, match="sealed could not be put back as it was"):
        saving.restore()


def test_data_and_loggers_are_left_alone() -> None:
    work = workload()
    data = torch.utils.data.TensorDataset(torch.zeros(10**6))
    lines: Iterator[Any] = torch.utils.data.DataLoader(data).__iter__()
    del lines
    small = take(work).nbytes
    work.model.data = data  # type: ignore[assignment]
    assert take(work).nbytes == small


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.complex128])
def test_bits_are_compared_not_values(dtype: torch.dtype) -> None:
    nan = torch.tensor([float("nan"), 0.0], dtype=dtype)
    assert same_bits(nan, nan.clone())
    assert not same_bits(nan, torch.tensor([float("nan"), -0.0], dtype=dtype))
    assert not same_bits(nan, nan[:1])


def test_sparse_gradients_come_back() -> None:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return model(torch.tensor([1, 2])).square().sum()

    table = nn.Embedding(5, 3, sparse=True)
    work = workload(table, lambda m: torch.optim.SparseAdam(m.parameters()), training_step=step)
    step(table, None).backward()
    gradient = table.weight.grad
    assert gradient is not None
    values = gradient.to_dense().clone()
    snapshot = take(work)
    table.weight.grad = None
    snapshot.restore()
    assert table.weight.grad is gradient
    assert torch.equal(gradient.to_dense(), values)


def test_the_batches_are_no_part_of_it() -> None:
    batches = Fixed(regression)
    work = workload(batches=batches)
    snapshot = take(work)
    batches.at(3)
    snapshot.restore()
    assert batches.asked == [3]


class _Owner:
    """A training step that is a method, and so brings its object along."""

    def __init__(self) -> None:
        self.count = 0

    def step(self, model: nn.Module, batch: Any) -> torch.Tensor:
        self.count += 1
        return mse(model, batch) * self.count


def test_the_object_of_a_method_comes_back() -> None:
    owner = _Owner()
    work = workload(training_step=owner.step)
    snapshot = take(work)
    work.training_step(work.model, work.batches.at(0))
    snapshot.restore()
    assert owner.count == 0


def test_a_closure_that_is_not_filled_yet_is_no_obstacle() -> None:
    def training_step(model: nn.Module, batch: Any) -> torch.Tensor:
        return mse(model, batch) * later

    take(workload(training_step=training_step)).restore()
    later = 2.0
    assert training_step(nn.Linear(4, 1), workload().batches.at(0)) >= 0


def test_functions_of_torch_are_not_searched_for_state() -> None:
    loss_fn = torch.nn.functional.cross_entropy

    def training_step(model: nn.Module, batch: Any) -> torch.Tensor:
        return loss_fn(model(batch[0]), batch[1])

    take(workload(training_step=training_step)).restore()


def test_a_device_without_room_gets_its_copy_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError

    work = workload(nn.Linear(4, 1))
    before = work.model.weight.tolist()  # type: ignore[union-attr,operator]
    monkeypatch.setattr(torch.Tensor, "clone", full)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: torch.tensor(self.tolist()))
    snapshot = take(work)
    monkeypatch.undo()
    nn.init.zeros_(work.model.weight)  # type: ignore[arg-type]
    snapshot.restore()
    assert work.model.weight.tolist() == before  # type: ignore[union-attr,operator]


def test_a_name_for_a_single_slot_comes_back() -> None:
    class One:
        __slots__ = "value"

    work = workload()
    held = work.model.held = One()  # type: ignore[assignment]
    held.value = [1]  # type: ignore[attr-defined]
    snapshot = take(work)
    held.value = [2]  # type: ignore[attr-defined]
    snapshot.restore()
    assert held.value == [1]  # type: ignore[attr-defined]
