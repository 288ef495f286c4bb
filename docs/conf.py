"""How the site is built of the pages and the docstrings: `make docs`."""

from __future__ import annotations

from typing import Any

import secateur

project = "secateur"
release = secateur.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "secateur"
html_show_copyright = False
myst_heading_anchors = 3
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False


def _as_text(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings are text: but for `name`, which is code, no character of them is markup."""
    lines[:] = [line.replace("*", r"\*").replace("|", r"\|") for line in lines]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _as_text, priority=100)  # before napoleon makes markup of them
