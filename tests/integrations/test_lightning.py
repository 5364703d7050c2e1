"""The Lightning callback passes the conformance suite under the real trainer, and leaves nothing behind."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from gradscope.report.build import build_report
from gradscope.report.paste import paste_line
from gradscope.runs.reader import load_run
from tests.integrations import conformance
from tests.integrations.conformance import Case, Outcome

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.plugins import MixedPrecision
    from lightning.pytorch.tuner import Tuner

    from gradscope.integrations.lightning import GradscopeCallback

pytestmark = pytest.mark.filterwarnings("ignore")


class Batches(IterableDataset):
    def __init__(self, case: Case) -> None:
        self.case = case

    def __iter__(self) -> Iterator[Any]:
        yield from conformance.make_data(self.case)


class Module(lightning.LightningModule):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.net, self.case, self.losses = conformance.make_model(), case, []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        conformance.check_raises(self.case, index)
        loss = conformance.loss_of(self.net, batch, self.case) * self.case.accumulate
        self.losses.append((loss / self.case.accumulate).item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=conformance.RATE, momentum=0.5)


class Float32(MixedPrecision):
    """Scales the loss, without half precision."""

    def autocast_context_manager(self) -> Any:
        return torch.autocast("cpu", enabled=False)


def trainer_for(case: Case, folder: Path, callbacks: list[Any]) -> Any:
    plugins = []
    if case.init_scale is not None:
        plugins = [Float32("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=case.init_scale))]
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        accumulate_grad_batches=case.accumulate,
        gradient_clip_val=case.max_norm,
        callbacks=callbacks,
        plugins=plugins,
    )


def train(case: Case, folder: Path, recorded: bool) -> Outcome:
    callback = GradscopeCallback(root=folder)
    module = Module(case)
    with suppress(conformance.StopError, KeyboardInterrupt, SystemExit):
        trainer_for(case, folder, [callback] if recorded else []).fit(
            module, DataLoader(Batches(case), batch_size=None)
        )
    return Outcome(module.losses, module.net.state_dict(), [load_run(run) for run in callback.runs])


@pytest.mark.parametrize("case", conformance.CASES, ids=lambda case: case.name)
def test_conformance(case: Case, tmp_path: Path) -> None:
    conformance.check(train, case, tmp_path)


def test_two_models_one_after_the_other(tmp_path: Path) -> None:
    conformance.check_two(train, tmp_path)


class Broken(Batches):
    def __iter__(self) -> Iterator[Any]:
        for i, (inputs, target) in enumerate(super().__iter__()):
            yield inputs.fill_(math.nan) if i == 3 else inputs, target


def test_what_went_nonfinite_first(tmp_path: Path) -> None:
    case, callback = Case("broken", accumulate=2), GradscopeCallback(root=tmp_path)
    trainer_for(case, tmp_path, [callback]).fit(Module(case), DataLoader(Broken(case), batch_size=None))
    conformance.check_offender(load_run(callback.runs[0]))


class Adversaries(lightning.LightningModule):
    """Two optimizers, stepped by hand in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.maker, self.judge = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
        self.norms: dict[str, list[float]] = {"maker": [], "judge": []}

    def training_step(self, batch: torch.Tensor, index: int) -> None:
        for optimizer, name in zip(self.optimizers(), ("maker", "judge"), strict=True):
            made = self.maker(batch)
            loss = self.judge(made if name == "maker" else made.detach()).mean() * (1 if name == "maker" else -1)
            optimizer.zero_grad()
            self.manual_backward(loss)
            part = getattr(self, name)
            self.norms[name].append(math.sqrt(sum(p.grad.double().square().sum().item() for p in part.parameters())))
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.maker, self.judge)]


