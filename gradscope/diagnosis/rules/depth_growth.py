"""GS304 depth-growth: the gradient grows, or fades, from layer to layer on its way back.

What it detects
    ‖∂L/∂out‖ of the layers that changes geometrically from the last to the first, as the training begins.
Why it matters
    No single layer is to blame, so none stands out: the initialisation of all is too large, or too small. Where the gradient
    grows, the first layers take the largest steps; where it fades, they hardly learn.
How it decides
    At the first sampled step: least squares of log ‖∂L/∂out‖ against the number of layers with a matrix behind it,
    embeddings aside; 6 layers at least, and one factor must explain .9 of the variance. Growth by more than 100 × in all:
    an information, a warning where the training explodes, will, or has little headroom. Fading to less than 1/1000: an
    information, a warning where the training ends at chance. Unit: factor a layer. Only ratios enter, so the scale of the
    loss does not matter.
Known problems
    Where branches run side by side, the number of layers is not the depth. Adam divides by the gradient's size, so that it
    trains through more growth than SGD.
What to do
    Begin with smaller weights (larger ones where it fades), normalise, or let residual connections pass the gradient by.
References
    Glorot and Bengio 2010; He et al. 2015; Yang et al. 2019 on batch normalisation, under which it grows 1.2 × a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradscope.diagnosis.depth import FADED, GROWN, along_depth
from gradscope.diagnosis.learning import nothing_learned
from gradscope.diagnosis.model import ALARMS, CannotRunError, Finding, Rule
from gradscope.diagnosis.series import finding, number
from gradscope.diagnosis.verdict import judge
from gradscope.runs.run import Run

CODE, NAME = "GS304", "depth-growth"


@dataclass(frozen=True)
class Settings:
    """`grown` and `faded`: factors from the last layer to the first."""

    grown: float = GROWN
    faded: float = FADED


DEFAULTS = Settings()


def check(run: Run, settings: Settings = DEFAULTS) -> Iterator[Finding]:
    """One finding where the whole network makes gradients grow or fade."""
    if not len(run.probes.select("grad_out_norm").step):
        raise CannotRunError("no gradients between layers were measured")
    found = along_depth(run)
    if found is None or settings.faded <= found.total <= settings.grown:
        return
    grows, level = found.total > 1, number(1 / found.rate)
    total, interval = number(found.total), f"95 % interval a layer {number(found.low)} to {number(found.high)}"
    yield finding(
        CODE,
        NAME,
        "warning" if (judge(run).verdict in ALARMS if grows else nothing_learned(run)) else "info",
        f"Back through {len(found.layers)} layers the gradient {'grows' if grows else 'fades to'} {number(found.rate)} × a "
        f"layer as it begins, {total} × in all ({interval}): no single one stands out.",
        f"Begin with {'smaller' if grows else 'larger'} weights (in a plain stack × {level}), normalise, or "
        "add residual connections; in residual blocks, begin with the last layer of each near zero.",
        value=found.rate,
        limit=(settings.grown if grows else settings.faded) ** (1 / (len(found.layers) - 1)),
        unit="factor a layer",
    )


RULE = Rule(CODE, NAME, check)
