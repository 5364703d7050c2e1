from __future__ import annotations

import pytest
import torch

from gradscope.errors import SpecError, UserCodeError
from gradscope.workload import read_workload
from gradscope.workload.models import amount
from tests.workload.conftest import Write

DATA = "data = [(torch.zeros(8, 4), torch.zeros(8, dtype=torch.long))]\n"
NET = """class Net(nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.fc = nn.Linear(4, width)
    def forward(self, x):
        return self.fc(x)
"""


@pytest.mark.parametrize(
    ("body", "value", "source"),
    [
        ("model = nn.Linear(4, 2)\n", "model", "model.py:5"),
        ("def make_model():\n    return nn.Linear(4, 2)\n", "make_model", "model.py:5"),
        ("from functools import partial\nget_model = partial(nn.Linear, 4, 2)\n", "get_model", "model.py:6"),
        (NET + "model = Net\n", "model", "model.py:11"),
        (NET, "Net()", "class Net, the only model in model.py"),
        ("thing = nn.Linear(4, 2)\ncost = nn.CrossEntropyLoss()\n", "thing", "model.py:5"),
        ("criterion = nn.Linear(2, 2)\nthing = nn.Linear(4, 2)\n", "thing", "model.py:6"),
        ("a = nn.Linear(4, 2)\nwhole = nn.Sequential(a)\n", "whole", "model.py:6"),
        ("a = b = nn.Linear(4, 2)\n", "a", "model.py:5"),
        ("def build_model():\n    return nn.Linear(4, 2)\nmodel = build_model()\n", "model", "model.py:7"),
        ("model = 'resnet'\nreal = nn.Linear(4, 2)\n", "real", "model.py:6"),
        (
            NET + "class Twice(Net):\n    pass\n",
            "Twice()",
            "class Twice, the only model that no other one uses in model.py",
        ),
        (NET + "class MyLoss(nn.Module):\n    pass\n", "Net()", "class Net, the only model in model.py"),
    ],
)
def test_where_a_model_is_found(write: Write, body: str, value: str, source: str) -> None:
    workload = read_workload(write(body.replace("criterion = nn.Linear(2, 2)", "loss = nn.CrossEntropyLoss()") + DATA))
    piece = workload.pieces[0]
    assert (piece.piece, piece.value, piece.source) == ("model", value, source)
    assert piece.detail == "10 parameters, 1 layer"
    assert workload.training_step(workload.model, workload.batches.at(0)).requires_grad


def test_a_name_in_the_target_chooses(write: Write) -> None:
    target = write("one = nn.Linear(4, 2)\ntwo = nn.Linear(4, 3)\n" + DATA)
    assert read_workload(target + ":two").model.out_features == 3
    assert read_workload(target + ":one").pieces[0].source == "model.py:5"


@pytest.mark.parametrize(
    "body", ["one = nn.Linear(4, 2)\ntwo = nn.Linear(4, 3)\n", "model = nn.Linear(4, 2)\nnet = nn.Linear(4, 3)\n"]
)
def test_two_models_are_an_error_with_the_commands_that_choose(write: Write, body: str) -> None:
    target = write(body + DATA)
    names = [line.split(" ")[0] for line in body.splitlines()]
    with pytest.raises(SpecError) as caught:
        read_workload(target)
    assert str(caught.value) == (
        f"model.py: 2 models: `{names[0]}` (model.py:5), `{names[1]}` (model.py:6); say which one:"
        f"\n    gradscope analyze {target}:{names[0]}\n    gradscope analyze {target}:{names[1]}"
    )
    assert caught.value.exit_code == 2


def test_two_classes_are_an_error(write: Write) -> None:
    with pytest.raises(SpecError, match=r"2 models: `Net` \(model\.py:5\), `Other` \(model\.py:11\)"):
        read_workload(write(NET + "class Other(nn.Module):\n    pass\n" + DATA))


