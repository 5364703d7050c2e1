"""The figures of a report as files, for papers and slides."""

from __future__ import annotations

from pathlib import Path

from gradscope.errors import UsageError
from gradscope.report.model import Report

FORMATS = ("svg", "png", "pdf")


def save_figures(report: Report, directory: Path, format: str = "svg") -> list[Path]:
    """Write every figure that this report has to `directory`, as svg, png or pdf; the paths written.

    Raises:
        UsageError: another format, or a folder that cannot be written.
    """
    if format not in FORMATS:
        raise UsageError(f"no figures as {format!r}; there are: {', '.join(FORMATS)}")
    from gradscope.report.charts import CHARTS, draw
    from gradscope.report.plotting import style

    drawn = [(directory / f"{chart.name}.{format}", draw(chart, report)) for chart in CHARTS]
    written = [(path, figure) for path, figure in drawn if figure is not None]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, figure in written:
            with style():
                figure.savefig(path, format=format, metadata=_metadata(format))
    except OSError as error:
        raise UsageError(f"cannot write figures to {directory}: {error.strerror}") from error
    return [path for path, _ in written]


def _metadata(format: str) -> dict[str, str | None]:
    """No date, so that the same run gives the same bytes."""
    dated = {"svg": "Date", "pdf": "CreationDate"}
    return {dated[format]: None} if format in dated else {}
