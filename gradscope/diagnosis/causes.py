"""What can make a layer the one that explodes, measured against its peers: initialisation, learning rate, gain, bias, norm.

A layer is told by its cause, how it was set up, and not by its symptoms: a layer with a 30 × weight has the smallest
gradient of its own, and the smallest update relative to its weight.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnosis.initial import Pieces, fans, initial_pieces, of_layers
from gradscope.diagnosis.peers import Excess, choose, excess, smallest
from gradscope.diagnosis.series import Bools, Indexes, log10, median
from gradscope.diagnosis.window import stable_prefix
from gradscope.runs.run import Floats, Run
from gradscope.runs.schema import is_norm

FIRST_LAYER = 0.5
"""No gradient reaches the input of the first layer: half of its forward excess counts."""
SIBLINGS, NORMALISED = 3, 0.75
AMPLIFIES = 0.1
"""Decades: a gain of 1.25, below which nothing is amplified."""


@dataclass(frozen=True)
class Setting:
    """The layers of a run and what the probes saw of them. (P,) by parameter, (L,) by layer, log10, NaN: not measured."""

    run: Run

    @cached_property
    def kinds(self) -> NDArray[np.str_]:
        """(L,): the type of each layer."""
        return np.array([layer.type for layer in self.run.layers], str)

    @cached_property
    def across_blocks(self) -> NDArray[np.str_]:
        """(L,): the name of each layer with a star for every number but a last part, which tells layers of a block apart:
        `blocks.*.fc1`, `blocks.*.mlp.2`.
        """
        return np.array([re.sub(r"(?<![^.])\d+(?=\.)", "*", layer.name) for layer in self.run.layers], str)

    @cached_property
    def matrix(self) -> Bools:
        """(L,): layers that own a parameter of two or more dimensions."""
        shapes = [p.shape for p in self.run.header.parameters]
        return np.array([any(len(shapes[i]) > 1 for i in layer.parameters) for layer in self.run.layers], bool)

    @cached_property
    def layer_of(self) -> Indexes:
        """(P,): the layer of each parameter."""
        owner = np.zeros(len(self.run.header.parameters), np.int64)
        for place, layer in enumerate(self.run.layers):
            owner[list(layer.parameters)] = place
        return owner

    @cached_property
    def leaves(self) -> list[str]:
        """(P,): each parameter's own name without the number of its recurrent layer: `weight_hh`."""
        return [re.sub(r"_l\d+", "", p.name.rpartition(".")[2]) for p in self.run.header.parameters]

    @cached_property
    def initial_rms(self) -> Floats:
        """(P,): root mean square of the values before the first step."""
        names = [p.name for p in self.run.header.parameters]
        _, values = self.run.probes.matrix("init_scale", names)
        first = values[0] if len(values) else np.full(len(names), np.nan)
        return log10(first) - 0.5 * np.log10([fans(p.shape)[0] for p in self.run.header.parameters])

    @cached_property
    def initial(self) -> Pieces:
        """The weights before the first step, each against its peers."""
        return initial_pieces(self.run, self.leaves, self.initial_rms)

    @cached_property
    def rates(self) -> Floats:
        """(L,): the largest learning rate among its trainable parameters, at the first step on which any is above 0."""
        result = np.full(len(self.run.layers), np.nan)
        groups = self.run.header.optimizer.groups if self.run.header.optimizer else ()
        moving = np.flatnonzero((self.run.lr > 0).any(axis=1))
        row = self.run.lr[moving[0]] if len(moving) else [group.lr for group in groups]
        for group, rate in zip(groups, log10(row), strict=False):
            held = [i for i in group.parameters if self.run.header.parameters[i].trainable]
            places = np.unique(self.layer_of[held])
            result[places] = np.fmax(result[places], rate)
        return result

    def probed(self, probe: str) -> Floats:
        """(L,): the median over the sampled steps of the stable prefix; the first sampled step, where none lies in it."""
        steps, values = self._sampled(probe)
        rows = np.flatnonzero(steps < self._end)
        chosen = log10(values[rows] if len(rows) else values[:1])
        return np.array([median(column) for column in chosen.T], float)

    def at_first(self, probe: str) -> Floats:
        """(L,): the value itself, not its logarithm, at the first sampled step."""
        _, values = self._sampled(probe)
        return values[0] if len(values) else np.full(len(self.run.layers), np.nan)

    def gain(self, side: str) -> Floats:
        """(L,): the gain of `side`, "forward" or "backward", behind activation and norm where these follow."""
        joint, alone = self.probed(f"{side}_gain_with_activation"), self.probed(f"{side}_gain")
        return np.where(np.isfinite(joint), joint, alone)

    def groups(self, members: NDArray[np.bool_], key: NDArray[np.str_]) -> list[Indexes]:
        """The `members` that share a key, as indexes."""
        return [np.flatnonzero(members & (key == one)) for one in np.unique(key[members])]

    def _sampled(self, probe: str) -> tuple[NDArray[np.int64], Floats]:
        return self.run.probes.matrix(probe, [layer.name for layer in self.run.layers])

    @cached_property
    def _end(self) -> float:
        rows = stable_prefix(self.run)
        return float(self.run.step[rows]) if rows < len(self.run.step) else float("inf")


