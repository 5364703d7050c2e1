from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from gradscope.errors import SpecError, UserCodeError
from gradscope.workload import Overrides, read_workload
from tests.workload.conftest import Write

MODEL = "model = nn.Linear(4, 2)\n"
PAIR = "X, Y = torch.randn(70, 4), torch.randint(2, (70,))\n"


def data_piece(workload: Any) -> tuple[str, str, str]:
    piece = next(p for p in workload.pieces if p.piece == "data")
    return piece.value, piece.source, piece.detail


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("data = (X, Y)\n", "arrays (70, 4) and (70,), shuffled, batch 32"),
        (
            "data = (X.numpy().astype('float64'), Y.numpy().astype('int32'))\n",
            "arrays (70, 4) and (70,), shuffled, batch 32",
        ),
        ("data = {'input': X, 'y': Y}\n", "arrays (70, 4) and (70,), shuffled, batch 32"),
        ("data = TensorDataset(X, Y)\n", "TensorDataset, 70 rows, shuffled, batch 32"),
        (
            "data = torch.utils.data.Subset(TensorDataset(X, Y), range(60))\n",
            "Subset (Dataset), 60 rows, shuffled, batch 32",
        ),
        ("data = DataLoader(TensorDataset(X, Y), batch_size=7)\n", "DataLoader, batch 7"),
        (
            (
                "data = DataLoader(TensorDataset(X, Y), batch_size=None, "
                "sampler=torch.utils.data.BatchSampler(range(70), 7, False))\n"
            ),
            "DataLoader, batch 7",
        ),
        ("data = [(X, Y), (X, Y)]\n", "list of 2 batches"),
        ("data = ((X, Y), (X, Y))\n", "tuple of 2 batches"),
        ("data = iter([(X, Y)] * 9)\n", "iterator, can be read once"),
        ("data = {0: (X, Y)}.values()\n", "dict_values, iterable"),
        ("def data():\n    while True: yield X, Y\n", "function, a fresh iterator a call"),
        ("def data(): return X, Y\n", "arrays (70, 4) and (70,), shuffled, batch 32"),
        ("data = lambda: DataLoader(TensorDataset(X, Y), batch_size=7)\n", "DataLoader, batch 7"),
        (
            "class S(IterableDataset):\n    def __iter__(self): return iter(zip(X, Y))\ndata = S()\n",
            "S (Dataset), batch 32",
        ),
        (
            (
                "class D(Dataset):\n"
                "    def __len__(self): return 70\n"
                "    def __getitem__(self, i): return X[i], Y[i]\n"
                "data = D\n"
            ),
            "D (Dataset), 70 rows, shuffled, batch 32",
        ),
        (
            (
                "class M:\n"
                "    def setup(self, stage): assert stage == 'fit'\n"
                "    def prepare_data(self): pass\n"
                "    def train_dataloader(self): return DataLoader(TensorDataset(X, Y), batch_size=5)\n"
                "datamodule = M()\n"
            ),
            "M, DataLoader, batch 5",
        ),
        ("class M:\n    def train_dataloader(self): return [(X, Y)]\ndatamodule = M\n", "M, list of 1 batches"),
        (
            "import pandas as pd\ndata = pd.DataFrame(X.numpy()).assign(kind=Y.numpy())\ntarget = 'kind'\n",
            "70 rows, 4 columns to predict `kind`, shuffled, batch 32",
        ),
    ],
)
def test_every_form_of_data(write: Write, body: str, detail: str) -> None:
    workload = read_workload(write(MODEL + PAIR + body))
    _, source, told = data_piece(workload)
    assert told == detail
    assert source.startswith("model.py:")
    seen = [workload.training_step(workload.model, workload.batches.at(i)) for i in range(5)]
    assert all(loss.requires_grad for loss in seen)
    assert not workload.synthetic_data


def test_a_function_is_called_once_for_its_first_pass(write: Write) -> None:
    body = MODEL + (
        "calls = []\n"
        "def data():\n"
        "    calls.append(1)\n"
        "    return iter([(torch.zeros(3, 4), torch.tensor([0, 1, 1]))] * 2)\n"
    )
    workload = read_workload(write(body))
    import sys

    calls = sys.modules["model"].calls
    workload.batches.at(1)
    assert len(calls) == 1
    workload.batches.at(2)
    assert len(calls) == 2


