"""What every page shares: the templates, one stylesheet and one script, locked by their hashes."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gradscope.report import text

TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, **context: Any) -> str:
    """A template as one self-contained page; every value in `context` is escaped unless it is Markup."""
    css, js = _asset("page.css"), _asset("page.js")
    return _environment().get_template(template).render(
        css=Markup(css), js=Markup(js), css_hash=_hash(css), js_hash=_hash(js), **context
    )  # fmt: skip


def script_json(value: Any) -> Markup:
    """JSON for a `<script type="application/json">`, where no value can end the element."""
    encoded = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(encoded.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gradscope.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for function in (text.visible, text.elide, text.number, text.share, text.times):
        environment.filters[function.__name__] = function
    environment.filters["plural"] = text.plural
    return environment


@cache
def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode("ascii")
