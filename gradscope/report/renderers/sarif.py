"""The findings as SARIF 2.1.0, for code-scanning views. The layer is a logical location in the recorded source."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from gradscope.diagnosis.model import Finding
from gradscope.report.model import Report
from gradscope.report.renderers.json import plain

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {"critical": "error", "warning": "warning", "info": "note"}


def render(report: Report) -> str:
    """One SARIF log with one run."""
    findings, header = report.diagnosis.findings, report.run.header
    names = {finding.code: finding.rule for finding in findings}
    driver = {
        "name": "gradscope",
        "version": header.versions.get("gradscope", "0"),
        "rules": [{"id": code, "name": names[code]} for code in sorted(names)],
    }
    results = [_result(finding, header.source) for finding in findings]
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
    return json.dumps(log, indent=2, allow_nan=False) + "\n"


def _result(finding: Finding, source: str) -> dict[str, Any]:
    place: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": _uri(source)}}}
    if finding.subject is not None:
        place["logicalLocations"] = [{"fullyQualifiedName": finding.subject, "kind": "member"}]
    numbers = {"value": finding.value, "limit": finding.limit, "unit": finding.unit}
    steps = {"first_step": finding.first_step, "last_step": finding.last_step}
    return {
        "ruleId": finding.code,
        "level": LEVELS[finding.severity],
        "message": {"text": f"{finding.message} {finding.advice}".strip()},
        "locations": [place],
        "properties": plain(numbers | steps),
    }


def _uri(source: str) -> str:
    return quote(source.replace("\\", "/"))
