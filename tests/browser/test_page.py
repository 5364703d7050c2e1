import re

import numpy as np
import pytest

from gradscope.recommendation import recommend
from gradscope.recommendation.snippets import FORMS
from gradscope.report.build import build_report
from gradscope.report.compare import compare_html
from gradscope.report.renderers import renderer
from gradscope.report.renderers.html import COLUMNS
from gradscope.report.rows import layer_rows
from gradscope.report.text import number, share, visible
from tests.report.builders import HOSTILE, REPORTS, big

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def axe(page):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [(v["id"], [node["html"][:120] for node in v["nodes"]][:3]) for v in found]


@pytest.mark.parametrize("name", REPORTS)
def test_every_page_is_quiet_and_fits(name, made, visit):
    page = visit(made(name)[1], width=375)
    assert page.evaluate(OVERFLOW) <= 0
    page.set_viewport_size({"width": 1440, "height": 900})
    assert page.evaluate(OVERFLOW) <= 0


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 375)])
@pytest.mark.parametrize("name", REPORTS)
def test_axe_finds_nothing(name, theme, width, made, visit):
    assert axe(visit(made(name)[1], theme=theme, width=width)) == []


def test_the_first_screen_answers(made, visit):
    page = visit(made("verified")[1])
    for text in ("Will explode", "blocks.7.mlp", "max_norm = 0.5", "Threshold tried and held"):
        box = page.get_by_text(text).first.bounding_box()
        assert box["y"] + box["height"] < 900
    code = page.locator("pre[data-framework]").first
    assert (
        code.inner_text()
        == "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=0.5)  # after backward(), before optimizer.step()"
    )
    assert code.bounding_box()["y"] < 900


def test_the_first_screen_of_a_phone_answers(made, visit):
    page = visit(made("verified")[1], width=375)
    boxes = [page.locator(".answer .head").nth(i).bounding_box() for i in range(4)]
    boxes.append(page.locator(".paste pre").first.bounding_box())
    assert [box["y"] for box in boxes] == sorted(box["y"] for box in boxes)
    assert boxes[-1]["y"] + boxes[-1]["height"] < 667


def test_the_page_of_five_thousand_layers_works(tmp_path, visit):
    path = tmp_path / "page.html"
    path.write_text(renderer("html")(big(tmp_path, 120, 5000)), encoding="utf-8")
    assert path.stat().st_size <= 5_000_000
    page = visit(path)
    assert page.evaluate(OVERFLOW) <= 0
    page.get_by_label("Zoom to a module").fill("stage99.")
    assert page.locator("#heat-read").inner_text() == "50 of 5000 layers"
    page.locator("#heat").press("ArrowDown")
    assert page.locator("#heat-read").inner_text().startswith("stage99.blocks.4950.linear · step 0")
    page.locator(".many summary").press("Enter")
    page.get_by_label("Filter").fill("blocks.4999.")
    assert page.locator("#layers tbody tr:visible").count() == 1
    assert page.locator("#filter-read").inner_text() == "1 of 5000 layers"


def test_the_line_to_paste_is_chosen_by_framework_and_copied(made, visit, browser):
    page = visit(made("verified")[1])
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("To paste, for").select_option("lightning")
    page.get_by_role("button", name="Copy").press("Enter")
    page.get_by_text("Copied.").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == 'trainer = Trainer(gradient_clip_val=0.5, gradient_clip_algorithm="norm")'
    assert page.locator("pre[data-framework] code").first.inner_text() == copied


def test_without_the_clipboard_the_line_is_selected(made, visit):
    page = visit(made("verified")[1])
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("Selected: press Ctrl+C.").wait_for()
    assert page.evaluate("getSelection().toString()").startswith("torch.nn.utils.clip_grad_norm_(")


