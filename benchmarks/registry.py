"""Plugins by name: a file of a package holds one, and an entry point of another package adds one."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from benchmarks.errors import UserError, choose


class Registry:
    """The subclasses of one base class, each in a file of its own. Listing names imports none of them."""

    def __init__(self, kind: str, package: str, *, others: tuple[str, ...], group: str) -> None:
        """``kind``: what a plugin is called in messages. ``package``: its files are the plugins.

        ``others``: files of the package that are none, besides those whose names begin with ``_``. ``group``: the
        entry-point group for plugins of other packages, ``name = "package.module:Class"``.
        """
        self.kind, self.package, self.others, self.group = kind, package, others, group

    def names(self) -> list[str]:
        """The names of all plugins, built-in and installed, sorted."""
        return sorted(self._builtin() | self._installed().keys())

    def get(self, name: str, base: type[Any], check: Callable[[Any, str], None]) -> Any:
        """The class called ``name``, a subclass of ``base``.

        ``check(class, shown name)`` may refuse it. Raises UserError for an unknown name (with the list and the nearest
        match), for a plugin of another package that cannot be imported or is not a ``base``, and for a file that holds
        none.
        """
        choose(self.kind, name, self.names())
        if name in self._builtin():
            module = importlib.import_module(f"{self.package}.{name}")
            for _, member in inspect.getmembers(module, inspect.isclass):
                if issubclass(member, base) and member.__module__ == module.__name__:
                    check(member, f"{self.kind} {name!r}")
                    return member
            file = f"{self.package.replace('.', '/')}/{name}.py"
            raise UserError(f"{file} holds no {base.__name__}: name it _{name}.py if it is not meant to be one")
        point = self._installed()[name]
        shown = f"{self.kind} {name!r} ({point.value})"
        try:
            plugin = point.load()
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())  # messages of many lines exist; ours is one
            raise UserError(f"{shown} cannot be loaded: {reason}") from error
        if not (inspect.isclass(plugin) and issubclass(plugin, base)):
            raise UserError(f"{shown} is not a subclass of {base.__module__}.{base.__name__}")
        check(plugin, shown)
        return plugin

    def _builtin(self) -> set[str]:
        folder = Path(__file__).resolve().parents[1].joinpath(*self.package.split("."))
        return {file.stem for file in folder.glob("[!_]*.py")} - set(self.others)

    def _installed(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}
