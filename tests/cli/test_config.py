"""Settings from files and the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradscope.cli.config import load_config, per_command
from gradscope.errors import ConfigError
from tests.builders import make_run
from tests.cli.run import gradscope


def test_the_file_sets_a_default_and_a_flag_wins(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(here, [float(i + 1) for i in range(100)])
    (here / "gradscope.toml").write_text("percentile = 50\n", encoding="utf-8")
    assert float(gradscope(capsys, "recommend", str(run.path), "-q").out) == pytest.approx(50.5)
    assert float(gradscope(capsys, "recommend", str(run.path), "-q", "-p", "10").out) == pytest.approx(10.9)


def test_pyproject_is_read_where_there_is_no_own_file(here: Path) -> None:
    (here / "pyproject.toml").write_text("[tool.gradscope]\nbatch-size = 8\n", encoding="utf-8")
    assert load_config() == {"batch_size": 8}
    assert per_command(load_config())["analyze"] == {"batch_size": 8}
    (here / "gradscope.toml").write_text("steps = 10\n", encoding="utf-8")
    assert load_config() == {"steps": 10}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz = 50", "did you mean steps?"),
        ("zzz = 50", "known are"),
        ('steps = "50"', "write int"),
        ("steps = true", "write int"),
        ("steps = ", "not readable as TOML"),
    ],
)
def test_a_wrong_setting_is_an_error(text: str, said: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "gradscope.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        load_config()
    result = gradscope(capsys, "runs")
    assert result.code == 2
    assert "gradscope.toml" in result.err


def test_a_misspelt_variable_is_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADSCOPE_STEPZ", "3")
    with pytest.raises(ConfigError, match="did you mean GRADSCOPE_STEPS"):
        load_config()
