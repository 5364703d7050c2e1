"""The README's generated parts are those of the code."""

from __future__ import annotations

from pathlib import Path

from gradscope.diagnosis.explain import rules_table

README = Path(__file__).parent.parent / "README.md"


def test_the_table_of_rules_is_current() -> None:
    text = README.read_text(encoding="utf-8")
    found = text.split("<!-- rules -->")[1].split("<!-- /rules -->")[0].strip()
    assert found == rules_table().strip(), "put the output of gradscope.diagnosis.explain.rules_table() there"