def test_nothing_gets_past_the_policy(made, visit):
    page = visit(made("healthy")[1], complaints=True)
    failures = []
    page.on("requestfailed", lambda request: failures.append((request.url, request.failure)))
    page.evaluate(
        """() => { const s = document.createElement("script"); s.textContent = "window.ran = 1"; document.body.append(s);
                   const i = new Image(); i.src = "http://127.0.0.1:9/x.png"; document.body.append(i);
                   const d = document.createElement("div"); d.setAttribute("style", "position:fixed");
                   document.body.append(d); }"""
    )
    page.wait_for_function("document.querySelectorAll('img').length > 2")
    assert page.evaluate("window.ran") is None
    assert failures == [("http://127.0.0.1:9/x.png", "csp")]
    assert page.evaluate("getComputedStyle(document.body.lastElementChild).position") == "static"


def test_hostile_names_are_inert_and_legible(made, visit):
    page = visit(made("hostile")[1])
    assert page.evaluate("window.pwned") is None
    assert page.locator("b, img[src=x], script[src]").count() == 0
    names = page.locator("#layers tbody th").all_text_contents()
    for name in HOSTILE:
        assert any(visible(name) in shown for shown in names)
    raw = page.content()
    assert "\u202e" not in raw
    for _ in range(2):
        page.locator("#heat").press("ArrowDown")
    assert page.locator("#heat-read").inner_text().startswith("x[/foo]")


def test_the_slider_says_what_recommend_says(tmp_path, visit):
    report = build_report(REPORTS["exploding"](tmp_path).run)
    path = tmp_path / "page.html"
    path.write_text(renderer("html")(report), encoding="utf-8")
    page = visit(path)
    slider, read = page.get_by_label("Percentile of the recorded norms"), page.locator("#slider-read")
    assert slider.input_value() == "95"
    for percentile in (0, 10, 50, 94, 95, 96, 100):
        slider.fill(str(percentile))
        answer = recommend(report.run, (percentile,))
        asked = answer.thresholds[0]
        text = read.inner_text()
        assert f"percentile: max_norm = {number(asked.max_norm)}" in text
        clipped = re.search(r"clips (\d+) of (\d+) steps \((.*?)\)", text)
        assert int(clipped[1]) / int(clipped[2]) == pytest.approx(asked.clipped_fraction)
        assert int(clipped[2]) == answer.steps_used
        assert clipped[3] == share(asked.clipped_fraction)
        assert asked.mode in text
        row = page.locator("#ladder tbody tr").nth(percentile)
        assert row.locator("td").first.text_content() == number(asked.max_norm)
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert slider.input_value() == "99"


@pytest.mark.parametrize("width", [1440, 375])
def test_the_slider_moves_a_line_in_the_picture(width, made, visit):
    report, path = made("healthy")
    page = visit(path, width=width)
    plot, slider = page.locator("#norm-plot svg:visible"), page.get_by_label("Percentile of the recorded norms")
    slider.fill("50")
    middle = float(plot.locator(".chosen-line").get_attribute("y1"))
    slider.fill("99")
    high = float(plot.locator(".chosen-line").get_attribute("y1"))
    box = [float(v) for v in plot.get_attribute("data-box").split()]
    low, top = (float(v) for v in plot.get_attribute("data-range").split())
    expected = box[3] - np.log10(report.ladder[99].max_norm / low) / np.log10(top / low) * (box[3] - box[1])
    assert high < middle
    assert high == pytest.approx(expected, abs=0.5)
    lines = plot.evaluate("""(svg) => [...svg.querySelectorAll("path")].map((p) => p.getAttribute("d"))""")
    assert any(
        re.match(rf"M [\d.]+ {round(high)}\.?\d*", d) or re.match(rf"M [\d.]+ {high:.1f}".removesuffix(".0"), d)
        for d in lines
    )


@pytest.mark.parametrize("name", ["verified", "exploding", "recurrent", "several_ranks"])
def test_a_phone_shows_every_chart_whole_with_legible_labels(name, made, visit):
    page = visit(made(name)[1], width=375)
    shown = page.locator("svg.plot:visible")
    assert shown.count() == page.locator("svg.plot").count() / 2
    for i in range(shown.count()):
        texts = shown.nth(i).evaluate("""(svg) => [...svg.querySelectorAll("text")].map((text) => {
          const { left, right } = text.getBoundingClientRect(), scale = svg.clientWidth / svg.viewBox.baseVal.width;
          return [text.textContent, left, right, scale * parseFloat(getComputedStyle(text).fontSize)];
        })""")
        for text, left, right, size in texts:
            assert 0 <= left < right <= 375, text
            assert size >= 7.5, text
    wide, small = (
        page.evaluate(f"""[...document.querySelectorAll("svg.{kind} text")].map((text) => text.textContent)""")
        for kind in ("wide", "narrow")
    )
    labels = sorted(text for text in wide if text.startswith(("max_norm", "p95", "rehearsal", "rank ", "rnn.")))
    assert labels
    assert labels == sorted(text for text in small if text in labels)


