import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradscope.report.pool import bins, columns_for, pool_max
from gradscope.report.terminal import terminal_of
from gradscope.report.text import (
    bar,
    elide,
    log10,
    number,
    ordinal,
    plural,
    share,
    sparkline,
    steps_range,
    times,
    visible,
)

anything = st.floats(allow_nan=True, allow_infinity=True)


@given(st.text())
def test_a_visible_name_is_one_printable_line(name):
    shown = visible(name)
    assert shown
    assert len(shown.splitlines()) == 1
    assert not any(0x202A <= ord(c) <= 0x202E or 0x2066 <= ord(c) <= 0x2069 for c in shown)
    shown.encode("utf-8")


def test_plain_names_stay_as_they_are():
    assert visible("blocks.0.attn") == "blocks.0.attn"
    assert visible("") == "(root)"
    assert visible("a\nb\u202e\U000e0001") == "a\\nb\\u202e\\U000e0001"
    assert visible("層") == "層"


@given(st.text(max_size=60), st.integers(1, 80))
def test_an_elided_name_keeps_its_ends(name, width):
    short = elide(name, width)
    assert len(short) <= max(width, len(short) if len(name) <= width else width)
    if len(name) <= width:
        assert short == name
    elif width >= 3:
        assert short[0] == name[0]
        assert short[-1] == name[-1]


@given(st.floats(-1e300, 1e300))
def test_a_number_is_read_back_to_four_digits(value):
    assert float(number(value)) == pytest.approx(value, rel=5.1e-4, abs=1e-323)


def test_words_for_numbers():
    assert [number(v) for v in (None, float("nan"), float("inf"), -float("inf"), 13684.2, 1e-5, 0.5)] == [
        "–",
        "–",
        "∞",
        "-∞",
        "13680",
        "1e-05",
        "0.5",
    ]
    assert [share(v) for v in (None, float("nan"), 0.0416)] == ["–", "–", "4.16 %"]
    assert [times(v) for v in (None, 31.4, 0.031)] == ["–", "31×", "0.031×"]
    assert [plural(n, "step") for n in (0, 1, 12000)] == ["0 steps", "1 step", "12,000 steps"]
    assert [ordinal(p) for p in (1, 2, 3, 11, 12, 13, 21, 95, 99.5, 0)] == [
        "1st",
        "2nd",
        "3rd",
        "11th",
        "12th",
        "13th",
        "21st",
        "95th",
        "99.5th",
        "0th",
    ]
    assert [steps_range(a, b) for a, b in ((None, None), (3, None), (3, 3), (3, 9))] == ["", "3", "3", "3–9"]


@given(st.lists(anything, max_size=300), st.integers(1, 100), st.booleans())
def test_a_sparkline_fits_and_marks_what_is_nonfinite(values, width, unicode):
    line = sparkline(values, width, unicode=unicode)
    assert len(line) == min(len(values), width)
    if len(values) <= width:
        wrong = "✕" if unicode else "x"
        assert [c == wrong for c in line] == [not np.isfinite(v) for v in values]


def test_a_sparkline_rises_with_the_logarithm():
    assert sparkline([1, 10, 100, 1e7], 10) == "▁▂▃█"
    assert sparkline([1.0, 1.0], 10, limits=(1.0, 1e7)) == "▁▁"
    assert sparkline([0.0, 1.0], 10) == "·▁"
    spiky = [1.0] * 1000
    spiky[503] = 1e6
    assert "█" in sparkline(spiky, 40)


def test_bars_are_logarithmic():
    assert bar(1, 1, 100, 10) == "█"
    assert bar(10, 1, 100, 10) == "█" * 5
    assert bar(100, 1, 100, 10, unicode=False) == "#" * 10
    assert bar(5, 5, 5, 10) == "█"
    assert bar(5, 0, 0, 10) == "█" * 10
    assert [bar(v, 1, 2, 10) for v in (None, 0.0, float("nan"))] == ["", "", ""]


def test_log10_has_no_minus_infinity():
    assert log10(np.array([0.0, 1.0, 100.0])).tolist() == [0.0, 0.0, 2.0]
    assert np.isnan(log10(np.array([0.0, np.nan]))).all()


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_bins_cover_every_step_in_order(count, columns):
    starts = bins(count, columns)
    assert len(starts) == min(count, max(columns, 1))
    assert (np.diff(starts) >= 1).all()
    if count:
        assert starts[0] == 0
        sizes = np.diff(np.append(starts, count))
        assert sizes.max() - sizes.min() <= 1


@given(st.lists(st.floats(0, 1e30), min_size=1, max_size=500), st.integers(1, 60))
def test_pooling_keeps_the_largest(values, columns):
    pooled = pool_max(np.array(values), bins(len(values), columns))
    assert pooled.max() == max(values)
    assert len(pool_max(np.array([]), bins(0, columns))) == 0


def test_columns_shrink_for_very_many_layers():
    assert columns_for(10) == 10
    assert columns_for(100_000, 1000) == 400
    assert columns_for(100_000, 5000) == 80
    assert columns_for(100_000, 50_000) == 60


class Stream(io.StringIO):
    def __init__(self, tty, encoding):
        super().__init__()
        self.tty, self.code = tty, encoding

    def isatty(self):
        return self.tty

    @property
    def encoding(self):
        return self.code


@pytest.mark.parametrize(
    ("tty", "encoding", "env", "expected"),
    [
        (True, "utf-8", {"COLUMNS": "100"}, (100, True, True)),
        (True, "utf-8", {"COLUMNS": "100", "NO_COLOR": "1"}, (100, False, True)),
        (True, "utf-8", {"COLUMNS": "100", "TERM": "dumb"}, (100, False, True)),
        (True, "cp1252", {"COLUMNS": "12"}, (40, True, False)),
        (False, "utf-8", {"COLUMNS": "100"}, (None, False, True)),
        (False, "utf-8", {"FORCE_COLOR": "1"}, (None, True, True)),
        (False, None, {}, (None, False, False)),
        (False, "nonsense", {}, (None, False, False)),
    ],
)
def test_a_terminal_is_what_its_stream_and_environment_say(tty, encoding, env, expected):
    found = terminal_of(Stream(tty, encoding), env)
    assert (found.width, found.color, found.unicode) == expected


def test_without_columns_the_width_is_asked_for(monkeypatch):
    monkeypatch.setenv("COLUMNS", "77")
    assert terminal_of(Stream(True, "utf-8"), {}).width == 77
    assert terminal_of(Stream(True, "utf-8")).width == 77


def test_an_old_console_of_windows_gets_no_escapes(monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    assert not terminal_of(Stream(True, "utf-8"), {}).color
    assert terminal_of(Stream(True, "utf-8"), {"WT_SESSION": "1"}).color
