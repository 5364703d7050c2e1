"""Which layer to look at first: ranked by how far its cause stands out from its peers, never by its gradient norm.

The score of a layer is the largest of its excesses over comparable layers, in decades (1.0: ten times its peers): its
initialisation, its learning rate, its gain (forward and backward), its bias; .5 more where its siblings are normalised and
it is not. Only ratios enter, so the scale of the loss does not matter. Measured on 57 small models with one planted fault:
first in 98 %; by gradient norm in 3 %. Update against weight is told as evidence only: as a score it points elsewhere.
"""

from __future__ import annotations

import numpy as np

from gradscope.diagnosis.causes import CAUSES, Setting, without_norm
from gradscope.diagnosis.initial import GATES, RECURRENT
from gradscope.diagnosis.model import LayerRisk, Level
from gradscope.diagnosis.peers import ALIKE, CROWD, Excess, company
from gradscope.diagnosis.series import log10, median, number, percent
from gradscope.runs.run import Floats, Run
from gradscope.runs.schema import ROOT

NO_NORM = 0.5
"""Decades that a missing normalisation counts: its neighbours seem to amplify, since their norms undo what it does."""
HIGH = {"initialisation": 0.6, "learning rate": 1.3, "gain": 0.7}
"""Decades that a cause needs for level "high" (4 ×, 20 ×, 5 ×); a bias alone never gets there."""
HIGH_Z, HIGH_Z_GAIN = 5.0, 10.0
HIGH_PEERS, MEDIUM_PEERS = 3, 2
MEDIUM = 0.3
SAMPLED = 4096
SURER = 1e3
"""Decades that put the causes of the highest level before the others."""
BARE = "no normalisation here, unlike its siblings"
GAINS = ("init_scale", "forward_gain", "forward_gain_with_activation", "backward_gain", "backward_gain_with_activation")
LEVELS: tuple[Level, ...] = ("low", "medium", "high")


def has_probes(run: Run) -> bool:
    """Whether the run measured initial weights or gains, without which no layer is accused."""
    return bool(np.isin(run.probes.probe, GAINS).any())


def rank_layers(run: Run) -> tuple[LayerRisk, ...]:
    """Every layer, the one most at risk first. Without gains and initial weights no layer is above level "low"."""
    ranking = _Ranking(run)
    order = sorted(range(len(run.layers)), key=lambda i: (-LEVELS.index(ranking.level(i)), *ranking.place(i)))
    return tuple(ranking.risk(i) for i in order)


