"""How far weights stand out before the first step: whole parameters, and in a gated recurrent layer each gate."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnosis.peers import Excess, choose, excess, nothing, smallest, uncrowded
from gradscope.diagnosis.series import Bools, Indexes, log10
from gradscope.runs.run import Floats, Run
from gradscope.runs.schema import Parameter

GATES = {4: ("input", "forget", "cell", "output"), 3: ("reset", "update", "new")}
RECURRENT = ("RNN", "LSTM", "GRU")
ALONE = ("Embedding", *RECURRENT)
LEAST_MATRICES, LEAST_ALIKE = 3, 3
OF_BLOCKS = 0.5
"""Those of other blocks are the nearest peers, where a weight stands out from them half as far as from all of its role."""
AS_TORCH = 0.02
"""Decades: an embedding's rms this near to 1 is the one that torch begins with."""
MODEST = AS_TORCH - 0.5 * math.log10(3)
"""rms·√fan_in in log10: up to 1/√3, as torch begins linear and convolution layers, a matrix makes what it gets smaller."""
NUMBER = re.compile(r"\d+")
WHOLE = -1
LIKE_THE_WORST = 0.5
"""A matrix whose gates all stand out half as far as the worst of them is bad as a whole."""


@dataclass(frozen=True)
class Pieces:
    """n weights that are compared: of which parameter, which gate of it (−1: all of it), its log10 rms, and the excess."""

    parameter: Indexes
    gate: Indexes
    found: Excess

    def worst(self, parameters: list[int]) -> tuple[int, tuple[int, int] | None]:
        """Of these parameters, some of which stand out, the one that does furthest; which of its gates, of how many, where
        one does alone.
        """
        mine = np.flatnonzero(np.isin(self.parameter, parameters) & np.isfinite(self.found.center))
        place = mine[np.argmax(self.found.decades[mine])]
        gates = np.flatnonzero(self.parameter == self.parameter[place])
        whole = (self.found.decades[gates] >= LIKE_THE_WORST * self.found.decades[place]).all()
        return int(self.parameter[place]), None if whole else (int(self.gate[place]), len(gates))


def fans(shape: tuple[int, ...]) -> tuple[float, float]:
    """fan_in and fan_out of a weight; 1 for what has fewer than two dimensions."""
    rest = float(np.prod(shape[2:])) if len(shape) > 1 else 1.0
    return (max(1.0, shape[1] * rest), max(1.0, shape[0] * rest)) if len(shape) > 1 else (1.0, 1.0)


def initial_pieces(run: Run, leaves: list[str], rms: Floats) -> Pieces:
    """Initial weight scale against weights of the same role (type and name).

    `leaves` and `rms` (log10): each parameter's own name and its size. Under four conventions, raw rms and × √ of fan_in, of
    fan_out and of the mean fan, the smallest excess counts, so that no usual scheme stands out by its convention; nor does
    what more than a quarter of a role have, as GPT-2's projections, which begin smaller than the rest. Matrices are also
    compared with those whose names differ in numbers alone, as of other blocks, and those of recurrent layers with each
    other, gate by gate. A weight alone in its role is compared with all matrices, which can rank it but not accuse it (0
    peers); an embedding alone, with rms 1, which is torch's own and never stands out. No matrix is accused that is no larger
    than torch's own.
    """
    parameters = run.header.parameters
    owner, gate, raw = _split(run, rms)
    role = np.array([f"{parameters[i].type}.{leaves[i]}" for i in owner], str)
    kind = np.array([parameters[i].type for i in owner], str)
    matrix = np.array([len(parameters[i].shape) > 1 for i in owner], bool)
    weight = np.isfinite(raw) & np.array(["bias" not in leaves[i] for i in owner], bool)
    conventions = _conventions(raw, owner, parameters)
    groups = _groups(weight, role)
    own = uncrowded(smallest([excess(x, groups) for x in conventions]), groups)
    alone = np.array([group[0] for group in groups if len(group) == 1], np.int64)
    plain = weight & matrix & ~_begins(kind, ALONE)
    if plain.sum() >= LEAST_MATRICES:
        _copy(smallest([excess(x, [np.flatnonzero(plain)]) for x in conventions]), own, alone[plain[alone]])
    embedding = _begins(kind, ("Embedding",))
    _copy(Excess(raw, raw * 0, raw * 0, raw * 0), own, alone[embedding[alone]])
    own.decades[embedding & (np.abs(raw) < AS_TORCH)] = 0.0
    recurrent = _groups(weight & matrix & _begins(kind, RECURRENT), kind)
    names = np.array([NUMBER.sub("#", parameters[i].name) for i in owner], str)
    alike = [group for group in _groups(weight & matrix, names) if len(group) > LEAST_ALIKE]
    blocks = smallest([excess(x, alike) for x in conventions])
    own = _either(own, blocks, blocks.decades >= OF_BLOCKS * own.decades)
    across = smallest([excess(x, recurrent) for x in conventions])
    found = _either(own, across, across.shrunk().decades >= own.shrunk().decades)
    return Pieces(owner, gate, found.only_ranked(matrix & (conventions[1] < MODEST)))


