"""Made-up batches of the right shape, for a spec that has a model and no data. Always said in every output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gradscope.errors import SpecError
from gradscope.workload.data import BATCH_SIZE, Data
from gradscope.workload.move import mapped
from gradscope.workload.rng import mixed
from gradscope.workload.target import Spec


def read_synthetic(spec: Spec, batch_size: int | None, seed: int) -> Data | None:
    """Random batches from `input_shape` (without the batch dimension) or like `example_input`; None without either.

    Raises:
        SpecError: either is not what its name says.
    """
    example, shape = spec.get("example_input"), spec.get("input_shape")
    if example is not None:
        name, like = "example_input", _leaves(example, spec)
    elif shape is not None:
        name, like = "input_shape", _shaped(shape, batch_size or BATCH_SIZE, spec)
    else:
        return None
    return Data(
        SyntheticBatches(like, seed), name, spec.where(name), "synthetic: normal random numbers", synthetic=True
    )


class SyntheticBatches:
    """Batch `index` is random from the seed and `index` alone; `answer`, when set, makes the target from the input."""

    shuffled = True

    def __init__(self, like: Any, seed: int) -> None:
        self._like, self._seed = like, seed
        self.answer: Callable[[Any, torch.Generator], Any] | None = None

    def at(self, index: int) -> Any:
        """A batch like the example: normal numbers for floats, values of the same range for whole numbers."""
        generator = torch.Generator().manual_seed(mixed(self._seed, index))
        made = mapped(self._like, lambda leaf: _random(leaf, generator))
        return made if self.answer is None else self.answer(made, generator)

    def reach(self, index: int) -> bool:
        """True: any batch is made from its index."""
        return index >= 0

    def places(self, index: int) -> list[int]:
        """None: the samples are in no data."""
        del index
        return []


def with_targets(batches: SyntheticBatches, output: torch.Tensor, criterion: Any) -> str:
    """Give the batches targets that suit a criterion, or normal numbers like the output; says which."""
    kind = _target_kind(criterion, output)
    shape = tuple(output.shape)

    def answer(made: Any, generator: torch.Generator) -> Any:
        if isinstance(made, dict):
            return made | {"target": _made_target(kind, shape, generator)}
        inputs = tuple(made) if isinstance(made, tuple | list) else (made,)
        return (*inputs, _made_target(kind, shape, generator))

    batches.answer = answer
    return {"classes": "random classes", "binary": "random 0 and 1", "normal": "normal random numbers"}[kind]


def _target_kind(criterion: Any, output: torch.Tensor) -> str:
    name = getattr(criterion, "__name__", type(criterion).__name__).lower()
    if (
        ("crossentropy" in name or "cross_entropy" in name or "nll" in name)
        and "binary" not in name
        and output.ndim > 1
    ):
        return "classes"
    return "binary" if "bce" in name or "binary" in name else "normal"


def _made_target(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if kind == "classes":
        return torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    if kind == "binary":
        return torch.randint(2, shape, generator=generator).float()
    return torch.randn(shape, generator=generator)


def _shaped(shape: Any, rows: int, spec: Spec) -> torch.Tensor:
    sizes = (
        (shape,) if isinstance(shape, int) else tuple(shape) if isinstance(shape, tuple | list | torch.Size) else None
    )
    if sizes is None or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise SpecError(
            f"{spec.where('input_shape')}: input_shape is {shape!r}; write the shape of one input, for example (3, 32, 32)"
        )
    return torch.zeros(rows, *sizes)


def _leaves(example: Any, spec: Spec) -> Any:
    found: list[torch.Tensor] = []

    def leaf(value: Any) -> Any:
        if not isinstance(value, torch.Tensor | np.ndarray):
            return value
        found.append(torch.as_tensor(value).detach())
        return found[-1]

    like = mapped(example, leaf)
    if not found or any(not tensor.ndim for tensor in found):
        raise SpecError(
            f"{spec.where('example_input')}: example_input is a {type(example).__name__}; give a tensor with the batch "
            "dimension first, or a tuple or dict of them"
        )
    return like


def _random(like: Any, generator: torch.Generator) -> Any:
    if not isinstance(like, torch.Tensor):
        return like
    if like.dtype.is_floating_point:
        return torch.randn(like.shape, generator=generator).to(like.dtype)
    if like.dtype.is_complex:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)
    low = int(like.min()) if like.numel() else 0
    high = int(like.max()) + 1 if like.numel() else 1
    return torch.randint(low, high, like.shape, generator=generator).to(like.dtype)
