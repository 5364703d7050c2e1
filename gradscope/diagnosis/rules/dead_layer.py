"""GS305 dead-layer: layers whose gradient is exactly 0.

What it detects
    Layers that get a gradient, of 0 in every element, to the end of the recorded steps.
Why it matters
    They learn no more, and so does everything that only they feed: the units behind them are dead, as of a ReLU below 0 for
    every sample, saturate, or are masked or multiplied by 0. Their norms are small, and nothing else tells of them.
How it decides
    The gradient norms of all of a layer's trainable parameters are 0 in the last half of the steps without nonfinite values,
    of which there are 20 at least. Where that is so of every layer, GS209 tells. A warning where they had one before, or the
    training learns nothing; else an information. Unit: layers. Limit: 0. Parameters without a gradient are GS303's.
Known problems
    Experts and branches that no sample has reached yet look the same; so do layers behind a factor that still is 0.
What to do
    Look at what follows the layer nearest to the loss. Where it died as it trained, lower the learning rate or clip; where
    it began so, look at its bias and its initial weights.
References
    Lu et al. 2019, Dying ReLU and initialization.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.learning import nothing_learned
from gradscope.diagnosis.model import CannotRunError, Finding, Rule
from gradscope.diagnosis.series import count, finding
from gradscope.runs.run import Run
from gradscope.runs.schema import ROOT

CODE, NAME = "GS305", "dead-layer"
LEAST, NAMED = 20, 3
DIED = "Units that died or saturated as it trained: lower the learning rate, or clip."
NEVER = (
    "Units dead from the start (its bias, its initial weights), a mask or a factor of 0, or a branch not reached yet."
)


def check(run: Run) -> Iterator[Finding]:
    """One finding for all layers whose gradient ends at 0."""
    clean = np.flatnonzero((run.nonfinite == 0) & ~run.skipped)
    if len(clean) < LEAST:
        raise CannotRunError(f"{count(len(clean), 'step')} without nonfinite gradients; {LEAST} are needed")
    late = clean[len(clean) // 2 :]
    known, moves = run.ever(lambda norms: norms >= 0, late), run.ever(lambda norms: norms > 0, late)
    trained = [[i for i in layer.parameters if run.header.parameters[i].trainable and known[i]] for layer in run.layers]
    dead = [layer for layer, own in zip(run.layers, trained, strict=True) if own and not moves[own].any()]
    if not dead or len(dead) == sum(map(bool, trained)):
        return
    columns = [i for layer in dead for i in layer.parameters]
    alive = (rows[(run.norms[rows][:, columns] > 0).any(axis=1)] for rows in reversed([*run.blocks(clean)]))
    lived = next((rows[-1] for rows in alive if len(rows)), None)
    began = int(run.step[0] if lived is None else run.step[lived] + 1)
    since = "in every step" if lived is None else f"from step {began} on"
    last, others = dead[-1].name or ROOT, [layer.name or ROOT for layer in dead[-2::-1]]
    named = ", ".join(others[:NAMED]) + (f" and {len(others) - NAMED} before them" if len(others) > NAMED else "")
    so_do = f"; so {'does' if len(others) == 1 else 'do'} {named}" if others else ""
    yield finding(
        CODE,
        NAME,
        "info" if lived is None and not nothing_learned(run) else "warning",
        f"{last} gets a gradient of exactly 0 {since}, of {count(len(run.step), 'recorded step')}{so_do}.",
        f"Look at what follows {last}. {NEVER if lived is None else DIED}",
        subject=dead[-1].name,
        steps=(began, int(run.step[late[-1]])),
        value=len(dead),
        limit=0.0,
        unit="layers",
    )


RULE = Rule(CODE, NAME, check)
