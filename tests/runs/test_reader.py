import contextlib
import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.errors import RunFormatError, RunNotFoundError
from gradscope.recommendation import basis
from gradscope.report.build import build_report
from gradscope.report.renderers import renderer
from gradscope.runs import files, reader, stream
from gradscope.runs import run as run_module
from gradscope.runs.reader import load_run, read_header
from gradscope.runs.run import once
from gradscope.runs.schema import SCHEMA_VERSION, Ending, Header, Optimizer, Trial, from_json, to_json
from gradscope.runs.stream import StoredMatrix
from gradscope.runs.writer import RunWriter
from tests.builders import make_header, make_run


@pytest.fixture
def directory(tmp_path):
    writer = RunWriter(tmp_path / "run", make_header())
    for step in range(5):
        writer.append(step=step, loss=1.0, global_norm=1.0, grad_norm=np.ones(3), grad_max=np.ones(3))
        writer.flush()
    writer.probe(0, "forward_gain", ["fc1"], [1.0])
    writer.close()
    return writer.directory


def test_every_torn_tail_is_read_up_to_its_last_whole_row(directory):
    path = directory / files.STEPS_FILE
    whole = path.read_bytes()
    seen = set()
    for length in range(0, len(whole), 11):
        path.write_bytes(whole[:length])
        run = load_run(directory)
        count = len(run.step)
        assert run.step.tolist() == list(range(count))
        if run.notes:
            assert run.notes == (f"steps.arrow ends in a torn row: read up to row {count}",)
        seen.add(count)
    assert seen == {0, 1, 2, 3, 4, 5}


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_damaged_stream_is_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    run = make_run(folder, norms=[1.0, 2.0, 3.0], probes=[(0, "forward_gain", ["fc1"], [1.0])])
    path = run.path / data.draw(st.sampled_from([files.STEPS_FILE, files.PROBES_FILE]))
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    with contextlib.suppress(RunFormatError):
        assert len(load_run(run.path).step) <= 3
    shutil.rmtree(folder)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_a_foreign_file_is_refused_or_empty(tmp_path_factory, content):
    run = make_run(tmp_path_factory.mktemp("foreign"), norms=[1.0])
    (run.path / files.STEPS_FILE).write_bytes(content)
    with contextlib.suppress(RunFormatError):
        assert len(load_run(run.path).step) == 0


def test_a_stream_of_other_columns_is_refused(directory):
    shutil.copy(directory / files.PROBES_FILE, directory / files.STEPS_FILE)
    with pytest.raises(RunFormatError, match=r"steps\.arrow: its columns are not those that run\.json tells of"):
        load_run(directory)


def test_a_stream_of_more_or_fewer_parameters_is_not_read(directory, tmp_path):
    def put(layers):
        other = make_run(tmp_path / "other", norms=[1.0, 2.0], layers=layers)
        shutil.copy(other.path / files.STEPS_FILE, directory / files.STEPS_FILE)

    put(("a", "b", "c", "d"))
    with pytest.raises(RunFormatError, match=r"its columns are not those that run\.json tells of"):
        load_run(directory)
    put(("a", "b"))
    assert load_run(directory).notes == ("steps.arrow ends in a torn row: read up to row 0",)
    assert not len(load_run(directory).step)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("steps.arrow", {236: 216, 1703: 0, 21: 1, 835: 1, 139: 82, 1818: 255}),
        ("probes.arrow", {159: 4, 20: 1, 186: 0, 465: 255, 228: 255, 52: 255}),
    ],
)
def test_a_damaged_description_of_the_columns_ends_no_process(tmp_path, name, changes):
    run = make_run(tmp_path, norms=[1.0, 2.0, 3.0], probes=[(0, "forward_gain", ["fc1"], [1.0])])
    content = bytearray((run.path / name).read_bytes())
    for place, value in changes.items():
        content[place] = value
    (run.path / name).write_bytes(content)
    with contextlib.suppress(RunFormatError):
        assert len(load_run(run.path).step) <= 3