def test_rows_are_shuffled_by_the_seed_and_whole_epochs_are_read(write: Write) -> None:
    body = (
        MODEL
        + "data = (torch.arange(70.).reshape(70, 1).repeat(1, 4), torch.zeros(70, dtype=torch.long))\nbatch_size = 35\n"
    )
    target = write(body)
    rows = [read_workload(target, overrides=Overrides(seed=s)).batches.at(0)[0][:, 0].tolist() for s in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]
    workload = read_workload(target)
    both = torch.cat([workload.batches.at(0)[0], workload.batches.at(1)[0]])[:, 0]
    assert sorted(both.tolist()) == list(range(70))
    assert workload.plan.batch_size == 35
    assert read_workload(target, overrides=Overrides(batch_size=5)).plan.batch_size == 5


def test_uint8_images_become_fractions_and_whole_numbers_stay(write: Write) -> None:
    body = (
        "import numpy as np\n"
        "model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))\n"
        "data = (np.full((9, 2, 2), 255, 'uint8'), np.arange(9) % 3)\n"
    )
    x, y = read_workload(write(body)).batches.at(0)
    assert x.dtype == torch.float32
    assert x.max() == 1
    assert y.dtype == torch.int64
    body = (
        "model = nn.Embedding(9, 3)\n"
        "import numpy as np\n"
        "data = (np.arange(9), np.arange(9) % 3 == 0)\n"
        "loss = lambda o, t: o.sum() * t.sum()\n"
    )
    x, y = read_workload(write(body)).batches.at(0)
    assert (x.dtype, y.dtype) == (torch.int64, torch.bool)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("dataset = TensorDataset(X, Y)\ndata = X\nloader = DataLoader(Subset(dataset, range(60)))\n", "loader"),
        ("dataset = TensorDataset(X, Y)\ntrain_dataset, rest = random_split(dataset, [60, 10])\n", "train_dataset"),
        (
            "data = (X, Y)\ndataset = TensorDataset(*data)\nloader = train_loader = DataLoader(dataset)\n",
            "train_loader",
        ),
        ("dataset = TensorDataset(X, Y)\nloader = DataLoader(ConcatDataset([dataset, dataset]))\n", "loader"),
        ("loader = DataLoader(TensorDataset(X, Y))\ndef data():\n    while True:\n        yield from loader\n", "data"),
    ],
)
def test_what_data_is_made_from_gives_way_to_it(write: Write, body: str, value: str) -> None:
    given = "from torch.utils.data import ConcatDataset, Subset, random_split\n"
    assert data_piece(read_workload(write(MODEL + PAIR + given + body)))[0] == value