class _Ranking:
    """Everything measured about the layers of one run, as arrays over its layers."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.probed = has_probes(run)
        self.seen = Setting(run)
        self.found = {name: cause(self.seen) for name, cause in CAUSES.items()}
        self.bare = without_norm(self.seen)
        self.gains = {side: self.seen.gain(side) for side in ("forward", "backward")}
        self.first_gains = np.fmin(*(self.seen.at_first(f"{side}_gain") for side in ("forward", "backward")))
        self.shares = _gradient_shares(run)
        self.updates = _updates(run)
        decades = np.array([one.decades for one in self.found.values()])
        levels = [
            [LEVELS.index(_level(name, one, i)) for i in range(len(run.layers))] for name, one in self.found.items()
        ]
        self.levels = np.array(levels, int)
        self.cause = np.argmax(decades + np.where(self.levels == self.levels.max(axis=0), SURER, 0.0), axis=0)
        best = decades.max(axis=0)
        scores = np.where(self.bare, np.fmax(best, 0.0) + NO_NORM, best)
        self.scores = np.where(self.probed, scores, 0.0)

    def place(self, i: int) -> tuple[float, float, float]:
        """Sort key: by score; those like their peers by their weaker gain at the first step, frozen ones last."""
        score, tie = float(self.scores[i]), float(self.first_gains[i])
        stands_out = -score if score >= ALIKE else float(self.frozen(i))
        return stands_out, -tie if np.isfinite(tie) else 9.0, -float(self.shares[i])

    def frozen(self, i: int) -> bool:
        """Whether none of its parameters is trained."""
        return not any(self.run.header.parameters[k].trainable for k in self.run.layers[i].parameters)

    def level(self, i: int) -> Level:
        """The highest level that any of the causes gives."""
        if not self.probed:
            return "low"
        return LEVELS[max(int(self.bare[i]), int(self.levels[:, i].max()))]

    def risk(self, i: int) -> LayerRisk:
        """What is said about one layer."""
        layer, level, score = self.run.layers[i], self.level(i), float(self.scores[i])
        name = list(self.found)[int(self.cause[i])]
        best = self.found[name]
        evidence = self._evidence(i)
        if not self.probed or (float(best.decades[i]) < ALIKE and level == "low" and not self.bare[i]):
            said = f"{layer.name or ROOT}: {self._plain(i)}"
            return LayerRisk(layer.name, layer.type, level, score, None, None, None, said, "Nothing to do.", evidence)
        amplifies = name == "gain" or float(best.decades[i]) < ALIKE
        component = "missing normalisation" if self.bare[i] and amplifies else name
        factor, peers = float(10 ** best.decades[i]), float(10 ** best.center[i])
        said, advice = self._words(component, i, factor)
        if component == "missing normalisation":
            said = f": {BARE}; it {said}"
        else:
            said = f" {said}; {BARE}" if self.bare[i] else f" {said}"
        compared = component == name or name == "gain"
        return LayerRisk(
            layer.name,
            layer.type,
            level,
            score,
            component,
            factor if compared else None,
            peers if compared and np.isfinite(peers) else None,
            f"{layer.name or ROOT}{said}.",
            advice,
            evidence,
            self._weights(i) if component == "initialisation" else None,
        )

    def _words(self, component: str, i: int, factor: float) -> tuple[str, str]:
        times = number(factor)
        if component == "initialisation":
            what, whose = self._initial_words(i)
            return f"starts with {what} {times} × its peers'", f"Scale {whose} init by {number(1 / factor)}."
        if component == "learning rate":
            return (
                f"has a learning rate {times} × the others'{self._fast(i)}",
                f"Bring its parameter group to the learning rate of the others, × {number(1 / factor)}.",
            )
        if component == "bias":
            return f"has a bias that outweighs what its weights produce {times} × more than its peers' do", (
                "Try it with its bias starting at zero."
            )
        parts = [self._gain_words(side, i) for side in ("forward", "backward")]
        said = "multiplies " + " and ".join(part for part in parts if part)
        if component == "gain":
            return said, "Look at the activation behind it; a norm behind it, or a smaller init, takes the gain away."
        return said, "Add the normalisation that its siblings have."

    def _fast(self, i: int) -> str:
        """Which parameters of the layer learn that fast, where not all of them do."""
        optimizer, own = self.run.header.optimizer, self.run.layers[i].parameters
        held = [(group.lr, set(own) & set(group.parameters)) for group in optimizer.groups] if optimizer else []
        fast = max((one for one in held if one[1]), key=lambda one: one[0], default=(0.0, set(own)))[1]
        names = [self.run.header.parameters[p].name.rpartition(".")[2] for p in sorted(fast)]
        return "" if len(names) == len(own) else f" ({', '.join(names)})"

    def _initial_words(self, i: int) -> tuple[str, str]:
        """Which weights of the layer stand out, and whose init that is: of a recurrent layer the one matrix or gate."""
        found = self._piece(i)
        if found is None:
            return "weights", "its"
        parameter, gate = found
        leaf = self.run.header.parameters[parameter].name.rpartition(".")[2]
        what = leaf if gate is None else f"the {GATES[gate[1]][gate[0]]} gate of {leaf}"
        return what, f"{what}'s"

    def _weights(self, i: int) -> str | None:
        """The same as a parameter's name, with the rows of the gate."""
        found = self._piece(i)
        if found is None:
            return None
        parameter, gate = self.run.header.parameters[found[0]], found[1]
        if gate is None:
            return parameter.name
        rows = parameter.shape[0] // gate[1]
        return f"{parameter.name}[{gate[0] * rows}:{(gate[0] + 1) * rows}]"

    def _piece(self, i: int) -> tuple[int, tuple[int, int] | None] | None:
        layer = self.run.layers[i]
        return self.seen.initial.worst(list(layer.parameters)) if layer.type.startswith(RECURRENT) else None

    def _gain_words(self, side: str, i: int) -> str:
        alike = self.seen.matrix if self.seen.matrix[i] else ~self.seen.matrix & (self.seen.kinds == self.seen.kinds[i])
        alike = alike & (np.arange(len(alike)) != i)
        own, others = self.gains[side][i], median(self.gains[side][alike])
        what = "activations" if side == "forward" else "gradients"
        return f"{what} by {number(10**own)} (others: {number(10**others)})" if np.isfinite(own) else ""

    def _plain(self, i: int) -> str:
        why = self.run.header.unmeasured.get(self.run.layers[i].name)
        share = f"{percent(float(self.shares[i]))} of the squared gradient norm"
        if self.frozen(i):
            return "frozen: it gets no gradient."
        if self.shares[i] == 0:
            return "its gradient is 0, or none, in most steps."
        if not self.probed:
            return f"{share}; gains were not measured, and a large gradient does not make a layer the cause."
        return f"like its peers ({share}){f'; its gain was not measured: {why}' if why else ''}."

    def _evidence(self, i: int) -> dict[str, float]:
        """Every number the place rests on, by name; factors are against the peers."""
        factors = {f"{name} factor": 10 ** one.decades[i] for name, one in self.found.items() if one.peers[i]}
        gains = {f"{side} gain": 10 ** values[i] for side, values in self.gains.items()}
        others = {"update/weight": self.updates[i], "share of the squared gradient norm": self.shares[i]}
        return {name: float(value) for name, value in (factors | gains | others).items() if np.isfinite(value)}