def test_a_missing_table_is_said(directory):
    (directory / files.PROBES_FILE).unlink()
    with pytest.raises(RunFormatError, match=r"probes\.arrow: missing"):
        load_run(directory)


def test_a_directory_that_is_not_there_or_not_a_run(tmp_path):
    with pytest.raises(RunNotFoundError, match="no run directory"):
        load_run(tmp_path / "nothing")
    with pytest.raises(RunFormatError, match=r"not a gradscope run: it has no run\.json"):
        load_run(tmp_path)


def test_a_newer_schema_is_refused_with_what_to_do(directory):
    path = directory / files.HEADER_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(RunFormatError, match=r"newer gradscope.*upgrade"):
        load_run(directory)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"x"',
        "{}",
        '{"schema_version": "1"}',
        '{"schema_version": 1}',
        '{"schema_version": 1, "parameters": 3}',
    ],
)
def test_a_damaged_header_is_refused(directory, text):
    (directory / files.HEADER_FILE).write_text(text)
    with pytest.raises(RunFormatError, match=r"run\.json: not a readable run header"):
        read_header(directory)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("measured_at", "after lunch"),
        ("name", 3),
        ("parameters", [{"name": 1}]),
        ("parameters", [[]]),
        ("versions", 5),
        ("ending", {"how": "exploded"}),
        ("created", None),
        ("seed", True),
    ],
)
def test_a_header_with_wrong_values_is_refused(directory, field, value):
    path = directory / files.HEADER_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(RunFormatError):
        read_header(directory)


def test_a_header_survives_json_and_unknown_keys(directory):
    header = make_header(trial=Trial("rehearsal", "x1", indexes=(1, 2)), optimizer=None, seed=3)
    data = json.loads(json.dumps(to_json(header))) | {"from_the_future": 1}
    assert from_json(Header, data) == header
    whole = dataclasses.replace(header, optimizer=Optimizer("SGD", (), {"momentum": 0.9}))
    assert from_json(Header, json.loads(json.dumps(to_json(whole)))) == whole


def test_a_number_without_a_fraction_is_still_a_float(directory):
    path = directory / files.HEADER_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"overhead_s": 2}))
    assert isinstance(read_header(directory).overhead_s, float)


def test_a_damaged_trial_is_left_out_and_said(tmp_path):
    trial = (Trial("rehearsal", "x1"), [1.0], [1.0])
    run = make_run(tmp_path, norms=[1.0], trials={"x1": trial})
    assert list(run.trials) == ["x1"]
    (run.trials["x1"].path / files.STEPS_FILE).unlink()
    again = load_run(run.path)
    assert again.trials == {}
    assert again.notes[0].startswith("a trial was left out: ")


def test_a_run_too_large_for_memory_is_read_by_rows(tmp_path, monkeypatch):
    norms = np.random.default_rng(0).lognormal(size=(700, 4)).astype(np.float32)
    norms[3, 1], norms[5] = np.nan, np.inf
    small = make_run(tmp_path, grad_norm=norms, layers=("a", "b", "c", "d"))
    monkeypatch.setattr(reader, "IN_MEMORY", 0)
    large = load_run(small.path)
    assert isinstance(large.norms, StoredMatrix)
    assert large.norms.shape == (700, 4)
    for rows in (7, slice(None), slice(250, 530), slice(None, None, 7), [699, 3, 3, 4], norms[:, 0] > 1, slice(0, 0)):
        np.testing.assert_array_equal(large.norms[rows], norms[rows])
        np.testing.assert_array_equal(large.peaks[rows], (norms / 2)[rows])
    np.testing.assert_array_equal(large.grad_norm, norms)
    np.testing.assert_array_equal(large.grad_max, norms / 2)
    np.testing.assert_array_equal(large.layer_grad_norm, small.layer_grad_norm)