def test_two_data_are_an_error_with_the_commands_that_choose(write: Write) -> None:
    target = write(MODEL + PAIR + "data = (X, Y)\nbatches = [(X, Y)]\n")
    with pytest.raises(SpecError) as caught:
        read_workload(target)
    assert str(caught.value) == (
        "model.py: 2 possible data: `data` (model.py:7), `batches` (model.py:8); say which one:"
        f"\n    gradscope analyze {target} --data data\n    gradscope analyze {target} --data batches"
    )
    workload = read_workload(target, overrides=Overrides(data="batches"))
    assert data_piece(workload) == ("batches", "--data batches", "list of 1 batches")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", r"model\.py: no data; name it `data`"),
        ("import random as data\n", r"model\.py: no data"),
        ("data = []\n", r"model\.py:7: the data is empty: `data` has no batch"),
        ("data = TensorDataset(X[:0], Y[:0])\n", r"model\.py:7: the data is empty: len\(data\) is 0"),
        ("data = (X[:0], Y[:0])\n", r"model\.py:7: the data is empty"),
        ("data = DataLoader(TensorDataset(X[:0], Y[:0]))\n", r"model\.py:7: `data`: the data is empty"),
        ("data = iter(())\n", r"model\.py:7: `data`: the data is empty"),
        ("def data():\n    yield from ()\n", r"model\.py:7: `data`: the data is empty"),
        (
            "data = (X, Y[:3])\n",
            r"model\.py:7: the parts have shapes \(70, 4\) and \(3,\); each must have the same number of rows",
        ),
        ("data = (X, torch.tensor(3))\n", "the parts have shapes"),
        (
            "import numpy as np\ndata = (np.array(['a', 'b']), np.zeros(2))\n",
            r"model\.py:8: holds <U1 values, not numbers",
        ),
        ("data = print\n", r"model\.py:7: data\(\) returned None, not data"),
        ("def data(a): pass\n", r"model\.py:7: `data` needs arguments \(a\)"),
        ("def data(): pass\n", r"model\.py:7: data\(\) returned None, not data"),
        ("data = {'a': 3}\n", r"model\.py:7: `data` is a dict, which is no data"),
        ("data = 'absent.csv'\n", r"absent\.csv: no such data file"),
        (
            "import pandas as pd\ndata = pd.DataFrame({'a': [1.0], 'b': [2]})\n",
            r"model\.py:8: a table needs the column to predict: --target COLUMN \(one of a, b\)",
        ),
    ],
)
def test_no_usable_data(write: Write, body: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_workload(write(MODEL + PAIR + body))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "def data():\n    len(3)\n    yield 1\n",
            r"reading the first batch of `data` raised TypeError at model\.py:8",
        ),
        ("data = iter\n", r"data\(\) \(model\.py:7\) raised TypeError: iter expected at least 1 argument"),
        ("def data():\n    return len(3)\n", r"data\(\) \(model\.py:7\) raised TypeError at model\.py:8"),
        (
            (
                "class D(Dataset):\n"
                "    def __len__(self): return 1 // 0\n"
                "    def __getitem__(self, i): return X\n"
                "data = D()\n"
            ),
            r"len\(data\) \(model\.py:10\) raised ZeroDivisionError at model\.py:8",
        ),
        (
            (
                "class M:\n"
                "    def setup(self, stage): raise OSError('gone')\n"
                "    def train_dataloader(self): pass\n"
                "datamodule = M()\n"
            ),
            r"M\.setup\(\) raised OSError at model\.py:8: gone",
        ),
    ],
)
def test_data_code_that_raises_is_the_users_own(write: Write, body: str, message: str) -> None:
    with pytest.raises(UserCodeError, match=message):
        read_workload(write(MODEL + PAIR + body))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    x, y = np.random.default_rng(0).normal(size=(40, 4)), np.arange(40) % 2
    table = pd.DataFrame(x, columns=list("abcd")).assign(kind=np.where(y, "yes", "no"), size=y * 1.5, n=y)
    table.drop(columns=["size", "n"]).to_csv(tmp_path / "kind.csv", index=False)
    table.drop(columns=["kind", "n"]).to_parquet(tmp_path / "size.parquet")
    table.drop(columns=["kind", "size"]).to_csv(tmp_path / "n.csv", index=False)
    np.savez(tmp_path / "named.npz", X=x, y=y)
    np.savez(tmp_path / "odd.npz", first=x, second=y)
    np.savez(tmp_path / "three.npz", x=x, extra=x, y=y)
    np.savez(tmp_path / "unclear.npz", p=x, q=x, y=y)
    np.savez(tmp_path / "one.npz", p=x)
    np.savez(tmp_path / "only_y.npz", y=y)
    torch.save((torch.tensor(x).float(), torch.tensor(y)), tmp_path / "pair.pt")
    torch.save({"data": torch.tensor(x).float(), "labels": torch.tensor(y)}, tmp_path / "dict.pt")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "column", "loss"),
    [
        ("kind.csv", "kind", "cross_entropy"),
        ("n.csv", "n", "cross_entropy"),
        ("named.npz", None, "cross_entropy"),
        ("odd.npz", "second", "cross_entropy"),
        ("three.npz", None, "cross_entropy"),
        ("pair.pt", None, "cross_entropy"),
        ("dict.pt", None, "cross_entropy"),
    ],
)
def test_data_files(write: Write, files: Path, name: str, column: str | None, loss: str) -> None:
    workload = read_workload(write(MODEL), overrides=Overrides(data=files / name, target_column=column))
    value, source, _ = data_piece(workload)
    assert (value, source) == (name, f"--data {files / name}")
    x, y = workload.batches.at(0)
    assert (x.shape, x.dtype, y.dtype) == ((32, 4), torch.float32, torch.int64)
    assert workload.pieces[2].value == loss


