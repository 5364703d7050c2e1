import dataclasses

import numpy as np
import pytest

from gradscope.errors import UsageError
from gradscope.recommendation import recommend
from gradscope.recommendation.model import Threshold
from gradscope.report.answers import answers, interval
from gradscope.report.build import build_report
from gradscope.report.facts import environment, measured
from gradscope.report.paste import cure, paste_line, pastes
from gradscope.report.remedies import remedies
from gradscope.report.renderers import renderer
from gradscope.report.renderers.console import render
from gradscope.report.rows import layer_rows, trial_rows
from gradscope.report.terminal import Terminal
from gradscope.report.titles import title
from gradscope.report.which_layer import without_subject
from gradscope.runs.schema import Ending, Group, Offender, Optimizer, Plan, Trial
from tests.builders import make_run
from tests.report.builders import REPORTS, make_report


def test_a_report_holds_diagnosis_threshold_and_ladder(tmp_path):
    run = make_run(tmp_path, list(np.linspace(1, 2, 60)))
    report = build_report(run, percentiles=(90.0, 99.0))
    assert [t.percentile for t in report.recommendation.thresholds] == [90.0, 99.0]
    assert report.recommendation.max_norm == recommend(run, (90.0,)).max_norm
    assert [t.percentile for t in report.ladder] == list(range(101))
    assert report.ladder[90].max_norm == report.recommendation.max_norm
    assert report.risk("fc1").name == "fc1"
    assert report.risk("nowhere") is None


def test_a_run_with_nothing_measured_still_has_a_report(tmp_path):
    report = build_report(make_run(tmp_path, [float("nan")] * 3))
    assert report.recommendation is None
    assert report.ladder == ()
    assert any("No step has a finite gradient norm" in caveat for caveat in report.caveats)
    assert answers(report)[2].answer.startswith("None")
    assert pastes(report) == []
    assert paste_line(report) is None


@pytest.mark.parametrize(("framework", "line"), [("transformers", "TrainingArguments"), (None, "clip_grad_norm_")])
def test_the_line_to_paste_is_that_of_the_framework_that_trains(tmp_path, framework, line):
    assert line in paste_line(build_report(make_run(tmp_path, [1.0] * 60, framework=framework)))


def test_a_wrong_percentile_is_said(tmp_path):
    with pytest.raises(UsageError):
        build_report(make_run(tmp_path, [1.0]), percentiles=(101.0,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"synthetic_data": True}, "real data"),
        ({"inferred_loss": True}, "inferred"),
        ({"measured_at": "post_clip"}, "post-clip"),
        ({"gradients_are": "scaled"}, "loss scale"),
        ({"plan": Plan()}, "planned number of steps is unknown"),
        ({"unmeasured": {"fc1": "its output is no tensor"}}, "1 layer could not be probed"),
        ({"notes": ("left out the replay",)}, "Left out the replay"),
    ],
)
def test_what_a_run_cannot_know_is_said(change, said, tmp_path):
    plain = build_report(make_run(tmp_path, [1.0] * 60))
    report = build_report(make_run(tmp_path, [1.0] * 60, **change))
    assert any(said in caveat for caveat in report.caveats)
    assert not any(said in caveat for caveat in plain.caveats)


def test_short_unverified_torn_and_interrupted_runs_say_so(tmp_path):
    run = make_run(tmp_path, [1.0] * 5, ending=Ending("interrupted", 5))
    said = " ".join(build_report(dataclasses.replace(run, notes=("steps.arrow ends in a torn row",))).caveats)
    for part in ("5 steps", "not tried", "torn row", "interrupted", "cannot foresee"):
        assert part in said


