"""Formats that a distilled set is written in for other programs: a file here is one, an entry point adds another.

Listing names imports nothing, so that ``--help`` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.registry import Registry

if TYPE_CHECKING:
    from harness.exports.base import Format

ENTRY_POINTS = "frepo_bench.formats"
"""Entry-point group for formats of other packages: ``name = "package.module:Class"``."""
_REGISTRY = Registry("format", "harness.exports", others=("base",), group=ENTRY_POINTS)


def names() -> list[str]:
    """The names of all formats, built-in and installed, sorted."""
    return _REGISTRY.names()


def get(name: str) -> type[Format]:
    """The format called ``name``. Raises UserError as `Registry.get` does."""
    from harness.exports.base import Format

    found: type[Format] = _REGISTRY.get(name, Format, lambda kind, shown: None)
    return found
