"""GS201 already-exploding: the training explodes within the recorded steps.

What it detects
    A loss or gradient norm that is nonfinite, or far above where it began, at the end of the recorded steps.
Why it matters
    It is the one case that recorded steps alone prove. Percentiles of such norms are percentiles of the explosion.
How it decides
    Any nonfinite loss, or any nonfinite gradient that was not skipped; or median of the last 10 |loss| > 10 × median of
    the first 5, while the loss rose (below 100 ×: unless no norm grew by more than the square root of that, as where only
    targets grow, or none by 100 × and the loss had been 3 × as high before); or median of the last 10 gradient norms > 100
    × median of the first 10; or a norm > 1000 × the first, with a last loss > 10 × the first; or a norm > 1000 × the median
    before it, with a loss that stays above .75 of its beginning in the run and in every rehearsal at the planned rate, or
    with a layer whose gradient is 0 from then on; or two losses or more at the very end, each > 10 × the median before it
    and the last the highest, with a norm > 1000 × the median before; or 5 of the first 20 losses > 10 × the first, with a
    norm > 100 × the first and an end above .75 of the first loss, twice it where the plan was rehearsed, there too; and, of
    fewer than 20 steps, a last loss and norm that are the highest and > 1000 × the first. Units: multiples of the run's own
    beginning (never below a hundredth of its median), so the scale of the loss does not matter. At least 20 steps for the
    comparisons, 7 at the end, 3 of few.
Known problems
    An explosion later than the recorded steps is not seen: no number read from the norms of a window foresees it (AUROC .48
    to .77 over 673 small trainings with known outcome). That is what rehearsals are for. Norms read after clipping
    cannot show it: then the loss alone is judged.
What to do
    Lower the learning rate, lengthen the warm-up, or clip; let gradscope try thresholds and remedies on rehearsals.
References
    Measured on small trainings with known outcome, see benchmarks/accuracy. Pascanu, Mikolov, Bengio 2013.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.model import CannotRunError, Finding, Rule
from gradscope.diagnosis.series import finding
from gradscope.diagnosis.window import GREW, LEAST, broken_data, enough, explosion, growth_before, harmful
from gradscope.runs.run import Run

CODE, NAME = "GS201", "already-exploding"
DISTRUSTED = "threshold from these steps is to be trusted"


@dataclass(frozen=True)
class Settings:
    """`least`: steps needed to compare the end with the beginning."""

    least: int = LEAST


DEFAULTS = Settings()


def check(run: Run, settings: Settings = DEFAULTS) -> Iterator[Finding]:
    """One finding when the recorded steps explode."""
    seen = explosion(run)
    if seen is None and not enough(run):
        raise CannotRunError(f"fewer than {settings.least} steps with a finite loss or gradient norm")
    if seen is None:
        return
    yield finding(
        CODE,
        NAME,
        "critical",
        f"The training explodes in the {len(run.step)} recorded steps, from about step {seen.first_step}: {seen.reason}.",
        _advice(run),
        steps=(seen.first_step, int(run.step[-1])),
        value=seen.value,
        limit=seen.limit,
        unit="times the beginning",
    )


def _advice(run: Run) -> str:
    """What helps, and what does not."""
    if broken_data(run):
        return f"Clean the data: neither a learning rate nor clipping helps, and no {DISTRUSTED}."
    bad = np.flatnonzero(harmful(run))
    growth = growth_before(run, int(bad[0])) if len(bad) else None
    if growth is not None and growth <= GREW:
        return f"The norm had not grown before: find what went nonfinite first, since that is what to mend; no {DISTRUSTED}."
    return f"Lower the learning rate, lengthen the warm-up, or clip; no {DISTRUSTED}."


RULE = Rule(CODE, NAME, check)