def _either(one: Excess, other: Excess, prefer: Bools) -> Excess:
    """Where there is the other comparison and it is preferred, that."""
    return choose([one, other], (np.isfinite(other.center) & prefer).astype(np.int64))


def of_layers(pieces: Pieces, layer_of: Indexes, count: int) -> Excess:
    """(L,): the piece of each layer with the most decades."""
    result, found = nothing(count), pieces.found
    for i in np.flatnonzero(np.isfinite(found.center)):
        place = layer_of[pieces.parameter[i]]
        if np.isnan(result.center[place]) or found.decades[i] > result.decades[place]:
            result.decades[place], result.z[place] = found.decades[i], found.z[i]
            result.peers[place], result.center[place] = found.peers[i], found.center[i]
    return result


def _split(run: Run, rms: Floats) -> tuple[Indexes, Indexes, Floats]:
    """Parameter, gate and log10 rms of every piece: a parameter whose gates were measured is cut into them."""
    places = {parameter.name: i for i, parameter in enumerate(run.header.parameters)}
    rows = run.probes.select("gate_scale")
    known = [k for k, name in enumerate(rows.subject) if name in places and np.isfinite(rows.value[k])]
    cut = np.array([places[rows.subject[k]] for k in known], np.int64)
    whole = np.setdiff1d(np.arange(len(rms)), cut)
    fan_in = np.array([fans(run.header.parameters[i].shape)[0] for i in cut], float)
    gates = log10(rows.value[known]) - 0.5 * np.log10(fan_in)
    owner = np.concatenate([whole, cut])
    gate = np.concatenate([np.full(len(whole), WHOLE), rows.index[known]]).astype(np.int64)
    return owner, gate, np.concatenate([rms[whole], gates])


def _conventions(raw: Floats, owner: Indexes, parameters: tuple[Parameter, ...]) -> list[Floats]:
    sizes = np.array([fans(parameters[i].shape) for i in owner], float).reshape(-1, 2)
    fans_of = (sizes[:, 0], sizes[:, 1], sizes.mean(axis=1))
    return [raw, *(raw + 0.5 * np.log10(fan) for fan in fans_of)]


def _groups(members: Bools, key: NDArray[np.str_]) -> list[Indexes]:
    return [np.flatnonzero(members & (key == one)) for one in np.unique(key[members])]


def _begins(kinds: NDArray[np.str_], words: tuple[str, ...]) -> Bools:
    return np.array([kind.startswith(words) for kind in kinds], bool)


def _copy(source: Excess, target: Excess, at: Indexes) -> None:
    """Put decades and center of `source` into `target`, as a comparison that cannot accuse."""
    target.decades[at], target.center[at] = source.decades[at], source.center[at]
    target.z[at], target.peers[at] = source.z[at], 0
