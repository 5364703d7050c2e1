"""The Transformers callback passes the conformance suite under the real trainer, before its clipping."""

from __future__ import annotations

import math
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from gradscope.errors import UsageError
from gradscope.runs.reader import load_run
from tests.integrations import conformance
from tests.integrations.conformance import Case, Outcome

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    from gradscope.integrations.transformers import GradscopeCallback

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.net, self.case, self.losses = conformance.make_model(), case, []

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = conformance.loss_of(self.net, (inputs, targets), self.case) * self.case.accumulate
        self.losses.append((loss / self.case.accumulate).item())
        return {"loss": loss}


class Rows(Dataset):
    def __init__(self, case: Case) -> None:
        self.case, self.data = case, conformance.make_data(case)

    def __len__(self) -> int:
        return len(self.data) * conformance.BATCH

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        inputs, targets = self.data[index // conformance.BATCH]
        return {"inputs": inputs[index % conformance.BATCH], "targets": targets[index % conformance.BATCH]}


class Trainer(transformers.Trainer):
    """In the order of the data, with plain SGD; a case that stops does so in the forward pass."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(self, model: nn.Module, *given: Any, **named: Any) -> Any:
        conformance.check_raises(self.model.case, len(self.model.losses))
        return super().compute_loss(model, *given, **named)


def trainer_for(case: Case, folder: Path, callbacks: list[Any]) -> Trainer:
    model = Net(case)
    optimizer = torch.optim.SGD(model.parameters(), lr=conformance.RATE, momentum=0.5)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=conformance.BATCH,
        gradient_accumulation_steps=case.accumulate,
        max_grad_norm=case.max_norm or 0.0,
        num_train_epochs=1,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    trainer = Trainer(model, arguments, train_dataset=Rows(case), optimizers=(optimizer, schedule), callbacks=callbacks)
    if case.init_scale is not None:  # what mixed_precision="fp16" sets where there is a GPU
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=case.init_scale)
        trainer.add_callback(_HalfPrecision(trainer))
    return trainer


class _HalfPrecision(transformers.TrainerCallback):
    def __init__(self, trainer: Trainer) -> None:
        self.accelerator = trainer.accelerator

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.accelerator.native_amp, self.accelerator.state._mixed_precision = True, "fp16"


def train(case: Case, folder: Path, recorded: bool) -> Outcome:
    callback = GradscopeCallback(root=folder)
    trainer = trainer_for(case, folder, [callback] if recorded else [])
    with suppress(conformance.StopError, KeyboardInterrupt):
        trainer.train()
    assert "training_step" not in vars(trainer)
    runs = [load_run(callback.run)] if callback.run else []
    return Outcome(trainer.model.losses, trainer.model.net.state_dict(), runs)


@pytest.mark.parametrize("case", conformance.CASES, ids=lambda case: case.name)
def test_conformance(case: Case, tmp_path: Path) -> None:
    conformance.check(train, case, tmp_path)


def test_two_models_one_after_the_other(tmp_path: Path) -> None:
    conformance.check_two(train, tmp_path)


def test_what_went_nonfinite_first(tmp_path: Path) -> None:
    case, callback = Case("broken", accumulate=2), GradscopeCallback(root=tmp_path)
    trainer = trainer_for(case, tmp_path, [callback])
    trainer.train_dataset.data[3][0].fill_(math.nan)
    trainer.train()
    assert "backward" not in vars(trainer.accelerator)
    conformance.check_offender(load_run(callback.run))


def test_a_callback_in_a_loop_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gradscope\.Recorder"):
        GradscopeCallback(root=tmp_path).on_train_begin(None, None, None, model=nn.Linear(1, 1), optimizer=None)