def test_remedies_are_judged_and_the_best_is_first(tmp_path):
    tried = {
        "a": (Trial("remedy", "a", note="lower\nlr = 0.1\nwarm = 2"), [1.0] * 30, [1.0] * 30),
        "b": (Trial("remedy", "b", note="warm-up"), [0.5] * 30, [1.0] * 30),
        "c": (Trial("remedy", "c"), [1.0] * 29 + [float("nan")], [1.0] * 30),
        "d": (Trial("remedy", "d"), [100.0] * 30, [1.0] * 30),
        "e": (Trial("remedy", "e"), [], []),
    }
    found = remedies(make_run(tmp_path, [1.0] * 50, loss=[1.0] * 50, trials=tried))
    assert [(r.name, r.held, r.loss, r.best) for r in found[:2]] == [
        ("warm-up", True, 0.5, True),
        ("lower", True, 1.0, False),
    ]
    assert {(r.name, r.held, r.loss) for r in found[2:]} == {("c", False, None), ("d", False, None)}
    assert found[1].snippet == "lr = 0.1\nwarm = 2"
    failed = remedies(make_run(tmp_path, [1.0] * 50, trials={"c": tried["c"]}))
    assert [r.best for r in failed] == [False]


def test_trials_without_a_step_are_not_shown(tmp_path):
    trials = {"x1": (Trial("rehearsal", "x1"), [], []), "x2": (Trial("rehearsal", "x2", 2.0), [1.0] * 9, [1.0] * 9)}
    report = build_report(make_run(tmp_path, [1.0] * 50, trials=trials))
    assert [row.title for row in trial_rows(report, "rehearsal")] == ["rehearsal ×2"]


def test_trials_have_titles(tmp_path):
    made = [
        Trial("rehearsal", "x1-long"),
        Trial("replay", "replay"),
        Trial("window", "w"),
        Trial("candidate", "clip-1"),
    ]
    trials = {trial.name: (trial, [1.0] * 9, [1.0] * 9) for trial in made}
    rows = trial_rows(
        build_report(make_run(tmp_path, [1.0] * 50, trials=trials)), "rehearsal", "replay", "window", "candidate"
    )
    assert [row.title for row in rows] == ["rehearsal ×1, long", "worst-batch replay", "window, clipped low", "clip-1"]


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_answers_in_sentences(name, tmp_path):
    told = answers(REPORTS[name](tmp_path))
    assert [answer.question[-1] for answer in told] == ["?"] * 4
    assert all(answer.answer for answer in told)
    assert all(line[-1] in ".:!?" for answer in told for line in answer.details)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1.0, 2.0, "1 to 2, each end 95 % sure"),
        (1.0, None, "at least 1, 95 % sure; too few steps for an upper end"),
        (None, 2.0, "at most 2, 95 % sure; too few steps for a lower end"),
        (None, None, "too few steps for an interval"),
    ],
)
def test_an_interval_says_what_it_lacks(low, high, said):
    assert interval(Threshold(95, 1.5, low, high, 0.95, 0.05, 0.99, "safety net")) == said


def test_without_layers_none_is_named(tmp_path):
    report = REPORTS["healthy"](tmp_path)
    bare = dataclasses.replace(report, diagnosis=dataclasses.replace(report.diagnosis, layers=()))
    assert answers(bare)[1].answer == "No layer was measured"


def which_layer(report):
    return answers(report)[1]


def test_a_recurrent_layer_answers_where_no_other_stands_out(tmp_path):
    report = build_report(REPORTS["recurrent"](tmp_path).run)
    assert which_layer(report).answer == "rnn.l0"
    assert "1.9× a time step" in which_layer(report).details[0]
    assert "1.9× a time step" in renderer("html")(report).split("Along time in the recurrent layer")[-1]


def test_the_layer_that_went_nonfinite_first_answers_too(tmp_path):
    norms = np.ones((40, 3))
    norms[30:, 1] = np.inf
    report = build_report(make_run(tmp_path, grad_norm=norms))
    assert which_layer(report).answer == "fc2"


def test_what_did_not_begin_in_a_layer_is_laid_on_none(tmp_path):
    loss = [1.0] * 30 + [np.nan]
    report = build_report(make_run(tmp_path, [1.0] * 30 + [np.inf], loss=loss, columns={"nonfinite": [0] * 30 + [4]}))
    assert which_layer(report).answer == "None for certain: the loss was nonfinite first"
    assert "the loss was nonfinite before any gradient" in which_layer(report).details[0]


