"""`gradscope analyze --device cuda`: the same answers as on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli import specs
from tests.cli.run import gradscope

HALF = specs.HEALTHY + 'precision = "fp16"\n'
CASES = {
    "stable": specs.HEALTHY,
    "will-explode": specs.EXPLODES_LATER,
    "exploding": specs.EXPLODES_NOW,
}


def analyzed(here: Path, capsys: pytest.CaptureFixture[str], text: str, *args: str) -> dict[str, Any]:
    (here / "spec.py").write_text(text, encoding="utf-8")
    result = gradscope(capsys, "analyze", "spec.py", "--device", "cuda", "--format", "json", *args)
    assert result.code == 0, result.err
    report: dict[str, Any] = json.loads(result.out)
    return report


@pytest.mark.parametrize("verdict", CASES)
def test_the_verdict(verdict: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = analyzed(here, capsys, CASES[verdict])
    assert report["verdict"] == verdict
    assert {layer["name"] for layer in report["layers"]} == {"0", "2"}


def test_half_precision_with_a_scaler(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyzed(here, capsys, HALF)["verdict"] == "stable"


def test_growth_along_time(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = analyzed(here, capsys, specs.RECURRENT, "--quick", "--steps", "20")
    (found,) = [one for one in report["findings"] if one["code"] == "GS302"]
    assert found["subject"] == "rnn"
    assert found["value"] == pytest.approx(1.4, rel=0.02)
