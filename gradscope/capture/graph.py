"""Walks through the autograd graph, so that a gradient can be read where it passes without adding anything to the graph."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch.autograd.graph import get_gradient_edge

Node = Any
"""A node of the autograd graph: `torch.autograd.graph.Node`, or the backward object of a custom function."""

Edge = tuple[Node, int]

T = TypeVar("T")

WIDEST = 100_000
"""Nodes after which a walk gives up: more than any one module has."""

SUMS = ("AddBackward0", "SubBackward0")
NEAR = 64
"""Nodes between one module's output and the next one's input after which the link counts as unknown."""


def edge_of(tensor: torch.Tensor) -> Edge:
    """Where the tensor's gradient arrives: the node that made it and the number of that node's output."""
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def uses(made: Sequence[torch.Tensor], edge: Edge, entries: Container[Node]) -> list[tuple[Node, list[int]]] | None:
    """The nodes between `edge` and the tensors `made` that read it, each with the places among its inputs.

    What flows through those places back into `edge`, added up, is the gradient with respect to the tensor at `edge`
    that comes through `made` alone: paths that go around them have no part in it, nor has what lies before `entries`,
    the nodes at which the walk ends. None: the graph is too large to walk.
    """
    found: list[tuple[Node, list[int]]] = []
    pending: list[Node] = [tensor.grad_fn for tensor in made]
    seen: set[Node] = set(pending)
    while pending:
        node = pending.pop()
        if node is None or node in entries:
            continue
        before = node.next_functions
        if places := [i for i, following in enumerate(before) if following == edge]:
            found.append((node, places))
        fresh = {other for other, _ in before if other is not None and other not in seen}
        seen |= fresh
        pending += fresh
        if len(seen) > WIDEST:
            return None
    return found


def only_source(node: Node | None, sources: Mapping[Node, T]) -> T | None:
    """The one source that a tensor made by `node` is computed from; None where there are several or none is near, or where
    something outside the graph, as a frozen embedding is, was added on the way.
    """
    found: list[T] = []
    pending: list[Node] = [node]
    seen: set[Node] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in sources:
            if not any(one is sources[node] for one in found):
                found.append(sources[node])
        else:
            before = [other for other, _ in node.next_functions]
            if None in before and node.name() in SUMS:
                return None
            pending += before
        if len(seen) > NEAR or len(found) > 1:
            return None
    return found[0] if found else None
