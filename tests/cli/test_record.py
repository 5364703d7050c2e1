"""`gradscope record`: what it prints, and how it exits."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from gradscope.cli import record as command
from gradscope.errors import NothingMeasuredError, UsageError
from gradscope.integrations.script import Recorded
from gradscope.runs.catalogue import find_run
from gradscope.runs.reader import load_run
from tests.integrations.scripts import HEAD

TRAIN = """
optimizer = torch.optim.SGD(params, lr=0.05)
for i in range(3):
    optimizer.zero_grad(); loss_of(model, i).backward(); optimizer.step()
print("the script's own")
sys.exit(len(sys.argv))
"""


def record(script: Path, *arguments: str) -> int:
    with pytest.raises(typer.Exit) as exit_:
        command.record_command([str(script), *arguments])
    return exit_.value.exit_code


def test_the_report_goes_to_stderr_and_the_code_passes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "train.py").write_text(HEAD + TRAIN)
    assert record(here / "train.py", "--lr", "1") == 3
    streams = capsys.readouterr()
    assert streams.out == "the script's own\n"
    assert "3 steps recorded" in streams.err
    assert streams.err.splitlines()[-1].startswith("next: gradscope report ")


SEARCHES = """
start = {name: value.clone() for name, value in model.state_dict().items()}
rates = [1e-4 * 1.5**i for i in range(80)] + [0.01] * 60
for i, rate in enumerate(rates):
    if i == 80:
        model.load_state_dict(start)
    if i in (0, 80):
        optimizer = torch.optim.SGD(params)
    optimizer.param_groups[0]["lr"] = rate
    optimizer.zero_grad(); loss_of(model, i % 3).backward(); optimizer.step()
"""


def test_a_search_for_the_rate_before_the_training(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "train.py").write_text(HEAD + SEARCHES)
    assert record(here / "train.py") == 0
    told = capsys.readouterr().err
    assert "no explosion so far" in told.lower()
    assert "60 steps recorded" in told
    assert "Steps 0 to 79 are a learning-rate range test" in told
    assert len(load_run(find_run(None)).step) == 140


def test_nothing_recorded(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "idle.py").write_text("import sys; sys.exit(int(sys.argv[1]))")
    with pytest.raises(NothingMeasuredError, match="never called backward"):
        command.record_command([str(here / "idle.py"), "0"])
    assert record(here / "idle.py", "4") == 4
    assert "nothing was recorded" in capsys.readouterr().err


def test_an_option_that_is_none_of_ours() -> None:
    with pytest.raises(UsageError, match="no option --evry"):
        command.record_command(["--evry", "3", "train.py"])


def test_another_rank_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("gradscope.integrations.script.record_script", lambda *_, **__: Recorded(0))
    assert record(Path("train.py")) == 0
    assert capsys.readouterr().err == ""


def test_a_report_that_fails_changes_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Path) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(command, "_report", fail)
    (here / "train.py").write_text(HEAD + TRAIN)
    assert record(here / "train.py") == 1
    assert "its report failed" in capsys.readouterr().err


def test_of_several_runs_the_worst_is_shown_and_becomes_the_latest(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = """
other = nn.Linear(3, 1)
for part, fault in ((other, math.nan), (model, 1.0)):
    optimizer = torch.optim.SGD(part.parameters(), lr=0.01)
    for i in range(25):
        optimizer.zero_grad()
        loss = loss_of(model, i) if part is model else part(torch.ones(2, 3)).mean() * (fault if i > 20 else 1.0)
        loss.backward(); optimizer.step()
"""
    (here / "train.py").write_text(HEAD + body)
    assert record(here / "train.py") == 0
    said = capsys.readouterr().err
    assert "EXPLODING" in said
    told = [line for line in said.splitlines() if line.startswith("recorded ")]
    assert sorted(line.rpartition(" (")[2] for line in told) == [
        "exploding, GS101, GS102, GS201, SGD, 2 tensors)",
        "no explosion so far, SGD, 4 tensors)",
    ]
    shown = said.splitlines()[-1].split()[3]
    assert find_run().name == shown
    assert f"{shown} (exploding, GS101" in said
