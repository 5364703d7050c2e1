"""Where a loss that is not finite came from: the first layer whose activations were not, read from the graph."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks

from gradscope.capture.distributed import local
from gradscope.capture.recorder import Recorder

WIDEST = 200_000
"""Nodes after which a walk through a whole graph gives up."""
VIEWS = frozenset(
    f"{name}Backward0"
    for name in (
        *("T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Alias", "Expand", "Squeeze", "Unsqueeze"),
        *("Select", "Slice", "Split", "Unbind", "Chunk", "Clone", "ToCopy"),
    )
)
"""Operations that only hand on what they are given."""
INPUTS = frozenset({"_saved_self", "_saved_other", "_saved_input", "_saved_mat1", "_saved_mat2", "_saved_query"})
"""What an operation is given, but for weights and statistics."""
PLACES = {"_saved_self": 0, "_saved_other": 1}
"""Which input of an operation is saved by this name."""

TARGETS = frozenset({"_saved_target", "_saved_weight", "_saved_pos_weight"})
"""What a loss is given besides the output of the network."""


class Broken(NamedTuple):
    """What was nonfinite first: `what` of the layer with this `parameter` (an id), its `activation` or its `input`; or an
    `operation` after it, one of `operations`, which may be to blame instead of an activation too.
    """

    parameter: int
    what: str
    operations: tuple[str, ...] = ()


class Origin(NamedTuple):
    """As `Broken`, of the layer with the parameter at `place`; `itself`: the parameter's own value is not finite."""

    place: int
    itself: bool
    what: str
    operations: tuple[str, ...] = ()


def origin_of(recorder: Recorder, loss: torch.Tensor) -> Origin | None:
    """Where a nonfinite loss, about to be differentiated, came from; None for a finite one or one that is on a device."""
    if not loss.is_cpu or loss.grad_fn is None or loss.numel() != 1 or math.isfinite(loss.item()):
        return None
    return origin_at(recorder, nonfinite_activation(loss))


@contextmanager
def watching_saves() -> Iterator[Callable[[], bool]]:
    """Tells whether activations were given to be kept elsewhere, as checkpointing does: these are not to be read."""
    hooks: Any = saved_tensors_hooks
    enter, seen = hooks.__enter__, False

    def noted(self: Any) -> None:
        nonlocal seen
        seen = True
        enter(self)

    hooks.__enter__ = noted
    try:
        yield lambda: seen
    finally:
        hooks.__enter__ = enter


def origin_at(recorder: Recorder, broken: Broken | None) -> Origin | None:
    """Where among the recorder's parameters that is; None where it is none of them."""
    place = recorder.places.get(broken.parameter) if broken is not None else None
    if broken is None or place is None:
        return None
    return Origin(place, not finite(recorder.tensors[place]), broken.what, broken.operations)


def say_what_went_first(recorder: Recorder, origin: Origin | None) -> None:
    """The step just finished is the first with something nonfinite: its loss was, and before that what `origin` names."""
    if origin is not None:
        parameter = recorder.header.parameters[origin.place]
        recorder.blame(origin.what, parameter.layer, parameter.name if origin.itself else None, origin.operations)


def nonfinite_activation(loss: torch.Tensor) -> Broken | None:
    """The first layer with a nonfinite activation, by its nonfinite parameter if it has one, or with a nonfinite input.

    None where no activation is kept, or where the loss or its targets broke: what was nonfinite first comes after the last
    layer, and not from it.

    Looks at what autograd saved for the backward pass, in the order of the forward pass.
    """
    nodes = sorted(_nodes(loss.grad_fn), key=lambda node: int(node._sequence_nr()))
    steps = [(node, _leaves(node)) for node in nodes if node.name() not in VIEWS]
    masked = _first(steps, finite)
    if masked is None or masked.sure:
        return masked and masked.broken
    later = _first(steps, _is_number)
    return later.broken if later and later.traced else masked.broken


class _Found(NamedTuple):
    """What is nonfinite first. `sure`: not only by an element of −∞, as a mask has; `traced`: to an operation that was given
    finite values.
    """

    broken: Broken | None
    sure: bool = True
    traced: bool = False


def _first(steps: list[tuple[Any, list[torch.Tensor]]], is_well: Callable[[torch.Tensor], bool]) -> _Found | None:
    """The first of these operations, with the parameters they read, that keeps something that is not well."""
    last = max((place for place, (_, own) in enumerate(steps) if own), default=-1)
    before: tuple[Any, torch.Tensor] | None = None
    for place, (node, own) in enumerate(steps):
        if (leaf := next((leaf for leaf in own if not finite(leaf)), None)) is not None:
            return _Found(Broken(id(leaf), "activation"))
        if broken := {name for name, saved in _saved(node) if not is_well(saved)}:
            if own and not _inside(node) and not all(map(_is_output, broken)):
                return _Found(Broken(id(own[0]), "input"))
            if place > last and (before is None or broken <= TARGETS or not _comes_from(node, before[0])):
                return _Found(None)
            sure = not all(_is_number(saved) for name, saved in _saved(node) if name in broken)
            made, traced = _made(node, broken, before[1] if before else next(iter(own), None))
            return _Found(made, sure, traced)
        before = (node, own[0]) if own else before
    return None


