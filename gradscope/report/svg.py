"""A Figure as an inline SVG that follows the page's theme and its CSP: no style attribute, no foreign id, no metadata."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from xml.etree import ElementTree as ET

from markupsafe import Markup
from matplotlib.figure import Figure

from gradscope.report.plotting import GRID, INK, NARROW, WIDE, style

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
THEMED = {INK: "currentColor", GRID: "var(--grid)", "#0072b2": "var(--blue)", "#d55e00": "var(--orange)"}
THEMED |= {"#009e73": "var(--green)", "#aa4499": "var(--purple)", "#56b4e9": "var(--sky)", "#000000": "currentColor"}
_STILL = ("font-family", "stroke-linecap", "stroke-linejoin")


def inline_both(draw: Callable[[float], Figure | None], name: str, label: str) -> Markup:
    """A figure as two `<svg>` elements, of which a page shows the one that fits: wide, and for a phone. Empty without one.

    `draw` is given the width in inches.
    """
    wide, small = draw(WIDE), draw(NARROW)
    if wide is None or small is None:
        return Markup("")
    return Markup(inline_svg(wide, name, label, "wide") + inline_svg(small, f"{name}-narrow", label, "narrow"))


def inline_svg(figure: Figure, prefix: str, label: str, kind: str) -> str:
    """`figure` as an `<svg>` of class `kind`. `prefix` makes its ids its own; `label` is what a screen reader says."""
    file = io.BytesIO()
    with style():
        figure.patch.set_visible(False)
        for axis in figure.axes:
            axis.patch.set_visible(False)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ET.fromstring(file.getvalue())
    used = {
        ref for node in root.iter() for value in node.attrib.values() for ref in re.findall(r"#([\w.-]+)\)?$", value)
    }
    _clean(root, prefix, used)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label, "class": f"plot {kind}"}
    root.attrib |= {"data-box": _box(figure), "data-range": _range(figure)}
    text = ET.tostring(_plain(root), encoding="unicode")
    return re.sub(r"\s*\n\s*", " ", text)


def _box(figure: Figure) -> str:
    """Left, top, right and bottom of the first axes, in units of the view box."""
    (x0, y0), (x1, y1) = figure.axes[0].get_position().get_points()
    width, height = 72 * figure.get_size_inches()
    return " ".join(f"{value:.1f}" for value in (x0 * width, (1 - y1) * height, x1 * width, (1 - y0) * height))


def _range(figure: Figure) -> str:
    return " ".join(f"{value:.6g}" for value in figure.axes[0].get_ylim())


def _clean(node: ET.Element, prefix: str, used: set[str]) -> None:
    for child in list(node):
        if child.tag.endswith("}metadata") or child.tag == f"{SVG}style":
            node.remove(child)
        else:
            _clean(child, prefix, used)
    attributes = dict(node.attrib)
    styles = [part.split(":", 1) for part in attributes.pop("style", "").split(";") if ":" in part]
    attributes |= {key.strip(): value.strip() for key, value in styles if key.strip() not in _STILL}
    node.attrib = {}
    for key, value in attributes.items():
        if key != "id":
            node.set(key.replace(XLINK, ""), _value(key, value, prefix))
        elif value in used:
            node.set("id", f"{prefix}-{value}")


def _value(key: str, value: str, prefix: str) -> str:
    if key in ("d", "x", "y", "transform", "points"):
        return re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), value.replace("\n", ""))
    if key in ("fill", "stroke"):
        return THEMED.get(value, value)
    return re.sub(r"#([\w.-]+)(\)?)$", rf"#{prefix}-\1\2", value)


def _plain(node: ET.Element) -> ET.Element:
    """The same tree without namespaces and without groups that say nothing, as HTML wants it."""
    plain = ET.Element(node.tag.replace(SVG, ""), node.attrib)
    plain.text, plain.tail = node.text, None
    for child in node:
        copy = _plain(child)
        bare = copy.tag == "g" and not copy.attrib
        plain.extend(list(copy) if bare else [copy])
    return plain
