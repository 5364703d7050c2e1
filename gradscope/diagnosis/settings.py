"""Settings of an optimizer that are far from usual, each with the usual value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gradscope.diagnosis.series import highest_rates, number, percent
from gradscope.runs.run import Run

MOMENTUM, DECAY, EPS = 0.95, 0.02, 1e-10
"""A momentum above, a share of each weight that decays in a step above, and an eps below are far from usual."""
USUAL: dict[str, Any] = {"momentum": 0.9, "betas": (0.9, 0.999), "eps": 1e-8}
USUAL_DECAY = {"AdamW": 0.01, "SGD": 1e-4}
"""Of optimizers whose weights decay by learning rate × weight decay."""


@dataclass(frozen=True)
class OddSetting:
    """One setting: the key in a parameter group, what it does, in words, and the usual value."""

    key: str
    told: str
    usual: Any


def odd_settings(run: Run) -> list[OddSetting]:
    """Those of the run's (first) optimizer."""
    optimizer = run.header.optimizer
    return list(_odd(optimizer.type.split(" + ")[0], optimizer.settings, run)) if optimizer else []


def _odd(kind: str, settings: dict[str, Any], run: Run) -> Iterator[OddSetting]:
    momentum, eps = settings.get("momentum") or 0.0, settings.get("eps")
    if kind == "SGD" and momentum > MOMENTUM:
        times = f"acts {number(1 / (1 - momentum))} times" if momentum < 1 else "never fades"
        told = f"At a momentum of {momentum:g} a gradient {times} in all, 10 at {USUAL['momentum']}"
        yield OddSetting("momentum", told, USUAL["momentum"])
    if "Adam" in kind and unbounded(settings.get("betas")):
        first, second = settings["betas"]
        told = f"With betas ({first:g}, {second:g}) a step of {kind} has no bound: beta1² is not below beta2"
        yield OddSetting("betas", told, USUAL["betas"])
    if "Adam" in kind and isinstance(eps, float) and eps < EPS:
        told = f"An eps of {eps:g} lets {kind} divide by almost nothing where gradients vanish"
        yield OddSetting("eps", told, USUAL["eps"])
    lost = _rate(run) * (settings.get("weight_decay") or 0.0) / max(1 - momentum, 0.01)
    if kind in USUAL_DECAY and lost > DECAY:
        told = f"Weight decay takes {percent(min(lost, 1.0))} of every weight at a step (learning rate × weight decay)"
        yield OddSetting("weight_decay", told, USUAL_DECAY[kind])


def unbounded(betas: Any) -> bool:
    """Whether m/√v has no bound: (m/√v)² ≤ (1 − β₁)² / (1 − β₂) · Σ (β₁²/β₂)^i, by the Cauchy–Schwarz inequality."""
    pair = isinstance(betas, list) and len(betas) == 2 and all(isinstance(beta, float | int) for beta in betas)
    return pair and betas[0] ** 2 >= betas[1]


def _rate(run: Run) -> float:
    """The highest learning rate of the plan, or of the recorded steps."""
    return run.header.plan.peak or max(0.0, float(highest_rates(run).max(initial=0.0)))
