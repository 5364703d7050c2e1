"""Screenshots in both themes, wide, narrow and printed, to be looked at: python -m tests.browser.screenshots DIR [NAME …]"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from gradscope.report.compare import compare_html
from gradscope.report.renderers import renderer
from tests.browser.chromium import chromium
from tests.report.builders import REPORTS

VIEWS = {"wide": 1440, "narrow": 375}
PAPER = 794
"""Width of A4 in pixels."""


def main(directory: Path, names: list[str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    pages = {name: page for name, page in _pages().items() if not names or name in names}
    with chromium() as browser:
        for name, text in pages.items():
            path = directory / f"{name}.html"
            path.write_text(text, encoding="utf-8")
            for theme in ("light", "dark"):
                for view, width in VIEWS.items():
                    _shoot(browser, path, directory / f"{name}-{view}-{theme}.png", width, theme)
            _shoot(browser, path, directory / f"{name}-print.png", PAPER, "light", media="print")


def _pages() -> dict[str, str]:
    reports = {name: make(Path(tempfile.mkdtemp())) for name, make in REPORTS.items()}
    pages = {name: renderer("html")(report) for name, report in reports.items()}
    return pages | {"comparison": compare_html(reports["verified"], reports["healthy"])}


def _shoot(browser: Any, path: Path, picture: Path, width: int, theme: str, media: str = "screen") -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    page.goto(path.resolve().as_uri())
    page.emulate_media(media=media)
    page.screenshot(path=str(picture), full_page=True)
    page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
