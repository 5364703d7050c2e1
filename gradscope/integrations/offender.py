"""Where a loss that is not finite came from: the first layer whose activations were not, read from the graph."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from gradscope.capture.distributed import local
from gradscope.capture.recorder import Recorder
from gradscope.integrations.find import WIDEST

VIEWS = frozenset({"TBackward0", "TransposeBackward0", "PermuteBackward0", "ViewBackward0", "UnsafeViewBackward0"})


class Origin(NamedTuple):
    """The parameter at `place` belongs to the layer whose activations broke first; `itself`: its own value is not finite."""

    place: int
    itself: bool


def origin_of(recorder: Recorder, loss: torch.Tensor) -> Origin | None:
    """Where a nonfinite loss, about to be differentiated, came from; None for a finite one or one that is on a device."""
    if not loss.is_cpu or loss.grad_fn is None or loss.numel() != 1 or math.isfinite(loss.item()):
        return None
    return origin_at(recorder, nonfinite_activation(loss))


def origin_at(recorder: Recorder, parameter: int | None) -> Origin | None:
    """The layer of the parameter with this id; None where it is none of the recorder's."""
    place = recorder.places.get(parameter) if parameter is not None else None
    return None if place is None else Origin(place, not finite(recorder.tensors[place]))


def say_what_went_first(recorder: Recorder, origin: Origin | None) -> None:
    """The step just finished is the first with something nonfinite: its loss was, and before that what `origin` names."""
    found = recorder.header.first_nonfinite
    if origin is None or found is None or (found.went_first, found.step) != ("loss", recorder.step - 1):
        return
    parameter = recorder.header.parameters[origin.place]
    name = parameter.name if origin.itself else None
    recorder.update_header(
        first_nonfinite=dataclasses.replace(found, went_first="activation", layer=parameter.layer, parameter=name)
    )


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