def test_the_table_says_what_the_report_says(made, visit):
    report, path = made("verified")
    page = visit(path)
    rows = {row.name: row for row in layer_rows(report)}
    columns = [title for title, _ in COLUMNS]
    shown = page.locator("#layers tbody tr")
    assert shown.count() == len(rows)
    for i in range(len(rows)):
        cells = [text.strip() for text in shown.nth(i).locator("th, td").all_text_contents()]
        row = rows[cells[columns.index("Layer")]]
        assert cells[columns.index("Median norm")] == number(row.median)
        assert cells[columns.index("Largest norm")] == number(row.maximum)
        assert cells[columns.index("#")] == str(row.place)
        assert row.level in cells[columns.index("Level")]


def test_the_table_is_sorted_and_filtered_by_keyboard(made, visit):
    page = visit(made("verified")[1])
    head = page.locator("#layers thead").get_by_role("button", name="Median norm")
    medians = lambda: [float(t) for t in page.locator("#layers tbody tr td:nth-child(6)").all_text_contents()]  # noqa: E731
    head.press("Enter")
    assert medians() == sorted(medians(), reverse=True)
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    head.press("Space")
    assert medians() == sorted(medians())
    page.get_by_label("Filter").press_sequentially("blocks.1")
    visible_rows = page.locator("#layers tbody tr:not([hidden])")
    assert visible_rows.count() == 3
    assert page.locator("#filter-read").inner_text() == "3 of 12 layers"


def test_the_heatmap_is_read_by_pointer_and_keyboard(made, visit):
    report, path = made("exploding")
    page = visit(path)
    norms, names = report.run.layer_grad_norm, [layer.name for layer in report.run.layers]
    heat, read = page.locator("#heat"), page.locator("#heat-read")
    heat.press("ArrowRight")
    for row, column in ((0, 0), (0, 1), (1, 1), (2, 1)):
        text = read.inner_text()
        assert text.startswith(f"{names[row]} · step {column}:")
        assert float(text.split()[-1]) == pytest.approx(norms[column, row], rel=0.006)
        heat.press("ArrowRight" if (row, column) == (0, 0) else "ArrowDown")
    heat.press("End")
    assert read.inner_text().endswith("step 49: nonfinite")
    box = heat.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 3, box["y"] + 3)
    assert read.inner_text() == f"{names[0]} · step 49: nonfinite"


def test_the_heatmap_zooms_to_a_module(made, visit):
    page = visit(made("exploding")[1])
    zoom, read = page.get_by_label("Zoom to a module"), page.locator("#heat-read")
    assert "encoder.blocks.3" in page.locator("#modules option").evaluate_all("all => all.map((o) => o.value)")
    zoom.fill("encoder.blocks.3")
    assert read.inner_text() == "4 of 32 layers"
    page.locator("#heat").press("ArrowDown")
    assert read.inner_text().startswith("encoder.blocks.3.attn.qkv · step 0")
    zoom.fill("nothing")
    assert "No layer begins with" in read.inner_text()
    page.get_by_role("button", name="All layers").press("Enter")
    assert read.inner_text() == "32 of 32 layers"


def test_every_control_is_reached_by_keyboard_and_shows_its_focus(made, visit):
    page = visit(made("verified")[1])
    wanted = page.evaluate(
        """() => [...document.querySelectorAll("a, button, input, select, summary, canvas, [tabindex='0']")]
                 .filter((node) => node.checkVisibility()).map((node, i) => { node.dataset.stop = i; return String(i); })"""
    )
    reached = []
    for _ in range(len(wanted) + 5):
        page.keyboard.press("Tab")
        stop, outline = page.evaluate(
            "[document.activeElement.dataset.stop, getComputedStyle(document.activeElement).outlineStyle]"
        )
        if stop is not None:
            reached.append(stop)
            assert outline != "none"
    assert set(reached) == set(wanted)