def _made(node: Any, broken: set[str], before: torch.Tensor | None) -> tuple[Broken | None, bool]:
    """What made the nonfinite values that `node` keeps: a layer, or operations after it. What was kept earlier is finite, so
    it is one of those that follow the last operation with kept values.

    `before`: a parameter of the layer to name where operations have several inputs, so that none is the one: then it is not
    traced, which comes second.
    """
    operations = _suspects(node, broken)
    if operations and (own := _leaves(operations[0])):
        return Broken(id(own[0]), "activation", tuple(map(_named, operations[1:]))), True
    layer = _layer_before(node)
    if not operations or layer is None:
        return (None if before is None else Broken(id(before), "activation")), False
    return Broken(id(layer), "operation", tuple(map(_named, operations))), True


def _suspects(node: Any, broken: set[str]) -> list[Any] | None:
    """What may have made what `node` keeps: a layer first, or operations alone. None: unknown."""
    if all(name in PLACES and node.next_functions[PLACES[name]][0] is None for name in broken):
        return [node]  # it was given a value from outside the network
    suspects = [node] if all(map(_is_output, broken)) else []
    known = bool(suspects) and any(name in INPUTS for name, _ in _saved(node))
    while not known:
        givers = _givers(node)
        if len(givers) != 1:
            return None
        node = givers[0]
        kept = list(_saved(node))
        if not all(finite(saved) for _, saved in kept):
            return None
        if not any(_is_output(name) for name, _ in kept):
            suspects.insert(0, node)
        known = bool(kept)
    return suspects


def _givers(node: Any) -> list[Any]:
    """The operations whose results it reads, but for those that only hand on what they are given."""
    found: list[Any] = []
    for one, _ in node.next_functions:
        if one is not None and not hasattr(one, "variable"):
            found += _givers(one) if one.name() in VIEWS else [one]
    return list(dict.fromkeys(found))


def _layer_before(node: Any) -> torch.Tensor | None:
    """A parameter of the nearest layer whose result `node` reads, the last one of them to run."""
    pending, seen, found = _givers(node), set(), []
    while pending:
        one = pending.pop()
        if one not in seen:
            seen.add(one)
            own = _leaves(one)
            found += [(int(one._sequence_nr()), own[0])] if own else []
            pending += [] if own else _givers(one)
    return max(found, key=lambda each: each[0])[1] if found else None


def _named(node: Any) -> str:
    """What the operation is called: `log` for LogBackward0."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", re.sub(r"Backward\d*$", "", node.name())).lower()


def _is_output(name: str) -> bool:
    return name.startswith(("_saved_result", "_saved_output"))


def _inside(node: Any) -> list[Any]:
    """The operations of the network whose results it reads."""
    following = [one for one, _ in node.next_functions if one is not None and not hasattr(one, "variable")]
    return [one for one in following if not (one.name() in VIEWS and _leaves(one))]


def _comes_from(node: Any, origin: Any) -> bool:
    """Whether it reads what `origin` gave, with nothing from outside the network added on the way unseen."""
    pending, seen = [one for one, _ in node.next_functions], set()
    while pending:
        one = pending.pop()
        if one == origin:
            return True
        if one is None or one in seen or hasattr(one, "variable"):
            continue
        seen.add(one)
        inner = [other for other, _ in one.next_functions]
        if None not in inner or any(isinstance(kept, torch.Tensor) for _, kept in _kept(one)):
            pending += inner
    return False


def _leaves(node: Any) -> list[torch.Tensor]:
    """The parameters that the node reads, as they are or through a view."""
    found = []
    for following, _ in node.next_functions:
        while following is not None and following.name() in VIEWS:
            following = following.next_functions[0][0]
        if (leaf := getattr(following, "variable", None)) is not None:
            found.append(leaf)
    return found


def finite(tensor: torch.Tensor) -> bool:
    """Whether all values of it that this process holds are finite; waits for no other process."""
    part = local(tensor.detach())
    return part is None or bool(part.isfinite().all())


def _is_number(tensor: torch.Tensor) -> bool:
    """Whether no value of it is NaN or +∞."""
    return not bool((tensor.isnan() | tensor.isposinf()).any())


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


def _saved(node: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The activations that the node keeps, by their names there; numbers belong to the loss itself."""
    for name, one in _kept(node):
        if isinstance(one, torch.Tensor) and one.is_floating_point() and one.numel() > 1:
            yield name, one.detach()


def _kept(node: Any) -> Iterator[tuple[str, Any]]:
    """All that the node keeps for its backward pass."""
    for name in dir(node):
        if name.startswith("_saved_"):
            value = getattr(node, name)
            for one in value if isinstance(value, tuple | list) else (value,):
                yield name, one
