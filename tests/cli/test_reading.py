"""The commands that read runs: recommend, show, report, runs, export, explain."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradscope.runs.catalogue import new_run_directory
from gradscope.runs.run import Run
from gradscope.runs.writer import RunWriter
from tests.builders import make_header, make_run
from tests.cli.run import gradscope

NORMS = [1.0 + (i * 7 % 20) / 10 for i in range(100)]


@pytest.fixture
def recorded(here: Path) -> Run:
    new_run_directory("handmade").parent.mkdir(exist_ok=True)
    return make_run(here / ".gradscope" / "runs", NORMS, loss=[2.0 - i / 100 for i in range(100)])


def test_quiet_recommend_prints_the_percentile_alone(recorded: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = gradscope(capsys, "recommend", "-q")
    assert result.code == 0
    assert float(result.out) == pytest.approx(np.percentile(NORMS, 95), rel=1e-5)
    assert result.err == ""


def test_recommend_tells_what_it_rests_on(recorded: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = gradscope(capsys, "recommend", recorded.id[:30], "-p", "50", "-p", "95")
    assert f"max_norm = {np.percentile(NORMS, 50):.4g}" in result.out
    assert "100 steps" in result.out
    assert "pre-clip" in result.out
    assert "verified   no" in result.out
    assert str(recorded.path) in result.err


def test_recommend_as_json_and_per_layer(recorded: Run, capsys: pytest.CaptureFixture[str]) -> None:
    answer = json.loads(gradscope(capsys, "recommend", "--format", "json", "--per-layer").out)
    assert answer["max_norm"] == pytest.approx(np.percentile(NORMS, 95))
    assert {layer["layer"] for layer in answer["layers"]} == {"fc1", "fc2", "fc3"}


def test_recommend_by_value(recorded: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = gradscope(capsys, "recommend", "--by", "value", "-q")
    assert float(result.out) == pytest.approx(np.percentile(NORMS, 95) / math.sqrt(3) / 2, rel=1e-4)


def test_recommend_for_a_framework(recorded: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = gradscope(capsys, "recommend", "--for", "lightning")
    assert re.search(r"gradient_clip_val=[\d.]+", result.out)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("recommend", "-p", "101"), "101"),
        (("recommend", "--by", "size"), "norm or value"),
        (("recommend", "--for", "fortran"), "fortran"),
        (("recommend", "nothing-like-it"), "gradscope runs"),
        (("recommend", "--format", "xml"), "table or json"),
        (("show", "--format", "xml"), "xml"),
        (("show", "--fail-on", "sometimes"), "sometimes"),
        (("runs", "--format", "xml"), "table, json or jsonl"),
        (("explain", "GS999"), "GS999"),
        (("export",), "say where to"),
        (("export", "-o", "x.docx"), ".docx"),
        (("export", "--to", "paper"), "paper"),
    ],
)
def test_a_wrong_argument_says_what_to_write(
    args: tuple[str, ...], said: str, recorded: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    result = gradscope(capsys, *args)
    assert result.code == 2
    assert said in result.err
    assert result.out == ""


def test_no_runs_yet(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "gradscope analyze" in gradscope(capsys, "runs").err
    result = gradscope(capsys, "recommend")
    assert result.code == 2
    assert "gradscope analyze" in result.err


def test_only_nonfinite_norms_is_nothing_measured(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(here, [math.inf] * 30)
    result = gradscope(capsys, "recommend", str(run.path))
    assert result.code == 5
    assert "nan" not in (result.out + result.err).lower().replace("finance", "")


def test_runs_lists_them(recorded: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert recorded.id in gradscope(capsys, "runs").out
    assert json.loads(gradscope(capsys, "runs", "--format", "json").out)[0]["id"] == recorded.id
    assert json.loads(gradscope(capsys, "runs", "--format", "jsonl").out)["ended"].startswith("finished")


def test_an_unreadable_run_is_listed_as_such(recorded: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (recorded.path / "run.json").write_text("{", encoding="utf-8")
    assert "unreadable" in gradscope(capsys, "runs").out


def test_show_names_the_run_and_fails_on_demand(recorded: Run, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = gradscope(capsys, "show")
    assert result.code == 0
    assert recorded.id in result.err
    exploding = make_run(here / "other", [1.0] * 20 + [math.inf] * 3)
    assert gradscope(capsys, "show", str(exploding.path), "--fail-on", "critical").code == 1
    assert gradscope(capsys, "show", str(exploding.path), "--fail-on", "none").code == 0


@pytest.mark.parametrize("suffix", ["html", "json", "md", "csv", "jsonl", "sarif"])
def test_report_takes_the_format_from_the_suffix(
    suffix: str, recorded: Run, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = gradscope(capsys, "report", "-o", f"report.{suffix}")
    assert result.code == 0
    text = (here / f"report.{suffix}").read_text(encoding="utf-8")
    assert "fc1" in text or suffix == "sarif"
    if suffix in ("json", "sarif"):
        json.loads(text)


def test_an_unwritable_file_is_said(recorded: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = gradscope(capsys, "report", "-o", "no/such/folder/report.html")
    assert result.code == 2
    assert "no/such/folder/report.html" in result.err


@pytest.mark.parametrize("suffix", ["parquet", "csv", "json"])
def test_export_holds_every_step_and_layer(
    suffix: str, recorded: Run, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pandas as pd

    assert gradscope(capsys, "export", "-o", f"x.{suffix}").code == 0
    table = getattr(pd, f"read_{suffix}")(here / f"x.{suffix}")
    assert table["global_norm"].tolist() == pytest.approx(NORMS)
    assert table["grad_norm/fc2"].tolist() == pytest.approx([n / math.sqrt(3) for n in NORMS], rel=1e-6)


def test_explain_prints_the_rule(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    result = gradscope(capsys, "explain", "GS101")
    assert "What it detects" in result.out
    assert "What to do" in result.out


def test_compare(recorded: Run, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_run(here / "other", [5 * n for n in NORMS])
    result = gradscope(capsys, "compare", recorded.id, str(other.path))
    assert result.code == 0
    assert "fc1" in result.out
    assert gradscope(capsys, "compare", recorded.id, str(other.path), "-o", "both.html").code == 0
    assert (here / "both.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")


@pytest.mark.parametrize("chosen", [None, "2"])
def test_reading_leaves_the_environment_as_it_was(
    chosen: str | None, recorded: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", chosen)
    assert gradscope(capsys, "recommend", "-q").code == 0
    assert os.environ.get("OPENBLAS_NUM_THREADS") == chosen


def test_report_sets_two_runs_side_by_side_in_the_order_asked(
    recorded: Run, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_run(here / ".gradscope" / "runs", NORMS, name="the-other")
    assert gradscope(capsys, "report", "--compare", recorded.id, other.id, "-o", "both.html").code == 0
    page = Path("both.html").read_text()
    assert page.index("A: <bdi>handmade") < page.index("B: <bdi>the-other")
    refused = gradscope(capsys, "report", recorded.id, "--compare", recorded.id, other.id)
    assert refused.code == 2
    assert "RUN or --compare A B, not both" in refused.err


ANSWERS = [
    ("recommend", "--per-layer", "RUN"),
    ("show", "RUN"),
    ("show", "RUN", "--format", "markdown"),
    ("compare", "RUN", "RUN"),
    ("watch", "RUN"),
    ("runs",),
    ("explain", "GS302"),
    ("explain", "GS205"),
]


@pytest.mark.parametrize("command", ANSWERS, ids=" ".join)
@pytest.mark.parametrize("encoding", ["ascii", "cp437", "cp1252", "cp932"])
def test_a_terminal_without_unicode_is_answered_in_plain_signs(here: Path, command: Any, encoding: str) -> None:
    run = make_run(here / ".gradscope" / "runs", [*NORMS, float("inf")], source="größe.py")
    done = subprocess.run(
        [sys.executable, "-m", "gradscope", *(part.replace("RUN", run.id) for part in command)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "NO_COLOR": "1"},
        check=True,
    )
    assert done.stdout.decode(encoding)
    assert b"\\u" not in done.stdout + done.stderr
    assert b"\\x" not in (done.stdout + done.stderr).replace(b"gr\\xf6\\xdfe", b"")


def test_the_next_command_names_a_run_elsewhere_by_its_path(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(here / "far away", NORMS)
    for command in ("show", "watch"):
        told = gradscope(capsys, command, str(run.path)).err
        assert f"'{run.path}'" in told


def test_a_killed_run_is_called_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for name, pid in (("dead", process.pid), ("alive", os.getpid())):
        writer = RunWriter(new_run_directory(name), make_header(pid=pid))
        writer.append(step=0, loss=1.0, global_norm=1.0, grad_norm=np.ones(3), grad_max=np.ones(3))
        writer.flush()
        assert "not closed: killed, or still being recorded. 1 step reached the disk" in gradscope(capsys, "show").out
    ended = {row["id"][17:-5]: row["ended"] for row in json.loads(gradscope(capsys, "runs", "--format", "json").out)}
    assert ended == {"dead": "killed", "alive": "recording"}


@pytest.mark.parametrize("short", [("-q",), ("--for", "pytorch")])
def test_the_number_alone_keeps_its_caveats_on_stderr(
    short: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(here, NORMS, measured_at="post_clip")
    result = gradscope(capsys, "recommend", str(run.path), *short)
    assert result.err.startswith("note: These norms are post-clip")
    assert "post-clip" not in result.out
