import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from gradscope.errors import UsageError
from gradscope.report import svg
from gradscope.report.build import build_report
from gradscope.report.charts import CHARTS, draw
from gradscope.report.compare import compare, compare_html, compare_text
from gradscope.report.curves import candidates, rehearsals
from gradscope.report.figures import save_figures
from gradscope.report.page import script_json
from gradscope.report.renderers import renderer
from gradscope.report.renderers.html import modules
from gradscope.report.terminal import Terminal
from gradscope.runs.schema import Trial
from tests.builders import make_run
from tests.report.builders import REPORTS, big, make_report

render = renderer("html")


class Page(HTMLParser):
    """Every id, every attribute and the text of every script and style."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.styles, self.inline = [], [], 0, {"script": [], "style": []}
        self.inside = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[key] for key in ("href", "src", "action", "xlink:href") if key in found]
        self.styles += "style" in found
        self.inside = tag if tag in self.inline and found.get("type") != "application/json" else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.inline[self.inside].append(data)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return {name: render(make(tmp_path_factory.mktemp(name))) for name, make in REPORTS.items()}


@pytest.mark.parametrize("name", REPORTS)
def test_a_page_stands_alone_under_a_locked_policy(name, pages):
    page = Page(pages[name])
    assert all(link.startswith(("#", "data:image/png")) for link in page.links)
    assert page.styles == 0
    assert len(page.ids) == len(set(page.ids))
    for kind, (source,) in page.inline.items():
        wanted = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{wanted}'" in pages[name]
    assert "unsafe" not in pages[name].split("</head>")[0].split("<style>")[0]
    assert len(pages[name]) < 400_000


def test_a_page_is_the_same_again(tmp_path):
    report = REPORTS["verified"](tmp_path)
    assert render(report) == render(report)
    assert compare_html(report, report) == compare_html(report, report)


def test_data_in_scripts_cannot_end_them(pages):
    assert script_json({"a": "</script><!--&"}) == '{"a":"\\u003c/script\\u003e\\u003c!--\\u0026"}'
    data = json.loads(re.search(r'id="heat-data">(.*?)</script>', pages["hostile"], re.S)[1])
    assert "</script><!--" in data["names"]
    assert "<script>window" not in pages["hostile"]


def test_the_page_of_300_layers_and_200_steps_is_small(tmp_path):
    assert len(render(big(tmp_path, 200, 300)).encode()) <= 1_000_000


def test_a_long_run_is_pooled_and_says_so(tmp_path):
    page = render(big(tmp_path, 3000, 20))
    assert "3,000 steps in 400 columns: each shows the largest norm of its steps" in page
    assert "each column the largest of its steps" in page


def test_very_many_layers_are_folded_away(tmp_path):
    page = render(big(tmp_path, 3, 1500))
    assert "Show all 1,500 layers" in page
    assert page.count('<th scope="row">') >= 1500
    assert len(page.encode()) < 5_000_000


def test_the_sections_come_in_order(pages):
    wanted = [
        "What was measured", "Findings", "Gradient norm by layer and step", "Global norm and thresholds",
        "Choose another percentile", "Along the depth", "Rehearsals of", "Thresholds tried", "Remedies tried", "All layers",
        "Environment",
    ]  # fmt: skip
    heads = re.findall(r"<h2[^>]*>(.*?)(?:</h2>| <span)", pages["verified"])[4:]
    assert [next(w for w in wanted if head.startswith(w)) for head in heads] == wanted
    assert "Along time in the recurrent layer" in pages["recurrent"]
    after = pages["several_ranks"].split("<h2>Ranks</h2>")[1]
    assert "All layers" in after
    assert "Along the depth" not in after


def test_rules_explain_themselves(pages):
    assert pages["verified"].count("How this rule decides") >= 1


def test_modules_to_zoom_to():
    names = ["a.b.c", "a.b.d", "a.e", "x"]
    assert modules(names) == ["a", "a.b"]
    assert modules(["fc"]) == []


def test_ids_of_a_figure_carry_its_name(tmp_path):
    report = REPORTS["verified"](tmp_path)
    text = svg.inline_svg(draw(CHARTS[1], report), "mine", 'a "label"', "wide")
    assert set(re.findall(r' id="(\w+)-', text)) == {"mine"}
    assert {ref.split("-")[0] for ref in re.findall(r"url\(#([^)]*)\)", text)} == {"mine"}
    assert "style=" not in text
    assert "&quot;label&quot;" in text


@pytest.mark.parametrize("format", ["svg", "png", "pdf"])
def test_figures_are_files_and_the_same_again(format, tmp_path):
    report = REPORTS["healthy"](tmp_path)
    first, second = (save_figures(report, tmp_path / folder, format) for folder in "ab")
    assert [path.name for path in first] == [
        f"{name}.{format}" for name in ("heatmap", "global_norm", "depth", "boxes")
    ]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_figures_of_every_report(tmp_path):
    for name, make in REPORTS.items():
        assert all(path.stat().st_size for path in save_figures(make(tmp_path), tmp_path / name))


def test_figures_say_what_is_wrong(tmp_path):
    report = REPORTS["tiny"](tmp_path)
    with pytest.raises(UsageError, match="svg, png, pdf"):
        save_figures(report, tmp_path, "gif")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write figures"):
        save_figures(report, tmp_path / "file")


def test_a_comparison_tells_what_changed(tmp_path):
    a, b = REPORTS["verified"](tmp_path), REPORTS["healthy"](tmp_path)
    both = compare(a, b)
    facts = {question: (before, after, differs) for question, before, after, differs in both.facts}
    assert facts["Verdict"] == ("will explode", "stable", True)
    assert facts["Steps"] == ("50 steps", "50 steps", False)
    assert both.layers[0].name == "blocks.0.mlp"
    assert both.layers[0].factor is None
    same = compare(a, a)
    assert not any(differs for *_, differs in same.facts)
    assert same.layers == ()
    assert same.unchanged == len(a.run.layers)
    for text in (compare_text(a, a), compare_html(a, a)):
        assert "No layer changed its level, nor its median gradient norm by more than 1 %." in text


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_can_be_compared(name, tmp_path):
    report, other = REPORTS[name](tmp_path), big(tmp_path, 5, 20)
    for width in (80, 160):
        text = compare_text(report, other, Terminal(width))
        assert max(len(line) for line in text.splitlines()) <= width
    assert "only in" in compare_text(report, other)
    assert "more layer" in compare_text(report, other)
    assert compare_text(other, report, Terminal(80, unicode=False)).isascii()
    page = Page(compare_html(other, report))
    assert page.styles == 0
    assert len(page.ids) == len(set(page.ids))


def test_a_level_that_changed_comes_first(tmp_path):
    a = REPORTS["healthy"](tmp_path)
    b = make_report(a.run, culprit="fc2")
    change = compare(a, b).layers[0]
    assert (change.name, change.level_before, change.level_after) == ("fc2", "low", "high")
    assert "low → high" in compare_text(a, b)


def test_a_notebook_shows_the_page_in_a_frame(tmp_path):
    from html import unescape

    report = REPORTS["hostile"](tmp_path)
    cell = report._repr_html_()
    assert cell.count("<") == 2
    assert 'sandbox="allow-scripts"' in cell
    assert unescape(re.search(r'srcdoc="(.*)"', cell, re.S)[1]) == render(report)


def test_losses_that_diverge_leave_room_for_those_that_held(tmp_path):
    trials = {
        f"x{factor}": (Trial("rehearsal", f"x{factor}", float(factor)), [2.0, end, end], [1.0] * 3)
        for factor, end in ((1, 1.5), (2, 1e18))
    }
    figure = rehearsals(make_report(make_run(tmp_path, [1.0] * 3, trials=trials)))
    low, high = figure.axes[0].get_ylim()
    assert 1 < low < 1.5
    assert 60 < high < 100
    assert figure.axes[0].get_ylabel() == "loss (cut at 60)"


def test_a_threshold_tried_twice_is_drawn_once(tmp_path):
    trials = {
        name: (Trial("candidate", name, max_norm=limit, indexes=tuple(range(steps))), [2.0] * steps, [1.0] * steps)
        for name, limit, steps in (("a", 0.5, 10), ("b", 0.5, 40), ("c", 0.1, 10))
    }
    report = build_report(make_run(tmp_path, [1.0] * 30, trials=trials))
    lines = candidates(report).axes[0].get_lines()
    assert sorted(len(line.get_xdata()) for line in lines if line.get_alpha() is None) == [10, 40]
    assert len(report.recommendation.candidates) == 3


def test_a_compressed_trial_is_drawn_over_the_plan_by_the_medians_of_its_parts(tmp_path):
    steps = tuple(range(0, 4000, 10))
    trial = Trial("candidate", "a", max_norm=0.5, start="initial", indexes=steps)
    losses = np.tile([3.0, 1.0, 2.0, 2.0, 9.0], 80)
    report = build_report(make_run(tmp_path, [1.0] * 30, trials={"a": (trial, losses, [1.0] * 400)}))
    single, medians = candidates(report).axes[0].get_lines()
    assert (single.get_xdata()[-1], list(single.get_ydata())) == (3990, list(losses))
    assert list(medians.get_xdata()) == list(range(20, 4000, 50))
    assert set(medians.get_ydata()) == {2.0}
