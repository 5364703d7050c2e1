"""Which layer to look at first: ranked by what a layer does to the signal, not by the size of its own gradient.

score = max( z(initial scale against its type), min(z(forward gain), z(backward gain)), z(update / weight) )
with z = (x − median) / (1.4826·MAD + .05) of x in log10. Gains include the activation that follows. Everything is read on
the stable prefix of the window, before the norm first jumps above 30 × its running median.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.model import LayerRisk, Level
from gradscope.diagnosis.series import log10, median, number, percent, robust_z
from gradscope.diagnosis.window import stable_prefix
from gradscope.runs.run import Floats, Run

HIGH, MEDIUM = 10.0, 5.0
FORWARD, BACKWARD = "forward_gain", "backward_gain"
INIT, UPDATE, WEIGHT = "init_scale", "update_norm", "weight_norm"
ACTIVATION = "_with_activation"
PROBES = (FORWARD, BACKWARD, INIT, UPDATE, WEIGHT)

ADVICE = {
    "initialisation": "Scale its initial weights by {inverse}.",
    "gain": "Scale its initial weights by {inverse}, or put a normalisation behind it.",
    "update/weight": "Give it the learning rate of its peers: its group's times {inverse}.",
}


@dataclass(frozen=True)
class Component:
    """One measurement over all layers: z-scores, the factor against the peers, and the peers' median. NaN: not measured."""

    name: str
    z: Floats
    factor: Floats
    peers: Floats


def has_probes(run: Run) -> bool:
    """Whether the run measured anything that a ranking by gain can use."""
    return bool(np.isin(run.probes.probe, [FORWARD + ACTIVATION, *PROBES]).any())


def rank_layers(run: Run) -> tuple[LayerRisk, ...]:
    """Every layer, the one most at risk first. Without probes the order is that of gradient norms and accuses no one."""
    if not has_probes(run):
        return _by_gradient(run)
    components = [_initialisation(run), _gain(run), _update(run)]
    scores = np.array([c.z for c in components])
    measured = np.isfinite(scores).any(axis=0)
    best = np.argmax(np.where(np.isfinite(scores), scores, -np.inf), axis=0)
    total = np.where(measured, np.max(np.where(np.isfinite(scores), scores, -np.inf), axis=0), -np.inf)
    order = sorted(range(len(run.layers)), key=lambda i: -total[i])
    return tuple(_risk(run, i, components, int(best[i])) if measured[i] else _unmeasured(run, i) for i in order)


def _per_layer(run: Run, probe: str) -> Floats:
    """(L,): median over the sampled steps of the stable prefix of log10 of a probe; NaN where absent."""
    names = [layer.name for layer in run.layers]
    steps, values = run.probes.matrix(probe, names)
    end = stable_prefix(run)
    last = run.step[end] if end < len(run.step) else np.inf
    early = values[steps < last] if (steps < last).any() else values[:1]
    logs = log10(early)
    return np.array([median(column) for column in logs.T]) if len(logs) else np.full(len(names), np.nan)


def _component(name: str, x: Floats) -> Component:
    center = np.full(len(x), median(x))
    return Component(name, robust_z(x), 10 ** (x - center), 10**center)


def _initialisation(run: Run) -> Component:
    x = _per_layer(run, INIT)
    types = np.array([layer.type for layer in run.layers])
    center = np.array([median(x[types == kind]) for kind in types])
    return Component("initialisation", robust_z(x - center), 10 ** (x - center), 10**center)


def _gain(run: Run) -> Component:
    forward, backward = _widest(run, FORWARD), _widest(run, BACKWARD)
    weaker = forward if median(forward.z - backward.z) <= 0 else backward
    z = np.minimum(forward.z, backward.z)
    factor = np.where(forward.z <= backward.z, forward.factor, backward.factor)
    return Component("gain", z, factor, weaker.peers)


def _widest(run: Run, probe: str) -> Component:
    """The gain with the activation that follows, alone where none does."""
    alone, joint = _per_layer(run, probe), _per_layer(run, probe + ACTIVATION)
    return _component(probe, np.where(np.isfinite(joint), joint, alone))


def _update(run: Run) -> Component:
    return _component("update/weight", _per_layer(run, UPDATE) - _per_layer(run, WEIGHT))


def _risk(run: Run, i: int, components: list[Component], best: int) -> LayerRisk:
    layer, chosen = run.layers[i], components[best]
    score, factor = float(chosen.z[i]), float(chosen.factor[i])
    level: Level = "high" if score > HIGH else "medium" if score > MEDIUM else "low"
    inverse = number(1 / factor)
    return LayerRisk(
        layer.name,
        layer.type,
        level,
        score,
        chosen.name,
        factor,
        float(chosen.peers[i]),
        f"{layer.name}: {chosen.name} {number(factor)} × its peers' median ({number(float(chosen.peers[i]))}).",
        ADVICE[chosen.name].format(inverse=inverse) if level != "low" else "Nothing to do.",
        {c.name: float(c.z[i]) for c in components if np.isfinite(c.z[i])},
    )


def _unmeasured(run: Run, i: int) -> LayerRisk:
    layer = run.layers[i]
    why = run.header.unmeasured.get(layer.name, "no probe reached it")
    said = f"{layer.name}: not measured ({why})."
    return LayerRisk(layer.name, layer.type, "low", 0.0, None, None, None, said, "Nothing to do.")


def _by_gradient(run: Run) -> tuple[LayerRisk, ...]:
    squares = np.where(np.isfinite(run.layer_grad_norm), run.layer_grad_norm, 0.0) ** 2
    total = squares.sum(axis=1, keepdims=True)
    shares = np.divide(squares, total, out=np.zeros_like(squares), where=total > 0)
    typical = np.median(shares, axis=0) if len(shares) else np.zeros(len(run.layers))
    order = sorted(range(len(run.layers)), key=lambda i: -typical[i])
    return tuple(_listed(run, i, float(typical[i])) for i in order)


def _listed(run: Run, i: int, share: float) -> LayerRisk:
    layer = run.layers[i]
    said = (
        f"{layer.name}: {percent(share)} of the squared gradient norm; gains were not measured, and a large gradient "
        "does not make a layer the cause."
    )
    advice = "Run gradscope analyze to measure gains."
    evidence = {"share of the squared gradient norm": share}
    return LayerRisk(layer.name, layer.type, "low", share, None, None, None, said, advice, evidence)
