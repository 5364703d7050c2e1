"""The report as lines of JSON, one object a line; `kind` says what it is: run, verdict, recommendation, layer, …"""

from __future__ import annotations

import json
from typing import Any

from gradscope.report.model import Report
from gradscope.report.renderers.json import plain

LISTS = {"layers": "layer", "findings": "finding", "unable": "unable", "remedies": "remedy"}
VERDICT = ("verdict", "explosion_score", "lr_headroom", "first_step", "reasons", "clipped_at")


def render(report: Report) -> str:
    """One JSON object a line."""
    whole = plain(report.to_dict())
    lines = [{"kind": "run", "schema_version": whole["schema_version"], **whole["run"]}]
    lines.append({"kind": "verdict", **{key: whole[key] for key in VERDICT}})
    if whole["recommendation"]:
        lines.append(_line("recommendation", whole["recommendation"]))
    lines += [_line(kind, item) for key, kind in LISTS.items() for item in whole[key]]
    lines += [{"kind": "caveat", "text": text} for text in whole["caveats"]]
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def _line(kind: str, item: dict[str, Any]) -> dict[str, Any]:
    return {"kind": kind, **item}
