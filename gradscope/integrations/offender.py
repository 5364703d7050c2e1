"""Where a loss that is not finite came from: the first layer whose activations were not, read from the graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from gradscope.capture.distributed import local
from gradscope.integrations.find import WIDEST

VIEWS = frozenset({"TBackward0", "TransposeBackward0", "PermuteBackward0", "ViewBackward0", "UnsafeViewBackward0"})


def nonfinite_activation(loss: torch.Tensor) -> int | None:
    """The id of a parameter of the first layer with a nonfinite activation, its nonfinite one if it has one itself.

    None where no activation is kept.

    Looks at what autograd saved for the backward pass, in the order of the forward pass.
    """
    before: torch.Tensor | None = None
    for node in sorted(_nodes(loss.grad_fn), key=lambda node: int(node._sequence_nr())):
        if node.name() in VIEWS:
            continue
        own = _leaves(node)
        if (broken := next((leaf for leaf in own if not finite(leaf)), None)) is not None:
            return id(broken)
        if any(not finite(saved) for saved in _saved(node)):  # mostly inputs: what came before made them
            made = before if before is not None else next(iter(own), None)
            return None if made is None else id(made)
        before = own[0] if own else before
    return None


def _leaves(node: Any) -> list[torch.Tensor]:
    """The parameters that the node reads, as they are or through a view."""
    found = []
    for following, _ in node.next_functions:
        inner = [one for one, _ in following.next_functions] if following and following.name() in VIEWS else [following]
        found += [leaf for one in inner if (leaf := getattr(one, "variable", None)) is not None]
    return found


def finite(tensor: torch.Tensor) -> bool:
    """Whether all values of it that this process holds are finite; waits for no other process."""
    part = local(tensor.detach())
    return part is None or bool(part.isfinite().all())


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
