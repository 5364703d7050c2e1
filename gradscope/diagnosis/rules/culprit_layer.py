"""GS301 culprit-layer: a layer that amplifies far more than comparable layers do.

What it detects
    Layers whose initialisation, learning rate or gain stands far out from their peers'.
Why it matters
    Such a layer multiplies what every other layer sends through it. Its own gradient is often the smallest of all, so a
    ranking by gradient norm points away from it.
How it decides
    By the ranking of layers: excess in log10 over the median of the other comparable layers, and z, the same in units of
    their spread (1.4826·MAD + .05). Fires with at least 3 peers for initial weights 4 × their peers' (z ≥ 5, under each of
    four conventions: rms, and × √ of fan_in, of fan_out and of the mean fan), a learning rate 20 × the others' (z ≥ 5), or a
    gain, forward and backward, 5 × the others' (z ≥ 10). Gains include the activation that follows. Weights are compared
    with those of the same name in other blocks first; matrices of recurrent layers with each other, gate by gate. Nobody is
    accused of what more than a quarter of the like have, of weights no larger than torch's own (rms·√fan_in of 1/√3), of a
    gain up to 1.25, or of one that a norm behind or inside the layer makes. Unit: multiples of the peers' median. Needs the
    probes; without them no layer is accused.
Known problems
    One or two layers of a type cannot be compared and are never accused. Where half of the layers are wrong, the median is
    wrong with them. A fault in the data or the loss has no layer. A missing normalisation is ranked and told, not accused.
What to do
    Scale its initialisation to its peers', give it their learning rate, or normalise after it, as the finding says.
References
    Measured on 57 small models with a planted fault: first in 98 % of them, in the first three in all; by gradient norm in
    3 %. None of 185 healthy models was accused, and one of 55 architectures of Transformers as its library makes it (FNet's
    projection, whose output a Fourier transform enlarges).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradscope.diagnosis.layers import has_probes, rank_layers
from gradscope.diagnosis.model import CannotRunError, Finding, Rule
from gradscope.diagnosis.series import finding
from gradscope.runs.run import Run

CODE, NAME = "GS301", "culprit-layer"


@dataclass(frozen=True)
class Settings:
    """`most`: findings at most, the worst first."""

    most: int = 3


DEFAULTS = Settings()


def check(run: Run, settings: Settings = DEFAULTS) -> Iterator[Finding]:
    """One finding a layer at level "high"."""
    if not has_probes(run):
        raise CannotRunError(
            "gains and updates were not measured in this run, and gradient norms accuse the wrong layer"
        )
    accused = [risk for risk in rank_layers(run) if risk.level == "high"]
    for risk in accused[: settings.most]:
        yield finding(
            CODE,
            NAME,
            "warning",
            risk.message,
            risk.advice,
            subject=risk.name,
            value=risk.factor,
            unit="times its peers",
        )


RULE = Rule(CODE, NAME, check)
