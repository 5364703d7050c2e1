import pytest

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules import culprit_layer, no_gradient
from gradscope.runs.schema import Parameter
from tests.builders import make_header, make_run

NAN = float("nan")
LAYERS = [f"fc{i}" for i in range(6)]


def run_with_scales(tmp_path, scales):
    names = [f"{layer}.weight" for layer in LAYERS]
    return make_run(
        tmp_path, [1.0] * 20, parameters=make_header(LAYERS).parameters, probes=[(0, "init_scale", names, scales)]
    )


def test_a_layer_that_starts_too_large_is_named_with_a_remedy(tmp_path):
    (finding,) = culprit_layer.check(run_with_scales(tmp_path, [1, 1, 10, 1, 1, 1]))
    assert (finding.code, finding.subject, finding.severity) == ("GS301", "fc2", "warning")
    assert finding.value == pytest.approx(10)
    assert "10 × its peers'" in finding.message
    assert finding.advice == "Scale its init by 0.1."


def test_layers_like_their_peers_are_not_accused(tmp_path):
    assert list(culprit_layer.check(run_with_scales(tmp_path, [1, 1.1, 0.9, 1, 1, 1.2]))) == []


@pytest.mark.parametrize(("factor", "accused"), [(3.9, 0), (4.1, 1)])
def test_the_limit_is_a_factor_of_four(tmp_path, factor, accused):
    assert len(list(culprit_layer.check(run_with_scales(tmp_path, [1, 1, factor, 1, 1, 1])))) == accused


def test_nan_scales_accuse_no_one(tmp_path):
    assert list(culprit_layer.check(run_with_scales(tmp_path, [NAN] * 6))) == []


def test_without_probes_it_cannot_run(tmp_path):
    with pytest.raises(CannotRunError, match="not measured"):
        list(culprit_layer.check(make_run(tmp_path, [1.0] * 20)))


def test_a_parameter_without_a_gradient_is_named(tmp_path):
    (finding,) = no_gradient.check(make_run(tmp_path, grad_norm=[[1, NAN, 1]] * 3, columns={"nonfinite": [0] * 3}))
    assert (finding.subject, finding.value) == ("fc2.weight", 1)
    assert "1 trainable parameter of 3 never got a gradient in 3 steps: fc2.weight." in finding.message


def test_many_are_counted_and_three_named(tmp_path):
    header = make_header([f"l{i}" for i in range(5)])
    rows = [[1] + [NAN] * 4] * 2
    (finding,) = no_gradient.check(
        make_run(tmp_path, grad_norm=rows, parameters=header.parameters, columns={"nonfinite": [0, 0]})
    )
    assert finding.subject is None
    assert "l1.weight, l2.weight, l3.weight and 1 more" in finding.message


def test_frozen_parameters_are_meant_to_have_none(tmp_path):
    frozen = Parameter("fc.weight", "fc", "Linear", (2, 2), "float32", 0, trainable=False)
    run = make_run(tmp_path, grad_norm=[[NAN]], parameters=(frozen,), columns={"nonfinite": [0]})
    assert list(no_gradient.check(run)) == []


def test_one_gradient_is_enough(tmp_path):
    rows = [[1, NAN, 1], [1, 1e-30, 1]]
    assert list(no_gradient.check(make_run(tmp_path, grad_norm=rows, columns={"nonfinite": [0, 0]}))) == []


def test_a_run_of_nonfinite_steps_cannot_tell(tmp_path):
    with pytest.raises(CannotRunError, match="nonfinite"):
        list(no_gradient.check(make_run(tmp_path, [NAN, NAN])))
