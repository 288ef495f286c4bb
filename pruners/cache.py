"""Where measurements that are costly to repeat are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$SECATEUR_CACHE`, else `secateur` in `$XDG_CACHE_HOME` or `~/.cache`; it may not exist yet."""
    given = os.environ.get("SECATEUR_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateur"
