"""`gradscope analyze` from a spec file to a verdict, a threshold, a page and a run on disk."""

from __future__ import annotations

import html
import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

import gradscope as library
from gradscope.runs.catalogue import find_run
from gradscope.runs.reader import load_run
from tests.cli import specs
from tests.cli.run import gradscope


def written(here: Path, text: str, name: str = "spec_under_test.py") -> str:
    (here / name).write_text(text, encoding="utf-8")
    return name


def analyzed(here: Path, capsys: pytest.CaptureFixture[str], text: str, *args: str) -> dict[str, Any]:
    result = gradscope(capsys, "analyze", written(here, text), "--format", "json", *args)
    assert result.code == 0, result.err
    report: dict[str, Any] = json.loads(result.out)
    return report


def test_a_healthy_training_is_stable(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = analyzed(here, capsys, specs.HEALTHY)
    assert report["verdict"] == "stable"
    assert report["run"]["steps"] == 50
    assert {layer["name"] for layer in report["layers"]} == {"0", "2"}
    assert not any(layer["level"] == "high" for layer in report["layers"])
    run = load_run(find_run())
    assert {"x1", "x2", "x4"} <= set(run.trials)


def test_an_explosion_after_the_window_is_foreseen(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = analyzed(here, capsys, specs.EXPLODES_LATER)
    assert report["verdict"] == "will-explode"
    assert report["remedies"]
    assert load_run(find_run()).global_norm.max() < math.inf


def test_the_sample_behind_a_spike_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = analyzed(here, capsys, specs.OUTLIER)
    found = {finding["code"]: finding for finding in report["findings"]}
    assert "sample 77 of the data stands out by itself" in found["GS207"]["message"]
    run = load_run(find_run())
    looked = [one for one in run.trials.values() if one.header.trial and one.header.trial.kind == "samples"]
    assert all(one.header.trial and 77 in one.header.trial.samples for one in looked)
    assert found["GS207"]["first_step"] in {one.header.trial.indexes[0] for one in looked if one.header.trial}


def test_a_batch_that_takes_too_long_to_look_into_is_said(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradscope.analysis.session.LOOK_SHARE", 0.0)
    report = analyzed(here, capsys, specs.OUTLIER)
    assert "GS207" not in {finding["code"] for finding in report["findings"]}
    assert any("was not looked at sample by sample, for the budget" in one for one in report["caveats"])


def test_an_explosion_in_the_window_names_its_step(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = analyzed(here, capsys, specs.EXPLODES_NOW, "--quick")
    assert report["verdict"] == "exploding"
    assert report["first_step"] is not None
    assert report["run"]["ending"]["how"] == "nonfinite"


@pytest.mark.parametrize("scale", ["1.0", "1e-18"])
def test_growth_along_time_at_any_scale_of_the_loss(here: Path, capsys: pytest.CaptureFixture[str], scale: str) -> None:
    text = specs.RECURRENT.replace("SCALE = 1.0", f"SCALE = {scale}")
    result = gradscope(capsys, "analyze", written(here, text), "--quick", "--steps", "20", "-o", "page.html")
    assert result.code == 0, result.err
    page = " ".join(html.unescape(re.sub("<[^>]*>", "", (here / "page.html").read_text(encoding="utf-8"))).split())
    shown = gradscope(capsys, "show").out
    for said in (page, shown):
        assert "rnn grows 1.39× a time step over 29 time steps (measured on 2 training steps)" in said
        assert "95 % interval 1.39 to 1.4; it doubles every 2.0" in said
        assert "time steps; σmax(W_hh)·max σ′ is 1.4." in said


def test_quick_is_the_window_alone_and_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = analyzed(here, capsys, specs.HEALTHY, "--quick", "--steps", "20")
    assert report["verdict"] == "unknown"
    assert report["explosion_score"] is None
    assert not load_run(find_run()).trials
    assert any("cannot foresee" in text for text in (*report["caveats"], *report["reasons"]))


def test_it_says_how_the_file_was_read_and_what_comes_next(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = gradscope(capsys, "analyze", written(here, specs.HEALTHY), "--quick", "--html", "page.html")
    for piece in ("model", "data", "loss", "optimizer", "plan"):
        assert re.search(rf"^{piece} ", result.err, re.M)
    assert "inferred" in result.err
    assert "gradscope report" in result.err
    assert (here / "page.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")


def test_the_users_exception_keeps_the_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = gradscope(capsys, "analyze", written(here, specs.RAISES_AT_STEP_7), "--quick")
    assert result.code == 3
    assert "step 7" in result.err
    assert "the eighth batch is bad" in result.err
    run = load_run(find_run())
    assert len(run.step) == 7
    assert run.header.ending.how == "failed"


def test_ctrl_c_keeps_the_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = gradscope(capsys, "analyze", written(here, specs.INTERRUPTED_AT_STEP_7))
    assert result.code == 130
    run = load_run(find_run())
    assert len(run.step) == 7
    assert run.header.ending.how == "interrupted"


def test_several_seeds_are_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = analyzed(here, capsys, specs.HEALTHY, "--seeds", "3", "--quick", "--steps", "20")
    assert report["reasons"][0] == "3 seeds: unknown in 3 of 3"
    assert len(list((here / ".gradscope" / "runs").iterdir())) == 3


def test_a_budget_that_is_too_short_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = analyzed(here, capsys, specs.HEALTHY, "--budget", "0s")
    assert report["verdict"] == "unknown"
    assert any("A --budget larger by 1m has room for them" in text for text in report["caveats"])


@pytest.mark.parametrize("budget", ["soon", "5 fortnights", ""])
def test_a_budget_that_is_no_time(budget: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = gradscope(capsys, "analyze", written(here, specs.HEALTHY), "--budget", budget)
    assert result.code == 2
    assert "5m" in result.err


def test_two_analyses_of_one_seed_agree(here: Path) -> None:
    target = written(here, specs.HEALTHY)
    one, other = (library.analyze(target, steps=20, rehearse=False, verify=False) for _ in range(2))
    assert one.run.loss.tolist() == other.run.loss.tolist()
    assert one.run.global_norm.tolist() == other.run.global_norm.tolist()


def test_an_unwritable_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / ".gradscope").write_text("a file in the way", encoding="utf-8")
    result = gradscope(capsys, "analyze", written(here, specs.HEALTHY), "--quick")
    assert result.code == 2
    assert "GRADSCOPE_DIR" in result.err


def test_check_reads_without_training(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = gradscope(capsys, "check", written(here, specs.HEALTHY), "--verbose")
    assert result.code == 0
    assert "plan" in result.out
    assert "0.weight" in result.out
    assert not (here / ".gradscope").exists()


def test_init_writes_a_spec_that_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gradscope(capsys, "init", "starter.py").code == 0
    assert gradscope(capsys, "analyze", "starter.py", "--quick", "--steps", "5").code == 0
    again = gradscope(capsys, "init", "starter.py")
    assert again.code == 2
    assert "there already" in again.err


def test_a_bug_of_ours_is_exit_4(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr("gradscope.cli.runs.list_runs", broken)
    result = gradscope(capsys, "runs")
    assert result.code == 4
    assert "please report it" in result.err


def test_verify_proves_the_asked_percentile(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    analyzed(here, capsys, specs.HEALTHY, "--quick")
    result = gradscope(capsys, "recommend", "-p", "90", "--verify", "--format", "json")
    assert result.code == 0, result.err
    answer = json.loads(result.out)
    run = load_run(find_run())
    assert "percentile-90" in run.trials
    assert answer["verified"]
    assert answer["max_norm"] == pytest.approx(answer["thresholds"][0]["max_norm"])
    assert any(one["trial"] == "percentile-90" for one in answer["candidates"])


def test_asked_for_a_percentile_it_answers_that_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proven = analyzed(here, capsys, specs.EXPLODES_LATER)["recommendation"]["max_norm"]
    asked = float(gradscope(capsys, "recommend", "-p", "95", "-q").out)
    assert asked == pytest.approx(float(load_run(find_run()).global_norm[:50].max()), rel=0.5)
    free = gradscope(capsys, "recommend", "-q").out.strip()
    assert free == ("none" if proven is None else f"{proven:.6g}")


def test_a_recorded_script_cannot_be_verified(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.builders import make_run

    run = make_run(here, [1.0] * 60, recorded_by="record")
    result = gradscope(capsys, "recommend", str(run.path), "--verify")
    assert result.code == 2
    assert "gradscope init" in result.err


def test_the_specs_own_seed_counts_unless_one_is_given(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = specs.HEALTHY + "seed = 7\n"
    assert analyzed(here, capsys, text, "--quick", "--steps", "5")["run"]["seed"] == 7
    assert analyzed(here, capsys, text, "--quick", "--steps", "5", "--seed", "3")["run"]["seed"] == 3


def test_the_live_display_on_a_terminal(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("gradscope.cli.live._is_terminal", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = gradscope(capsys, "analyze", written(here, specs.HEALTHY), "--quick", "--steps", "10")
    assert result.code == 0
    assert "window" in result.err


def test_a_plain_line_every_ten_seconds(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("gradscope.cli.live.PLAIN_SECONDS", 0.0)
    result = gradscope(capsys, "analyze", written(here, specs.HEALTHY), "--quick", "--steps", "10")
    assert re.search(r"window: step 10 of 10, 0 s left, norm [\d.]+", result.err)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--format", "xml"), "no format 'xml'"),
        (("-o", "report.docx"), "no format has the suffix '.docx'"),
        (("-o", "no/such/x.json"), "cannot write no/such/x.json: No such file or directory"),
        (("--html", "."), "cannot write .: Is a directory"),
    ],
)
def test_where_the_answer_cannot_go_is_said_before_anything_is_run(
    args: tuple[str, ...], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = gradscope(capsys, "analyze", written(here, specs.HEALTHY), *args)
    assert result.code == 2
    assert said in result.err
    assert not (here / ".gradscope").exists()


def test_the_users_exception_shows_their_own_lines_and_where_the_run_is(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    err = gradscope(capsys, "analyze", written(here, specs.RAISES_AT_STEP_7), "--quick").err
    assert 'raise ValueError("the eighth batch is bad")\n' in err
    assert re.findall(r'File "(.*)", line', err) == [str(here / "spec_under_test.py")]
    run = load_run(find_run())
    assert err.endswith(f"recorded {run.path}\nnext: gradscope show {run.id}\n")


def test_a_step_that_exits_is_the_users_own_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = specs.RAISES_AT_STEP_7.replace('ValueError("the eighth batch is bad")', "SystemExit(0)")
    result = gradscope(capsys, "analyze", written(here, text), "--quick")
    assert result.code == 3
    assert "step 7 raised SystemExit" in result.err
    assert load_run(find_run()).header.ending.how == "failed"


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("loss.item()", "the loss is a float, not a tensor"),
        ("loss.detach()", "the loss has no gradient"),
        ("model(batch[0])", "the loss has shape (16, 3), not one number"),
    ],
)
def test_a_training_step_that_returns_no_loss_is_named_by_its_line(
    returned: str, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = "def training_step(model, batch):\n    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])\n"
    text = specs.HEALTHY + step + f"    return {returned}\n"
    result = gradscope(capsys, "analyze", written(here, text), "--quick")
    assert result.code == 2
    assert f"spec_under_test.py:{text[: text.index('def ')].count(chr(10)) + 1}: {said}" in result.err


def test_data_that_ends_in_the_window_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = specs.HEALTHY + "data = iter([(X[:8], data[1][:8])] * 4)\n"
    report = analyzed(here, capsys, text, "--quick")
    assert report["run"]["steps"] == 4
    assert any("ended at step 4: the data ended: " in caveat for caveat in report["caveats"])


@pytest.mark.parametrize("name", ["notes.txt", "my-spec.py", "random.py", "spec"])
def test_init_writes_no_file_that_analyze_could_not_read(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = gradscope(capsys, "init", name)
    assert result.code == 2
    assert "gradscope init spec.py" in result.err
    assert not (here / name).exists()


def test_a_step_that_goes_backward_itself_is_told_to_leave_that(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = specs.HEALTHY + (
        "\ndef training_step(model, batch):\n    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])\n"
        "    loss.backward()\n    return loss\n"
    )
    result = gradscope(capsys, "analyze", written(here, text))
    assert result.code == 3
    assert "return the loss and leave those to gradscope" in result.err


def test_a_warning_of_the_users_code_is_shown_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = specs.HEALTHY.replace("import torch\n", "import torch, warnings\n", 1) + (
        "\ndef training_step(model, batch):\n    warnings.warn('mind the shapes')\n"
        "    return nn.functional.cross_entropy(model(batch[0]), batch[1])\n"
    )
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        assert gradscope(capsys, "analyze", written(here, text)).code == 0
    assert 1 <= sum("mind the shapes" in str(one.message) for one in seen) <= 20


def test_the_layer_whose_activation_is_nonfinite_first_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = analyzed(here, capsys, specs.OVERFLOWS, "--quick")
    found = {finding["code"]: finding for finding in report["findings"]}
    assert found["GS101"]["subject"] == "first"
    assert "what mul computed after first went first" in found["GS101"]["message"]


def test_checkpointed_activations_are_not_read_twice(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = specs.OVERFLOWS.replace(
        "self.last(self.behind(h))", "self.last(checkpoint(self.behind, h, use_reentrant=False))"
    )
    report = analyzed(here, capsys, text, "--quick")
    found = {finding["code"]: finding for finding in report["findings"]}
    assert report["run"]["ending"]["how"] == "nonfinite"
    assert "the loss was nonfinite before any gradient" in found["GS101"]["message"]


ROLLOUTS = """
import torch
torch.manual_seed(0)
model = torch.nn.Linear(3, 1)
def data():
    while True:
        inputs = torch.randn(4, 3)
        with torch.no_grad():
            made = {made}
        yield inputs, made
loss = torch.nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
total_steps = 60
"""


@pytest.mark.parametrize(("made", "told"), [("model(inputs)", True), ("inputs[:, :1]", False)])
def test_data_that_the_model_makes_is_said(
    here: Path, capsys: pytest.CaptureFixture[str], made: str, told: bool
) -> None:
    report = analyzed(here, capsys, ROLLOUTS.replace("{made}", made), "--quick")
    assert any("The data function calls the model" in caveat for caveat in report["caveats"]) is told


FOLLOWS = """
import torch
torch.manual_seed(0)
model = torch.nn.Linear(3, 1)
def data():
    for i in range(200):
        inputs = torch.sin(torch.arange(12.0) + i).reshape(4, 3)
        with torch.no_grad():
            made = model(inputs) * 0.9 + 1
        yield inputs, made
loss = torch.nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-1)
total_steps = 100
"""


def test_data_that_the_model_makes_is_drawn_as_the_training_would(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = analyzed(here, capsys, FOLLOWS)
    plain: dict[str, Any] = {}
    exec(FOLLOWS, plain)
    losses = []
    for _, (inputs, made) in zip(range(100), plain["data"](), strict=False):
        plain["optimizer"].zero_grad()
        loss = plain["loss"](plain["model"](inputs), made)
        loss.backward()
        plain["optimizer"].step()
        losses.append(loss.item())
    run = load_run(find_run(None))
    assert [*run.loss, *run.trials["x1"].loss] == losses
    assert any("the first rehearsal draws as the training will" in caveat for caveat in report["caveats"])


DIES = """
import torch
torch.manual_seed(0)
rows = torch.randn(512, 16)
data, batch_size = (rows, rows[:, :4].argmax(1)), 32
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU(),
    torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
loss = torch.nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 3e-3 + 0.5 * (step / 400) ** 6)
total_steps = 400
"""


def test_a_training_that_dies_at_its_peak_rate_collapses_and_a_lower_rate_holds(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = analyzed(here, capsys, DIES)
    (found,) = [finding for finding in report["findings"] if finding["code"] == "GS208"]
    assert found["severity"] == "warning"
    assert 50 < found["first_step"] < 400
    best = next(remedy for remedy in report["remedies"] if remedy["best"])
    assert best["trial"].startswith("lr-0.1")


DEEP = """
import torch
torch.manual_seed(0)
rows = torch.randn(512, 24)
data, batch_size = (rows, rows[:, :4].argmax(1)), 32
layers = [part for _ in range(16) for part in (torch.nn.Linear(24, 24), torch.nn.ReLU())]
model = torch.nn.Sequential(*layers, torch.nn.Linear(24, 4))
loss = torch.nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
total_steps = 400
"""


def test_a_deep_stack_that_learns_nothing_is_told_to_begin_with_larger_weights(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = analyzed(here, capsys, DEEP)
    found = {finding["code"]: finding for finding in report["findings"]}
    assert {"GS204", "GS304"} <= set(found)
    assert 0.3 < found["GS304"]["value"] < 0.5
    best = next(remedy for remedy in report["remedies"] if remedy["best"])
    assert best["trial"].startswith("init")
    assert best["name"].startswith("all 17 layers of type Linear start × 2.")


PRICES = """
import torch
torch.manual_seed(0)
rows = torch.randn(512, 8)
data, batch_size = (rows, 2e5 + 8e4 * torch.tanh(rows[:, :1] + rows[:, 1:2])), 32
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU(),
    torch.nn.Linear(32, 1))
loss = torch.nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
total_steps = 300
"""


def test_targets_of_hundreds_of_thousands_explode_and_standard_ones_hold(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = analyzed(here, capsys, PRICES)
    assert report["verdict"] == "exploding"
    (found,) = [finding for finding in report["findings"] if finding["code"] == "GS307"]
    assert (found["severity"], found["value"]) == ("warning", pytest.approx(2.1e5, rel=0.1))
    tried = {remedy["trial"]: remedy for remedy in report["remedies"]}
    assert tried["data"]["best"]
    assert tried["data"]["loss"] < 0.1 * (8e4) ** 2
    assert not tried["lr-0.1"]["held"]
    assert tried["data"]["snippet"].startswith("Y = (Y - Y.mean(0)) / (Y.std(0) + 1e-8)")


def test_raw_pixels_are_told_and_standard_ones_hold(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = analyzed(here, capsys, PRICES.replace("rows, 2e5 + 8e4 * ", "90 * rows + 128, 3 * "))
    (found,) = [finding for finding in report["findings"] if finding["code"] == "GS307"]
    assert (found["subject"], found["value"]) == ("0", pytest.approx(156, rel=0.1))
    tried = {remedy["trial"]: remedy for remedy in report["remedies"]}
    assert tried["data"]["held"]
    assert tried["data"]["loss"] < 1
