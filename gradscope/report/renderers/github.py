"""The findings as GitHub workflow commands: an annotation each."""

from __future__ import annotations

from gradscope.report.answers import answers
from gradscope.report.model import Report
from gradscope.report.text import steps_range, visible

COMMANDS = {"critical": "error", "warning": "warning", "info": "notice"}
ALARMS = {"exploding": "error", "will-explode": "error", "thin-headroom": "warning"}


def render(report: Report) -> str:
    """One annotation for the verdict, then one a finding."""
    told = [f"{answer.question} {answer.answer}." for answer in answers(report)]
    verdict = report.diagnosis.verdict.verdict
    lines = [
        _command(ALARMS.get(verdict, "notice"), f"gradscope: {verdict}", "\n".join(told), report.run.header.source)
    ]
    for finding in report.diagnosis.findings:
        where = visible(finding.subject) if finding.subject is not None else "whole network"
        steps = steps_range(finding.first_step, finding.last_step)
        text = f"{where}{f', step {steps}' if steps else ''}: {finding.message} {finding.advice}".strip()
        lines.append(
            _command(COMMANDS[finding.severity], f"{finding.code} {finding.rule}", text, report.run.header.source)
        )
    return "".join(line + "\n" for line in lines)


def _command(command: str, title: str, message: str, file: str) -> str:
    return f"::{command} file={_property(file)},title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
