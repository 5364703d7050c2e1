import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from gradscope.errors import UsageError
from gradscope.recommendation import recommend
from gradscope.report.build import build_report
from gradscope.report.renderers import RENDERERS, format_of, renderer
from gradscope.report.renderers.console import render
from gradscope.report.renderers.recommendation import render_recommendation
from gradscope.report.terminal import Terminal
from gradscope.report.text import number, share, visible
from tests.builders import make_run
from tests.report import golden
from tests.report.builders import HOSTILE, REPORTS, verified


@pytest.mark.parametrize("name", golden.NAMES)
def test_texts_are_as_they_were(name, tmp_path):
    for file, text in golden.outputs(name, tmp_path):
        assert text == (golden.FOLDER / file).read_text(encoding="utf-8"), f"{file}: python -m tests.report.golden"


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("format", RENDERERS)
def test_every_renderer_takes_every_report(name, format, tmp_path):
    report = REPORTS[name](tmp_path)
    text = renderer(format)(report)
    assert text.endswith("\n")
    text.encode("utf-8")


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize("unicode", [True, False])
def test_the_terminal_text_fits_its_width(name, width, unicode, tmp_path):
    text = render(REPORTS[name](tmp_path), Terminal(width, unicode=unicode))
    assert unicode or text.isascii()
    if unicode:
        assert max(len(line) for line in text.splitlines()) <= width


def test_a_pipe_cuts_nothing(tmp_path):
    report = REPORTS["hostile"](tmp_path)
    text = render(report)
    assert all(visible(name) in text for name in HOSTILE[:10])
    assert text.count("…") == 1
    assert "… and 4 more layers" in text


def test_a_terminal_cuts_names_in_their_middle(tmp_path):
    text = render(REPORTS["hostile"](tmp_path), Terminal(80))
    assert re.search(r"L+…\.?R+", text)


def test_the_first_lines_answer_everything(tmp_path):
    head = render(verified(tmp_path), Terminal(80)).split("Global norm")[0]
    for part in (
        "WILL EXPLODE",
        "blocks.7.mlp",
        "max_norm = 0.5",
        "tried and held",
        "clip_grad_norm_(",
        "max_norm=0.5",
    ):
        assert part in head


def test_what_is_to_be_pasted_survives_a_narrow_terminal(tmp_path):
    report = verified(tmp_path)
    lines = [line.strip() for line in render(report, Terminal(80)).splitlines()]
    code = lines.index("torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=0.5)")
    assert lines[code - 1] == "# after backward(), before optimizer.step()"
    assert "max_norm=0.5)  # after backward()" in render(report, Terminal(160))


def test_a_recommendation_fits_its_terminal_and_is_whole_in_a_pipe(tmp_path):
    run = make_run(tmp_path, [1.0 + i % 7 for i in range(30)], layers=HOSTILE, every=2)
    answer = recommend(run, (50, 95), per_layer=True)
    for width in (80, 160):
        assert max(map(len, render_recommendation(answer, Terminal(width)).splitlines())) <= width
    piped = render_recommendation(answer)
    assert answer.reason in piped.splitlines()
    assert all(f"  {visible(name)}\n" in piped for name in HOSTILE)


def test_color_only_adds_escapes(tmp_path):
    report = verified(tmp_path)
    plain, colored = render(report, Terminal(80)), render(report, Terminal(80, color=True))
    assert "\x1b[" in colored
    assert "\x1b" not in plain
    stripped = re.sub(r"\x1b\[[0-9;]*m", "", colored)
    assert [line.rstrip() for line in stripped.splitlines()] == plain.splitlines()


def test_terminal_numbers_are_the_reports(tmp_path):
    report = verified(tmp_path)
    text = render(report)
    medians = {layer.name: report.cells.median[i] for i, layer in enumerate(report.run.layers)}
    for name, level, median in re.findall(r"^ *\d+ +(\S+) +\S (\w+) +\S+ +(\S+) +█", text, re.M):
        assert median == number(medians.pop(name))
        assert level == report.risk(name).level
    assert len(medians) == len(report.run.layers) - 10
    for candidate in report.recommendation.candidates:
        line = next(line for line in text.splitlines() if candidate.origin in line)
        assert number(candidate.max_norm) in line
        assert share(candidate.clipped_fraction) in line
        assert ("diverged" in line) == candidate.diverged


def test_markdown_numbers_are_the_reports(tmp_path):
    report = verified(tmp_path)
    text = renderer("markdown")(report)
    rows = [
        [cell.strip() for cell in line.split(" | ")]
        for line in text.split("## Layers")[1].splitlines()
        if "Linear" in line
    ]
    assert len(rows) == len(report.run.layers)
    for row in rows:
        index = [layer.name for layer in report.run.layers].index(row[1].replace("\\", ""))
        assert row[5] == number(report.cells.median[index])
        assert row[6] == number(report.cells.maximum[index])


