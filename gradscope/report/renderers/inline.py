"""The page for a notebook cell: inside a sandboxed frame, so that neither side can touch the other."""

from __future__ import annotations

from html import escape

from gradscope.report.model import Report
from gradscope.report.renderers import html

STYLE = "width:100%;height:640px;border:1px solid #8888;border-radius:6px;background:#fff"


def render(report: Report) -> str:
    """An `<iframe>` that carries the whole page and may run its script, but is of no origin."""
    page = escape(html.render(report), quote=True)
    return f'<iframe title="gradscope report" sandbox="allow-scripts" style="{STYLE}" srcdoc="{page}"></iframe>'
