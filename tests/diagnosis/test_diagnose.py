import re
from pathlib import Path

import numpy as np
import pytest

import gradscope.diagnosis.rules as rules_package
from gradscope.diagnosis.diagnose import diagnose
from gradscope.diagnosis.explain import HEADINGS, documentation, explain, rules_table
from gradscope.diagnosis.rules import RULES
from gradscope.diagnosis.series import count, number, percent
from gradscope.errors import UsageError
from tests.builders import make_run

NAN = float("nan")


def test_a_healthy_run_has_no_findings_and_says_which_rules_could_not_run(tmp_path):
    loss = np.linspace(2.0, 1.0, 50)
    diagnosis = diagnose(make_run(tmp_path, [1.0] * 50, loss=loss))
    assert diagnosis.findings == ()
    assert diagnosis.verdict.verdict == "unknown"
    assert {unable.code for unable in diagnosis.unable} == {
        "GS204",
        "GS208",
        "GS301",
        "GS302",
        "GS304",
        "GS307",
        "GS308",
        "GS309",
        "GS401",
        "GS402",
    }
    assert all(unable.reason for unable in diagnosis.unable)
    assert len(diagnosis.layers) == 3


def test_the_gravest_finding_comes_first(tmp_path):
    run = make_run(tmp_path, [1.0] * 5 + [NAN], loss=[1.0] * 6, synthetic_data=True, inferred_loss=True)
    severities = [finding.severity for finding in diagnose(run).findings]
    assert severities == sorted(severities, key=["critical", "warning", "info"].index)
    assert severities[0] == "critical"


@pytest.mark.parametrize("norms", [[], [NAN], [NAN] * 40, [0.0] * 40, [1e-45] * 40, [3e38] * 40])
def test_no_run_breaks_a_rule(tmp_path, norms):
    diagnosis = diagnose(make_run(tmp_path, norms, columns={"max_norm": [1.0] * len(norms)}))
    ran = {finding.code for finding in diagnosis.findings} | {unable.code for unable in diagnosis.unable}
    assert ran <= {rule.code for rule in RULES}
    assert all(finding.value is None or np.isfinite(finding.value) for finding in diagnosis.findings)
    if norms and np.isnan(norms[0]):
        assert diagnosis.verdict.verdict == "exploding"


def test_codes_and_names_are_unique_and_ordered():
    codes = [rule.code for rule in RULES]
    assert codes == sorted(set(codes))
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_every_rule_file_is_collected():
    files = {path.stem for path in Path(rules_package.__path__[0]).glob("*.py")} - {"__init__"}
    assert {rule.check.__module__.rpartition(".")[2] for rule in RULES} == files


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_every_rule_is_documented_by_the_recipe(rule):
    text = documentation(rule)
    assert text.startswith(f"{rule.code} {rule.name}: ")
    places = [text.index(f"\n{heading}\n") for heading in HEADINGS]
    assert places == sorted(places)
    assert re.fullmatch(r"GS[1-5]\d\d", rule.code)


@pytest.mark.parametrize("asked", ["GS203", "gs203", " spike "])
def test_explain_by_code_or_name(asked):
    assert explain(asked).startswith("GS203 spike")


@pytest.mark.parametrize(
    ("asked", "hint"), [("spkie", "did you mean spike?"), ("GS20", "did you mean GS2"), ("???", "'???'.")]
)
def test_explain_an_unknown_rule_names_the_nearest(asked, hint):
    with pytest.raises(UsageError, match=re.escape(hint)) as error:
        explain(asked)
    assert "GS101" in str(error.value)


def test_the_table_has_a_row_a_rule():
    rows = rules_table().splitlines()
    assert len(rows) == len(RULES) + 2
    assert all(row.count("|") == 4 for row in rows)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"),
        (0.04213, "0.0421"),
        (1240.4, "1,240"),
        (100.0, "100"),
        (99.94, "99.9"),
        (3.14e8, "3.1e+08"),
        (-2.5, "-2.5"),
        (1e-9, "1e-09"),
    ],
)
def test_numbers_in_words(value, said):
    assert number(value) == said


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, "0 %"), (1.0, "100 %"), (0.001, "< 1 %"), (0.9999, "> 99 %"), (0.5, "50 %")]
)
def test_shares_are_never_rounded_to_none_or_all(value, said):
    assert percent(value) == said


def test_counting():
    assert (count(1, "step"), count(0, "step"), count(12000, "step")) == ("1 step", "0 steps", "12,000 steps")
