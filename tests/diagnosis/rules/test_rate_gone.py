import numpy as np
import pytest

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules.rate_gone import check
from gradscope.runs.schema import Plan
from tests.builders import make_run

STEPS = tuple(range(0, 1000, 10))


def planned(tmp_path, rates):
    plan = Plan(total_steps=1000, lr_steps=STEPS, lr=tuple((float(rate),) for rate in rates))
    return list(check(make_run(tmp_path, [1.0] * 50, plan=plan)))


def test_an_epoch_s_schedule_that_is_stepped_a_batch(tmp_path):
    (finding,) = planned(tmp_path, 0.1 * 0.97 ** np.array(STEPS))
    assert (finding.code, finding.severity) == ("GS413", "warning")
    assert finding.first_step == pytest.approx(227, abs=6)
    assert finding.value == pytest.approx(0.77, abs=0.01)
    assert "once an epoch" in finding.advice


@pytest.mark.parametrize(
    "rates",
    [
        np.full(100, 0.1),
        0.05 * (1 + np.cos(np.linspace(0, np.pi, 100))),
        np.r_[np.full(55, 0.1), np.full(45, 1e-5)],
        np.r_[np.full(30, 1e-5), np.full(70, 0.1)],
        np.full(100, 0.0),
    ],
    ids=["constant", "cosine", "less than half", "late warm-up", "never any"],
)
def test_other_schedules(tmp_path, rates):
    assert not planned(tmp_path, rates)


def test_a_script_s_own_rates(tmp_path):
    rates = 0.1 * 0.8 ** np.arange(200)
    run = make_run(tmp_path, [1.0] * 200, plan=Plan(), columns={"lr": [[rate] for rate in rates]})
    (finding,) = check(run)
    assert finding.first_step == 31


def test_too_few(tmp_path):
    with pytest.raises(CannotRunError, match="19 learning rates known; 20 are needed"):
        list(check(make_run(tmp_path, [1.0] * 19, plan=Plan())))
