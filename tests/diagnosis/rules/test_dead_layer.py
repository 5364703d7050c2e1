import numpy as np
import pytest

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules.dead_layer import check
from gradscope.report.build import build_report
from gradscope.report.which_layer import layer
from gradscope.runs.schema import Parameter
from tests.builders import make_run

NAN = float("nan")


def norms(*columns):
    return np.stack([np.broadcast_to(np.asarray(column, float), 50) for column in columns], axis=1)


def dying(at):
    return np.where(np.arange(50) < at, 1.0, 0.0)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_layers_that_died_are_told_with_the_one_nearest_to_the_loss_and_the_step(tmp_path, scale):
    run = make_run(tmp_path, grad_norm=scale * norms(dying(4), dying(7), 1.0))
    (finding,) = check(run)
    assert (finding.code, finding.severity, finding.subject, finding.value) == ("GS305", "warning", "fc2", 2)
    assert finding.message == "fc2 gets a gradient of exactly 0 from step 7 on, of 50 recorded steps; so does fc1."
    assert "lower the learning rate" in finding.advice
    assert layer(build_report(run)).answer == "fc2"


def test_layers_that_never_had_one_are_an_information(tmp_path):
    (finding,) = check(make_run(tmp_path, grad_norm=norms(1.0, 0.0, 1.0)))
    assert (finding.severity, finding.subject) == ("info", "fc2")
    assert "in every step" in finding.message


@pytest.mark.parametrize(
    "columns",
    [
        (dying(26), 1.0, 1.0),
        (dying(4), dying(4), dying(4)),
        (NAN, 1.0, 1.0),
        (1e-30, 1.0, 1.0),
        (np.where(np.arange(50) % 10 == 0, 1.0, 0.0), 1.0, 1.0),
    ],
    ids=["not half of the steps", "all of them", "without a gradient", "small", "now and then"],
)
def test_what_is_not_dead(tmp_path, columns):
    assert not list(check(make_run(tmp_path, grad_norm=norms(*columns), columns={"nonfinite": [0] * 50})))


def test_a_layer_is_dead_when_all_of_its_trained_parameters_are(tmp_path):
    def parameters(trainable):
        leaves = (("fc1.weight", "fc1", True), ("fc1.bias", "fc1", trainable), ("fc2.weight", "fc2", True))
        return tuple(Parameter(name, owner, "Linear", (4,), "float32", 0, one) for name, owner, one in leaves)

    finite = {"nonfinite": [0] * 50}
    for trainable, found in ((True, 0), (False, 1)):
        matrix = norms(0.0, 1.0 if trainable else NAN, 1.0)
        run = make_run(tmp_path / str(found), grad_norm=matrix, parameters=parameters(trainable), columns=finite)
        assert len(list(check(run))) == found


def test_many_are_named_in_part(tmp_path):
    (finding,) = check(make_run(tmp_path, grad_norm=norms(*[dying(4)] * 6, 1.0), layers=tuple("abcdefg")))
    assert "f gets a gradient of exactly 0" in finding.message
    assert finding.message.endswith("; so do e, d, c and 2 before them.")


def test_too_few_steps(tmp_path):
    with pytest.raises(CannotRunError, match="19 steps without nonfinite gradients; 20 are needed"):
        list(check(make_run(tmp_path, np.ones(19))))
