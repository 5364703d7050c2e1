"""Lightning, Transformers and Datasets as they are, where they are installed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from gradscope.errors import SpecError
from gradscope.workload import Overrides, read_workload
from tests.workload.conftest import Write

LIGHTNING = """import torch, lightning as L
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    def setup(self, stage):
        self.stage = stage
    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("loss", loss)
        return {"loss": loss}
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return RETURN
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(64, 4), torch.randint(2, (64,))), batch_size=8, shuffle=True)
total_steps = 100
"""
ENV = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)


def piece(workload: Any, name: str) -> Any:
    return next(p for p in workload.pieces if p.piece == name)


@pytest.mark.parametrize(
    ("returned", "rates"),
    [
        ("optimizer", []),
        ("[optimizer]", []),
        ("([optimizer], [schedule])", [0.1, 0.1, 0.01]),
        ("{'optimizer': optimizer, 'lr_scheduler': schedule}", [0.1, 0.1, 0.01]),
        ("[{'optimizer': optimizer, 'lr_scheduler': {'scheduler': schedule, 'interval': 'step'}}]", [0.1, 0.01, 0.001]),
        (
            "{'optimizer': optimizer, 'lr_scheduler': {'scheduler': schedule, 'interval': 'step', 'frequency': 4}}",
            [0.1, 0.01, 0.001],
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_lightning_module_brings_step_optimizer_schedule_and_data(
    write: Write, returned: str, rates: list[float]
) -> None:
    workload = read_workload(write(LIGHTNING.replace("RETURN", returned), "lit_spec.py", head=""))
    assert workload.model.stage == "fit"
    assert piece(workload, "loss").value == "Lit.training_step"
    assert piece(workload, "data").detail == "DataLoader, batch 8"
    assert piece(workload, "optimizer").source == "lit_spec.py"
    every = 1 if "'step'}" in returned else 4
    at = dict(zip(workload.plan.lr_steps, workload.plan.lr, strict=True))
    if rates:
        steps = [0, 1, 2] if every == 1 else [0, 7, 8] if "interval" not in returned else [0, 4, 8]
        assert [at[s][0] for s in steps] == pytest.approx(rates)
        for scheduler in workload.schedulers:
            saved = scheduler.state_dict()
            workload.optimizers[0].step()
            scheduler.step()
            scheduler.load_state_dict(saved)
            assert scheduler.state_dict() == saved
    else:
        assert piece(workload, "schedule").value == "constant"


def test_a_lightning_step_runs_without_a_trainer_and_without_a_warning(write: Write) -> None:
    workload = read_workload(
        write(LIGHTNING.replace("RETURN", "None").replace(", batch_idx", ""), "lit_plain.py", head="")
    )
    assert piece(workload, "optimizer").value == "AdamW"
    workload.training_step(workload.model, workload.batches.at(0)).backward()


def test_a_spec_may_replace_what_the_module_brings(write: Write) -> None:
    body = LIGHTNING.replace("RETURN", "optimizer") + (
        "model = Lit()\n"
        "optimizer = torch.optim.Adam(model.parameters())\n"
        "data = [(torch.ones(3, 4), torch.zeros(3).long())]\n"
        "def training_step(model, batch): return model.net(batch[0]).sum()\n"
    )
    workload = read_workload(write(body, "lit_own.py", head=""))
    assert [piece(workload, n).value for n in ("data", "loss", "optimizer")] == ["data", "training_step", "Adam"]


def test_a_lightning_module_that_optimizes_by_hand_says_what_to_write(write: Write) -> None:
    body = LIGHTNING.replace("RETURN", "optimizer").replace(
        "super().__init__()\n", "super().__init__()\n        self.automatic_optimization = False\n"
    )
    with pytest.raises(
        SpecError, match=r"Lit optimizes by hand \(automatic_optimization=False\); write `def training_step"
    ):
        read_workload(write(body, "lit_manual.py", head=""))


def test_a_lightning_module_without_its_own_step_or_data(write: Write) -> None:
    body = (
        "import torch, lightning as L\n"
        "class Lit(L.LightningModule):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = torch.nn.Linear(4, 2)\n"
        "    def forward(self, x): return self.fc(x)\n"
        "    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), lr=1)\n"
    )
    with pytest.raises(SpecError, match="no data"):
        read_workload(write(body, "lit_bare.py", head=""))
    workload = read_workload(
        write(body + "data = [(torch.ones(3, 4), torch.zeros(3).long())]\n", "lit_fed.py", head="")
    )
    assert piece(workload, "loss").value == "cross_entropy"


def test_a_lightning_data_module(write: Write) -> None:
    body = (
        "import torch, lightning as L\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "class DM(L.LightningDataModule):\n"
        "    def setup(self, stage): self.rows = TensorDataset(torch.randn(64, 4), "
        "torch.randint(2, (64,)))\n"
        "    def train_dataloader(self): return DataLoader(self.rows, batch_size=8, shuffle=True)\n"
        "model = torch.nn.Linear(4, 2)\n"
        "datamodule = DM()\n"
    )
    workload = read_workload(write(body, "lit_data.py", head=""))
    assert piece(workload, "data").detail == "DM, DataLoader, batch 8"


GPT = """import torch
from transformers import GPT2Config, GPT2LMHeadModel, get_linear_schedule_with_warmup
sizes = dict(n_layer=1, n_embd=16, n_head=2, vocab_size=64, n_positions=32, bos_token_id=1, eos_token_id=2)
model = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
rows = torch.randint(64, (40, 16)).tolist()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = get_linear_schedule_with_warmup(optimizer, 10, 100)
total_steps, batch_size = 100, 4
"""


@pytest.mark.filterwarnings("ignore")
def test_a_transformers_model_with_a_hugging_face_dataset(write: Write) -> None:
    body = GPT + (
        "from datasets import Dataset\n"
        "dataset = Dataset.from_dict({'input_ids': rows, 'labels': rows, 'text': ['a'] * 40})\n"
    )
    workload = read_workload(write(body, "hf_labels.py", head=""))
    assert piece(workload, "data").detail == "Hugging Face Dataset, 40 rows, shuffled, batch 4; left out: text"
    assert piece(workload, "loss").value == "output.loss"
    assert piece(workload, "schedule").detail == "warm-up 10 steps, peak lr 0.001, ends at 1.111e-05"
    assert workload.model.training
    loss = workload.training_step(workload.model, workload.batches.at(3))
    loss.backward()
    assert workload.plan.batch_size == 4


@pytest.mark.filterwarnings("ignore")
def test_token_batches_without_labels_predict_the_next_token_and_skip_padding(write: Write) -> None:
    body = GPT + (
        "mask = torch.ones(4, 16, dtype=torch.long)\n"
        "mask[:, 8:] = 0\n"
        "ids = torch.tensor(rows[:4])\n"
        "data = [{'input_ids': ids, 'attention_mask': mask}, {'input_ids': ids}]\n"
    )
    workload = read_workload(write(body, "hf_tokens.py", head=""))
    assert piece(workload, "loss").value == "next-token cross_entropy"
    workload.model.eval()
    batch = workload.batches.at(0)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    expected = workload.model(**batch, labels=labels).loss.item()
    assert workload.training_step(workload.model, batch).item() == pytest.approx(expected, rel=1e-5)
    assert workload.training_step(workload.model, workload.batches.at(1)).requires_grad


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_splits_streams_and_columns(write: Write) -> None:
    head = (
        "import torch\n"
        "from datasets import Dataset, DatasetDict\n"
        "model = torch.nn.Linear(4, 3)\n"
        "D = Dataset.from_dict({'features': torch.randn(40, 4).tolist(), 'kind': [0, 1, 2, 0] * 10})\n"
    )
    given = Overrides(target_column="kind")
    workload = read_workload(
        write(head + "data = DatasetDict(train=D, test=D)\n", "hf_splits.py", head=""), overrides=given
    )
    assert piece(workload, "loss").value == "cross_entropy"
    assert workload.batches.reach(5)
    streamed = read_workload(write(head + "data = D.to_iterable_dataset()\n", "hf_stream.py", head=""), overrides=given)
    assert [tuple(part.shape) for part in streamed.batches.at(2)] == [(32, 4), (32,)]
    with pytest.raises(SpecError, match="no split `train` among test; write data"):
        read_workload(write(head + "data = DatasetDict(test=D)\n", "hf_test.py", head=""), overrides=given)
    with pytest.raises(SpecError, match="the data is empty"):
        read_workload(write(head + "data = D.select([])\n", "hf_none.py", head=""), overrides=given)


def test_reading_a_plain_spec_imports_none_of_them(write: Write) -> None:
    target = write("model = nn.Linear(4, 2)\ndata = (torch.ones(8, 4), torch.zeros(8).long())\n")
    code = (
        "import sys; from gradscope.workload import read_workload; read_workload(sys.argv[1]);"
        "print([m for m in ('lightning', 'pytorch_lightning', 'transformers', 'datasets', "
        "'pandas') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code, target], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