def test_rehearsals_are_said_to_be_without_the_clipping_of_today(tmp_path):
    trial = Trial("rehearsal", "x1", indexes=tuple(range(60, 80)))
    trials = {"x1": (trial, np.ones(20), np.ones(20))}
    clipped = make_run(tmp_path / "clipped", [1.0] * 60, trials=trials, columns={"max_norm": [2.5] * 60})
    said = "Rehearsed without clipping, which is at 2.5 today."
    assert said in answers(build_report(clipped))[0].details
    plain = make_run(tmp_path / "plain", [1.0] * 60, trials=trials)
    assert not any("without clipping" in line for line in answers(build_report(plain))[0].details)
    window = make_run(tmp_path / "window", [1.0] * 60, columns={"max_norm": [2.5] * 60})
    assert said not in answers(build_report(window))[0].details


def test_a_run_that_failed_says_so_first(tmp_path):
    failed = Ending("failed", 40, "FloatingPointError: the loss is nan")
    report = build_report(make_run(tmp_path, [1.0] * 40, ending=failed))
    assert answers(report)[0].details[0] == "The run failed at step 40: FloatingPointError: the loss is nan."


def test_a_threshold_of_steps_that_explode_is_not_to_be_relied_on(tmp_path):
    report = build_report(make_run(tmp_path, [*range(1, 31), np.inf]))
    assert answers(report)[2].details[0] == "Do not rely on it: these steps explode, and it was not tried."


def test_where_no_threshold_held_none_is_to_be_verified(tmp_path):
    trial = Trial("candidate", "a", max_norm=0.5, indexes=(1,))
    report = build_report(make_run(tmp_path, [1.0] * 60, trials={"a": (trial, [np.inf], [np.inf])}))
    assert answers(report)[3].answer == "Every threshold tried failed"
    assert not any("not tried on a training" in caveat for caveat in report.caveats)


def test_accumulated_losses_are_said_to_be_means(tmp_path):
    report = build_report(make_run(tmp_path, [1.0] * 60, columns={"micro_steps": [4] * 60}))
    assert any("its loss is the mean of what they got" in caveat for caveat in report.caveats)


def test_without_gains_no_layer_is_said_to_stand_out_or_not(tmp_path):
    report = build_report(make_run(tmp_path, [1.0 + i % 3 for i in range(60)]))
    assert which_layer(report).answer == "Not known"
    assert "gradscope analyze" in which_layer(report).details[-1]
    assert "Not ranked: gains" in renderer("html")(report)


def test_the_threshold_in_use_and_what_was_left_out_are_told(tmp_path):
    norms = [1.0 + i % 3 for i in range(60)]
    columns = {"max_norm": [2.5] * 60, "skipped": [i == 7 for i in range(60)]}
    report = build_report(make_run(tmp_path, norms, columns=columns))
    assert "In use today: 2.5." in answers(report)[2].details
    assert "Left out: 1 step (skipped)." in answers(report)[3].details


def test_ranks_are_told_where_there_are_several(tmp_path):
    assert "Ranks" not in dict(measured(build_report(make_run(tmp_path, [1.0] * 30))))
    told = dict(measured(build_report(make_run(tmp_path, [1.0] * 30, world_size=4, ranks={2: [1.0] * 30}))))["Ranks"]
    assert told.startswith("4; ")
    assert told.endswith("the losses of 2 other ranks are not in the run")


def test_the_rank_that_broke_first_answers_and_no_layer_is_blamed(tmp_path):
    report = REPORTS["several_ranks"](tmp_path)
    assert which_layer(report).answer == "None: it began on rank 5"
    assert "at step 30" in which_layer(report).details[0]
    assert dict(measured(report))["First nonfinite"] == "loss of rank 5 at step 30"