def test_a_large_run_gives_the_report_of_a_small_one(tmp_path, monkeypatch):
    norms = np.random.default_rng(0).lognormal(size=(700, 5))
    norms[600, 2] = np.nan
    small = make_run(tmp_path, grad_norm=norms, layers=tuple("abcde"), loss=np.linspace(2, 1, 700))
    expected = build_report(small)
    monkeypatch.setattr(reader, "IN_MEMORY", 0)
    monkeypatch.setattr(basis, "HELD", 1500)
    monkeypatch.setattr(run_module, "BLOCK_VALUES", 77)
    large = build_report(load_run(small.path))
    assert large.to_dict() == expected.to_dict()
    assert renderer("html")(large) == renderer("html")(expected)
    limits = {own.layer: own.max_norm for own in large.recommendation.layers}
    before = np.percentile(norms[:600], 95, axis=0)
    assert limits == pytest.approx(dict(zip("abcde", before, strict=True)))


def test_a_compressed_stream_reads_the_same(tmp_path, monkeypatch):
    norms = np.random.default_rng(0).lognormal(size=(300, 3)).astype(np.float32)
    plain = make_run(tmp_path, grad_norm=norms)
    path = plain.path / files.STEPS_FILE
    with pa.OSFile(str(path)) as file:
        whole = pa.ipc.open_stream(file).read_all()
    with pa.OSFile(str(path), "wb") as file:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(file, whole.schema, options=options) as stream:
            stream.write_table(whole)
    np.testing.assert_array_equal(load_run(plain.path).grad_norm, norms)
    monkeypatch.setattr(reader, "IN_MEMORY", 0)
    np.testing.assert_array_equal(load_run(plain.path).norms[250:260], norms[250:260])


def test_many_rows_are_gathered_in_several_pieces(directory, monkeypatch):
    expected = load_run(directory)
    monkeypatch.setattr(stream, "GATHERED", 0)
    again = load_run(directory)
    assert again.step.tolist() == expected.step.tolist() == list(range(5))
    np.testing.assert_array_equal(again.grad_norm, expected.grad_norm)


def test_losses_of_other_ranks_are_read_up_to_their_last_whole_record(tmp_path):
    run = make_run(tmp_path, [1.0] * 3, ranks={10: [4.0, None, float("nan")], 2: [1.0, 2.0, 3.0]})
    folder = run.path / "ranks"
    with (folder / "2.f64").open("ab") as file:
        file.write(b"torn")
    (folder / "notes.f64").write_bytes(b"x" * 16)
    again = load_run(run.path)
    assert list(again.ranks) == [2, 10]
    assert again.ranks[2].loss.tolist() == [1, 2, 3]
    assert again.ranks[10].step.tolist() == [0, 2]
    assert np.isnan(again.ranks[10].loss[1])
    assert load_run(make_run(tmp_path, [1.0]).path).ranks == {}


def test_trials_that_had_ended_are_taken_as_they_are(tmp_path):
    trials = {
        "done": (Trial("candidate", "done"), np.ones(3), np.ones(3), Ending("finished", 3)),
        "going": (Trial("candidate", "going"), np.ones(3), np.ones(3), Ending("recording")),
    }
    run = make_run(tmp_path, [1.0] * 5, trials=trials)
    again = load_run(run.path, run.trials)
    assert again.trials["done"] is run.trials["done"]
    assert again.trials["going"] is not run.trials["going"]
    assert again.trials["going"].loss.tolist() == [1.0] * 3


def test_what_is_asked_once_is_kept_with_its_run(tmp_path):
    asked = []

    @once
    def steps(run):
        asked.append(run)
        return len(run.step)

    one, other = (make_run(tmp_path, [1.0] * count) for count in (5, 7))
    assert [steps(one), steps(other), steps(one)] == [5, 7, 5]
    assert [run.path for run in asked] == [one.path, other.path]
    assert steps(dataclasses.replace(one, step=one.step[:2])) == 2
