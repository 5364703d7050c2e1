"""A run handed to trackers, whose packages are stood in for: each finite number is logged once, at its step."""

import sys
from types import ModuleType

import numpy as np
import pytest

from gradscope.errors import UsageError
from gradscope.report.export import to_file, to_tracker
from tests.builders import make_run

NORMS = [1.0, 2.0, float("inf")]


class Logged:
    """Stands for a tracker's session."""

    url, dir = None, "offline/files"

    def __init__(self, *args, **kwargs):
        self.values = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def add_scalar(self, name, value, step):
        assert (name, step) not in self.values
        self.values[name, step] = value

    def log(self, values, step):
        for name, value in values.items():
            self.add_scalar(f"gradscope/{name}", value, step)

    def close(self):
        pass


@pytest.mark.parametrize(
    ("tracker", "module", "entry"), [("tensorboard", "tensorboard.summary", "Writer"), ("wandb", "wandb", "init")]
)
def test_every_finite_number_is_logged(tmp_path, monkeypatch, tracker, module, entry):
    run, session, package = make_run(tmp_path, NORMS), Logged(), ModuleType(module)
    setattr(package, entry, lambda *args, **kwargs: session)
    monkeypatch.setitem(sys.modules, tracker, package)
    monkeypatch.setitem(sys.modules, module, package)
    assert to_tracker(run, tracker)
    assert [session.values.get(("gradscope/global_norm", step)) for step in range(3)] == [1.0, 2.0, None]
    assert all(np.isfinite(value) for value in session.values.values())


def test_a_tracker_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="pip install wandb"):
        to_tracker(make_run(tmp_path, NORMS), "wandb")
    with pytest.raises(UsageError, match="tensorboard or wandb"):
        to_tracker(make_run(tmp_path / "other", NORMS), "paper")


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(UsageError, match="cannot write"):
        to_file(make_run(tmp_path / "run", NORMS), tmp_path / "none" / "x.csv")
