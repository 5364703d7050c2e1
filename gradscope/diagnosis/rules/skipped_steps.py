"""GS104 skipped-steps: a gradient scaler, or the script, threw steps away, mostly because their gradient was nonfinite.

What it detects
    Steps that mixed precision or the script skipped, apart from those at the very start, where a loss scale is still
    settling.
Why it matters
    A skipped step is an overflow that stays invisible: the optimizer never sees it, and hooks on the optimizer do not
    either. Now and then it is normal; often, it is an explosion in disguise.
How it decides
    With a loss scale, the unbroken skips at the start are it settling: an information. The share of skipped steps after
    them: above 5 % a warning, above 50 % critical, any at all an information. If no step was ever taken it is critical.
    Unit: share of steps (0–1).
Known problems
    A scale that starts very high may need a dozen steps to settle; a window shorter than that looks as if nothing worked.
What to do
    For many skips: lower the learning rate, clip (after `unscale_`), or use bfloat16, which does not need a loss scale.
References
    Micikevicius et al. 2018, "Mixed Precision Training", section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.model import Finding, Rule, Severity
from gradscope.diagnosis.rules.nonfinite_gradient import first_nonfinite_parameter
from gradscope.diagnosis.series import count, finding, percent
from gradscope.runs.run import Run

CODE, NAME = "GS104", "skipped-steps"


@dataclass(frozen=True)
class Settings:
    """Shares (0–1) of the steps after settling above which the skips are a warning, and critical."""

    warning: float = 0.05
    critical: float = 0.5


DEFAULTS = Settings()


def check(run: Run, settings: Settings = DEFAULTS) -> Iterator[Finding]:
    """One finding when any step was skipped."""
    rows = np.flatnonzero(run.skipped)
    if not len(rows):
        return
    scaled = bool(np.isfinite(run.loss_scale).any())
    settling = int(np.argmin(run.skipped)) if scaled and not run.skipped.all() else 0
    later = rows[rows >= settling]
    if not len(later):
        yield _settled(run, settling)
        return
    share = len(later) / (len(run.step) - settling)
    worst: Severity = "critical" if share > settings.critical else "warning"
    row = int(later[0])
    origin = first_nonfinite_parameter(run, row) if scaled else None
    began = f"; the first of them, step {run.step[row]}, overflowed in {origin.name}" if origin else ""
    who, after = ("gradient scaler", " after its scale had settled") if scaled else ("script", "")
    amount = f"{count(len(later), 'step')} of the {len(run.step) - settling}{after} ({percent(share)})"
    yield finding(
        CODE,
        NAME,
        worst if share > settings.warning else "info",
        f"The {who} skipped {amount}{began}.",
        "If this goes on, lower the learning rate, clip after scaler.unscale_, or train in bfloat16."
        if scaled
        else "Look at the batches of these steps; if this goes on, lower the learning rate or clip.",
        subject=origin.layer if origin else None,
        steps=(int(run.step[row]), int(run.step[later[-1]])),
        value=share,
        limit=settings.warning,
        unit="share of steps",
    )


def _settled(run: Run, settling: int) -> Finding:
    return finding(
        CODE,
        NAME,
        "info",
        f"The gradient scaler skipped the first {count(settling, 'step')} while its scale settled. That is normal.",
        "Nothing to do; these steps are left out of the threshold.",
        steps=(int(run.step[0]), int(run.step[settling - 1])),
        value=settling / len(run.step),
        unit="share of steps",
    )


RULE = Rule(CODE, NAME, check)
