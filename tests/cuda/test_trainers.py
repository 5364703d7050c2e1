"""The trainers of Lightning and Transformers on a GPU, in mixed precision: norms before the clip, the same training."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradscope.runs.reader import load_run
from gradscope.runs.run import Run

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS, BATCH = 8, 8


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": nn.functional.mse_loss(self.net(x).float(), labels)}


def rows() -> list[dict[str, torch.Tensor]]:
    x = torch.randn(STEPS * BATCH, 6, generator=torch.Generator().manual_seed(1))
    return [{"x": one, "labels": one.sum(0, keepdim=True)} for one in x]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def transformers_train(
    folder: Path, precision: str, recorded: bool
) -> tuple[dict[str, torch.Tensor], list[float], Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        from gradscope.integrations.transformers import GradscopeCallback

    callback = GradscopeCallback(root=folder)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        max_grad_norm=0.5,
        max_steps=STEPS,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        remove_unused_columns=False,
        **({precision: True} if precision != "fp32" else {}),
    )
    model = Net()
    trainer = transformers.Trainer(model, arguments, train_dataset=rows(), callbacks=[callback] if recorded else [])
    trainer.train()
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    return weights(model), logged, callback.run


def lightning_train(folder: Path, precision: str, recorded: bool) -> tuple[dict[str, torch.Tensor], list[float], Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("lightning.pytorch")
        from gradscope.integrations.lightning import GradscopeCallback

    seen: list[torch.Tensor] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Net()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.inner(**batch)["loss"]

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            seen.append(torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).norm())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 1e-2)

    callback = GradscopeCallback(root=folder)
    model = Module()
    lightning.Trainer(
        accelerator="gpu",
        devices=1,
        max_epochs=1,
        precision={"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[precision],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        gradient_clip_val=0.5,
        callbacks=[callback] if recorded else [],
    ).fit(model, torch.utils.data.DataLoader(rows(), batch_size=BATCH))
    return weights(model), [float(one) for one in seen], callback.runs[0] if callback.runs else None


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("train", [transformers_train, lightning_train])
def test_the_same_training_and_its_norms(train: Any, precision: str, tmp_path: Path) -> None:
    bare, _, _ = train(tmp_path, precision, False)
    same, seen, where = train(tmp_path, precision, True)
    assert all(torch.equal(bare[name], same[name]) for name in bare)
    run: Run = load_run(where)
    taken = np.isfinite(run.global_norm)
    assert len(run.step) == len(seen) == STEPS
    np.testing.assert_allclose(run.global_norm[taken], np.array(seen)[taken], rtol=1e-5)
    np.testing.assert_array_equal(run.skipped, ~taken)
