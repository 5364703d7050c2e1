import numpy as np
import pytest

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules.hot_start import check
from tests.builders import make_run

NAN = float("nan")


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
def test_a_first_step_far_above_the_others(tmp_path, scale):
    norms = scale * np.r_[1.0, 5e5, 1.0, np.full(30, 2.0)]
    (finding,) = check(make_run(tmp_path, norms))
    assert (finding.code, finding.severity, finding.first_step) == ("GS212", "info", 1)
    assert finding.value == pytest.approx(2.5e5)


def test_where_it_explodes_it_is_a_warning(tmp_path):
    norms = [1e6] + [1.0] * 40 + [NAN]
    (finding,) = check(make_run(tmp_path, norms, loss=norms))
    assert finding.severity == "warning"


@pytest.mark.parametrize(
    "norms",
    [[1000.0] + [1.0] * 40, [1.0] * 10 + [1e6] + [1.0] * 40, [NAN] * 5 + [1e6] + [1.0] * 40],
    ids=["at the limit", "a spike later on", "skipped steps come first"],
)
def test_usual_starts(tmp_path, norms):
    assert not list(check(make_run(tmp_path, norms)))


def test_a_few_steps_are_too_few(tmp_path):
    with pytest.raises(CannotRunError, match="23 are needed"):
        list(check(make_run(tmp_path, [1e6] + [1.0] * 20)))
