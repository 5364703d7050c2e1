import pytest

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules.data_scale import check
from tests.builders import make_run

NAN = float("nan")
EXPLODING, CALM = [1.0] * 30 + [NAN], [1.0] * 30


def entering(rms, largest=None, median=None, features=16):
    rows = [("input_rms", rms, 0), ("input_largest", largest or rms, 3), ("input_median", median or rms, features)]
    return [(0, name, ["fc1"], [value], [index]) for name, value, index in rows]


def compared(target, output):
    return [(0, "target_rms", ["(root)"], [target]), (0, "output_rms", ["(root)"], [output])]


def found(tmp_path, probes, losses=EXPLODING):
    return list(check(make_run(tmp_path, losses, loss=losses, probes=probes)))


def test_inputs_far_too_large(tmp_path):
    (finding,) = found(tmp_path, entering(124.0))
    assert (finding.code, finding.severity, finding.subject) == ("GS307", "warning", "fc1")
    assert (finding.value, finding.limit) == (124, 10)
    assert finding.message == "What enters fc1 has a root mean square of 124; initial weights are made for 1."
    assert finding.advice.startswith("Standardise the inputs")


def test_one_feature_alone(tmp_path):
    (finding,) = found(tmp_path, entering(2.4e5, largest=9.7e5, median=1.03))
    assert "; feature 3 of 0 to 15 has 9.7e+05, the median one 1.03; " in finding.message


def test_inputs_far_too_small(tmp_path):
    (finding,) = found(tmp_path, entering(1e-5))
    assert (finding.value, finding.limit) == (1e-5, 1e-3)


def test_where_it_trains_all_the_same_it_is_an_information(tmp_path):
    (finding,) = found(tmp_path, entering(124.0), CALM)
    assert finding.severity == "info"
    assert finding.advice.startswith("The training does not explode for it.")


def test_targets_far_from_the_outputs(tmp_path):
    (finding,) = found(tmp_path, compared(2e5, 0.06))
    assert (finding.severity, finding.subject, finding.value) == ("warning", None, 2e5)
    assert finding.message.startswith("The targets have a root mean square of 2e+05, the first outputs one of 0.06;")
    assert finding.advice.startswith("Standardise the targets")


@pytest.mark.parametrize(
    "probes",
    [
        entering(9.0),
        entering(0.01),
        entering(0.0),
        [*entering(1e4), (0, "normalised", ["fc1"], [1.0])],
        compared(24.0, 3.0),
        compared(2.0, 1e-4),
        compared(0.0, 0.1),
        [(0, "init_scale", ["fc1.weight"], [1.0])],
    ],
    ids=["large", "small", "nothing", "a norm follows", "outputs as large", "usual targets", "targets of 0", "tokens"],
)
def test_data_as_it_should_be(tmp_path, probes):
    assert not found(tmp_path, probes)


def test_where_nothing_was_measured(tmp_path):
    with pytest.raises(CannotRunError, match="no step was sampled"):
        found(tmp_path, [])
