import pytest

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules.odd_settings import check
from gradscope.diagnosis.settings import odd_settings
from gradscope.runs.schema import Group, Optimizer, Plan
from tests.builders import make_run

NAN = float("nan")
PLAN = Plan(total_steps=1000, lr_steps=(0, 999), lr=((0.01,), (0.005,)))


def run_with(tmp_path, kind, settings, losses=(1.0,) * 30):
    optimizer = Optimizer(kind, (Group(0.1, (0, 1, 2)),), settings)
    return make_run(tmp_path, list(losses), loss=list(losses), optimizer=optimizer, plan=PLAN)


@pytest.mark.parametrize(
    ("kind", "settings", "said", "usual"),
    [
        (
            "SGD",
            {"momentum": 0.99},
            "At a momentum of 0.99 a gradient acts 100 times in all, 10 at 0.9.",
            "momentum=0.9,",
        ),
        ("SGD", {"momentum": 1.0}, "At a momentum of 1 a gradient never fades in all, 10 at 0.9.", "momentum=0.9,"),
        ("Adam", {"betas": [0.95, 0.5]}, "beta1² is not below beta2.", "betas=(0.9, 0.999),"),
        ("AdamW + SGD", {"eps": 1e-15}, "An eps of 1e-15 lets AdamW divide", "eps=1e-08,"),
        ("AdamW", {"weight_decay": 50.0}, "Weight decay takes 50 % of every weight", "weight_decay=0.01,"),
        ("SGD", {"weight_decay": 0.3, "momentum": 0.9}, "Weight decay takes 3 % of every", "weight_decay=0.0001,"),
    ],
)
def test_settings_far_from_usual(tmp_path, kind, settings, said, usual):
    (finding,) = check(run_with(tmp_path, kind, settings))
    assert (finding.code, finding.severity) == ("GS414", "info")
    assert said in finding.message
    assert usual in finding.advice


def test_where_it_explodes_it_is_a_warning(tmp_path):
    losses = [1.0] * 29 + [NAN]
    (finding,) = check(run_with(tmp_path, "SGD", {"momentum": 0.99}, losses))
    assert finding.severity == "warning"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("SGD", {"momentum": 0.95, "weight_decay": 5e-4}),
        ("SGD", {}),
        ("Adam", {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 50.0}),
        ("Adam", {"betas": [0.5, 0.9], "eps": 1e-10}),
        ("Adam", {"betas": [0.9], "eps": None}),
        ("AdamW", {"betas": [0.9, 0.95], "weight_decay": 0.1}),
        ("RMSprop", {"momentum": 0.99, "eps": 1e-15}),
    ],
)
def test_usual_settings(tmp_path, kind, settings):
    assert odd_settings(run_with(tmp_path, kind, settings)) == []


def test_the_bound_of_a_step_is_reached(tmp_path):
    """Gradients that are (β₁/β₂)^i i steps back make m/√v what the inequality allows; with β₁² ≥ β₂ it grows without end."""
    sizes = {}
    for betas, steps in (((0.9, 0.999), 2000), ((0.95, 0.5), 200), ((0.95, 0.5), 400)):
        mean = square = 0.0
        for t in range(steps):
            gradient = (betas[0] / betas[1]) ** (steps - 1 - t)
            mean = betas[0] * mean + (1 - betas[0]) * gradient
            square = betas[1] * square + (1 - betas[1]) * gradient**2
        sizes[betas, steps] = mean / square**0.5
    bound = (0.1**2 / 0.001 / (1 - 0.9**2 / 0.999)) ** 0.5
    assert sizes[(0.9, 0.999), 2000] == pytest.approx(bound, rel=0.01)
    assert sizes[(0.95, 0.5), 400] > sizes[(0.95, 0.5), 200] > 0


def test_without_an_optimizer(tmp_path):
    with pytest.raises(CannotRunError, match="not known"):
        list(check(make_run(tmp_path, [1.0], optimizer=None)))
