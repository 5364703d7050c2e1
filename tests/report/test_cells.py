import dataclasses

import numpy as np
import pytest

from gradscope.report.cells import make_cells
from gradscope.report.heatmap import ABSENT, NONFINITE, ZERO, make_heatmap
from gradscope.report.png import palette_png
from gradscope.runs import run as module
from gradscope.runs.schema import Parameter
from tests.builders import make_run
from tests.report.builders import make_report


def two_layers(folder, norms, **columns):
    parameters = (
        Parameter("a.weight", "a", "Linear", (2, 2), "float32", 1),
        Parameter("b.weight", "b", "Linear", (2, 2), "float32", 0),
        Parameter("a.bias", "a", "Linear", (2,), "float32", 1),
        Parameter("c.weight", "c", "Linear", (2,), "float32", 2, trainable=False),
    )
    return make_run(folder, grad_norm=norms, parameters=parameters, columns=columns)


def test_short_runs_keep_every_step(tmp_path):
    run = make_run(tmp_path, grad_norm=np.random.default_rng(0).lognormal(size=(37, 3)))
    cells = make_cells(run)
    assert not cells.pooled
    np.testing.assert_allclose(cells.norm, run.layer_grad_norm.T, rtol=1e-6)
    np.testing.assert_allclose(cells.median, np.median(run.layer_grad_norm, axis=0), rtol=1e-6)
    np.testing.assert_allclose(cells.final, run.layer_grad_norm[-1], rtol=1e-6)


def test_long_runs_keep_every_spike_whatever_the_chunks(tmp_path, monkeypatch):
    norms = np.random.default_rng(0).lognormal(size=(1500, 3))
    norms[777, 1] = 1e6
    run = make_run(tmp_path, grad_norm=norms)
    whole = make_cells(run)
    assert whole.pooled
    assert whole.norm.shape == (3, 400)
    assert whole.norm[1].max() == pytest.approx(1e6)
    np.testing.assert_array_equal(whole.first[1:], whole.last[:-1] + 1)
    monkeypatch.setattr(module, "BLOCK_VALUES", 100)
    pieces = make_cells(run)
    np.testing.assert_array_equal(whole.norm, pieces.norm)
    np.testing.assert_array_equal(whole.maximum, pieces.maximum)


def test_a_missing_gradient_is_not_a_nonfinite_one(tmp_path):
    nan, inf = np.nan, np.inf
    run = two_layers(tmp_path, [[3, 1, 4, nan], [nan, 1, 4, nan], [3, inf, nan, nan]], nonfinite=[0, 0, 7])
    cells = make_cells(run)
    names = [layer.name for layer in run.layers]
    assert names == ["b", "a", "c"]
    a, b, c = names.index("a"), names.index("b"), names.index("c")
    assert cells.norm[a].tolist() == [5, 4, 3]
    assert cells.nonfinite[a].tolist() == [False, False, True]
    assert cells.nonfinite[b].tolist() == [False, False, True]
    assert np.isnan(cells.norm[c]).all()
    assert not cells.nonfinite[c].any()
    assert cells.nonfinite_steps.tolist() == [1, 1, 0]


def test_a_run_of_nothing_but_nan_is_all_nonfinite(tmp_path):
    run = two_layers(tmp_path, np.full((2, 4), np.nan), nonfinite=[5, 5])
    cells = make_cells(run)
    assert cells.nonfinite[:2].all()
    assert not cells.nonfinite[2].any()
    assert np.isnan(cells.median).all()


def test_an_empty_run_has_empty_cells(tmp_path):
    cells = make_cells(make_run(tmp_path, []))
    assert cells.norm.shape == (3, 0)
    assert np.isnan(cells.maximum).all()
    run = make_run(tmp_path, [1.0, 2.0])
    bare = dataclasses.replace(
        run, header=dataclasses.replace(run.header, parameters=()), norms=np.zeros((2, 0), np.float32)
    )
    assert make_cells(bare).norm.shape == (0, 2)
    assert make_heatmap(make_report(make_run(tmp_path, []))) is None


def codes(heat):
    import base64

    return np.frombuffer(base64.b64decode(heat.data["codes"]), "<u2").reshape(heat.layers, heat.columns)


def test_heatmap_codes_are_the_logarithms(tmp_path):
    norms = np.geomspace(1e-3, 1e3, 21).reshape(7, 3)
    norms[0, 0] = 0
    run = make_run(tmp_path, grad_norm=norms)
    heat = make_heatmap(make_report(run))
    found = codes(heat)
    assert found[0, 0] == ZERO
    low, high = heat.data["low"], heat.data["high"]
    decoded = 10 ** (low + (found.astype(float) - 2) / 65532 * (high - low))
    known = found != ZERO
    np.testing.assert_allclose(decoded[known], run.layer_grad_norm.T[known], rtol=2e-4)


def test_heatmap_marks_what_is_no_number(tmp_path):
    run = two_layers(tmp_path, [[np.inf, 1, 4, np.nan], [3, 1, 4, np.nan]], nonfinite=[1, 0])
    heat = make_heatmap(make_report(run))
    assert codes(heat)[1, 0] == NONFINITE
    assert (codes(heat)[2] == ABSENT).all()
    assert heat.nonfinite
    assert heat.absent


def test_a_single_value_makes_a_heatmap(tmp_path):
    heat = make_heatmap(make_report(make_run(tmp_path, [2.0], layers=("fc",))))
    assert (heat.low, heat.high) == ("2", "2")
    assert not heat.nonfinite


def test_the_picture_is_read_back(tmp_path):
    import io

    from PIL import Image

    shades = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    palette = np.array([[0, 0, 0], [10, 20, 30], [255, 255, 255]], np.uint8)
    image = Image.open(io.BytesIO(palette_png(shades, palette))).convert("RGB")
    np.testing.assert_array_equal(np.asarray(image), palette[shades])


def test_very_many_layers_are_pooled_in_the_picture(tmp_path):
    run = make_run(tmp_path, [1.0, 2.0, 3.0], layers=tuple(f"l{i}" for i in range(1200)))
    heat = make_heatmap(make_report(dataclasses.replace(run)))
    assert heat.layers == 1200
    assert len(heat.data["names"]) == 1200
