import math

import pytest
import torch
import torch.nn.functional as F

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules.odd_logits import check
from gradscope.runs.schema import Piece
from tests.builders import make_run

NAN = float("nan")


def found(tmp_path, shares=(0.0, 0.0), classes=10, first=2.3, loss="CrossEntropyLoss()", end=1.0):
    probes = [(0, "classes", ["(root)"], [float(classes)])]
    probes += [(step, "probabilities", ["(root)"], [share]) for step, share in enumerate(shares)]
    losses = [first] + [1.0] * 48 + [end]
    pieces = (Piece("loss", loss, "model.py:1"),)
    return list(check(make_run(tmp_path, [1.0] * 50, loss=losses, probes=probes, pieces=pieces)))


def test_a_softmax_before_the_loss(tmp_path):
    (finding,) = found(tmp_path, (1.0, 1.0))
    assert (finding.code, finding.severity) == ("GS309", "warning")
    sure = torch.zeros(1, 10)
    sure[0, 3] = 1.0
    least = F.cross_entropy(sure, torch.tensor([3])).item()
    assert finding.message.endswith(f"cannot fall below {least:.3g}.")


@pytest.mark.parametrize(("end", "severity"), [(1.0, "info"), (NAN, "warning")])
def test_a_start_far_above_guessing(tmp_path, end, severity):
    (finding,) = found(tmp_path, first=1086.0, classes=2, end=end)
    assert finding.severity == severity
    assert finding.value == pytest.approx(1086 / math.log(2))
    assert "guessing among 2 classes, 0.693" in finding.message


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"shares": (1.0, 0.9)},
        {"shares": (1.0,)},
        {"shares": (1.0, 1.0), "loss": "NLLLoss()"},
        {"shares": (1.0, 1.0), "loss": "training_step"},
        {"first": 20.0},
        {"classes": 1, "first": 50.0},
    ],
)
def test_outputs_as_they_should_be(tmp_path, how):
    assert not found(tmp_path, **how)


def test_where_nothing_was_sampled(tmp_path):
    with pytest.raises(CannotRunError, match="no step was sampled"):
        list(check(make_run(tmp_path, [1.0] * 50)))
