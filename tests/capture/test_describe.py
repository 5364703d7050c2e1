"""Names of parameters and layers, and the order in which layers run."""

import pytest
import torch
from torch import nn

from gradscope.capture.describe import ForwardOrder, describe, layer_modules, unwrap
from gradscope.runs.schema import Group


class Tied(nn.Module):
    """Registered in another order than it runs, with a tied weight, a parameter of its own and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 6, bias=False)
        self.unused = nn.Linear(2, 2)
        self.token = nn.Embedding(6, 4)
        self.token.weight = self.head.weight
        self.mix = nn.Linear(4, 4)
        self.mix.bias.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.head(self.mix(self.token(x)) * self.scale)


def test_parameters_are_named_once_in_registration_order():
    model = Tied()
    parameters, optimizer, tensors = describe(model)
    assert [parameter.name for parameter in parameters] == [
        "scale",
        "head.weight",
        "unused.weight",
        "unused.bias",
        "mix.weight",
        "mix.bias",
    ]
    head = parameters[1]
    assert head.shared_with == ("token.weight",)
    assert (head.layer, head.type, head.shape, head.dtype) == ("head", "Linear", (6, 4), "float32")
    assert (parameters[0].layer, parameters[0].type, parameters[0].shape) == ("", "Tied", ())
    assert [parameter.trainable for parameter in parameters] == [True] * 5 + [False]
    assert optimizer is None
    assert tensors[1] is model.head.weight
    assert [parameter.order for parameter in parameters] == [0, 1, 2, 2, 4, 4]


def test_groups_of_all_optimizers_in_their_order():
    model = Tied()
    first = torch.optim.SGD(
        [{"params": [model.head.weight], "lr": 0.5}, {"params": [model.scale]}], lr=0.1, momentum=0.9
    )
    second = torch.optim.AdamW(model.mix.parameters(), lr=torch.tensor(0.25))
    described = describe(model, [first, second]).optimizer
    assert described.type == "SGD + AdamW"
    assert described.groups == (Group(0.5, (1,)), Group(0.1, (0,)), Group(0.25, (4, 5), 1))
    assert described.settings["momentum"] == 0.9
    assert "params" not in described.settings
    adam = describe(model, [second]).optimizer
    assert adam.settings["betas"] == [0.9, 0.999]


def test_parameters_that_no_module_owns():
    loose = nn.Parameter(torch.ones(3))
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*model.parameters(), loose], lr=0.1)
    parameters = describe(model, [optimizer]).parameters
    assert parameters[-1].name == "(no module).2"
    assert parameters[-1].layer == "(no module)"
    assert describe(model, [optimizer]).optimizer.groups[0].parameters == (0, 1, 2)


def test_several_models_have_their_key_in_front():
    models = {"generator": nn.Linear(2, 2), "critic": nn.Sequential(nn.Linear(2, 2))}
    names = [parameter.name for parameter in describe(models).parameters]
    assert names == ["generator.weight", "generator.bias", "critic.0.weight", "critic.0.bias"]
    assert list(layer_modules(models)) == ["generator", "critic.0"]


def test_wrappers_leave_the_names_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    plain = [parameter.name for parameter in describe(model).parameters]
    compiled = torch.compile(model, backend="eager")
    inner = nn.Sequential(torch.compile(model[0], backend="eager"), model[1])
    for wrapped in (compiled, nn.DataParallel(model), nn.DataParallel(compiled), inner):
        assert [parameter.name for parameter in describe(wrapped).parameters] == plain
    assert unwrap(nn.DataParallel(compiled)) is model


def test_the_order_is_that_of_the_first_forward():
    model = Tied()
    order = ForwardOrder(model)
    model(torch.tensor([1, 2]))
    parameters = {p.name: p for p in order.end(describe(model).parameters)}
    ran = [parameters[name].order for name in ("scale", "mix.weight", "head.weight")]
    assert ran == sorted(ran)
    assert parameters["mix.bias"].order == parameters["mix.weight"].order
    assert parameters["unused.weight"].order == parameters["head.weight"].order + 1
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_layers_that_run_before_all_registered_ones_seen():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    order = ForwardOrder(model)
    model[1](torch.ones(2))
    assert [p.order for p in order.end(describe(model).parameters)] == [0, 0, 1, 1]


def test_without_a_forward_the_order_stays():
    model = Tied()
    parameters = describe(model).parameters
    assert ForwardOrder(model).end(parameters) == parameters


@pytest.mark.parametrize(
    "wrap", [lambda m: torch.compile(m, backend="eager"), lambda m: (m.compile(backend="eager"), m)[1]]
)
def test_compiled_models_get_no_hooks(wrap):
    model = nn.Sequential(nn.Linear(2, 2))
    ForwardOrder({"net": wrap(model)})
    assert not any(module._forward_pre_hooks for module in model.modules())