def test_a_number_to_predict_and_a_file_named_in_the_spec(write: Write, files: Path) -> None:
    body = "model = nn.Linear(4, 1)\ndata = 'size.parquet'\ntarget = 'size'\n"
    workload = read_workload(write(body))
    assert workload.batches.at(0)[1].dtype == torch.float32
    assert workload.inferred_loss


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("kind.csv", "nothing", r"kind\.csv: no column `nothing`; there are a, b, c, d, kind"),
        ("kind.csv", "a", r"column `kind` is not numbers"),
        ("odd.npz", None, r"odd\.npz: holds first, second; say which one is the target: --target NAME"),
        ("odd.npz", "third", r"has no `third`; it holds first, second"),
        ("unclear.npz", None, "which of p, q is the input"),
        ("nothing.csv", None, "no such data file"),
        ("model.py", None, r"data files are \.csv, \.parquet, \.npz, \.pt, \.pth"),
    ],
)
def test_data_files_that_do_not_fit(write: Write, files: Path, name: str, column: str | None, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_workload(write(MODEL), overrides=Overrides(data=str(files / name), target_column=column))


def test_damaged_and_dangerous_files(write: Write, tmp_path: Path) -> None:
    target = write(MODEL)
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    (tmp_path / "empty.csv").write_text("")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    torch.save({"x": Path("here")}, tmp_path / "objects.pt")
    for name, message in [
        ("bad.npz", r"bad\.npz: cannot be read as \.npz data"),
        ("bad.parquet", "cannot be read as .parquet data"),
        ("empty.csv", "cannot be read as .csv data: No columns to parse"),
        ("objects.npz", "it holds pickled objects, which could run code"),
        ("objects.pt", "it holds pickled objects, which could run code"),
    ]:
        with pytest.raises(SpecError, match=message):
            read_workload(target, overrides=Overrides(data=tmp_path / name, target_column="y"))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"a": [1.0, None], "y": [0, 1]}, "column `a` has 1 missing values; fill them or drop the rows first"),
        ({"y": [0, 1]}, "there is no column but the target"),
        ({"a": [], "y": []}, "the data is empty"),
    ],
)
def test_tables_that_do_not_fit(write: Write, tmp_path: Path, frame: dict[str, Any], message: str) -> None:
    pd.DataFrame(frame).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(SpecError, match=message):
        read_workload(write(MODEL), overrides=Overrides(data=tmp_path / "t.csv", target_column="y"))


def test_a_file_of_one_array_is_input_and_target(write: Write, files: Path) -> None:
    workload = read_workload(write("model = nn.Linear(4, 4)\n"), overrides=Overrides(data=files / "one.npz"))
    assert workload.batches.at(0).shape == (32, 4)
    assert workload.pieces[2].value == "mse_loss to the input"


def test_a_file_with_a_target_alone_says_what_is_missing(write: Write, files: Path) -> None:
    with pytest.raises(SpecError, match="which of nothing is the input"):
        read_workload(write(MODEL), overrides=Overrides(data=files / "only_y.npz"))


