"""Plugins by name: each is a class in a file of a package, or an entry point of another package."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from benchmarks.errors import UserError, choose


class Registry:
    """Subclasses of a base class. Listing their names imports no file."""

    def __init__(
        self,
        kind: str,
        package: str,
        *,
        group: str,
        others: tuple[str, ...] = (),
        classes: Mapping[str, str] | None = None,
    ) -> None:
        """``kind``: the word for a plugin in messages. ``package``: its files are the plugins.

        ``group``: the entry-point group for plugins of other packages, ``name = "package.module:Class"``. ``others``:
        files of the package that are no plugins, besides names that begin with ``_``. ``classes``: name →
        ``file:Class``, where a file may hold several plugins; None: each file holds one, which has its name.
        """
        self.kind, self.package, self.group, self.others, self.classes = kind, package, group, others, classes

    def names(self) -> list[str]:
        """The names of all plugins, built-in and installed, sorted."""
        return sorted(self._builtin() | self._installed().keys())

    def get(self, name: str, base: type[Any], check: Callable[[Any, str], None]) -> Any:
        """The class called ``name``, a subclass of ``base``.

        ``check(class, shown name)`` may refuse it. Raises UserError for an unknown name (with the list and the nearest
        match), for a file without a ``base``, and for a plugin of another package that cannot be imported or is no
        ``base``.
        """
        if self.classes and name in self.classes:
            file, _, class_name = self.classes[name].partition(":")
            return getattr(importlib.import_module(f"{self.package}.{file}"), class_name)
        if name in self._builtin():  # before the names of all, for which every installed package is looked through
            module = importlib.import_module(f"{self.package}.{name}")
            for _, member in inspect.getmembers(module, inspect.isclass):
                if issubclass(member, base) and member.__module__ == module.__name__:
                    check(member, f"{self.kind} {name!r}")
                    return member
            file = f"{self.package.replace('.', '/')}/{name}.py"
            raise UserError(f"{file} holds no {base.__name__}: name it _{name}.py if it is not meant to be one")
        choose(self.kind, name, self.names())
        point = self._installed()[name]
        shown = f"{self.kind} {name!r} ({point.value})"
        try:
            plugin = point.load()
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())  # a message may have several lines
            raise UserError(f"{shown} cannot be loaded: {reason}") from error
        if not (inspect.isclass(plugin) and issubclass(plugin, base)):
            raise UserError(f"{shown} is not a subclass of {base.__module__}.{base.__name__}")
        check(plugin, shown)
        return plugin

    def _builtin(self) -> set[str]:
        if self.classes is not None:
            return set(self.classes)
        folder = Path(__file__).resolve().parents[1].joinpath(*self.package.split("."))
        return {file.stem for file in folder.glob("[!_]*.py")} - set(self.others)

    def _installed(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}
