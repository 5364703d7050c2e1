"""A recommendation as plain text: the threshold first, then what it rests on."""

from __future__ import annotations

import textwrap

from gradscope.recommendation.model import Candidate, LayerThreshold, Recommendation, Threshold
from gradscope.report.terminal import PIPE, Terminal
from gradscope.report.text import elide, plural, visible

TERM = 11
"""Columns for what a fact is about."""


def render_recommendation(answer: Recommendation, terminal: Terminal = PIPE) -> str:
    """The recommendation in plain text, in the width of the terminal; in a pipe no line is broken and no name cut."""
    lines = [_headline(answer), *_wrapped(answer.reason, terminal), ""]
    lines += [*_thresholds(answer.thresholds), ""]
    lines += _candidates(answer.candidates) + _layers(answer.layers, terminal)
    lines += _told("rests on", f"{plural(answer.steps_used, 'step')}: {answer.basis}", terminal)
    for why, amount in answer.excluded.items():
        lines += _told("left out", f"{plural(amount, 'step')}: {why}", terminal) if amount else []
    lines += _told(
        "verified", "yes, on rehearsals" if answer.verified else "no: a percentile alone proves nothing", terminal
    )
    for caveat in answer.caveats:
        lines += _told("note", caveat, terminal)
    return "\n".join(lines)


def _told(term: str, text: str, terminal: Terminal) -> list[str]:
    first, *more = _wrapped(text, terminal, TERM)
    return [f"{term:<{TERM}}{first}", *(" " * TERM + line for line in more)]


def _wrapped(text: str, terminal: Terminal, indent: int = 0) -> list[str]:
    return [text] if terminal.width is None else textwrap.wrap(text, terminal.width - indent) or [""]


def _headline(answer: Recommendation) -> str:
    if answer.max_norm is None:
        return "do not clip"
    name = "clip_value" if answer.by == "value" else "max_norm"
    share = "" if answer.clipped_fraction is None else f", clips {answer.clipped_fraction:.0%} of these steps"
    return f"{name} = {answer.max_norm:.4g}   ({answer.mode}{share})"


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


def _layers(layers: tuple[LayerThreshold, ...], terminal: Terminal) -> list[str]:
    if not layers:
        return []
    room = terminal.width and terminal.width - 20
    rows = [f"{t.max_norm:>10.4g}  {t.clipped_fraction:>6.1%}  {elide(visible(t.layer), room)}" for t in layers]
    return [f"{'threshold':>10}  {'clips':>6}  layer", *rows, ""]
