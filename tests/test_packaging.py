"""What is installed is what is used: requirements, pins, packages and the files around them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.test_layering import imported

ROOT = Path(__file__).parents[1]
LAYERS = ("benchmarks", "methods", "harness")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = {"scikit-learn": "sklearn", "pillow": "PIL", "nvidia-ml-py": "pynvml"}
"""Distribution → the module it brings, where the names differ."""


def names(requirements: list[str]) -> set[str]:
    """The distributions that ``requirements`` ask for; our own extras not counted."""
    found = {re.split(r"[\[<>=!~; ]", requirement)[0] for requirement in requirements}
    return found - {PROJECT["name"]}


def third_party(files: list[Path]) -> set[str]:
    """Top-level modules that ``files`` import, by name or by ``import_module``, or find; neither ours nor Python's."""
    found = {name for path in files for name in imported(path, ROOT)}
    by_name = re.compile(r'(?:import_module|find_spec)\("(\w+)')
    found |= {name for path in files for name in by_name.findall(path.read_text(encoding="utf-8"))}
    return {name.split(".")[0] for name in found} - set(sys.stdlib_module_names) - {*LAYERS, "tests"}


CORE = names(PROJECT["dependencies"])
EXTRAS = {extra: names(listed) for extra, listed in PROJECT["optional-dependencies"].items()}


def test_core_requirements_are_exactly_what_the_code_imports() -> None:
    files = [p for layer in LAYERS for p in (ROOT / layer).rglob("*.py") if "speed" not in p.parts]
    optional = {MODULES.get(name, name) for extra in EXTRAS.values() for name in extra}
    assert third_party(files) - optional == {MODULES.get(name, name) for name in CORE}


def test_nothing_is_in_core_and_in_an_extra() -> None:
    for extra, listed in EXTRAS.items():
        assert not listed & CORE, extra


def test_the_nvml_bindings_are_nvidias() -> None:
    assert "nvidia-ml-py" in CORE
    assert "pynvml" not in CORE.union(*EXTRAS.values())  # a deprecated package of the same module name


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_requirement_is_pinned() -> None:
    pinned = {name.lower().replace("_", "-") for name in pins()}
    assert {name.lower() for name in CORE.union(*EXTRAS.values())} <= pinned
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins().values())  # no local build of one machine


def test_every_folder_of_code_is_a_package() -> None:
    for layer in LAYERS:
        for path in (ROOT / layer).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), path.parent


def test_the_data_of_packages_are_shipped() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    others = [
        p for layer in LAYERS for p in (ROOT / layer).rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")
    ]
    assert {str(p.relative_to(ROOT)) for p in others} == {f"{layer}/{name}" for layer in data for name in data[layer]}


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = text[text.index("\n## ") :].split("\n## ")[1]
    assert newest.startswith(PROJECT["version"])
    for heading in ("### Code", "### Protocol", "### Results"):
        assert heading in newest


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_demo_that_was_stopped_goes_on_and_one_that_finished_starts_afresh(tmp_path: Path) -> None:
    venv, demo = tmp_path / "venv", tmp_path / "demo"
    (venv / "bin").mkdir(parents=True)
    (venv / ".core").touch()  # newer than all that it is made from: nothing is installed
    python = venv / "bin" / "python"
    python.write_text('#!/bin/sh\nfor last; do :; done\nmkdir -p "$last"; echo ran >> "$last/log"; exit $STATUS\n')
    python.chmod(0o755)
    for status, runs in ((130, 1), (1, 2), (0, 3), (0, 1), (0, 1)):
        asked = ["make", "--silent", "-C", str(ROOT), "demo", f"VENV={venv}", f"DEMO={demo}"]
        ran = subprocess.run(asked, env={**os.environ, "STATUS": str(status)}, capture_output=True)
        assert (ran.returncode == 0) == (status == 0), ran.stderr
        assert (demo / "log").read_text() == "ran\n" * runs


@pytest.mark.skipif(os.name == "nt", reason="no executable bit")
def test_continuous_integration_runs_what_developers_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text(encoding="utf-8")
