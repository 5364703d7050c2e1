"""A learning-rate range test that a script begins with is no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradscope.diagnosis.diagnose import diagnose
from gradscope.diagnosis.range_test import range_tests, training_of
from gradscope.recommendation import recommend
from gradscope.report.build import build_report
from gradscope.runs import reader
from gradscope.runs.reader import load_run
from gradscope.runs.run import Run
from gradscope.runs.schema import Offender
from tests.builders import make_run

NAN = float("nan")
FINDER, TRAINING = 60, 200
RISING = np.geomspace(1e-5, 10, FINDER)


def searched(folder: Path, **header: Any) -> Run:
    """A range test that ends nonfinite, then a calm training."""
    rates = [*RISING, *[0.01] * TRAINING]
    norms = [*np.geomspace(1, 1e9, FINDER - 1), NAN, *[2.0] * TRAINING]
    losses = [*np.geomspace(1, 1e12, FINDER - 1), NAN, *np.linspace(1, 0.1, TRAINING)]
    return make_run(
        folder,
        norms,
        loss=losses,
        columns={"lr": [[rate] for rate in rates]},
        probes=[(step, "update_ratio", ["fc1"], [float(step)]) for step in (10, 70)],
        ranks={1: losses},
        **{"recorded_by": "record", "first_nonfinite": Offender(FINDER - 1, "fc1", None, "activation")} | header,
    )


def test_it_is_left_out_and_said(tmp_path: Path) -> None:
    run = searched(tmp_path)
    report = build_report(run)
    assert report.diagnosis.verdict.verdict == "unknown"
    assert diagnose(run).findings == report.diagnosis.findings == ()
    assert report.run.header.first_nonfinite is None
    assert recommend(run).max_norm == 2.0
    assert "Steps 0 to 59 are a learning-rate range test, where the rate rises 1e+06 ×" in report.caveats[0]
    assert recommend(run).caveats[0] == report.caveats[0]


@pytest.mark.parametrize("in_memory", [0, reader.IN_MEMORY])
def test_what_is_left_has_everything_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(reader, "IN_MEMORY", in_memory)
    run = load_run(searched(tmp_path).path)
    left = training_of(run)
    assert left.step.tolist() == [*range(FINDER, FINDER + TRAINING)]
    assert left.loss.tolist() == run.loss[FINDER:].tolist()
    assert np.array_equal(np.asarray(left.norms), np.asarray(run.norms)[FINDER:])
    assert np.array_equal(left.norms[5:7], np.asarray(run.norms)[FINDER + 5 : FINDER + 7])
    assert np.array_equal(left.since(9).peaks[[0, -1]], np.asarray(run.peaks)[[FINDER + 9, -1]])
    assert (left.probes.step.tolist(), left.probes.value.tolist()) == ([70], [70.0])
    assert left.ranks[1].step.tolist() == left.step.tolist()
    assert training_of(left) is left


def test_what_analyze_recorded_is_its_window(tmp_path: Path) -> None:
    run = searched(tmp_path, recorded_by="analyze")
    assert training_of(run) is run


@pytest.mark.parametrize(
    ("rates", "ends"),
    [
        ([*RISING, *[0.01] * 9], [60]),
        ([*RISING, *RISING, *[0.01] * 9], [60, 120]),
        ([*np.linspace(1e-4, 1, 30), 1e-3], [30]),
        ([*RISING], []),
        ([*RISING[:19], 1e-9], []),
        ([*np.geomspace(1e-3, 0.09, 60), 1e-4], []),
        ([*RISING, 5.0], []),
        ([*np.linspace(1e-4, 1, 50), *[1.0] * 50, *[0.1] * 50], []),
        ([*RISING, *RISING[::-1]], []),
        ([*[0.1] * 40, *[0.01] * 40], []),
        ([0.0, *RISING, 0.01], []),
        ([NAN] * 90, []),
        ([], []),
    ],
    ids=[
        *("a finder", "two", "linear", "no end", "short", "less than 100 times", "hardly falls", "warm-up and decay"),
        *("one cycle", "decay", "from zero", "unknown", "no steps"),
    ],
)
def test_what_counts_as_one(rates: list[float], ends: list[int]) -> None:
    assert range_tests(np.array(rates)).tolist() == ends