def test_themes_differ(made, visit):
    ink = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    light, dark = (visit(made("healthy")[1], theme=theme).evaluate(ink) for theme in ("light", "dark"))
    assert light[1] == "rgb(255, 255, 255)"
    assert dark[1] != light[1]
    assert dark[0] != light[0]


def test_print_shows_the_picture_and_every_row(made, visit):
    page = visit(made("exploding")[1])
    page.emulate_media(media="print")
    assert not page.locator("#heat").is_visible()
    assert page.locator("#heat-picture").is_visible()
    assert page.locator("#heat-picture").evaluate("i => [i.naturalWidth, i.naturalHeight]") == [50, 32]
    table = page.locator("#layers").evaluate("t => [t.scrollHeight, t.parentElement.clientHeight]")
    assert table[1] >= table[0]
    assert page.get_by_text("From top to bottom encoder.blocks.0.attn.qkv to encoder.blocks.7.mlp.down").is_visible()
    assert not page.get_by_role("button", name="Copy").is_visible()
    assert len(page.pdf()) > 10_000


@pytest.mark.parametrize("name", REPORTS)
def test_a_printed_page_fits_its_paper(name, made, visit):
    """A4 with a centimetre of margin is 718 pixels wide."""
    page = visit(made(name)[1], width=718)
    page.emulate_media(media="print")
    assert page.evaluate(OVERFLOW) <= 0
    assert page.locator("svg.plot.narrow:visible").count() == 0


def test_without_javascript_everything_is_there(made, visit):
    page = visit(made("verified")[1], script=False)
    assert page.locator("#heat-picture").is_visible()
    assert page.locator(".js-only:visible").count() == 0
    assert page.locator("pre[data-framework]").count() == len(FORMS)
    page.locator(".others summary").click()
    assert page.get_by_text("gradient_clip_algorithm").first.is_visible()
    page.locator(".ladder summary").click()
    assert page.locator("#ladder tbody tr:visible").count() == 101
    assert page.locator("#layers tbody tr:visible").count() == 12
    assert page.locator("svg.plot:visible").count() == 6


def test_ranks_are_drawn_and_tabled_with_the_odd_one_named(made, visit):
    report, path = made("several_ranks")
    page = visit(path, script=False)
    assert page.get_by_text("None: it began on rank 5").is_visible()
    assert page.locator("section", has=page.locator("#ranks")).locator("svg.plot:visible").is_visible()
    rows = [row.split("\t") for row in page.locator("#ranks tbody").inner_text().splitlines()]
    loss = [report.run.loss, *(one.loss for one in report.run.ranks.values())]
    assert [row[2] for row in rows] == [number(float(np.median(own[np.isfinite(own)]))) for own in loss]
    assert [row[6] for row in rows] == ["30" if rank == 5 else "31" for rank in range(8)]


def test_the_comparison_is_a_page_like_the_other(made, visit, tmp_path):
    path = tmp_path / "compare.html"
    path.write_text(compare_html(made("verified")[0], made("hostile")[0]), encoding="utf-8")
    for theme, width in (("light", 375), ("dark", 1440)):
        page = visit(path, theme=theme, width=width)
        assert page.evaluate(OVERFLOW) <= 0
        assert axe(page) == []
        assert page.evaluate("window.pwned") is None
        assert page.locator("svg.plot:visible").is_visible()


def test_a_notebook_cell_holds_the_page_apart(made, visit, tmp_path):
    path = tmp_path / "cell.html"
    path.write_text(f"<!DOCTYPE html><title>cell</title><body>{made('hostile')[0]._repr_html_()}", encoding="utf-8")
    page = visit(path)
    frame = page.frame_locator("iframe")
    frame.locator("#slider-read strong").wait_for()
    assert "no explosion so far" in frame.locator("h1").inner_text().lower()
    assert page.evaluate("window.pwned") is None
    inner = page.frames[1]
    assert inner.evaluate("(() => { try { return parent.document.title } catch { return 'apart' } })()") == "apart"
