"""HOW: one paper, one file. A new file here is a new method; another package adds one by an entry point.

Listing names imports nothing, so that ``--help`` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.registry import Registry

if TYPE_CHECKING:
    from methods.base import Method

ENTRY_POINTS = "frepo_bench.methods"
"""Entry-point group for methods of other packages: ``name = "package.module:Class"``."""
_REGISTRY = Registry("method", "methods", others=("base", "checks"), group=ENTRY_POINTS)


def names() -> list[str]:
    """The names of all methods, built-in and installed, sorted."""
    return _REGISTRY.names()


def get(name: str) -> type[Method]:
    """The method class called ``name``. Raises UserError as `Registry.get` and `check_class` do."""
    from methods.base import Method
    from methods.checks import check_class

    method: type[Method] = _REGISTRY.get(name, Method, check_class)
    return method
