"""Where a loss that is not finite came from: the first layer whose activations were not, read from the graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from gradscope.integrations.find import WIDEST


def nonfinite_activation(loss: torch.Tensor) -> int | None:
    """The id of a parameter of the first layer with a nonfinite activation; None where none is kept.

    Looks at what autograd saved for the backward pass, in the order of the forward pass.
    """
    layer: int | None = None
    for node in sorted(_nodes(loss.grad_fn), key=lambda node: int(node._sequence_nr())):
        for following, _ in node.next_functions:
            if (leaf := getattr(following, "variable", None)) is not None:
                layer = id(leaf)
        if any(not bool(saved.isfinite().all()) for saved in _saved(node)):
            return layer
    return None


def _nodes(root: Any) -> list[Any]:
    """Every operation that `root` depends on; empty where there are too many."""
    pending, seen = [root], {root}
    while pending:
        node = pending.pop()
        fresh = {other for other, _ in getattr(node, "next_functions", ()) if other is not None and other not in seen}
        seen |= fresh
        pending += fresh
        if len(seen) > WIDEST:
            return []
    return [node for node in seen if node is not None and not hasattr(node, "variable")]


def _saved(node: Any) -> Iterator[torch.Tensor]:
    """The activations that the node keeps; numbers belong to the loss itself."""
    for name in dir(node):
        if name.startswith("_saved_"):
            value = getattr(node, name)
            for one in value if isinstance(value, tuple | list) else (value,):
                if isinstance(one, torch.Tensor) and one.is_floating_point() and one.numel() > 1:
                    yield one.detach()
