from itertools import combinations

import numpy as np
import pytest

from gradscope.diagnosis.model import CannotRunError
from gradscope.diagnosis.rules.sorted_data import check
from tests.builders import make_run


def found(tmp_path, batches, classes=10):
    """`batches`: the classes of the samples of each sampled batch."""
    probes = [(0, "classes", ["(root)"], [float(classes)])]
    for step, batch in enumerate(batches):
        labels, counts = np.unique(batch, return_counts=True)
        probes.append((step, "labels", [str(label) for label in labels], counts.tolist()))
    return list(check(make_run(tmp_path, [1.0] * 50, probes=probes)))


def test_data_that_comes_class_by_class(tmp_path):
    batches = [[0] * 16, [0] * 16, [0] * 10 + [1] * 6, [1] * 16, [2] * 16]
    (finding,) = found(tmp_path, batches)
    samples = [(label, place) for place, batch in enumerate(batches) for label in batch]
    shares = {True: [], False: []}
    for (label, place), (other, elsewhere) in combinations(samples, 2):
        shares[place == elsewhere].append(label == other)
    assert (finding.code, finding.severity) == ("GS308", "warning")
    assert finding.value == pytest.approx(np.mean(shares[True]) - np.mean(shares[False]))
    assert (finding.first_step, finding.last_step) == (0, 4)


def test_one_class_for_as_long_as_was_looked(tmp_path):
    (finding,) = found(tmp_path, [[3] * 32] * 4)
    assert finding.message == "All 128 samples of 4 sampled batches have one class, of 10 that the model tells apart."


@pytest.mark.parametrize(
    ("batches", "classes"),
    [
        (np.random.default_rng(0).integers(0, 10, (8, 16)), 10),
        (np.random.default_rng(1).integers(0, 2, (8, 16)), 2),
        (np.random.default_rng(2).integers(0, 2, (8, 8)), 2),
        (np.random.default_rng(3).permuted(np.repeat([range(4)], 8, axis=1).repeat(8, axis=0), axis=1), 4),
        ([[0] * 64] * 8, 2),
        ([[0] * 4, [1] * 4] * 9, 2),
        ([[0] * 20, [1] * 20], 2),
    ],
    ids=["shuffled", "two classes", "small batches", "balanced", "rare events", "tiny batches", "too few samples"],
)
def test_shuffled_data_and_too_little_of_it(tmp_path, batches, classes):
    assert not found(tmp_path, batches, classes)


def test_where_nothing_was_sampled(tmp_path):
    with pytest.raises(CannotRunError, match="no step was sampled"):
        list(check(make_run(tmp_path, [1.0] * 50)))
