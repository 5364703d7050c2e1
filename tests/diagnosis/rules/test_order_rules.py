import pytest

from gradscope.diagnosis.rules import (
    clip_limit,
    clip_micro_batch,
    clip_order,
    clip_raises,
    clip_scaled,
    clip_subset,
    clip_unreached,
    schedule_order,
    unusual_clipping,
)
from gradscope.runs import events
from tests.builders import make_run

NAN = float("nan")

CASES = [
    (clip_order, events.CLIP_BEFORE_BACKWARD, "", 1.0, "critical", "clipped before the backward pass"),
    (clip_order, events.CLIP_AFTER_STEP, "", 1.0, "critical", "clipped after the step"),
    (clip_scaled, events.CLIP_SCALED, "", 65536.0, "critical", "loss scale 65"),
    (clip_micro_batch, events.CLIP_MICRO_BATCH, "", 0.0, "warning", "a micro-batch at a time"),
    (clip_limit, events.CLIP_LIMIT, "", 0.0, "critical", "sets every gradient to zero"),
    (clip_limit, events.CLIP_LIMIT, "", -1.0, "critical", "turns the gradients around"),
    (clip_limit, events.CLIP_LIMIT, "", NAN, "critical", "makes every gradient NaN"),
    (
        clip_subset,
        events.CLIP_SUBSET,
        "fc1.bias",
        2.0,
        "warning",
        "leaves out 2 parameters that the optimizer updates, such",
    ),
    (clip_unreached, events.CLIP_UNREACHED, "clip_grad_norm_", 0.0, "warning", "mentions clip_grad_norm_ and never"),
    (clip_raises, events.CLIP_RAISES, "", 1.0, "info", "error_if_nonfinite=True"),
    (unusual_clipping, events.CLIP_BY_VALUE, "", 0.5, "info", "by value at 0.5"),
    (unusual_clipping, events.CLIP_BY_HAND, "", 0.25, "info", "to 0.25 times"),
    (unusual_clipping, events.CLIP_OTHER_NORM, "1.0", float("inf"), "info", "clipped at 1.0 by their norm of order"),
    (unusual_clipping, events.GRADIENTS_CHANGED, "", 1.5, "info", "changes the gradients itself"),
    (schedule_order, events.SCHEDULE_BEFORE_STEP, "", 0.0, "warning", "between backward and step"),
]
RULES = sorted({case[0] for case in CASES}, key=lambda rule: rule.CODE)


@pytest.mark.parametrize(("rule", "event", "subject", "value", "severity", "words"), CASES)
def test_each_event_is_one_finding(tmp_path, rule, event, subject, value, severity, words):
    run = make_run(tmp_path, [1.0] * 30, probes=[(step, event, [subject], [value]) for step in (3, 4, 4, 9)])
    (finding,) = rule.check(run)
    assert (finding.code, finding.rule, finding.severity) == (rule.CODE, rule.NAME, severity)
    assert (finding.first_step, finding.last_step) == (3, 9)
    assert words in finding.message
    assert rule is clip_unreached or rule is clip_raises or "at 3 steps, first at step 3" in finding.message


@pytest.mark.parametrize("rule", RULES)
def test_silent_without_events_on_an_empty_and_a_nonfinite_run(tmp_path, rule):
    for name, norms in (("none", []), ("few", [1.0]), ("bad", [NAN, float("inf")])):
        assert list(rule.check(make_run(tmp_path / name, norms))) == []


def test_a_single_step_is_named(tmp_path):
    run = make_run(tmp_path, [1.0] * 3, probes=[(2, events.CLIP_SCALED, [""], [8.0])])
    (finding,) = clip_scaled.check(run)
    assert finding.message.endswith("at step 2.")
    assert (finding.value, finding.unit) == (8.0, "loss scale")