def test_two_optimizers_are_two_runs(tmp_path: Path) -> None:
    callback, module = GradscopeCallback(root=tmp_path), Adversaries()
    data = DataLoader(torch.randn(3, 4), batch_size=1)
    trainer_for(conformance.PLAIN, tmp_path, [callback]).fit(module, data)
    runs = [load_run(run) for run in callback.runs]
    assert [run.global_norm.tolist() for run in runs] == [pytest.approx(norms) for norms in module.norms.values()]
    assert [parameter.name for parameter in runs[1].header.parameters] == ["judge.weight", "judge.bias"]
    assert "self.clip_gradients(optimizer, gradient_clip_val=" in str(paste_line(build_report(runs[0])))


class ClipsItself(Module):
    """Clips before the step, in one of the places that a module may choose."""

    def __init__(self, where: str) -> None:
        super().__init__(conformance.PLAIN)
        self.where, self.norms = where, []
        self.automatic_optimization = where not in ("clip_gradients", "torch")

    def training_step(self, batch: Any, index: int) -> Any:
        loss = super().training_step(batch, index)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip(optimizer)
        optimizer.step()
        return None

    def clip(self, optimizer: Any) -> None:
        grads = [p.grad.double() for p in self.parameters()]
        self.norms.append(math.sqrt(sum(grad.square().sum().item() for grad in grads)))
        if self.where in ("torch", "on_after_backward"):
            torch.nn.utils.clip_grad_norm_(self.parameters(), 1e-3)
        else:
            self.clip_gradients(optimizer, gradient_clip_val=1e-3, gradient_clip_algorithm="norm")

    def on_after_backward(self) -> None:
        if self.where == "on_after_backward":
            self.clip(None)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        if self.where == "configure_gradient_clipping":
            self.clip(optimizer)


@pytest.mark.parametrize("where", ["clip_gradients", "torch", "on_after_backward", "configure_gradient_clipping"])
def test_norms_are_read_before_a_module_clips_them_itself(tmp_path: Path, where: str) -> None:
    before = lightning.LightningModule.clip_gradients
    callback, module = GradscopeCallback(root=tmp_path), ClipsItself(where)
    trainer_for(conformance.PLAIN, tmp_path, [callback]).fit(module, DataLoader(Batches(module.case), batch_size=None))
    run = load_run(callback.runs[0])
    assert run.global_norm.tolist() == pytest.approx(module.norms)
    noted = where in ("clip_gradients", "configure_gradient_clipping")
    assert set(run.max_norm) == {1e-3} if noted else all(map(math.isnan, run.max_norm))
    assert lightning.LightningModule.clip_gradients is before


class Searches(Module):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


def test_a_closure_that_is_called_again_is_no_step(tmp_path: Path) -> None:
    callback, module = GradscopeCallback(root=tmp_path), Searches(conformance.PLAIN)
    trainer = trainer_for(conformance.PLAIN, tmp_path, [callback])
    trainer.fit(module, DataLoader(Batches(module.case), batch_size=None))
    run = load_run(callback.runs[0])
    assert len(run.step) == trainer.global_step < len(module.losses)
    assert run.loss[0] == pytest.approx(module.losses[0])


def test_every_other_step(tmp_path: Path) -> None:
    callback = GradscopeCallback(root=tmp_path, every=2)
    case = conformance.PLAIN
    trainer_for(case, tmp_path, [callback]).fit(Module(case), DataLoader(Batches(case), batch_size=None))
    assert load_run(callback.runs[0]).step.tolist() == [0, 2, 4]


class Searched(Module):
    """Its rate can be searched for."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.lr = conformance.RATE

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def test_a_search_for_the_rate_is_no_training(tmp_path: Path) -> None:
    case, callback = Case("searched", steps=80), GradscopeCallback(root=tmp_path)
    module, trainer = Searched(case), trainer_for(case, tmp_path, [callback])
    data = DataLoader(Batches(case), batch_size=None)
    Tuner(trainer).lr_find(module, data, min_lr=1e-3, max_lr=1e4, num_training=60, early_stop_threshold=None)
    module.lr = conformance.RATE
    trainer.fit(module, data)
    assert [len(load_run(run).step) for run in callback.runs] == [80]