def test_a_rank_has_a_row_of_its_own_losses(tmp_path):
    nan = float("nan")
    run = make_run(tmp_path, [1.0] * 4, loss=[1.0, 3.0, 2.0, 9.0], ranks={1: [-8.0, None, nan, 4.0], 3: [nan] * 4})
    first, other, broken = build_report(run).ranks
    assert (first.rank, first.steps, first.median, first.worst, first.worst_step) == (0, 4, 2.5, 9.0, 3)
    assert (other.rank, other.steps, other.worst, other.worst_step) == (1, 3, -8.0, 0)
    assert (other.nonfinite_steps, other.first_nonfinite) == (1, 2)
    assert (broken.median, broken.worst, broken.worst_step, broken.first_nonfinite) == (None, None, None, 0)
    assert build_report(make_run(tmp_path, [1.0] * 4)).ranks == []


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([2.0, 1.0] * 15, "No rank stands out: their losses stay beside each other over 30 steps."),
        ([2.0] * 20 + [float("nan")], "No rank stands out: the losses of all become nonfinite at the same step."),
        ([2.0] * 5, "is nonfinite; 5 steps are too few to tell whether one lies apart."),
    ],
)
def test_where_no_rank_stands_out_that_is_said(losses, said, tmp_path):
    norms = [1.0] * len(losses)
    report = build_report(make_run(tmp_path, norms, loss=losses, ranks={1: losses}, world_size=2))
    assert said in renderer("html")(report)


def test_a_message_does_not_repeat_its_layer():
    assert without_subject("fc1: gain 3", "fc1") == "Gain 3"
    assert without_subject("fc1 multiplies", "fc1") == "Multiplies"
    assert without_subject("fc10 multiplies", "fc1") == "fc10 multiplies"
    assert without_subject("seen", None) == "seen"
    assert without_subject(": x", "") == ": x"


def test_unranked_layers_follow_in_forward_order(tmp_path):
    report = REPORTS["healthy"](tmp_path)
    risks = (dataclasses.replace(report.diagnosis.layers[2], name="elsewhere"), report.diagnosis.layers[1])
    report = dataclasses.replace(report, diagnosis=dataclasses.replace(report.diagnosis, layers=risks))
    rows = layer_rows(report)
    assert [row.name for row in rows] == ["elsewhere", "fc2", "fc1", "fc3"]
    assert (rows[0].median, rows[0].size, rows[2].level) == (None, 0, None)


def test_the_facts_of_a_run(tmp_path):
    plain = dict(measured(make_report(make_run(tmp_path, [1.0] * 3))))
    assert plain["Steps"] == "3 steps of 1,000 planned"
    assert plain["Clipping today"] == "none known"
    assert "Skipped" not in plain
    run = make_run(
        tmp_path, [1.0] * 3, every=5, optimizer=None, plan=Plan(max_norm=2.0), ending=Ending("failed", 2, "boom"),
        first_nonfinite=Offender(2, "fc1", None, "gradient"), columns={"skipped": [True, False, False]},
    )  # fmt: skip
    facts = dict(measured(make_report(run)))
    assert facts["Steps"] == "3 steps of an unknown number planned, 1 of 5 recorded"
    assert (facts["Optimizer"], facts["Clipping today"], facts["Ended"]) == ("unknown", "2", "failed: boom")
    assert (facts["Skipped"], facts["First nonfinite"]) == ("1 step", "the gradient of fc1, at step 2")
    loss = make_run(tmp_path, [1.0] * 3, first_nonfinite=Offender(2, "fc1", "fc1.weight", "loss"))
    assert dict(measured(make_report(loss)))["First nonfinite"] == "the loss, at step 2"
    killed = dataclasses.replace(run.header, ending=Ending(), overhead_s=1.0, seed=3, command=("/a/b/gradscope", "x y"))
    report = make_report(dataclasses.replace(run, header=killed, elapsed_s=np.array([1.0, 2.0, 4.0])))
    about = dict(environment(report))
    assert about["Command"] == "gradscope 'x y'"
    assert about["Reading the gradients"] == "1 s of 4 s (25 %)"
    assert about["Seed"] == "3"
    assert "killed" in dict(measured(report))["Ended"]


def test_an_interval_is_that_of_the_answer(tmp_path):
    norms = [1 + step / 100 for step in range(100)]
    plain = build_report(make_run(tmp_path / "plain", norms)).to_dict()["recommendation"]
    assert plain["low"] <= plain["max_norm"] <= plain["high"]
    tried = {
        "a": (Trial("candidate", "a", max_norm=0.01), [0.1] * 60, [1.0] * 60),
        "b": (Trial("candidate", "b"), [0.9] * 60, [1.0] * 60),
    }
    proven = build_report(make_run(tmp_path / "proven", norms, trials=tried)).to_dict()["recommendation"]
    assert (proven["max_norm"], proven["low"], proven["high"]) == (0.01, None, None)
    assert proven["thresholds"][0]["low"] == plain["low"]