def test_classes_that_use_each_other_are_all_named(write: Write) -> None:
    body = NET.replace("pass", "") + (
        "class A(nn.Module):\n    def f(self): return B\nclass B(nn.Module):\n    def f(self): return A\nuse = (A, B)\n"
    )
    with pytest.raises(SpecError, match="2 models: `A`"):
        read_workload(write(body.replace(NET, "") + DATA))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", r"model\.py: no model; name it `model`"),
        (
            "class Net(nn.Module):\n    def __init__(self, width, depth): pass\n",
            (
                r"model\.py:5: the class `Net` needs arguments \(width, depth\); make the model in the "
                r"file: model = Net\(width=…, depth=…\)"
            ),
        ),
        ("def make_model(width): pass\n", r"model\.py:5: the function `make_model` needs arguments \(width\)"),
        ("def make_model(): return 3\n", r"model\.py:5: make_model\(\) returned a int, not an nn\.Module"),
        ("model = nn.ReLU()\n", r"model\.py:5: model has no parameters, so there is nothing to train"),
        (
            "model = nn.Linear(4, 2).requires_grad_(False)\n",
            r"model\.py:5: model has no trainable parameters: all 10 have requires_grad=False",
        ),
        ("model = dict\nthing = 3\n", r"model\.py: no model"),
    ],
)
def test_no_usable_model(write: Write, body: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_workload(write(body + DATA))


@pytest.mark.parametrize(
    ("name", "message"),
    [("thing", "model.py:5: `thing` is a int, not a model"), ("dict_", "`dict` is a class, but not an nn.Module")],
)
def test_a_chosen_name_that_is_no_model(write: Write, name: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_workload(write("thing = 3\ndict_ = dict\n" + DATA) + f":{name}")


def test_a_type_error_inside_a_factory_is_the_users_own(write: Write) -> None:
    with pytest.raises(
        UserCodeError,
        match=r"make_model\(\) \(model\.py:5\) raised TypeError at model\.py:6: .*required positional argument",
    ) as caught:
        read_workload(write("def make_model():\n    return nn.Linear(4)\n" + DATA))
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_class_that_raises_is_the_users_own(write: Write) -> None:
    with pytest.raises(UserCodeError, match=r"Net\(\) \(model\.py:5\) raised TypeError at model\.py:7"):
        read_workload(write("class Net(nn.Module):\n    def __init__(self):\n        len(3)\n" + DATA))


def test_a_model_in_eval_mode_is_put_in_training_mode_and_frozen_parts_are_told(write: Write) -> None:
    workload = read_workload(
        write("model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval()\nmodel[0].requires_grad_(False)\n" + DATA)
    )
    assert workload.model.training
    assert workload.pieces[0].detail == "30 parameters, 2 layers, 67 % of it frozen"


def test_lazy_modules_get_their_shapes_from_the_first_batch(write: Write) -> None:
    workload = read_workload(write("model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))\n" + DATA))
    assert workload.model[0].weight.shape == (3, 4)
    assert len(workload.optimizers[0].param_groups[0]["params"]) == 4


def test_a_lazy_module_that_cannot_take_the_batch(write: Write) -> None:
    with pytest.raises(UserCodeError, match=r"cannot take its first batch .* in layer `1`"):
        read_workload(write("model = nn.Sequential(nn.LazyLinear(3), nn.Linear(5, 2))\n" + DATA))


TERSE = """
class Net(nn.Module):
    def __init__(s):
        super().__init__()
        s.out = nn.Linear(5, 2)

    def forward(s, x):
        return s.out(x)


model = Net()
"""


def test_the_layer_that_fails_is_named_whatever_a_method_calls_its_module(write: Write) -> None:
    with pytest.raises(UserCodeError, match=r"cannot take its first batch .* in layer `out`"):
        read_workload(write(TERSE + DATA))


@pytest.mark.parametrize(
    ("number", "text"), [(10, "10"), (1234, "1 234"), (12345, "12.3 k"), (1.25e6, "1.2 M"), (7e9, "7.0 B")]
)
def test_amounts(number: float, text: str) -> None:
    assert amount(number) == text


def test_the_device_of_the_model_is_used(write: Write) -> None:
    assert read_workload(write("model = nn.Linear(4, 2)\n" + DATA)).device == torch.device("cpu")
