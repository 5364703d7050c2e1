"""The runs that the repository carries can be read, and say what the README of the samples says."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradscope.report.build import build_report
from gradscope.runs.reader import load_run, read_header

RUNS = Path(__file__).parent.parent / "sample_runs" / "runs"
VERDICTS = {
    "adapters": "stable",
    "deep_transformer": "will-explode",
    "digits_conv": "stable",
    "price_autoencoder": "stable",
    "rnn_text": "stable",
}


@pytest.mark.parametrize(("name", "verdict"), VERDICTS.items())
def test_a_sample_run_is_read_and_judged(name: str, verdict: str) -> None:
    report = build_report(load_run(RUNS / name))
    assert report.diagnosis.verdict.verdict == verdict
    assert len(report.run.step) == 50
    assert not report.run.notes


def test_the_faults_that_were_planted_are_named() -> None:
    autoencoder = build_report(load_run(RUNS / "price_autoencoder")).diagnosis.layers[0]
    assert (autoencoder.name, autoencoder.level) == ("fc2", "high")
    growth = [f for f in build_report(load_run(RUNS / "rnn_text")).diagnosis.findings if f.rule == "recurrent-growth"]
    assert [finding.subject for finding in growth] == ["rnn"]


def test_the_samples_stay_small() -> None:
    assert sum(path.stat().st_size for path in RUNS.rglob("*") if path.is_file()) < 1_000_000


def test_the_samples_name_no_place_on_the_machine_that_recorded_them() -> None:
    for header in RUNS.rglob("run.json"):
        told = read_header(header.parent)
        paths = (told.source, *told.command, str(told.settings.get("target", "")))
        assert not any(Path(path).is_absolute() for path in paths), header
