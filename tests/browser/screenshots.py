"""Screenshots in both themes and widths, to be looked at: `python -m tests.browser.screenshots DIR [NAME …]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from gradscope.report.renderers import renderer
from tests.browser.chromium import chromium
from tests.report.builders import REPORTS

VIEWS = {"wide": 1440, "narrow": 375}


def main(directory: Path, names: list[str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    pages = {name: directory / f"{name}.html" for name in names or REPORTS}
    for name, path in pages.items():
        path.write_text(renderer("html")(REPORTS[name](Path(tempfile.mkdtemp()))), encoding="utf-8")
    with chromium() as browser:
        for theme in ("light", "dark"):
            for view, width in VIEWS.items():
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
                for name, path in pages.items():
                    page.goto(path.resolve().as_uri())
                    page.screenshot(path=str(directory / f"{name}-{view}-{theme}.png"), full_page=True)
                page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
