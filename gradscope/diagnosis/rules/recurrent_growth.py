"""GS302 recurrent-growth: the gradient grows, or fades, from time step to time step of a recurrent layer.

What it detects
    ‖∂L/∂h_t‖ that changes geometrically on its way back through time.
Why it matters
    It is the explosion that clipping was invented for: a factor of 1.2 a time step is 9,000 over 50. Its opposite, a
    gradient that fades, means that the layer cannot learn from what lies further back.
How it decides
    At each sampled step: least squares of log ‖∂L/∂h_t‖ against T − t, the distance from the end, with an intercept a step
    and one slope for all; its 95 % interval is widened for the correlation of neighbouring residuals. Growth: the lower
    end of the interval is above 0 and the factor over the sequence above 10: a warning. Fading: the upper end below 0 and
    the factor below 1/1000: an information with the half-life. Unit: factor a time step. At least 8 time steps. Only
    ratios enter, so the scale of the loss does not matter. Told beside it: σmax(W_hh)·max σ′, the most that one time step
    of a plain RNN can multiply by; of an LSTM or a GRU the rows behind the candidate state. Where it is below 1, growth
    cannot come from the recurrence alone.
Known problems
    When every time step has a loss of its own, the sum of many contributions hides part of a fading. A curve that is not
    geometric has no single rate.
What to do
    Growth: clip by the global norm, start the recurrent matrix orthogonal, shorten the sequences. Fading: gates (LSTM, GRU),
    or shorter paths.
References
    Pascanu, Mikolov, Bengio 2013; Bengio, Simard, Frasconi 1994; pytorch/pytorch#1407.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from gradscope.diagnosis.model import CannotRunError, Finding, Rule
from gradscope.diagnosis.series import count, finding, median, number
from gradscope.diagnosis.slope import common_slope
from gradscope.runs.run import Floats, ProbeTable, Run

CODE, NAME = "GS302", "recurrent-growth"
GATED = ("LSTM", "GRU", "LSTMCell", "GRUCell")
PROBE, SIGMA = "state_grad_norm", "sigma_recurrent"


@dataclass(frozen=True)
class Settings:
    """`grown` and `faded`: factors over the whole sequence; `least`: time steps needed."""

    grown: float = 10.0
    faded: float = 1e-3
    least: int = 8


DEFAULTS = Settings()


@dataclass(frozen=True)
class TimeProfile:
    """How the gradient changes going back through time: `rate` is the slope of its log a time step, with its interval.

    `steps`: the sampled steps it was measured on. `sigma`: the median σmax(W_hh)·max σ′ on these; NaN where there is no such
    matrix.
    """

    layer: str
    rate: float
    low: float
    high: float
    length: int
    steps: tuple[int, ...]
    nonfinite: int
    sigma: float = math.nan

    @property
    def factor(self) -> float:
        """The factor a time step."""
        return math.exp(self.rate)

    @property
    def half_life(self) -> float:
        """Time steps in which the gradient doubles (growth) or halves (fading)."""
        return math.log(2) / abs(self.rate) if self.rate else math.inf


def check(run: Run, settings: Settings = DEFAULTS) -> Iterator[Finding]:
    """One finding a recurrent layer whose gradient grows or fades along time."""
    rows = run.probes.select(PROBE)
    if not len(rows.step):
        raise CannotRunError("no gradients along time were measured: no recurrent layer, or its probe was off")
    profiles = time_profiles(run, settings.least)
    if not profiles:
        raise CannotRunError(f"no sequence with {settings.least} finite gradients along time")
    for profile in profiles:
        total = profile.rate * profile.length
        if profile.low > 0 and total > math.log(settings.grown):
            yield _growth(profile, settings)
        elif profile.high < 0 and total < math.log(settings.faded):
            yield _fading(profile, gated=any(one.name == profile.layer and one.type in GATED for one in run.layers))


def time_profiles(run: Run, least: int = DEFAULTS.least) -> list[TimeProfile]:
    """The rate along time of every recurrent layer with at least `least` finite values in some sampled step."""
    rows = run.probes.select(PROBE)
    sigmas = run.probes.select(SIGMA)
    found = (_profile(layer, rows, least) for layer in dict.fromkeys(rows.subject.tolist()))
    return [replace(one, sigma=_sigma_of(one, sigmas)) for one in found if one]


def _sigma_of(profile: TimeProfile, sigmas: ProbeTable) -> float:
    same = np.isin(sigmas.step, profile.steps) & (sigmas.subject == profile.layer)
    return median(sigmas.value[same])


def _profile(layer: str, rows: ProbeTable, least: int) -> TimeProfile | None:
    own = rows.subject == layer
    good = own & np.isfinite(rows.value) & (rows.value > 0)
    distances: list[Floats] = []
    logs: list[Floats] = []
    length, steps = 0, []
    for step in np.unique(rows.step[own]):
        end = int(rows.index[own & (rows.step == step)].max())
        chosen = good & (rows.step == step)
        if chosen.sum() < least:
            continue
        place = np.argsort(rows.index[chosen])[::-1]
        x, y = (end - rows.index[chosen][place]).astype(float), np.log(rows.value[chosen][place])
        distances.append(x - x.mean())
        logs.append(y - y.mean())
        steps.append(int(step))
        length = max(length, end)
    if not distances:
        return None
    rate, error = common_slope(distances, logs)
    nonfinite = int((own & ~np.isfinite(rows.value)).sum())
    return TimeProfile(layer, rate, rate - 1.96 * error, rate + 1.96 * error, length, tuple(steps), nonfinite)


def _over(profile: TimeProfile) -> str:
    lost = f", {count(profile.nonfinite, 'value')} of it nonfinite" if profile.nonfinite else ""
    return f"over {count(profile.length, 'time step')} (measured on {count(len(profile.steps), 'training step')}{lost})"


def _interval(profile: TimeProfile) -> str:
    return f"95 % interval {number(math.exp(profile.low))} to {number(math.exp(profile.high))}"


def _sigma(profile: TimeProfile) -> str:
    return f"; σmax(W_hh)·max σ′ is {number(profile.sigma)}" if math.isfinite(profile.sigma) else ""


def _growth(profile: TimeProfile, settings: Settings) -> Finding:
    return finding(
        CODE,
        NAME,
        "warning",
        f"The gradient of {profile.layer} grows {number(profile.factor)}× a time step {_over(profile)}, going back in time; "
        f"{_interval(profile)}; it doubles every {number(profile.half_life)} time steps{_sigma(profile)}.",
        "Clip by the global norm, start the recurrent matrix orthogonal, or shorten the sequences.",
        subject=profile.layer,
        value=profile.factor,
        limit=settings.grown ** (1 / profile.length),
        unit="factor a time step",
    )


def _fading(profile: TimeProfile, *, gated: bool) -> Finding:
    return finding(
        CODE,
        NAME,
        "info",
        f"The gradient of {profile.layer} fades to {number(profile.factor)}× a time step {_over(profile)}, going back in "
        f"time; {_interval(profile)}; its half-life is {number(profile.half_life)} time steps{_sigma(profile)}.",
        "If longer memory is needed, use shorter paths: attention, skips over time, shorter sequences."
        if gated
        else "If longer memory is needed, use a gated layer (LSTM, GRU) or shorter paths.",
        subject=profile.layer,
        value=profile.factor,
        unit="factor a time step",
    )


RULE = Rule(CODE, NAME, check)
