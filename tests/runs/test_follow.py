import numpy as np
import pytest

from gradscope.errors import RunFormatError
from gradscope.runs.follow import Follower
from gradscope.runs.writer import RunWriter
from tests.builders import make_header


def append(writer, step):
    norms = np.full(3, float(step))
    writer.append(step=step, loss=step / 2, global_norm=float(step), grad_norm=norms, grad_max=norms)


@pytest.fixture
def writer(tmp_path):
    writer = RunWriter(tmp_path / "run", make_header())
    yield writer
    writer.close()


def test_rows_come_in_as_they_are_written(writer):
    follower = Follower(writer.directory)
    writer.flush()
    assert follower.poll() is None
    append(writer, 0)
    append(writer, 1)
    writer.flush()
    rows = follower.poll()
    assert rows.step.tolist() == [0, 1]
    assert rows.loss.tolist() == [0.0, 0.5]
    assert rows.grad_norm.tolist() == [[0.0] * 3, [1.0] * 3]
    assert follower.poll() is None
    append(writer, 2)
    writer.flush()
    assert follower.poll().global_norm.tolist() == [2.0]


def test_the_end_is_seen(writer):
    follower = Follower(writer.directory)
    append(writer, 0)
    writer.close()
    assert follower.poll().step.tolist() == [0]
    assert follower.header.ending.how == "finished"
    assert follower.poll() is None


def test_half_a_batch_waits(writer, tmp_path):
    append(writer, 0)
    writer.close()
    whole = (writer.directory / "steps.arrow").read_bytes()
    path = tmp_path / "run" / "steps.arrow"
    for cut in range(1, len(whole), 97):
        path.write_bytes(whole[:cut])
        follower = Follower(writer.directory)
        early = follower.poll()
        path.write_bytes(whole)
        late = follower.poll()
        assert (early is None) != (late is None)
        assert (early or late).step.tolist() == [0]


def test_a_file_that_was_thinned_out_is_read_anew(writer):
    follower = Follower(writer.directory)
    for step in range(4):
        append(writer, step)
    writer.flush()
    assert len(follower.poll().step) == 4
    writer.thin(2)
    assert follower.poll() is None
    append(writer, 4)
    writer.flush()
    assert follower.poll().step.tolist() == [4]


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunFormatError):
        Follower(tmp_path)
