"""The slope that several curves share, as of log gradients along time or along depth."""

from __future__ import annotations

import math

import numpy as np

from gradscope.runs.run import Floats


def common_slope(distances: list[Floats], logs: list[Floats]) -> tuple[float, float]:
    """The common slope of centred lines, and its standard error with autocorrelated residuals."""
    x, y = np.concatenate(distances), np.concatenate(logs)
    slope = float(x @ y / (x @ x))
    residuals = [b - slope * a for a, b in zip(distances, logs, strict=True)]
    r = np.concatenate(residuals)
    squares = float(r @ r)
    freedom = len(x) - len(logs) - 1
    pairs = sum(float(part[1:] @ part[:-1]) for part in residuals)
    correlation = min(max(pairs / squares, 0.0), 0.99) if squares > 0 else 0.0
    error = math.sqrt(squares / freedom / float(x @ x) * (1 + correlation) / (1 - correlation))
    return slope, error