def _level(cause: str, found: Excess, i: int) -> Level:
    decades, peers = found.decades[i], found.peers[i]
    z = HIGH_Z_GAIN if cause == "gain" else HIGH_Z
    sure = cause in HIGH and peers >= HIGH_PEERS and found.z[i] >= z and decades >= HIGH[cause]
    if sure and not (cause == "learning rate" and company(found.decades)[i] > CROWD * len(found.decades)):
        return "high"
    return "medium" if decades >= MEDIUM and peers >= MEDIUM_PEERS else "low"


def _gradient_shares(run: Run) -> Floats:
    """(L,): the median share of each layer in the squared gradient norm, over at most 4096 steps evenly spread."""
    sampled = min(SAMPLED, len(run.step))
    rows = run.of_layers(run.norms[np.arange(sampled) * len(run.step) // max(1, sampled)])
    squares = np.where(np.isfinite(rows), rows, 0.0) ** 2
    total = squares.sum(axis=1, keepdims=True)
    shares: Floats = np.divide(squares, total, out=np.zeros_like(squares), where=total > 0)
    return np.median(shares, axis=0) if len(shares) else np.zeros(len(run.layers))


def _updates(run: Run) -> Floats:
    """(L,): the median over the sampled steps of ‖update‖ / ‖weight‖; NaN where not measured."""
    names = [p.name for p in run.header.parameters]
    moved, sizes = (run.probes.matrix(probe, names)[1] ** 2 for probe in ("update_norm", "weight_norm"))
    if not len(moved) or moved.shape != sizes.shape:
        return np.full(len(run.layers), np.nan)
    own = [list(layer.parameters) for layer in run.layers]
    ratios = [log10(np.nansum(moved[:, k], axis=1)) - log10(np.nansum(sizes[:, k], axis=1)) for k in own]
    return np.array([10 ** (median(ratio) / 2) for ratio in ratios])
