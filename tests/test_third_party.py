"""A method in somebody else's package: the documents' example, installed, listed, run, timed and tabulated."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import methods
from harness.records import record
from methods.base import Method
from tests.test_conformance import CHECKS
from tests.test_documents import ROOT, blocks

EXAMPLE = "docs/adding_a_method.md"
PYPROJECT = """
[project]
name = "somebodys-package"
version = "1.0"

{entry_points}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with one in it: the documents' method and their lines of its pyproject.

    The metadata are written as an installer writes them: installing for real would need a build backend.
    """
    folder = tmp_path_factory.mktemp("site")
    (source,) = blocks("python", EXAMPLE)
    (entry_points,) = blocks("toml", EXAMPLE)
    project = tomllib.loads(PYPROJECT.format(entry_points=entry_points))["project"]
    ((group, points),) = project["entry-points"].items()
    module = re.fullmatch(r"(\w+)\.(\w+):PixelMean", points["pixel_mean"])
    assert module
    (folder / module[1]).mkdir()
    (folder / module[1] / "__init__.py").touch()
    (folder / module[1] / f"{module[2]}.py").write_text(source, encoding="utf-8")
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )
    lines = [f"{name} = {target}" for name, target in points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]), encoding="utf-8")
    return folder


@pytest.fixture
def example(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Method]]:
    """The class, as the registry finds it in this process."""
    monkeypatch.syspath_prepend(site)
    known = set(sys.modules)
    yield methods.get("pixel_mean")
    for name in set(sys.modules) - known:
        if "pixel_mean" in name or name == "my_package":
            sys.modules.pop(name)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_example_method_conforms(example: type[Method], check: Callable[[type[Method]], None]) -> None:
    check(example)


def harness_run(site: Path, *arguments: str) -> str:
    """The standard output of ``python -m harness.run`` in an environment in which the package is installed."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-m", "harness.run", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_an_installed_method_is_listed_run_timed_and_tabulated(site: Path, tmp_path: Path) -> None:
    listed = harness_run(site, "--list")
    assert re.search(r"^  pixel_mean +Synthetic images whose class means .* \[protocol vico\]$", listed, re.MULTILINE)
    request = "--methods pixel_mean --dataset digits --budget smoke --width 4 --device cpu --pixel_mean.lr 0.5"
    shown = harness_run(site, *request.split(), "--output", str(tmp_path))
    records = {found["cell"]["method"]: found for found in record.load_all(tmp_path)[0]}
    assert set(records) == {"pixel_mean", "random_real"}
    found = records["pixel_mean"]
    assert found["status"] == "ok" and found["config"] == {"lr": 0.5} and found["cell"]["steps"] == 5
    cost = found["cost"]
    assert len(cost["step_seconds"]) == 5 and min(cost["step_seconds"]) > 0
    assert cost["memory"]["meter"] == "host_rss" and cost["memory"]["host_rss_bytes"] is not None
    assert 0 <= found["accuracy"]["values"][0] <= 1
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    cells = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    assert set(cells) == set(records)
    assert "–" not in cells["pixel_mean"].values() and float(cells["pixel_mean"]["s/iteration (median)"]) > 0
    assert "pixel_mean" in shown
