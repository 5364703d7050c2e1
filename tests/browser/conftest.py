"""A chromium for the tests. Where there is none they are skipped; `GRADSCOPE_REQUIRE_BROWSER=1` makes that an error."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gradscope.report.renderers import renderer
from tests.browser.chromium import chromium, executable
from tests.report.builders import REPORTS

OWN = ("file:", "data:")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if not os.environ.get("GRADSCOPE_REQUIRE_BROWSER"):
        pytest.importorskip("playwright", reason="playwright is not installed: pip install -e .[test]")
        try:
            executable()
        except FileNotFoundError as missing:
            pytest.skip(f"{missing}, to test the page in a real browser")
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """(report, path of its page) by the name of a report made by hand; each is made once."""
    kept: dict[str, tuple[Any, Path]] = {}

    def make(name: str) -> tuple[Any, Path]:
        if name not in kept:
            folder = tmp_path_factory.mktemp(name)
            report = REPORTS[name](folder)
            path = folder / "page.html"
            path.write_text(renderer("html")(report), encoding="utf-8")
            kept[name] = report, path
        return kept[name]

    return make


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page by path; afterwards it must have asked for nothing and complained of nothing."""
    contexts, seen = [], []

    def go(
        path: Path, *, width: int = 1440, theme: str = "light", script: bool = True, complaints: bool = False
    ) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, java_script_enabled=script
        )
        contexts.append(context)
        page = context.new_page()
        if not complaints:
            page.on("request", lambda request: seen.append(request.url) if request.url[:5] not in OWN else None)
            page.on("console", lambda message: seen.append(f"console: {message.text}"))
            page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.goto(path.resolve().as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert not seen