def test_losses_that_were_not_seen_are_told(tmp_path):
    run = make_run(tmp_path / "some", [1.0] * 60, loss=[1.0, float("nan")] * 30, recorded_by="record")
    assert "The loss of 30 steps was not seen, so that norms alone are judged there." in build_report(run).caveats
    run = make_run(tmp_path / "none", [1.0] * 60, loss=[float("nan")] * 60, recorded_by="record")
    assert "The loss of any step was not seen, so that norms alone are judged there." in build_report(run).caveats


def test_of_a_script_the_precision_of_its_parameters_is_known(tmp_path):
    facts = dict(measured(build_report(make_run(tmp_path, [1.0] * 60, recorded_by="record"))))
    assert facts["Precision"] == "float32 parameters; autocast is not seen"
    facts = dict(measured(build_report(make_run(tmp_path, [1.0] * 60, recorded_by="analyze"))))
    assert facts["Precision"] == "fp32"


@pytest.mark.parametrize("how", [{"plan": Plan(precision="fp16")}, {"columns": {"loss_scale": [8.0] * 60}}])
def test_where_a_scaler_is_in_use_gradients_are_unscaled_before_the_clip(tmp_path, how):
    report = build_report(make_run(tmp_path, [1.0] * 60, **how))
    assert str(paste_line(report)).splitlines()[0].startswith("scaler.unscale_(optimizer)")
    assert all("unscale_" not in one.code for one in pastes(report) if one.framework != "pytorch")


def test_what_lbfgs_clips_is_clipped_in_its_closure(tmp_path):
    run = make_run(tmp_path, [1.0] * 60, optimizer=Optimizer("LBFGS", (Group(0.1, (0, 1, 2)),)))
    assert paste_line(build_report(run)).endswith("# in the closure that LBFGS calls, after backward()")


def test_the_layer_that_breaks_in_the_rehearsal_of_the_plan_answers_where_none_stands_out(tmp_path):
    indexes = tuple(range(60, 100))
    losses = np.r_[np.ones(20), np.nan]
    trials = {"x1": (Trial("rehearsal", "x1", indexes=indexes), losses, losses)}
    gains = (0, "forward_gain", ["fc1", "fc2"], [1.0, 1.0])
    run = make_run(tmp_path, [1.0] * 60, trials=trials, plan=Plan(total_steps=100), probes=[gains])
    child = run.trials["x1"]
    seen = Offender(80, "fc2", None, "activation", operations=("exp",))
    told = dataclasses.replace(child, header=dataclasses.replace(child.header, first_nonfinite=seen))
    answer = which_layer(build_report(dataclasses.replace(run, trials={"x1": told})))
    assert answer.answer == "None stands out, but fc2 breaks first"
    assert answer.details == (
        "In its rehearsal the activation of fc2 or what exp computed after it is nonfinite first.",
    )
    loss = Offender(80, "fc2", "fc2.weight", "loss")
    told = dataclasses.replace(child, header=dataclasses.replace(child.header, first_nonfinite=loss))
    assert which_layer(build_report(dataclasses.replace(run, trials={"x1": told}))).answer == "None stands out"


@pytest.mark.parametrize(("today", "said"), [(None, "learning rate"), (5.0, "learning rate without clipping")])
def test_headroom_that_was_rehearsed_without_the_clip_in_use_says_so(tmp_path, today, said):
    held, failed = np.ones(40), np.r_[np.ones(20), np.nan]
    indexes = tuple(range(60, 100))
    trials = {
        "x1": (Trial("rehearsal", "x1", indexes=indexes), held, held),
        "x2": (Trial("rehearsal", "x2", lr_factor=2.0, indexes=indexes), failed, failed),
    }
    run = make_run(tmp_path, [1.0] * 60, trials=trials, plan=Plan(total_steps=100, max_norm=today))
    assert answers(build_report(run))[0].answer == f"Not as planned, but at 2× the {said}"


