"""The layers as CSV, most at risk first: full names, full precision, an empty cell for what is absent."""

from __future__ import annotations

import csv
import io

from gradscope.report.model import Report
from gradscope.report.rows import layer_rows

COLUMNS = {
    "rank": "place",
    "layer": "name",
    "type": "type",
    "level": "level",
    "score": "score",
    "component": "component",
    "factor": "factor",
    "parameters": "size",
    "order": "order",
    "median_grad_norm": "median",
    "max_grad_norm": "maximum",
    "last_grad_norm": "final",
    "nonfinite_steps": "nonfinite_steps",
    "message": "message",
    "advice": "advice",
}


def render(report: Report) -> str:
    """One line a layer under one line of column names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in layer_rows(report):
        writer.writerow([getattr(row, attribute) for attribute in COLUMNS.values()])
    return text.getvalue()
