"""What one rank does, in a process of its own that believes in a second one; real pairs are in tests.integrations."""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch import nn

from gradscope.capture import ranks
from gradscope.capture.recorder import Recorder
from gradscope.errors import UsageError
from gradscope.runs.reader import load_run


@pytest.fixture
def become(monkeypatch):
    """Become a rank of two in this process, over one store."""
    store = dist.HashStore()

    def as_rank(rank):
        if dist.is_initialized():
            dist.destroy_process_group()
        monkeypatch.setattr(ranks, "_met", Counter())
        dist.init_process_group("fake", store=store, rank=rank, world_size=2)

    pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    yield as_rank
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def model():
    return nn.Linear(3, 1)


def become_the_other(become, model, tmp_path):
    """Rank 1, where rank 0 has begun a run of the model."""
    become(0)
    with Recorder(model, directory=tmp_path / "run"):
        pass
    become(1)


def train(recorder, losses):
    for loss in losses:
        recorder.tensors[0].grad = torch.ones_like(recorder.tensors[0])
        for part in loss if isinstance(loss, list) else [loss]:
            recorder.observe(part)
        recorder.finish_step()


def test_a_rank_writes_its_losses_into_the_run_of_rank_0(become, model, tmp_path):
    become(0)
    with Recorder(model, directory=tmp_path / "run") as first:
        train(first, [1.0, 2.0, 3.0])
    become(1)
    with Recorder(model) as other:
        train(other, [5.0, None, [float("inf"), 1.0], torch.tensor([2.0, 4.0]).mean()])
        with pytest.raises(UsageError, match="rank 0 does"):
            _ = other.directory
    run = load_run(tmp_path / "run")
    assert run.loss.tolist() == [1, 2, 3]
    assert run.ranks[1].step.tolist() == [0, 2, 3]
    assert run.ranks[1].loss.tolist() == [5, float("inf"), 3]
    assert run.header.world_size == 2


def test_what_came_before_rank_0_began_is_kept(become, model, tmp_path):
    become(1)
    with Recorder(model) as other:
        train(other, [5.0, 6.0])
        dist.destroy_process_group()
        become(0)
        with Recorder(model, directory=tmp_path / "run"):
            train(other, [7.0])
    assert load_run(tmp_path / "run").ranks[1].loss.tolist() == [5, 6, 7]


def test_where_rank_0_records_nothing_a_rank_stops_looking(become, model, tmp_path):
    become(1)
    with Recorder(model) as other:
        train(other, [1.0] * (ranks.LOOKS + 5))
        become(0)
        with Recorder(model, directory=tmp_path / "run"):
            train(other, [1.0])
    assert load_run(tmp_path / "run").ranks == {}


def test_a_directory_on_another_host_is_not_made_here(become, model, tmp_path):
    become(0)
    with Recorder(model, directory=tmp_path / "run"):
        pass
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    become(1)
    with Recorder(model) as other:
        train(other, [1.0, 2.0])
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_another_model_is_another_run(become, model, tmp_path):
    become_the_other(become, model, tmp_path)
    with Recorder(nn.Sequential(nn.Linear(3, 1))) as other:
        train(other, [1.0])
    assert load_run(tmp_path / "run").ranks == {}


def test_a_trial_of_another_rank_writes_nothing(become, model, tmp_path):
    from gradscope.runs.schema import Trial

    become_the_other(become, model, tmp_path)
    with Recorder(model) as other:
        train(other, [1.0])
        with other.trial(Trial("rehearsal", "x1")) as child:
            train(child, [9.0])
        train(other, [2.0])
    assert load_run(tmp_path / "run").ranks[1].loss.tolist() == [1, 2]


def test_a_forked_child_writes_nothing(become, model, tmp_path):
    become_the_other(become, model, tmp_path)
    with Recorder(model) as other:
        train(other, [1.0])
        if (child := os.fork()) == 0:
            train(other, [9.0])
            os._exit(0)
        os.waitpid(child, 0)
        train(other, [2.0])
    assert load_run(tmp_path / "run").ranks[1].loss.tolist() == [1, 2]


def test_alone_nobody_is_met(model, tmp_path):
    with Recorder(model, directory=tmp_path / "run") as recorder:
        train(recorder, [1.0])
    assert not (tmp_path / "run" / "ranks").exists()
    assert load_run(tmp_path / "run").ranks == {}
