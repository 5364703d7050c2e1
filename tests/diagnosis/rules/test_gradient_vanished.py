import numpy as np
import pytest

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules.gradient_vanished import check
from gradscope.recommendation.remedies import next_remedies
from gradscope.report.build import build_report
from gradscope.report.titles import title
from gradscope.runs.schema import Plan, Trial
from tests.builders import make_run

WINDOW = np.linspace(2.0, 1.5, 50)
REST = tuple(range(50, 200))


def run_with(tmp_path, norms, losses=None, scale=1.0, **trials):
    """A window of 50 steps, and a rehearsal of 150 with these norms."""
    x1 = Trial("rehearsal", "x1", indexes=REST)
    losses = np.full(150, 1.0) if losses is None else losses
    made = {"x1": (x1, scale * losses, scale * norms), **trials}
    return make_run(tmp_path, scale * np.ones(50), loss=scale * WINDOW, trials=made, plan=Plan(total_steps=200))


def dying(at, to=0.0):
    return np.where(np.arange(150) < at, 1.0, to)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_gradient_that_is_gone_is_told_with_its_step(tmp_path, scale):
    (finding,) = check(run_with(tmp_path, dying(40), scale=scale))
    assert (finding.code, finding.severity, finding.first_step) == ("GS209", "warning", 90)
    assert "From step 90 on" in finding.message


@pytest.mark.parametrize(
    ("norms", "fires"), [(dying(130), 1), (dying(131), 0), (dying(40, 2e-9), 0), (dying(40, 1e-10), 1)]
)
def test_limits(tmp_path, norms, fires):
    assert len(list(check(run_with(tmp_path, norms)))) == fires


def test_a_gradient_that_comes_back_is_not_gone(tmp_path):
    norms = dying(40)
    norms[-1] = 1.0
    assert not list(check(run_with(tmp_path, norms)))


def test_a_loss_that_is_gone_too_needs_no_gradient(tmp_path):
    assert not list(check(run_with(tmp_path, dying(40), np.where(np.arange(150) < 40, 1.0, 0.0))))


def test_a_recorded_script_without_a_rehearsal(tmp_path):
    run = make_run(tmp_path, np.r_[np.ones(100), np.zeros(50)], loss=np.ones(150))
    assert [one.first_step for one in check(run)] == [100]


def test_too_few_norms(tmp_path):
    with pytest.raises(CannotRunError, match="10 first steps with a norm; 20 are needed"):
        list(check(make_run(tmp_path, np.ones(10))))


def test_the_headline_says_so_and_a_remedy_that_keeps_a_gradient_is_best(tmp_path):
    run = run_with(tmp_path, dying(40))
    assert title(build_report(run)) == ("▲", "no explosion, but no gradient left")
    assert {one.name for one in next_remedies(run)} == {"lr-0.5", "lr-0.25", "lr-0.1", "warm-up"}
    steps = tuple(range(200))
    tried = {
        name: (Trial("remedy", name, start="initial", indexes=steps, note=f"{name}\n"), np.full(200, 1.0), norms)
        for name, norms in (("lr-0.5", np.r_[np.ones(50), dying(40)]), ("lr-0.1", np.ones(200)))
    }
    report = build_report(run_with(tmp_path / "tried", dying(40), **tried))
    assert [(one.name, one.held, one.best) for one in report.remedies] == [
        ("lr-0.1", True, True),
        ("lr-0.5", False, False),
    ]