def initialisation(seen: Setting) -> Excess:
    """(L,): initial weight scale against weights of the same role, the worst weight of each layer."""
    return of_layers(seen.initial, seen.layer_of, len(seen.run.layers))


def learning_rate(seen: Setting) -> Excess:
    """(L,): the learning rate against that of all layers that are trained, a rate that one of them has."""
    return excess(seen.rates, [np.arange(len(seen.rates))], upper=True)


def amplification(seen: Setting) -> Excess:
    """(L,): the smaller of the forward and the backward excess, since a layer that amplifies does both. Of a norm it says
    nothing: that puts out the same size whatever comes in. Where one follows or lies inside, the gain tells how small the
    input is, which accuses nobody; nor does a gain of no more than 1.25, where others' are less.
    """
    norms = np.array([is_norm(kind) for kind in seen.kinds], bool)
    groups = [np.flatnonzero(seen.matrix), *seen.groups(~seen.matrix & ~norms, seen.kinds)]
    backward = seen.gain("backward")
    up, down = excess(seen.gain("forward"), groups), excess(backward, groups)
    weaker = smallest([up, down])
    both = Excess(weaker.decades, np.minimum(up.z, down.z), weaker.peers, weaker.center).shrunk()
    half = Excess(FIRST_LAYER * up.decades, np.zeros_like(up.z), up.peers, up.center).shrunk()
    found = choose([half, both], np.isfinite(backward).astype(np.int64))
    modest = np.fmin(seen.gain("forward"), backward) < AMPLIFIES
    return found.only_ranked(modest | (seen.at_first("normalised") == 1) | _holds_norm(seen))


def _holds_norm(seen: Setting) -> Bools:
    """(L,): a norm is among its submodules."""
    norms = [layer.name.split(".") for layer in seen.run.layers if is_norm(layer.type)]
    holders = {".".join(path[:depth]) for path in norms for depth in range(1, len(path))}
    return np.array([layer.name in holders for layer in seen.run.layers], bool)


def bias(seen: Setting) -> Excess:
    """(L,): a bias that outweighs what the weights produce and that is larger than its peers'; the smaller excess counts."""
    signal = log10(seen.at_first("in_rms"))
    dominance, size = np.full(len(signal), np.nan), np.full(len(signal), np.nan)
    parameters, rms = seen.run.header.parameters, seen.initial_rms
    for place, layer in enumerate(seen.run.layers):
        matrices = [i for i in layer.parameters if len(parameters[i].shape) > 1 and np.isfinite(rms[i])]
        biases = [rms[i] for i in layer.parameters if "bias" in seen.leaves[i] and len(parameters[i].shape) == 1]
        if matrices and biases and np.isfinite(signal[place]):
            weight = rms[matrices[-1]]
            produced = weight + 0.5 * np.log10(fans(parameters[matrices[-1]].shape)[0]) + signal[place]
            largest = np.fmax.reduce(biases)
            dominance[place], size[place] = np.fmax(largest - produced, 0.0), np.fmax(largest, weight - 1.0)
    every = [np.arange(len(signal))]
    return smallest([excess(dominance, every), excess(size, every)]).shrunk()


def without_norm(seen: Setting) -> Bools:
    """(L,): no norm follows, though one follows three quarters of its three or more siblings, the layers of its kind; or the
    residual stream reaches it without a norm, though it is normalised for as many with its name in other blocks
    (`blocks.*.fc1`).

    The first and the last of them are none, and no siblings without a norm: many a recipe leaves them bare. Nor is one where
    those with its name in other blocks are as bare.
    """
    behind = _bare(seen, np.where(seen.matrix, seen.at_first("normalised"), np.nan), seen.kinds)
    return behind | _bare(seen, seen.at_first("fed_normalised"), seen.across_blocks)


def _bare(seen: Setting, normalised: Floats, key: NDArray[np.str_]) -> Bools:
    order = np.array([layer.order for layer in seen.run.layers], float)
    bare = np.zeros(len(normalised), bool)
    for group in seen.groups(np.isfinite(normalised), key):
        inner = (order[group] > order[group].min()) & (order[group] < order[group].max())
        siblings = group[inner | (normalised[group] == 1)]
        for place in group[inner & (normalised[group] == 0)]:
            others = siblings[siblings != place]
            alike = others[seen.across_blocks[others] == seen.across_blocks[place]]
            shares = [normalised[some].mean() for some in (others, alike) if len(some)]
            bare[place] = len(others) >= SIBLINGS and min(shares) >= NORMALISED
    return bare


CAUSES: dict[str, Callable[[Setting], Excess]] = {
    "initialisation": initialisation,
    "learning rate": learning_rate,
    "gain": amplification,
    "bias": bias,
}
