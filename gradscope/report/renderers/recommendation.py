"""A recommendation as plain text: the threshold first, then what it rests on."""

from __future__ import annotations

from gradscope.recommendation.model import Candidate, LayerThreshold, Recommendation, Threshold


def render_recommendation(answer: Recommendation) -> str:
    """The recommendation in plain text, at most 80 columns but for long layer names."""
    lines = [_headline(answer), answer.reason, ""]
    lines += [*_thresholds(answer.thresholds), ""]
    lines += _candidates(answer.candidates) + _layers(answer.layers)
    lines += [f"rests on   {answer.steps_used} steps, {answer.basis}, {_clip(answer.measured_at)}"]
    lines += [f"left out   {count} steps: {why}" for why, count in answer.excluded.items() if count]
    lines += [f"verified   {'yes, on rehearsals' if answer.verified else 'no: a percentile alone proves nothing'}"]
    lines += [f"note       {caveat}" for caveat in answer.caveats]
    return "\n".join(lines)


def _headline(answer: Recommendation) -> str:
    if answer.max_norm is None:
        return "do not clip"
    name = "clip_value" if answer.by == "value" else "max_norm"
    share = "" if answer.clipped_fraction is None else f", clips {answer.clipped_fraction:.0%} of these steps"
    return f"{name} = {answer.max_norm:.4g}   ({answer.mode}{share})"


def _clip(measured_at: str) -> str:
    return measured_at.replace("_", "-")


def _thresholds(thresholds: tuple[Threshold, ...]) -> list[str]:
    head = f"{'percentile':>10}  {'threshold':>10}  {'95 % interval':>22}  {'clips':>6}  {'kept step':>9}  mode"
    return [head] + [
        f"{t.percentile:>10g}  {t.max_norm:>10.4g}  {_interval(t):>22}  {t.clipped_fraction:>6.1%}"
        f"  {t.mean_retained_step:>9.2f}  {t.mode}"
        for t in thresholds
    ]


def _interval(threshold: Threshold) -> str:
    low = "?" if threshold.low is None else f"{threshold.low:.4g}"
    high = "? (too few)" if threshold.high is None else f"{threshold.high:.4g}"
    return f"{low} to {high}"


def _candidates(candidates: tuple[Candidate, ...]) -> list[str]:
    if not candidates:
        return []
    rows = [f"{'tried':>10}  {'last loss':>10}  {'clips':>6}  from"]
    for c in candidates:
        value = "no clip" if c.max_norm is None else f"{c.max_norm:.4g}"
        loss = "diverged" if c.diverged or c.loss is None else f"{c.loss:.4g}"
        rows.append(f"{value:>10}  {loss:>10}  {c.clipped_fraction:>6.1%}  {c.origin}{'  <- best' if c.chosen else ''}")
    return [*rows, ""]


def _layers(layers: tuple[LayerThreshold, ...]) -> list[str]:
    if not layers:
        return []
    rows = [f"{t.max_norm:>10.4g}  {t.clipped_fraction:>6.1%}  {t.layer}" for t in layers]
    return [f"{'threshold':>10}  {'clips':>6}  layer", *rows, ""]
