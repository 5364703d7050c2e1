"""Which thresholds to try next: a pure function of the run on disk, asked again until it wants nothing more.

First a window clipped conservatively, at a tenth of its first norm: its norms C are not the explosion's own. Then the
candidates C.p90, C.p50, C.p10, a tenth and a hundredth of C.p10, the user's own threshold and none, each on the same
time-compressed rehearsal.
"""

from __future__ import annotations

import numpy as np

from gradscope.diagnosis.plan import even, horizon
from gradscope.diagnosis.series import unscaled_norms, usable
from gradscope.diagnosis.verdict import judge
from gradscope.diagnosis.window import explosion
from gradscope.runs.run import Run
from gradscope.runs.schema import Trial

LENGTH, LEAST = 100, 20
CONSERVATIVE = 0.1
WINDOW = "clipped-window"


def next_candidates(run: Run, allowed: float = float("inf")) -> tuple[Trial, ...]:
    """The next trials (kinds window and candidate) within `allowed` training steps; empty when none is needed.

    Left out first when time is short: candidates, then length.
    """
    contaminated = explosion(run) is not None
    if not contaminated and judge(run).verdict in ("stable", "unknown"):
        return ()
    norms = unscaled_norms(run)
    first = norms[np.isfinite(norms) & (norms > 0)]
    if not len(first) or allowed < LEAST:
        return ()
    start = "initial" if contaminated else "window"
    if WINDOW not in run.trials:
        steps = tuple(range(min(len(run.step), int(min(allowed, 1e9)))))
        limit = CONSERVATIVE * float(first[0])
        return (Trial("window", WINDOW, max_norm=limit, start="initial", indexes=steps),)
    if any(trial.header.trial and trial.header.trial.kind == "candidate" for trial in run.trials.values()):
        return ()
    return _candidates(run, start, allowed)


def _candidates(run: Run, start: str, allowed: float) -> tuple[Trial, ...]:
    window = run.trials[WINDOW]
    kept = unscaled_norms(window)[usable(window)]
    if not len(kept):
        return ()
    p90, p50, p10 = (float(p) for p in np.percentile(kept, (90, 50, 10)))
    wanted: dict[str, float | None] = {
        "p10": p10,
        "p50": p50,
        "p90": p90,
        "p10-tenth": p10 / 10,
        "p10-hundredth": p10 / 100,
        "none": None,
    }
    if run.header.plan.max_norm:
        wanted = {"in-use": run.header.plan.max_norm, **wanted}
    length = int(min(LENGTH, max(LEAST, allowed / len(wanted))))
    names = list(wanted)[: max(1, int(min(allowed, 1e9) / length))]
    begin = 0 if start == "initial" else len(run.step)
    indexes = tuple(int(i) for i in even(begin, horizon(run), length))
    return tuple(
        Trial("candidate", f"clip-{name}", max_norm=wanted[name], start=start, indexes=indexes, note=_origin(name))
        for name in names
    )


def _origin(name: str) -> str:
    words = {"none": "no clipping", "in-use": "the threshold in use today"}
    return words.get(name, f"{name.replace('-', ', a ')} of a conservatively clipped window")