def test_a_verdict_says_whether_it_is_of_the_plan_as_it_clips(tmp_path):
    held, failed, indexes = np.ones(40), np.r_[np.ones(20), np.nan], tuple(range(60, 100))

    def said(name, clipped=None):
        trials = {"x1": (Trial("rehearsal", "x1", indexes=indexes), failed, failed)}
        if clipped is not None:
            trials["x1-clipped"] = Trial("rehearsal", "x1-clipped", max_norm=5.0, indexes=indexes), clipped, clipped
        plan = Plan(total_steps=100, max_norm=5.0)
        return answers(build_report(make_run(tmp_path / name, [1.0] * 60, trials=trials, plan=plan)))[0]

    unclipped = said("bare")
    assert unclipped.answer == "Yes, later: it is nonfinite at step 80, but without clipping"
    assert "Rehearsed without clipping, which is at 5 today." in unclipped.details
    assert said("saved", held).answer == "No: clipped as it is today, it held"
    lost = said("lost", failed)
    assert lost.answer == "Yes, later: it is nonfinite at step 80"
    assert not any("Rehearsed without clipping" in detail for detail in lost.details)


@pytest.mark.parametrize(("total", "answer"), [(100, "No: it"), (4000, "Probably not: it")])
def test_a_compressed_rehearsal_that_held_is_not_sure(tmp_path, total, answer):
    indexes, held = tuple(np.linspace(60, total - 1, 40).astype(int).tolist()), np.ones(40)
    trials = {"x1": (Trial("rehearsal", "x1", indexes=indexes), held, held)}
    run = make_run(tmp_path, [1.0] * 60, trials=trials, plan=Plan(total_steps=total))
    assert answers(build_report(run))[0].answer == f"{answer} held in every rehearsal"


def test_a_plan_that_explodes_in_some_rehearsals_may_explode(tmp_path):
    indexes, held, failed = tuple(range(60, 100)), np.ones(40), np.r_[np.ones(30), np.nan]
    trials = {
        name: (Trial("rehearsal", name, indexes=indexes, draw=draw, perturbed=1e-5 * (draw > 0)), losses, losses)
        for draw, (name, losses) in enumerate({"x1": failed, "x1-perturbed-1": held, "x1-perturbed-2": failed}.items())
    }
    report = build_report(make_run(tmp_path, [1.0] * 60, trials=trials, plan=Plan(total_steps=100)))
    assert title(report) == ("◆", "may explode")
    said = answers(report)[0]
    assert said.answer == "Perhaps: rounding decides whether it explodes"
    assert said.details[0] == "Of 3 rehearsals of the plan that differ by rounding, 2 failed."
    (foreseen,) = [one for one in report.diagnosis.findings if one.code == "GS206"]
    assert (foreseen.severity, foreseen.value) == ("warning", 1)


def test_what_held_best_is_pasted_before_a_clip_and_alone_where_clipping_failed(tmp_path):
    indexes = tuple(range(0, 1000, 10))

    def tried(name, end):
        about = Trial("remedy", name, start="initial", indexes=indexes, note=f"{name} changed\n{name} pasted")
        return about, [1.0] * 80 + [end] * 20, [1.0] * 100

    for clip, lines in ((0.5, 2), (99.0, 1)):
        trials = {"lr-0.5": tried("lr-0.5", 0.1), "clip": tried("clip", clip)}
        report = build_report(make_run(tmp_path / str(clip), [1.0] * 50, loss=[1.0] * 50, trials=trials))
        assert cure(report).snippet == "lr-0.5 pasted"
        assert (paste_line(report) is not None) == (lines == 2)
        shown = render(report, Terminal(160))
        assert "Paste what held best: lr-0.5 changed\n  lr-0.5 pasted" in shown
        assert ("Or clip" in shown) == (lines == 2)
        assert ("Clipping alone does not put this training right" in shown) == (lines == 1)


