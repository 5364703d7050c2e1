"""The golden outputs: `python -m tests.report.golden` writes them anew, to be read in the diff."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from gradscope.report.renderers import console, renderer
from gradscope.report.terminal import Terminal
from tests.report.builders import REPORTS

FOLDER = Path(__file__).parent / "golden"
NAMES = ("verified", "exploding", "hostile", "only_nan", "clipped")
TERMINALS = {"80.txt": Terminal(80), "160.txt": Terminal(160), "ascii.txt": Terminal(80, unicode=False)}
FORMATS = {"md": "markdown", "csv": "csv", "github": "github", "sarif": "sarif"}


def outputs(name: str, folder: Path) -> Iterator[tuple[str, str]]:
    report = REPORTS[name](folder)
    for suffix, terminal in TERMINALS.items():
        yield f"{name}.{suffix}", console.render(report, terminal)
    for suffix, format in FORMATS.items():
        yield f"{name}.{suffix}", renderer(format)(report)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in NAMES:
        for file, text in outputs(name, Path(tempfile.mkdtemp())):
            (FOLDER / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
