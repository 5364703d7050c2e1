import numpy as np
import pytest

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules.depth_growth import check
from gradscope.recommendation.remedies import next_remedies
from gradscope.report.build import build_report
from gradscope.report.which_layer import layer
from gradscope.runs.schema import Parameter
from tests.builders import make_run

NAMES = [f"fc{i}" for i in range(10)]


def run_with(tmp_path, gradients, names=NAMES, order=None, types=None, **more):
    """Gradients at the outputs of layers, in forward order."""
    types = types or ["Linear"] * len(names)
    parameters = tuple(
        Parameter(f"{name}.weight", name, kind, (4, 4), "float32", i)
        for i, (name, kind) in enumerate(zip(names, types, strict=True))
    )
    order = list(range(len(names))) if order is None else order
    probes = [
        (0, "grad_out_norm", list(names), list(gradients)),
        (0, "forward_order", list(names), [float(i) for i in order]),
    ]
    return make_run(tmp_path, more.pop("norms", [1.0] * 30), probes=probes, parameters=parameters, **more)


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
def test_growth_is_found_with_its_factor_at_any_scale(tmp_path, scale):
    (finding,) = check(run_with(tmp_path, scale * 2.0 ** np.arange(9, -1, -1)))
    assert (finding.code, finding.severity, finding.subject) == ("GS304", "info", None)
    assert finding.value == pytest.approx(2.0)
    assert "Back through 10 layers the gradient grows 2 × a layer as it begins, 512 × in all" in finding.message
    assert "smaller weights (in a plain stack × 0.5)" in finding.advice


def test_fading_asks_for_larger_weights(tmp_path):
    (finding,) = check(run_with(tmp_path, 0.25 ** np.arange(9, -1, -1)))
    assert (finding.severity, finding.value) == ("info", pytest.approx(0.25))
    assert "fades to 0.25 × a layer" in finding.message
    assert "larger weights (in a plain stack × 4)" in finding.advice


@pytest.mark.parametrize(("total", "fires"), [(99.0, 0), (101.0, 1), (0.0011, 0), (0.0009, 1)])
def test_limits_are_of_the_whole_depth(tmp_path, total, fires):
    assert len(list(check(run_with(tmp_path, total ** (np.arange(9, -1, -1) / 9))))) == fires


def test_the_order_is_that_of_the_forward_pass(tmp_path):
    shuffled = np.random.default_rng(0).permutation(10)
    gradients = 2.0 ** (9.0 - shuffled)
    assert len(list(check(run_with(tmp_path / "a", gradients, order=shuffled)))) == 1
    assert not list(check(run_with(tmp_path / "b", gradients)))


def test_a_single_layer_that_stands_out_is_no_growth_of_all(tmp_path):
    assert not list(check(run_with(tmp_path, np.r_[np.full(4, 1e4), np.ones(6)])))


def test_few_layers_and_embeddings_tell_nothing(tmp_path):
    steep = 10.0 ** np.arange(5, -1, -1)
    assert len(list(check(run_with(tmp_path / "six", steep, NAMES[:6])))) == 1
    assert not list(check(run_with(tmp_path / "five", steep[:5], NAMES[:5])))
    assert not list(check(run_with(tmp_path / "words", steep, NAMES[:6], types=["Embedding"] + ["Linear"] * 5)))


def test_without_gradients_between_layers_it_cannot_run(tmp_path):
    with pytest.raises(CannotRunError, match="no gradients between layers"):
        list(check(make_run(tmp_path, [1.0] * 30)))


def test_where_it_explodes_all_layers_are_to_blame_and_all_are_scaled_as_a_remedy(tmp_path):
    run = run_with(tmp_path, 2.0 ** np.arange(9, -1, -1), norms=[1.0] * 20 + [1e6] * 10, loss=[1.0] * 20 + [1e6] * 10)
    (finding,) = check(run)
    assert finding.severity == "warning"
    assert layer(build_report(run)).answer == "All of them: it grows from layer to layer"
    (scaled,) = [one for one in next_remedies(run) if one.name == "init"]
    assert (scaled.layer, scaled.layer_scale) == (", ".join(NAMES), pytest.approx(0.5))
    assert scaled.note.startswith("all 10 layers of type Linear start × 0.5\n")
    assert "type(module).__name__ in ('Linear',)" in scaled.note
