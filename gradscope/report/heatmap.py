"""The heatmap layer × step as the page holds it: codes for the canvas, a picture for print and where no script runs."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from gradscope.report.cells import Cells
from gradscope.report.model import Report
from gradscope.report.png import data_uri, palette_png
from gradscope.report.pool import bins
from gradscope.report.text import number, visible

ABSENT, ZERO, LOWEST, HIGHEST, NONFINITE = 0, 1, 2, 65534, 65535
PICTURE_ROWS = 500
NONFINITE_COLOR, ABSENT_COLOR = (213, 94, 0), (150, 150, 150)
SHADES = 254


@dataclass(frozen=True)
class Heatmap:
    """`data` is for the canvas; `picture` and `scale` are images; `low` and `high` are the ends of the scale, as text."""

    data: dict[str, Any]
    picture: str
    scale: str
    low: str
    high: str
    layers: int
    columns: int
    steps: int
    finite: bool
    nonfinite: bool
    absent: bool


def make_heatmap(report: Report) -> Heatmap | None:
    """The heatmap of a report; None without a single step or layer."""
    cells = report.cells
    if not cells.norm.size:
        return None
    low, high = _range(cells)
    codes = _codes(cells, low, high)
    data = {
        "names": [visible(layer.name) for layer in report.run.layers],
        "first": cells.first.tolist(),
        "last": cells.last.tolist(),
        "low": low,
        "high": high,
        "shades": _cividis().tolist(),
        "codes": base64.b64encode(codes.astype("<u2").tobytes()).decode("ascii"),
    }
    return Heatmap(
        data=data,
        picture=data_uri(_picture(codes)),
        scale=data_uri(palette_png(np.arange(SHADES, dtype=np.uint8)[None, :], _cividis())),
        low=number(10**low),
        high=number(10**high),
        layers=len(codes),
        columns=codes.shape[1],
        steps=cells.steps,
        finite=bool(np.isfinite(cells.norm).any()),
        nonfinite=bool((codes == NONFINITE).any()),
        absent=bool((codes == ABSENT).any()),
    )


def _range(cells: Cells) -> tuple[float, float]:
    known = cells.norm[np.isfinite(cells.norm) & (cells.norm > 0)]
    return (float(np.log10(known.min())), float(np.log10(known.max()))) if len(known) else (0.0, 0.0)


def _codes(cells: Cells, low: float, high: float) -> NDArray[np.uint16]:
    positive = cells.norm > 0
    logs = np.log10(np.where(positive, cells.norm, 1.0))
    level = np.clip((logs - low) / max(high - low, 1e-9), 0, 1)
    codes = np.rint(LOWEST + level * (HIGHEST - LOWEST)).astype(np.uint16)
    codes[~positive] = ZERO
    codes[np.isnan(cells.norm)] = ABSENT
    codes[cells.nonfinite] = NONFINITE
    return codes


def _cividis() -> NDArray[np.uint8]:
    shades: NDArray[np.float64] = matplotlib.colormaps["cividis"](np.linspace(0, 1, SHADES))[:, :3]
    return np.asarray(np.rint(shades * 255), np.uint8)


def _picture(codes: NDArray[np.uint16]) -> bytes:
    pooled = np.maximum.reduceat(codes, bins(len(codes), PICTURE_ROWS), axis=0).astype(np.int64)
    shade = np.clip((pooled - LOWEST) * (SHADES - 1) // (HIGHEST - LOWEST), 0, SHADES - 1)
    shade[pooled == ABSENT] = SHADES
    shade[pooled == NONFINITE] = SHADES + 1
    palette = np.concatenate([_cividis(), np.array([ABSENT_COLOR, NONFINITE_COLOR], np.uint8)])
    return palette_png(shade.astype(np.uint8), palette)
