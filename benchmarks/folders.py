"""Where data and caches lie unless somebody says otherwise."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """``$FREPO_BENCH_CACHE``; else ``frepo-bench`` in the user's cache folder."""
    if folder := os.environ.get("FREPO_BENCH_CACHE"):
        return Path(folder)
    base = Path(os.environ.get("XDG_CACHE_HOME") or ".")
    return (base if base.is_absolute() else Path.home() / ".cache") / "frepo-bench"


def default_root() -> Path:
    """``$FREPO_BENCH_DATA``; else ``data`` in the default cache folder."""
    folder = os.environ.get("FREPO_BENCH_DATA")
    return Path(folder) if folder else default_cache() / "data"
