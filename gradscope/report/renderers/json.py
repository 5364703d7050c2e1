"""The report as one JSON object: `Report.to_dict()`, where a nonfinite number is "NaN", "Infinity" or "-Infinity"."""

from __future__ import annotations

import json
import math
from typing import Any

from gradscope.report.model import Report


def render(report: Report) -> str:
    """The report as JSON that any parser reads."""
    return json.dumps(plain(report.to_dict()), indent=2, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """A value that strict JSON can hold."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
