from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from gradscope.workload.inference import CannotInferError, infer_loss

L = torch.manual_seed(0)
OUT = torch.randn(6, 3)
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("output", "target", "name", "expected"),
    [
        (OUT, CLASSES, "cross_entropy", F.cross_entropy(OUT, CLASSES)),
        (OUT, CLASSES.int(), "cross_entropy", F.cross_entropy(OUT, CLASSES)),
        (OUT, CLASSES[:, None], "cross_entropy", F.cross_entropy(OUT, CLASSES)),
        (OUT.softmax(1), CLASSES, "nll_loss of the log", F.cross_entropy(OUT, CLASSES)),
        (OUT.log_softmax(1), CLASSES, "nll_loss", F.cross_entropy(OUT, CLASSES)),
        (OUT.reshape(2, 3, 3), CLASSES.reshape(2, 3)[:, :3], "two", None),
        (torch.arange(24.0).reshape(2, 4, 3), torch.zeros(2, 4).long(), "cross_entropy", None),
        (torch.arange(24.0).reshape(2, 3, 4), torch.zeros(2, 4).long(), "cross_entropy", None),
        (torch.arange(48.0).reshape(2, 3, 4, 2), torch.zeros(2, 4, 2).long(), "cross_entropy", None),
        (
            OUT[:, :1],
            CLASSES.clamp(max=1),
            "binary_cross_entropy_with_logits",
            F.binary_cross_entropy_with_logits(OUT[:, 0], CLASSES.clamp(max=1).float()),
        ),
        (OUT[:, 0], CLASSES > 1, "binary_cross_entropy_with_logits", None),
        (OUT[:, 0], (CLASSES > 1).float()[:, None], "binary_cross_entropy_with_logits", None),
        (OUT[:, 0].sigmoid(), (CLASSES > 1).float(), "binary_cross_entropy", None),
        (OUT, (OUT > 0).float(), "binary_cross_entropy_with_logits", None),
        (OUT, F.one_hot(CLASSES).float(), "cross_entropy", F.cross_entropy(OUT, CLASSES)),
        (OUT, OUT + 1, "mse_loss", torch.tensor(1.0)),
        (OUT[:, :1], OUT[:, 0] + 2, "mse_loss", torch.tensor(4.0)),
        (OUT[:, 0], OUT[:, :1] + 2, "mse_loss", torch.tensor(4.0)),
    ],
)
def test_what_targets_speak_for(
    output: torch.Tensor, target: torch.Tensor, name: str, expected: torch.Tensor | None
) -> None:
    if name == "two":
        with pytest.raises(CannotInferError, match="two dimensions could be the classes"):
            infer_loss(output, target, None)
        return
    found = infer_loss(output, target, None)
    assert found.name == name
    value = found.loss(output, target)
    assert value.ndim == 0
    if expected is not None:
        assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_classes_are_told_apart_by_dimension() -> None:
    tokens = torch.randn(2, 4, 3)
    goal = torch.randint(3, (2, 4))
    assert infer_loss(tokens, goal, None).loss(tokens, goal).item() == pytest.approx(
        F.cross_entropy(tokens.flatten(0, 1), goal.flatten()).item()
    )
    pixels = torch.randn(2, 3, 4, 5)
    goal = torch.randint(3, (2, 4, 5))
    assert infer_loss(pixels, goal, None).loss(pixels, goal).item() == pytest.approx(
        F.cross_entropy(pixels, goal).item()
    )


def test_next_tokens_with_and_without_targets() -> None:
    tokens, out = torch.randint(9, (2, 5)), torch.randn(2, 5, 9)
    expected = F.cross_entropy(out[:, :-1].reshape(-1, 9), tokens[:, 1:].reshape(-1))
    for target in (None, tokens.clone()):
        found = infer_loss(out, target, tokens)
        assert found.name == "next-token cross_entropy"
        assert found.loss(out, tokens).item() == pytest.approx(expected.item())
    shifted = tokens.roll(-1, 1)
    shifted[0, 0] = (tokens[0, 0] + 1) % 9
    assert infer_loss(out, shifted, tokens).name == "cross_entropy"


def test_ignored_targets_do_not_count() -> None:
    goal = torch.tensor([0, -100, 2, 0, 1, 2])
    assert infer_loss(OUT, goal, None).loss(OUT, goal).item() == pytest.approx(F.cross_entropy(OUT, goal).item())
    assert infer_loss(OUT, torch.full((6,), -100), None).name == "cross_entropy"


@pytest.mark.parametrize(
    ("output", "target", "inputs", "message"),
    [
        (OUT.long(), CLASSES, None, "output is torch.int64, not floating point"),
        (OUT, None, None, "the batch has no target"),
        (OUT, None, OUT[:, :2], r"no target, and the output is \(6, 3\)"),
        (OUT, "text", None, "the target is a str"),
        (OUT, CLASSES[:4], None, r"int64 targets \(4,\) and output \(6, 3\)"),
        (OUT, CLASSES + 1, None, "targets run from 1 to 3, and 3 logits allow 0 to 2"),
        (OUT, CLASSES - 1, None, "targets run from -1 to 1"),
        (OUT, CLASSES > 1, None, r"bool targets \(6,\) and output \(6, 3\)"),
        (OUT[:, :1], CLASSES, None, "int64 targets up to 2 and a single logit"),
        (OUT, OUT[:, :2], None, r"float32 targets \(6, 2\) and output \(6, 3\)"),
        (torch.randn(2, 5, 9), None, torch.full((2, 5), 9), "targets run from 9 to 9"),
    ],
)
def test_nothing_fits(output: torch.Tensor, target: object, inputs: torch.Tensor | None, message: str) -> None:
    with pytest.raises(CannotInferError, match=message):
        infer_loss(output, target, inputs)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.lists(st.integers(1, 4), max_size=4),
    st.sampled_from([torch.float32, torch.int64, torch.bool, torch.float16, torch.uint8, torch.complex64]),
)
def test_any_shapes_give_a_scalar_or_a_reason(out: list[int], goal: list[int], dtype: torch.dtype) -> None:
    output = torch.randn(out, requires_grad=True)
    target = torch.randint(2, goal).to(dtype)
    with contextlib.suppress(CannotInferError):
        loss = infer_loss(output, target, None).loss(output, target)
        assert loss.ndim == 0
        assert loss.requires_grad