def test_a_clip_that_held_best_is_pasted_once(tmp_path):
    about = Trial("remedy", "clip", start="initial", indexes=tuple(range(100)), note="clip at 1\ntorch")
    trials = {"clip": (about, [0.1] * 100, [1.0] * 100)}
    report = build_report(make_run(tmp_path, [1.0] * 50, loss=[1.0] * 50, trials=trials))
    assert cure(report) is None
    assert len(pastes(report)) > 1


@pytest.mark.parametrize(("growth", "head"), [(1.0, "fc2"), (1e3, "None stands out, but fc2 breaks first")])
def test_what_breaks_at_the_end_of_an_explosion_did_not_begin_it(tmp_path, growth, head):
    norms = np.r_[np.ones(40), np.full(9, growth), np.nan]
    seen = Offender(49, layer="fc2", parameter=None, went_first="activation")
    run = make_run(
        tmp_path,
        norms,
        loss=np.r_[np.ones(49), np.nan],
        first_nonfinite=seen,
        probes=[(0, "forward_gain", ["fc1", "fc2"], [1.0, 1.0])],
    )
    answer = answers(build_report(run))[1]
    assert answer.answer == head
    assert "the activation of fc2 went first" in answer.details[0]


def test_of_a_recorded_explosion_the_layer_that_breaks_first_is_told(tmp_path):
    norms = np.r_[np.ones(40), np.full(9, 1e3), np.nan]
    seen = Offender(49, layer="fc2", parameter=None, went_first="activation")
    loss = np.r_[np.ones(49), np.nan]
    run = make_run(tmp_path, norms, loss=loss, first_nonfinite=seen, recorded_by="record")
    assert answers(build_report(run))[1].answer == "Not known, but fc2 breaks first"


def test_every_line_to_paste_stands_under_the_one_before(tmp_path):
    run = make_run(tmp_path, [1.0] * 60, columns={"loss_scale": [2.0] * 60})
    for width in (90, 200):
        text = render(build_report(run), Terminal(width=width))
        block = text[text.index("\nPaste\n") :].split("\n\n")[0].splitlines()[2:]
        assert all(line.startswith("  ") and not line.startswith("   ") for line in block)
        assert "scaler.unscale_(optimizer)" in text


def test_steps_that_explode_leave_nothing_to_paste_where_no_threshold_was_tried(tmp_path):
    report = build_report(make_run(tmp_path, [1.0] * 30 + [1000.0] * 20))
    assert report.recommendation.max_norm == 1
    assert answers(report)[2].details[0].startswith("Do not rely on it")
    assert pastes(report) == []


@pytest.mark.parametrize(("today", "line", "said"), [(0.1, 0.2, True), (0.8, None, False)])
def test_a_threshold_to_be_raised_by_degrees_is_pasted_as_twice_the_one_in_use(tmp_path, today, line, said):
    columns = {"max_norm": [today] * 60}
    report = build_report(make_run(tmp_path, np.linspace(0.5, 1.0, 60), columns=columns, recorded_by="record"))
    assert any("Raise it by degrees, 0.2 first" in detail for detail in answers(report)[2].details) is said
    assert f"max_norm={line or float(f'{report.recommendation.max_norm:.4g}')})" in paste_line(report)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ("SGD", "of the average step."),
        ("LBFGS", "of the average gradient."),
        ("Lion", "of the average gradient; Lion divides a constant factor out again."),
        ("SparseAdam + AdamW", "of the average gradient; SparseAdam + AdamW divide a constant factor out again."),
    ],
)
def test_what_a_threshold_keeps_is_the_step_only_where_steps_are_as_large_as_gradients(tmp_path, optimizer, said):
    made = Optimizer(optimizer, (Group(0.1, (0, 1, 2)),))
    report = build_report(make_run(tmp_path, np.linspace(1.0, 2.0, 60), optimizer=made))
    assert any(detail.endswith(said) for detail in answers(report)[2].details)


def test_sparse_gradients_are_left_out_of_the_line_to_paste(tmp_path):
    made = Optimizer("SparseAdam + AdamW", (Group(0.1, (0, 1, 2)),))
    report = build_report(make_run(tmp_path, [1.0] * 60, optimizer=made))
    assert "clip_grad_norm_([p for p in model.parameters() if p.grad is not None and not p.grad.is_sparse]" in str(
        paste_line(report)
    )
