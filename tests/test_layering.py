"""harness → methods → benchmarks: no import points the other way, and methods touch no clock, log, file or flag."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN_IN_METHODS = {"argparse", "datetime", "logging", "os", "shutil", "subprocess", "sys", "tempfile", "time"}


def imported(path: Path, root: Path) -> Iterator[str]:
    """The full names of all modules that ``path`` imports, at the top or in a function; relative ones resolved."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(root: Path) -> list[str]:
    """One line for each import that points the wrong way."""
    found = []
    files = [path for layer in ("benchmarks", "methods") for path in sorted((root / layer).rglob("*.py"))]
    for path in files:
        place = path.relative_to(root)
        if place.parts[:2] == ("benchmarks", "speed"):
            continue  # the one place there that measures the other layers
        for name in imported(path, root):
            if not allowed(place, name.split(".")):
                found.append(f"{place} imports {name}")
    return found


def allowed(place: Path, name: list[str]) -> bool:
    """Whether the file at ``place`` may import ``name``."""
    if name[0] in ("harness", "tests"):
        return False
    if place.parts[0] == "benchmarks":
        return name[0] != "methods"
    registry = place.name == "__init__.py"  # lists files and entry points; computes nothing
    if name[0] == "methods":
        return name[1] == "base" or name[1].startswith("_") or (registry and name[1] == "checks")
    return registry or name[0] not in FORBIDDEN_IN_METHODS


def test_every_import_points_down() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "seen"),
    [
        ("benchmarks/x.py", "import methods", True),
        ("benchmarks/x.py", "from harness.records.record import Record", True),
        ("benchmarks/deep/x.py", "from ...methods import base", True),
        ("benchmarks/speed/x.py", "from harness import run", False),
        ("benchmarks/x.py", "import time", False),
        ("methods/x.py", "from harness import record", True),
        ("methods/x.py", "from methods import mtt", True),
        ("methods/x.py", "from methods.mtt import Config", True),
        ("methods/x.py", "from .mtt import Config", True),
        ("methods/x.py", "from . import mtt", True),
        ("methods/x.py", "def f():\n    import time", True),
        ("methods/x.py", "from os import path", True),
        ("methods/x.py", "import logging", True),
        ("methods/x.py", "import argparse", True),
        ("methods/x.py", "from methods.base import Method", False),
        ("methods/x.py", "from methods import _krr", False),
        ("methods/x.py", "from benchmarks.augment import dsa", False),
    ],
)
def test_a_planted_arrow_is_seen(file: str, line: str, seen: bool, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert bool(violations(tmp_path)) == seen