@pytest.mark.parametrize(
    ("body", "loss"),
    [
        ("input_shape = (4,)\n", "mse_loss"),
        ("input_shape = 4\nloss = nn.CrossEntropyLoss()\n", "CrossEntropyLoss()"),
        ("input_shape = [4]\nloss = nn.BCEWithLogitsLoss()\n", "BCEWithLogitsLoss()"),
        ("input_shape = (4,)\nloss = F.nll_loss\n", "nll_loss"),
        ("input_shape = (4,)\ndef training_step(model, batch): return model(batch).sum()\n", "training_step"),
        ("example_input = torch.zeros(6, 4)\n", "mse_loss"),
        ("example_input = (torch.zeros(6, 4),)\n", "mse_loss"),
        ("example_input = {'input': torch.zeros(6, 4)}\nloss = lambda o, t: o.sum()\n", "<lambda>"),
        ("example_input = torch.zeros(6, 4).numpy()\n", "mse_loss"),
        (
            "example_input = [torch.zeros(6, 4), 3]\n"
            "def training_step(model, batch): return batch[1] * model(batch[0]).sum()\n",
            "training_step",
        ),
    ],
)
def test_synthetic_data_is_said(write: Write, body: str, loss: str) -> None:
    workload = read_workload(write(MODEL + body))
    assert workload.synthetic_data
    assert "synthetic" in data_piece(workload)[2]
    assert workload.pieces[2].value == loss
    first = workload.training_step(workload.model, workload.batches.at(3))
    assert first.requires_grad
    assert torch.equal(first, workload.training_step(workload.model, workload.batches.at(3)))
    assert workload.batches.reach(10**9)


def test_synthetic_tokens_stay_in_range_and_predict_the_next(write: Write) -> None:
    body = (
        "class LM(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.e = nn.Embedding(11, 11)\n"
        "    def forward(self, t): return self.e(t)\n"
        "example_input = torch.tensor([[0, 10, 5]])\n"
    )
    workload = read_workload(write(body))
    assert workload.pieces[2].value == "next-token cross_entropy"
    assert workload.batches.at(5).dtype == torch.int64
    complex_ = read_workload(
        write(
            "class C(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.w = nn.Parameter(torch.ones(4))\n"
            "    def forward(self, z): return z.abs() * self.w\n"
            "example_input = torch.zeros(3, 4, dtype=torch.complex64)\n"
        )
    )
    assert complex_.batches.at(0)[0].dtype == torch.complex64


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("input_shape = 'wide'\n", r"model\.py:6: input_shape is 'wide'; write the shape of one input"),
        ("input_shape = (0, 3)\n", "input_shape is"),
        (
            "example_input = 3.0\n",
            r"model\.py:6: example_input is a float; give a tensor with the batch dimension first",
        ),
        ("example_input = 'text'\n", "example_input is a str"),
    ],
)
def test_synthetic_settings_that_mean_nothing(write: Write, body: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_workload(write(MODEL + body))


@pytest.mark.parametrize("target", ["1", "torch.tensor(1)", "numpy.int64(1)", "numpy.array(1)"])
def test_a_list_of_rows_is_a_dataset(write: Write, target: str) -> None:
    body = "import numpy\nmodel = nn.Linear(4, 3)\ndataset = [(torch.ones(4), TARGET)] * 70\n".replace("TARGET", target)
    workload = read_workload(write(body))
    assert data_piece(workload)[2] == "list (Dataset), 70 rows, shuffled, batch 32"
    assert workload.batches.at(0)[0].shape == (32, 4)
    own = read_workload(write(body + "def training_step(model, batch): return model(batch[0]).sum()\n"))
    assert data_piece(own)[2] == "list of 70 batches"


def test_batches_of_numpy_arrays(write: Write) -> None:
    given = "import numpy as np\nmodel = nn.Linear(4, 3)\nX, Y = np.ones((8, 4)), np.arange(8, dtype='int32') % 3\n"
    for batch in ("(X, Y)", "{'input': X, 'y': Y}"):
        workload = read_workload(write(given + f"batches = [{batch}]\n"))
        assert workload.pieces[2].value == "cross_entropy"
        assert workload.plan.batch_size == 8
        assert workload.training_step(workload.model, workload.batches.at(0)).requires_grad
    own = read_workload(write(given + "batches = [(X, Y)]\ndef training_step(model, batch): return batch\n"))
    assert own.training_step(own.model, own.batches.at(0))[0].dtype == np.float64
    with pytest.raises(SpecError, match=r"model\.py:8: a batch: holds <U1 values, not numbers"):
        read_workload(write(given + "batches = [(X.astype(str).astype('U1'), Y)]\n"))
