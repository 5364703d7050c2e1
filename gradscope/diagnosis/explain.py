"""What a rule is: its documentation by code or name, and the table of all rules."""

from __future__ import annotations

import difflib
import inspect
import sys

from gradscope.diagnosis.model import Rule
from gradscope.diagnosis.rules import RULES
from gradscope.errors import UsageError

HEADINGS = (
    "What it detects",
    "Why it matters",
    "How it decides",
    "Known problems",
    "What to do",
    "References",
)


def explain(code_or_name: str) -> str:
    """The documentation of the rule with this code (`GS203`) or name (`spike`), in any case.

    Raises:
        UsageError: there is no such rule; the message names the nearest.
    """
    wanted = code_or_name.strip().lower()
    for rule in RULES:
        if wanted in (rule.code.lower(), rule.name):
            return documentation(rule)
    known = [rule.code.lower() for rule in RULES] + [rule.name for rule in RULES]
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0].upper() if near[0].startswith('gs') else near[0]}?" if near else "."
    raise UsageError(f"no rule {code_or_name!r}{hint} The rules are {', '.join(rule.code for rule in RULES)}")


def documentation(rule: Rule) -> str:
    """The docstring of the module that the rule lives in."""
    return inspect.cleandoc(sys.modules[rule.check.__module__].__doc__ or "")


def rules_table() -> str:
    """All rules as a Markdown table: code, name, what it detects."""
    rows = [f"| `{rule.code}` | {rule.name} | {_summary(rule)} |" for rule in RULES]
    return "\n".join(["| code | rule | what it detects |", "|---|---|---|", *rows]) + "\n"


def _summary(rule: Rule) -> str:
    """The text under "What it detects", on one line."""
    lines = documentation(rule).splitlines()
    begin = lines.index(HEADINGS[0]) + 1
    end = lines.index(HEADINGS[1])
    return " ".join(line.strip() for line in lines[begin:end])
