import numpy as np
import pytest

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules.not_trained import check
from gradscope.runs.schema import Group, Optimizer, Parameter
from tests.builders import make_run


def run_with(tmp_path, groups, rates, trainable=True):
    names = "abcde"
    parameters = tuple(
        Parameter(f"{n}.weight", n, "Linear", (4, 4), "float32", i, trainable) for i, n in enumerate(names)
    )
    columns = {"lr": [list(row) for row in rates]}
    optimizer = Optimizer("SGD", tuple(Group(0.1, group) for group in groups))
    norms = np.ones((len(rates), 5))
    return make_run(tmp_path, grad_norm=norms, parameters=parameters, optimizer=optimizer, columns=columns)


def test_parameters_in_no_optimizer(tmp_path):
    (finding,) = check(run_with(tmp_path, [(4,)], [[0.1]] * 30))
    assert (finding.code, finding.severity, finding.value) == ("GS306", "warning", 4)
    assert finding.message == "4 trainable parameters are in no optimizer: a.weight, b.weight, c.weight and 1 more."


def test_a_group_at_a_rate_of_zero(tmp_path):
    (finding,) = check(run_with(tmp_path, [(0, 1, 2, 3), (4,)], [[0.1, 0.0]] * 30))
    assert finding.subject == "e.weight"
    assert "1 trainable parameter is trained at a learning rate of 0 throughout" in finding.message


@pytest.mark.parametrize(
    ("groups", "rates", "trainable"),
    [
        ([(0, 1, 2, 3, 4)], [[0.1]] * 30, True),
        ([(4,)], [[0.1]] * 30, False),
        ([(0, 1, 2, 3, 4)], [[0.0]] * 29 + [[0.1]], True),
    ],
    ids=["all are trained", "frozen", "a warm-up from 0"],
)
def test_what_is_trained_or_meant_to_stay(tmp_path, groups, rates, trainable):
    assert not list(check(run_with(tmp_path, groups, rates, trainable)))


def test_without_an_optimizer(tmp_path):
    with pytest.raises(CannotRunError, match="not known"):
        list(check(make_run(tmp_path, [1.0], optimizer=None)))
