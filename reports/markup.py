"""HTML and SVG as values: text is escaped where it is put in, so that no name of anybody's becomes markup."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

from .progress import printable

VOID = {"br", "circle", "col", "hr", "line", "meta", "path", "polyline", "rect"}  # written without an end


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def escaped(value: object) -> Markup:
    """As markup: what is none has its <, >, & and quotes escaped, and what no page may hold is written out."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(printable(str(value)), quote=True))


def joined(parts: Iterable[object]) -> Markup:
    """One after the other; none is left out."""
    return Markup("".join(escaped(part) for part in parts if part is not None))


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """An element.

    Args:
        tag: its name, written by us.
        children: markup, or text, which is escaped; none is left out.
        attributes: `class_` is class and `data_tip` data-tip; of none and False there is nothing, True stands alone.
    """
    told = "".join(_attribute(name, value) for name, value in attributes.items() if value not in (None, False))
    if tag in VOID and not children:
        return Markup(f"<{tag}{told}>" if tag in {"br", "col", "hr", "meta"} else f"<{tag}{told}/>")
    return Markup(f"<{tag}{told}>{joined(children)}</{tag}>")


def _attribute(name: str, value: object) -> str:
    name = name.rstrip("_").replace("_", "-") if name not in ("viewBox",) else name
    return f" {name}" if value is True else f' {name}="{escaped(_short(value))}"'


def _short(value: object) -> object:
    """A coordinate with as many digits as can be seen."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def json_script(tree: Any, identity: str) -> Markup:
    """A tree as JSON inside a page, for machines: nothing in it can end the script, or begin a comment."""
    text = json.dumps(tree, allow_nan=False)  # only ASCII
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(f'<script type="application/json" id="{escaped(identity)}">{text}</script>')
