"""HOW: one paper, one file. A new file here is a new method; another package adds one by an entry point.

Listing names imports nothing, so that ``--help`` is quick.
"""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.errors import UserError, choose

if TYPE_CHECKING:
    from methods.base import Method

ENTRY_POINTS = "frepo_bench.methods"
"""Entry-point group for methods of other packages: ``name = "package.module:Class"``."""


def names() -> list[str]:
    """The names of all methods, built-in and installed, sorted."""
    return sorted(_builtin() | _installed().keys())


def get(name: str) -> type[Method]:
    """The method class called ``name``.

    Raises UserError for an unknown name (with the list and the nearest match), for a method of another package that
    cannot be imported or is not a Method, for a file that holds none, and for what `check_class` refuses.
    """
    from methods.base import Method
    from methods.checks import check_class

    choose("method", name, names())
    if name in _builtin():
        module = importlib.import_module(f"methods.{name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, Method) and member.__module__ == module.__name__:
                check_class(member, f"method {name!r}")
                return member
        raise UserError(f"methods/{name}.py holds no Method: name it _{name}.py if it is not meant to be one")
    point = _installed()[name]
    try:
        member = point.load()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())  # messages of many lines exist; ours is one
        raise UserError(f"method {name!r} ({point.value}) cannot be loaded: {reason}") from error
    if not (inspect.isclass(member) and issubclass(member, Method)):
        raise UserError(f"method {name!r} ({point.value}) is not a subclass of methods.base.Method")
    check_class(member, f"method {name!r} ({point.value})")
    return member


def _builtin() -> set[str]:
    files = Path(__file__).parent.glob("[!_]*.py")
    return {file.stem for file in files} - {"base", "checks"}


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}
