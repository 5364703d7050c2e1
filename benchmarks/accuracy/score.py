"""Score gradscope on its own corpus: python -m benchmarks.accuracy [--jobs 2] [--family conv] [--only threshold]

Outcomes are measured by plain training to the horizon (outcome.py), verdicts through the public API on a spec file. The
corpus was written before it was first scored, and nothing in gradscope was fitted on it. `--only foresight` draws long
trainings at random and forbids rehearsals in full: what compressed ones alone foresee. `--only scale` multiplies the losses.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.accuracy import drawn, scale
from benchmarks.accuracy.case import SHORT, Case
from benchmarks.accuracy.corpus import cases
from benchmarks.accuracy.outcome import Outcome, train

ALARMS = ("exploding", "will-explode")
WINDOW = 50
WORST_REGRET = math.log(100)
GRID = tuple(10.0**e for e in (-3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1, 2, 3))
SPEC = """
import sys
sys.path.insert(0, {root!r})
from benchmarks.accuracy.outcome import load
case = load({name!r}, {factor!r})
model, data, training_step = case.model, case.data, case.training_step
optimizer, scheduler, total_steps = case.optimizer, case.scheduler, case.total_steps
del case
"""


@dataclass(frozen=True)
class Row:
    """What gradscope said of a case, beside what happened."""

    name: str
    explodes: bool | None
    onset: int
    verdict: str
    score: float
    layers: tuple[tuple[str, str], ...]
    max_norm: float | None


def said(name: str, verify: bool, factor: float = 1.0) -> dict[str, object]:
    """`Report.to_dict()` of a case, its loss multiplied, through the public API, on a spec file in a folder of its own."""
    import gradscope

    here, root = Path.cwd(), Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "spec_case.py")
        spec.write_text(SPEC.format(root=str(root), name=name, factor=factor), encoding="utf-8")
        sys.modules.pop("spec_case", None)
        os.chdir(folder)
        try:
            return gradscope.analyze(str(spec), verify=verify).to_dict()
        finally:
            os.chdir(here)


def diagnose(name: str) -> Row:
    """One case: trained to its horizon, and analyzed."""
    torch.set_num_threads(1)
    outcome, report = train(name), said(name, False)
    verdict = str(report["verdict"])
    score = math.inf if verdict == "exploding" else report["explosion_score"]
    layers = tuple((layer["name"], layer["level"]) for layer in report["layers"])  # type: ignore[attr-defined, index, union-attr]
    return Row(
        name, outcome.explodes, outcome.onset, verdict, -math.inf if score is None else float(score), layers, None
    )  # type: ignore[arg-type]


def at_scale(job: tuple[str, float]) -> scale.Answer:
    """What is said of a case with its loss multiplied."""
    torch.set_num_threads(1)
    return scale.answer(said, *job)


def foresee(name: str) -> Row:
    """As `diagnose`, where every rehearsal is compressed."""
    from gradscope.diagnosis import plan

    plan.EXACT = plan.AFFORDED = 0
    return diagnose(name)


def regrets(name: str) -> dict[str, float | None]:
    """Each way of clipping: log of its final loss over that of the best threshold of a grid; None where it diverged."""
    torch.set_num_threads(1)
    from gradscope.recommendation.policies import autoclip, zclip

    bare = train(name)
    scale = statistics.median(n for n in bare.norms[:WINDOW] if math.isfinite(n))
    grid = [train(name, factor * scale) for factor in GRID] + [bare]
    best = min(one.last for one in grid)
    p95 = float(np.percentile([n for n in bare.norms[:WINDOW] if math.isfinite(n)], 95))
    proven = said(name, True)["recommendation"]
    ways = {
        "gradscope": train(name, proven["max_norm"] if proven else None),  # type: ignore[index]
        "no clipping": bare,
        "1.0": train(name, 1.0),
        "p95 of the window": train(name, p95),
        "ZClip": train(name, policy=_online(zclip)),
        "AutoClip p10": train(name, policy=_online(autoclip)),
    }
    return {way: _regret(one, best, bare.first) for way, one in ways.items()}


def _online(policy: Callable[[np.ndarray], np.ndarray]) -> Callable[[list[float]], float]:
    return lambda norms: float(policy(np.asarray(norms))[-1])


def _regret(one: Outcome, best: float, first: float) -> float | None:
    if not math.isfinite(one.last) or one.last > 3 * first:
        return None
    floor = 1e-3 * first
    return min(math.log((one.last + floor) / (best + floor)), WORST_REGRET)


def auroc(positive: Iterable[float], negative: Iterable[float]) -> float:
    """The chance that a positive scores above a negative; ties count half."""
    pairs = [(p, n) for p in positive for n in list(negative)]
    return statistics.fmean((p > n) + 0.5 * (p == n) for p, n in pairs) if pairs else math.nan


def share(flags: Iterable[bool]) -> float:
    """The fraction that is true."""
    kept = list(flags)
    return statistics.fmean(kept) if kept else math.nan


def print_diagnosis(rows: list[Row], planted: dict[str, str | None]) -> None:
    """Recall, false alarms, AUROC, and where the planted layer was ranked."""
    now = [r for r in rows if r.explodes and r.onset < WINDOW]
    later = [r for r in rows if r.explodes and r.onset >= WINDOW]
    fine = [r for r in rows if r.explodes is False]
    alarms = [r for r in rows if r.verdict in ALARMS and r.explodes is not None]
    places = [_place(r, culprit) for r in rows if (culprit := planted[r.name])]
    healthy = [r for r in fine if not planted[r.name]]
    print(f"{len(rows)} trainings: {len(now)} explode in the window, {len(later)} later, {len(fine)} do not\n")
    print("| | recall | false alarms | AUROC |\n|---|---|---|---|")
    exploding = share(r.verdict == "exploding" for r in now), share(r.verdict == "exploding" for r in fine)
    print(f"| exploding, seen in the window | {exploding[0]:.2f} | {exploding[1]:.3f} | |")
    alarm = share(r.verdict in ALARMS for r in later), share(r.verdict in ALARMS for r in fine)
    print(f"| will explode, later | {alarm[0]:.2f} | {alarm[1]:.3f} | {_separates(later, fine):.3f} |")
    both = now + later
    print(f"| all | {share(r.verdict in ALARMS for r in both):.2f} | {alarm[1]:.3f} | {_separates(both, fine):.3f} |")
    seen = share(r.verdict in (*ALARMS, "thin-headroom") for r in later)
    print(f"\nalarm precision {share(bool(r.explodes) for r in alarms):.2f}")
    print(f"of those that explode later {seen:.2f} are called thin headroom at least")
    if places:
        first, three = share(p == 0 for p in places), share(p < 3 for p in places)
        print(f"planted layer first {first:.2f}, in the first three {three:.2f} of {len(places)}")
    print(f"healthy models with a layer at high risk {share(_high(r) for r in healthy):.3f} of {len(healthy)}")


def _separates(positive: list[Row], negative: list[Row]) -> float:
    return auroc([r.score for r in positive], [r.score for r in negative])


def _place(row: Row, culprit: str) -> int:
    names = [name for name, _ in row.layers]
    return names.index(culprit) if culprit in names else len(names)


def _high(row: Row) -> bool:
    return any(level == "high" for _, level in row.layers)


def print_thresholds(rows: list[dict[str, float | None]]) -> None:
    """Regret of each way of clipping."""
    print(f"\n{len(rows)} trainings\n\n| clipping | mean regret | median | diverged |\n|---|---|---|---|")
    for way in rows[0]:
        found = [WORST_REGRET if (value := row[way]) is None else value for row in rows]
        diverged = share(row[way] is None for row in rows)
        print(f"| {way} | {statistics.fmean(found):.2f} | {statistics.median(found):.2f} | {diverged:.0%} |")


def clipping_matters(case: Case) -> bool:
    """Whether a case is short enough to be trained once for every threshold of the grid."""
    return case.steps == SHORT


def main() -> None:
    """Run the corpus and print its scores as Markdown."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--family")
    parser.add_argument("--only", choices=["diagnosis", "threshold", "foresight", "scale"])
    args = parser.parse_args()
    chosen = [case for case in cases() if args.family in (None, case.family)]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        if args.only == "foresight":
            long = list(drawn.cases())
            print_diagnosis(
                pool.map(foresee, [case.name for case in long], chunksize=1), {one.name: None for one in long}
            )
        if args.only == "scale":
            asked = scale.jobs([case.name for case in chosen if case.steps <= SHORT])
            scale.print_scale(asked, pool.map(at_scale, asked, chunksize=1))
        if args.only in (None, "diagnosis"):
            rows = pool.map(diagnose, [case.name for case in chosen], chunksize=1)
            print_diagnosis(rows, {case.name: case.culprit for case in chosen})
        if args.only in (None, "threshold"):
            names = [case.name for case in chosen if clipping_matters(case)][::3]
            print_thresholds(pool.map(regrets, names, chunksize=1))
