import ast
import dataclasses
import json
import tomllib

import pytest

from gradscope.errors import UsageError
from gradscope.recommendation import recommend, snippet
from gradscope.recommendation.snippets import FORMS
from tests.builders import make_run

BY_VALUE = {"pytorch", "lightning", "lightning-manual", "accelerate", "composer", "optax", "keras"}


@pytest.fixture
def advice(tmp_path):
    return dataclasses.replace(recommend(make_run(tmp_path, [1.0] * 30)), max_norm=0.123456)


@pytest.mark.parametrize("framework", FORMS)
def test_by_norm_holds_the_threshold_and_can_be_parsed(framework, advice):
    text = snippet(framework, advice)
    assert "0.1235" in text
    assert "{}" not in text
    _parse(framework, text)


@pytest.mark.parametrize("framework", FORMS)
def test_no_clipping(framework, advice):
    text = snippet(framework, dataclasses.replace(advice, max_norm=None))
    assert "0.1235" not in text
    _parse(framework, text)


@pytest.mark.parametrize("framework", FORMS)
def test_by_value_where_the_framework_can(framework, advice):
    by_value = dataclasses.replace(advice, by="value")
    if framework in BY_VALUE:
        text = snippet(framework, by_value)
        assert text != snippet(framework, advice)
        _parse(framework, text)
        return
    with pytest.raises(UsageError, match="these can: pytorch, lightning"):
        snippet(framework, by_value)


def test_case_does_not_matter_and_unknown_frameworks_are_named(advice):
    assert snippet("PyTorch", advice) == snippet("pytorch", advice)
    with pytest.raises(UsageError, match="'mxnet'; there are: pytorch, lightning, lightning-manual, transformers"):
        snippet("mxnet", advice)


@pytest.mark.parametrize(("value", "said"), [(1e-7, "1e-07"), (12345.6, "12350.0"), (2.0, "2.0")])
def test_thresholds_have_four_digits(advice, value, said):
    assert f"max_norm={said})" in snippet("pytorch", dataclasses.replace(advice, max_norm=value))


def _parse(framework, text):
    if framework == "deepspeed":
        json.loads(f"{{{text}}}")
    elif framework == "torchtitan":
        assert tomllib.loads(text)["training"]["max_norm"] > 0
    else:
        ast.parse(text)
