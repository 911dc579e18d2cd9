"""Default folders of data and caches."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.errors import UserError


def default_cache() -> Path:
    """``$FREPO_BENCH_CACHE``; else ``frepo-bench`` in the user's cache folder. Raises UserError for a user without."""
    if folder := os.environ.get("FREPO_BENCH_CACHE"):
        return Path(folder)
    base = Path(os.environ.get("XDG_CACHE_HOME") or ".")
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError as error:  # HOME is not set, and the system does not know the user
            raise UserError("there is no home folder for the cache: set FREPO_BENCH_CACHE") from error
    return base / "frepo-bench"


def default_root() -> Path:
    """``$FREPO_BENCH_DATA``; else ``data`` in the default cache folder."""
    folder = os.environ.get("FREPO_BENCH_DATA")
    return Path(folder) if folder else default_cache() / "data"
