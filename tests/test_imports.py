"""What each door may load: reading never imports torch or matplotlib."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import make_run

ARRAYS, COMPUTE = ("numpy", "pyarrow"), ("pyarrow.compute",)
HEAVY = ("torch", "matplotlib", "pandas", "lightning", "transformers", "jinja2")
PROBE = """
import json, sys
try:
    {code}
except SystemExit:
    pass
sys.stderr.write("LOADED " + json.dumps([name for name in {known!r} if name in sys.modules]))
"""
MAIN = "sys.argv = ['gradscope', *{args!r}]; from gradscope.cli import main; main()"


def loaded(code: str, folder: Path) -> set[str]:
    """The heavy modules that `code` has loaded when it is done."""
    script = PROBE.format(code=code, known=HEAVY + ARRAYS + COMPUTE)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV_CORE")}
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, env=environment)
    assert "LOADED " in done.stderr, done.stderr
    return set(json.loads(done.stderr.rsplit("LOADED ", 1)[1]))


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import gradscope", HEAVY + ARRAYS),
        (MAIN.format(args=["--help"]), HEAVY + ARRAYS),
        (MAIN.format(args=["analyze", "--help"]), HEAVY + ARRAYS),
        (MAIN.format(args=["recommend", "RUN"]), HEAVY + COMPUTE),
        (MAIN.format(args=["explain", "GS201"]), HEAVY),
        (MAIN.format(args=["runs"]), HEAVY),
        (MAIN.format(args=["show", "RUN"]), ("torch", "matplotlib", "lightning", "transformers")),
        ("import gradscope; gradscope.load_run('RUN')", HEAVY + COMPUTE),
    ],
)
def test_heavy_imports(code: str, forbidden: tuple[str, ...], tmp_path: Path) -> None:
    run = make_run(tmp_path, [1.0 + i % 7 for i in range(60)])
    assert not loaded(code.replace("RUN", str(run.path)), tmp_path) & set(forbidden)


def test_the_check_can_fail(tmp_path: Path) -> None:
    assert "pandas" in loaded("import pandas", tmp_path)
