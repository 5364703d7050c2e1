"""Reports made by hand, one for every kind of page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.diagnosis.model import Diagnosis, Finding, LayerRisk, Unable, Verdict
from gradscope.recommendation.model import Candidate, LayerThreshold, Recommendation, Threshold
from gradscope.report.build import build_report
from gradscope.report.model import Remedy, Report
from gradscope.runs.run import Run
from gradscope.runs.schema import Ending, Offender, Piece, Plan, Trial
from tests.builders import make_run

HOSTILE = (
    "<script>window.pwned=1</script>",
    "x[/foo]",
    "[bold red]x[/]",
    "$\\frac{1}{0}$",
    "{{ 7*7 }}{% raw %}",
    "a|b`c`*d*_e_",
    '"><img src=x onerror="window.pwned=1">',
    "rtl-\u202egnp.exe",
    "new\nline\ttab",
    "L" * 2000 + "." + "R" * 1999,
    "</script><!--",
    "%0A::error::x,y:z",
    "層.重み",
    "",
)


def make_threshold(percentile: float, norms: Sequence[float]) -> Threshold:
    finite = np.asarray(norms, float)
    limit = float(np.percentile(finite, percentile))
    return Threshold(
        percentile=percentile,
        max_norm=limit,
        low=limit * 0.9,
        high=limit * 1.1 if percentile < 99 else None,
        confidence=0.95,
        clipped_fraction=float((finite > limit).mean()),
        mean_retained_step=float(np.minimum(1, limit / np.maximum(finite, 1e-30)).mean()),
        mode="safety net" if percentile >= 95 else "step limiter",
    )


def make_recommendation(run: Run, **changes: Any) -> Recommendation:
    norms = run.global_norm[run.measured]
    asked = make_threshold(95, list(norms))
    recommendation = Recommendation(
        max_norm=asked.max_norm,
        by="norm",
        mode="safety net",
        thresholds=(asked,),
        clipped_fraction=asked.clipped_fraction,
        mean_retained_step=asked.mean_retained_step,
        basis="norms of the recorded window",
        steps_used=len(norms),
        excluded={"skipped": int(run.skipped.sum())},
        measured_at=run.header.measured_at,
        verified=False,
        reason="The 95th percentile of the recorded norms.",
        layers=tuple(LayerThreshold(layer.name, 0.5, 0.05) for layer in run.layers),
    )
    return dataclasses.replace(recommendation, **changes)


def make_risks(run: Run, culprit: str | None = None) -> tuple[LayerRisk, ...]:
    names = sorted((layer.name for layer in run.layers), key=lambda name: name != culprit)
    kinds = {layer.name: layer.type for layer in run.layers}
    return tuple(make_risk(name, kinds[name], name == culprit, place) for place, name in enumerate(names))


def make_risk(name: str, kind: str, high: bool, place: int) -> LayerRisk:
    return LayerRisk(
        name=name,
        type=kind,
        level="high" if high else "low",
        score=12.5 if high else 1.0 / (1 + place),
        component="forward gain",
        factor=31.0 if high else 1.1,
        peers=0.9,
        message="forward gain 31× the median of its peers" if high else "forward gain 1.1× its peers",
        advice="scale its init by 0.03" if high else "",
        evidence={"forward_gain": 28.0 if high else 1.0, "backward_gain": 1.5},
    )


def make_findings(subject: str | None) -> tuple[Finding, ...]:
    return (
        Finding(
            "GS101",
            "nonfinite-gradient",
            "critical",
            subject,
            12,
            20,
            float("inf"),
            None,
            None,
            "Nonfinite gradients.",
            "Lower it.",
        ),
        Finding(
            "GS201", "sustained-growth", "warning", None, 3, 40, 1.9, 1.2, "per step", "The norm grows 1.9× a step.", ""
        ),
        Finding(
            "GS501", "too-few-steps", "info", None, None, None, 50, 59, "steps", "50 steps are few.", "Record more."
        ),
    )


def make_report(run: Run, *, culprit: str | None = None, verdict: Verdict | None = None, **changes: Any) -> Report:
    run = dataclasses.replace(run, path=Path("runs/20261123T000000Z-handmade-0000"))
    norms = list(run.global_norm[run.measured])
    report = Report(
        run=run,
        diagnosis=Diagnosis(
            verdict=verdict or Verdict("unknown", reasons=("A window alone cannot foresee an explosion.",)),
            layers=make_risks(run, culprit),
            findings=make_findings(culprit) if culprit is not None else (),
            unable=(Unable("GS301", "depth-growth", "no gains were recorded"),),
        ),
        recommendation=make_recommendation(run) if norms else None,
        caveats=("Only a short window was recorded.",),
        ladder=tuple(make_threshold(p, norms) for p in range(101)) if norms else (),
    )
    return dataclasses.replace(report, **changes)


def _walk(seed: int, steps: int, layers: int) -> Any:
    rng = np.random.default_rng(seed)
    depth = np.linspace(0, 2, layers)[None, :]
    return 10 ** (depth - 1 + np.cumsum(rng.normal(0, 0.02, (steps, 1)), 0) + rng.normal(0, 0.15, (steps, layers)))


def healthy(folder: Path) -> Report:
    run = make_run(folder, grad_norm=_walk(0, 50, 3), loss=list(np.linspace(2.3, 0.7, 50)))
    return make_report(run, verdict=Verdict("stable", 0.4, None, None, ("Held at ×1, ×2 and ×4.",)))


def exploding(folder: Path) -> Report:
    layers = tuple(
        f"encoder.blocks.{i}.{part}" for i in range(8) for part in ("attn.qkv", "attn.out", "mlp.up", "mlp.down")
    )
    norm = _walk(1, 50, len(layers))
    norm[30:] *= np.exp(np.arange(20) / 2)[:, None]
    norm[46:, 12:] = np.inf
    norm[48:] = np.nan
    loss = np.where(np.arange(50) < 46, np.linspace(4, 2, 50), np.nan)
    run = make_run(
        folder,
        grad_norm=norm,
        loss=list(loss),
        layers=layers,
        plan=Plan(total_steps=20000, max_norm=1.0, batch_size=64),
        pieces=(
            Piece("model", "Net()", "class Net, the only model in model.py", "1.2 M parameters"),
            Piece("data", "train_loader", "model.py:41", "batch 64"),
        ),
        seed=0,
        overhead_s=0.21,
        ending=Ending("nonfinite", 49, "nonfinite loss at step 46"),
        unmeasured={"encoder.blocks.3.attn.qkv": "its output is not a tensor"},
    )
    verdict = Verdict(
        "exploding", 24.0, 1.0, 30, ("The median norm of the last 10 steps is 812 × that of the first 10.",)
    )
    return make_report(run, culprit=layers[14], verdict=verdict)


def verified(folder: Path) -> Report:
    layers = tuple(f"blocks.{i}.mlp" for i in range(12))
    subjects = list(layers)
    rng = np.random.default_rng(2)
    probes: list[Any] = []
    for step in range(0, 50, 10):
        forward, backward = rng.normal(1, 0.05, 12), rng.normal(1, 0.05, 12)
        forward[7], backward[7] = 28, 9
        probes += [(step, "forward_gain", subjects, forward), (step, "backward_gain", subjects, backward)]
        probes += [(step, "weight_norm", subjects, np.ones(12)), (step, "update_norm", subjects, np.full(12, 1e-3))]
    trials = {}
    for factor in (1.0, 2.0, 4.0):
        loss = np.linspace(2, 1, 80) if factor == 1 else np.linspace(2, 2 * 10**factor, 80)
        if factor == 4:
            loss[60:] = np.nan
        plan = Trial("rehearsal", f"x{factor:g}", factor, indexes=tuple(np.linspace(50, 999, 80).astype(int).tolist()))
        trials[plan.name] = (plan, list(loss), list(np.geomspace(1, 10**factor, 80)))
    trials["replay"] = (Trial("replay", "replay", 1.0), list(np.linspace(2, 3, 26)), [1.0] * 26)
    candidates = []
    for i, limit in enumerate((0.9, 0.5, 0.1, 0.01)):
        name, loss = f"candidate-{i}", np.linspace(2, (1.4, 0.8, 1.0, 1.9)[i], 100)
        if i == 0:
            loss[70:] = np.nan
        trials[name] = (Trial("candidate", name, max_norm=limit, start="initial"), list(loss), [1.0] * 100)
        candidates.append(
            Candidate(
                limit,
                f"p{(90, 50, 10, 1)[i]} of the clipped window",
                name,
                None if i == 0 else float(loss[-1]),
                0.1 * (i + 1),
                i == 0,
                i == 1,
            )
        )
    for i, note in enumerate(("lr ÷ 2", "longer warm-up")):
        trials[f"remedy-{i}"] = (
            Trial("remedy", f"remedy-{i}", note=note),
            list(np.linspace(2, 1 + 5 * i, 80)),
            [1.0] * 80,
        )
    run = make_run(
        folder,
        grad_norm=_walk(2, 50, 12),
        loss=list(np.linspace(3, 2, 50)),
        layers=layers,
        probes=probes,
        trials=trials,
    )
    recommendation = make_recommendation(
        run,
        max_norm=0.5,
        mode="step limiter",
        verified=True,
        clipped_fraction=0.42,
        mean_retained_step=0.8,
        reason="The lowest loss among 4 tried thresholds.",
        candidates=tuple(candidates),
    )
    remedies = (
        Remedy("lr ÷ 2", "remedy-0", True, 1.0, "lr = 0.05", best=True, steps=100, planned=2000),
        Remedy("longer warm-up", "remedy-1", False, None, "warmup = 100", steps=2000, planned=2000),
    )
    verdict = Verdict("will-explode", 7.2, 1.0, None, ("The rehearsal ×1 failed, and a second draw confirmed it.",))
    return make_report(run, culprit="blocks.7.mlp", verdict=verdict, recommendation=recommendation, remedies=remedies)


def hostile(folder: Path) -> Report:
    run = make_run(
        folder,
        grad_norm=_walk(3, 20, len(HOSTILE)),
        layers=HOSTILE,
        name="<b>x[/foo]</b>",
        command=("gradscope", "analyze", "<x>; $(y).py"),
        source="a,b:c%.py",
    )
    report = make_report(run, culprit=HOSTILE[0])
    findings = tuple(dataclasses.replace(make_findings(name)[0], message=f"In {name}") for name in HOSTILE)
    return dataclasses.replace(report, diagnosis=dataclasses.replace(report.diagnosis, findings=findings))


def recurrent(folder: Path) -> Report:
    layers = ("embed", "rnn", "head")
    run = make_run(folder, grad_norm=_walk(4, 30, 3), layers=layers)
    times = np.arange(40)
    table = dataclasses.replace(
        run.probes,
        step=np.repeat([0, 10, 20], 80),
        probe=np.asarray(["state_grad_norm"] * 240, object),
        subject=np.asarray((["rnn.l0"] * 40 + ["rnn.l1"] * 40) * 3, object),
        index=np.tile(times, 6).astype(np.int32),
        value=np.tile(np.concatenate([1e-3 * 1.9 ** (39.0 - times), 1e-3 * 0.9 ** (39.0 - times)]), 3),
    )
    return make_report(dataclasses.replace(run, probes=table), culprit="rnn")


def several_ranks(folder: Path) -> Report:
    """Eight ranks, of which one breaks first."""
    rng = np.random.default_rng(5)
    losses = np.linspace(3, 2, 40)[:, None] * np.exp(rng.normal(0, 0.1, (40, 8)))
    losses[30, 5] = np.nan
    losses[31:] = np.nan
    norm = _walk(6, 40, 3)
    norm[30:] = np.nan
    run = make_run(
        folder,
        grad_norm=norm,
        loss=list(losses[:, 0]),
        ranks={rank: list(losses[:, rank]) for rank in range(1, 8)},
        world_size=8,
        first_nonfinite=Offender(30, "fc3", "fc3.weight", "gradient"),
    )
    return build_report(dataclasses.replace(run, path=Path("runs/20261123T000000Z-handmade-0000")))


def only_nan(folder: Path) -> Report:
    verdict = Verdict("exploding", None, None, 0, ("Every gradient is nonfinite.",))
    run = make_run(folder, grad_norm=np.full((5, 3), np.nan), loss=[float("nan")] * 5, columns={"nonfinite": [48] * 5})
    return make_report(run, verdict=verdict)


def tiny(folder: Path) -> Report:
    return make_report(make_run(folder, [1.0, 2.0, 3.0], layers=("fc",)))


def no_loss(folder: Path) -> Report:
    return make_report(make_run(folder, list(np.linspace(1, 2, 20)), loss=[float("nan")] * 20))


def empty(folder: Path) -> Report:
    return make_report(make_run(folder, [], ending=Ending("interrupted", 0)))


def never(folder: Path) -> Report:
    run = make_run(folder, [0.0] * 4)
    off = make_recommendation(
        run,
        max_norm=None,
        mode="off",
        clipped_fraction=None,
        mean_retained_step=None,
        verified=True,
        thresholds=(),
        reason="Clipping is not needed.",
    )
    return make_report(run, recommendation=off)


def clipped(folder: Path) -> Report:
    """Post-clip norms, skipped steps, a threshold in use, by value."""
    norms = [1.0, 0.5, float("inf"), 1.0, 1.0, 0.7]
    run = make_run(
        folder,
        norms,
        measured_at="post_clip",
        columns={"skipped": [False, False, True, False, False, False], "max_norm": [1.0] * 6},
        synthetic_data=True,
        inferred_loss=True,
        notes=("torn",),
    )
    return make_report(run, recommendation=make_recommendation(run, by="value"))


REPORTS: dict[str, Callable[[Path], Report]] = {
    make.__name__: make
    for make in (
        healthy,
        exploding,
        verified,
        hostile,
        recurrent,
        several_ranks,
        only_nan,
        tiny,
        no_loss,
        empty,
        never,
        clipped,
    )
}


def big(folder: Path, steps: int, layers: int) -> Report:
    """A run of any size, built in memory."""
    base = make_run(folder, [1.0], layers=tuple(f"stage{i // 50}.blocks.{i}.linear" for i in range(layers)))
    rng = np.random.default_rng(0)
    norm = np.exp(rng.standard_normal((steps, layers), dtype=np.float32) + np.linspace(0, 2, layers, dtype=np.float32))
    total = np.sqrt(np.einsum("ij,ij->i", norm, norm, dtype=np.float64))
    row = {"step": np.arange(steps), "global_norm": total, "norms": norm, "peaks": norm}
    filled = {
        name: np.repeat(getattr(base, name), steps, axis=0)
        for name in ("elapsed_s", "loss", "lr", "loss_scale", "max_norm", "skipped", "nonfinite", "micro_steps")
    }
    return make_report(dataclasses.replace(base, **filled, **row), culprit=base.layers[layers // 2].name)
