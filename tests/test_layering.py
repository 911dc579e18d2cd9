"""harness → methods → benchmarks: no import points the other way, and methods touch no clock, log, file or flag."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from methods import checks

ROOT = Path(__file__).parents[1]
UPWARDS = {"benchmarks": ("harness", "methods", "tests"), "methods": ("harness", "tests")}
REGISTRY = {Path("methods/__init__.py"), Path("methods/checks.py")}
"""Files that list or check methods, and are none."""


def package_of(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).parent.parts)


def imported(path: Path, root: Path) -> Iterator[str]:
    """The full names of all modules that ``path`` imports, at the top or in a function; relative ones resolved."""
    return checks.imported(path.read_text(encoding="utf-8"), package_of(path, root))


def violations(root: Path) -> list[str]:
    """One line for each import that points the wrong way, and for each thing that a method may not touch."""
    lines = []
    for layer, above in UPWARDS.items():
        for path in sorted((root / layer).rglob("*.py")):
            place = path.relative_to(root)
            lines += [f"{place} imports {name}" for name in imported(path, root) if name.split(".")[0] in above]
            if layer == "methods" and place not in REGISTRY:
                mistakes = checks.forbidden(path.read_text(encoding="utf-8"), package_of(path, root))
                lines += [f"{place} {mistake}" for mistake in mistakes]
    return lines


def test_every_import_points_down() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "seen"),
    [
        ("benchmarks/x.py", "import methods", True),
        ("benchmarks/x.py", "from harness.records.record import Record", True),
        ("benchmarks/deep/x.py", "from ...methods import base", True),
        ("benchmarks/speed/x.py", "from harness import run", True),
        ("benchmarks/x.py", "import time", False),
        ("methods/__init__.py", "from harness import record", True),
        ("methods/__init__.py", "import os", False),
        ("methods/_x.py", "from methods import mtt", True),
        ("methods/x.py", "from .mtt import Config", True),
        ("methods/x.py", "from . import mtt", True),
        ("methods/x.py", "def f():\n    import time", True),
        ("methods/x.py", "from os import path", True),
        ("methods/x.py", "from methods.base import Method", False),
        ("methods/x.py", "from . import _matching", False),
        ("methods/x.py", "from benchmarks.augment import dsa", False),
    ],
)
def test_a_planted_arrow_is_seen(file: str, line: str, seen: bool, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert bool(violations(tmp_path)) == seen