def test_every_text_tells_of_the_ranks(tmp_path):
    report = REPORTS["several_ranks"](tmp_path)
    losses = report.run.ranks[5].loss
    row = ["5", "40", number(float(np.median(losses[:30])))]
    for text in (render(report, Terminal(80)), renderer("markdown")(report)):
        assert "Rank 5: its loss is the first nonfinite one, at step 30" in text
        lines = [re.findall(r"[^\s|]+", line) for line in text.splitlines()]
        assert [line[:3] for line in lines if line[:2] == row[:2]] == [row]
    assert json.loads(renderer("json")(report))["ranks"][5]["first_nonfinite"] == 30


def test_of_very_many_ranks_the_terminal_shows_the_first_and_the_accused(tmp_path):
    ranks = {rank: [1.0] * 20 for rank in range(1, 64)} | {40: [1.0] * 19 + [float("inf")]}
    text = render(build_report(make_run(tmp_path, [1.0] * 20, ranks=ranks, world_size=64)), Terminal(80))
    table = text.split("\nRanks\n")[1].split("\n\n")[0]
    assert [line.split()[0] for line in table.splitlines() if re.match(r" +\d+ ", line)] == [*"01234567", "40"]
    assert "… and 55 more ranks, in the page" in table


def test_markdown_leaves_no_name_alive(tmp_path):
    text = renderer("markdown")(REPORTS["hostile"](tmp_path))
    assert "<script" not in text
    assert "<img" not in text
    assert "a\\|b\\`c\\`\\*d\\*\\_e\\_" in text
    table = text.split("## Layers\n\n")[1].split("\n\n")[0].splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {10}


def test_json_is_the_dictionary_without_what_json_cannot_say(tmp_path):
    def refuse(name):
        raise AssertionError(name)

    report = REPORTS["exploding"](tmp_path)
    read = json.loads(renderer("json")(report), parse_constant=refuse)
    expected = report.to_dict()
    assert read["verdict"] == expected["verdict"]
    assert read["recommendation"]["max_norm"] == expected["recommendation"]["max_norm"]
    assert [layer["name"] for layer in read["layers"]] == [layer["name"] for layer in expected["layers"]]
    assert read["findings"][0]["value"] == "Infinity"
    lines = [json.loads(line, parse_constant=refuse) for line in renderer("jsonl")(report).splitlines()]
    assert [line["kind"] for line in lines[:3]] == ["run", "verdict", "recommendation"]
    assert [line["name"] for line in lines if line["kind"] == "layer"] == [layer["name"] for layer in read["layers"]]


def test_csv_keeps_names_and_full_precision(tmp_path):
    report = REPORTS["hostile"](tmp_path)
    rows = list(csv.DictReader(io.StringIO(renderer("csv")(report), newline="")))
    assert {row["layer"] for row in rows} == set(HOSTILE)
    for row in rows:
        index = [layer.name for layer in report.run.layers].index(row["layer"])
        assert float(row["max_grad_norm"]) == report.cells.maximum[index]
        assert float(row["median_grad_norm"]) == report.cells.median[index]


def test_github_annotations_are_one_line_each(tmp_path):
    report = REPORTS["hostile"](tmp_path)
    lines = renderer("github")(report).splitlines()
    assert len(lines) == 1 + len(HOSTILE)
    assert all(re.match(r"::(error|warning|notice) file=a%2Cb%3Ac%25\.py,title=[^:,]+::", line) for line in lines)


def test_sarif_points_at_layers(tmp_path):
    report = REPORTS["exploding"](tmp_path)
    log = json.loads(renderer("sarif")(report))
    results = log["runs"][0]["results"]
    assert [r["level"] for r in results] == ["error", "warning", "note"]
    assert {r["ruleId"] for r in results} == {rule["id"] for rule in log["runs"][0]["tool"]["driver"]["rules"]}
    assert (
        results[0]["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == report.diagnosis.findings[0].subject
    )
    assert "logicalLocations" not in results[1]["locations"][0]


def test_formats_are_named_or_read_from_the_suffix():
    assert format_of(None, None) == "table"
    assert format_of("json", Path("x.md")) == "json"
    assert [format_of(None, Path(f"x{s}")) for s in (".HTML", ".md", ".csv")] == ["html", "markdown", "csv"]
    with pytest.raises(UsageError, match=r"\.xlsx"):
        format_of(None, Path("x.xlsx"))
    with pytest.raises(UsageError, match="did you mean markdown"):
        renderer("markdwon")
    with pytest.raises(UsageError, match="There are: table"):
        renderer("§")


def test_every_number_in_json_survives_numpy(tmp_path):
    from gradscope.report.renderers.json import plain

    assert plain({"a": (np.float32(2), np.int64(3), np.nan, -np.inf, Path("p"))}) == {
        "a": [2.0, 3, "NaN", "-Infinity", "p"]
    }
