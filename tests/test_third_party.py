"""The page on adding a method does what it says: its files make a package, and its commands install and run it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import venv
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from methods.checks import CHECKS
from tests.test_documents import ROOT, blocks, text_of

PAGE = "docs/adding_a_method.md"
METHOD = blocks("python", PAGE)[0]
"""The method of the page."""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a fresh environment, in which packages can be installed: it has all that this process has."""
    if find_spec("pip") is None or find_spec("setuptools") is None or int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("installing needs pip and setuptools 77 in this environment")
    venv.create(tmp_path / "venv")
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "these.pth").write_text("\n".join([str(ROOT), *filter(os.path.isdir, sys.path)]))
    return tmp_path / "venv" / "bin" / "python"


def test_the_page_adds_a_method_and_takes_it_away(python: Path, tmp_path: Path) -> None:
    package, output = tmp_path / "pixel_mean", tmp_path / "output"
    package.mkdir()
    files = re.findall(r"^`([\w.]+)`, .*?:\n\n```\w+\n(.*?)^```$", text_of(PAGE), flags=re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["pixel_mean.py", "pyproject.toml", "test_pixel_mean.py"]
    for name, content in files:
        (package / name).write_text(content, encoding="utf-8")
    places = {".venv/bin/python": python, "../pixel_mean": package, "results/local/pixel_mean": output}

    def shown(command: str, status: int = 0) -> str:
        arguments = [str(places.get(part, part)) for part in shlex.split(command)]
        if "install" in arguments:  # without a network
            arguments += ["--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"]
        ran = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
        assert ran.returncode == status, ran.stdout + ran.stderr
        assert "Warning" not in ran.stderr
        return ran.stdout + ran.stderr

    install, check, test, run, uninstall = "".join(blocks("sh", PAGE)).splitlines()
    shown(install)
    passed = [f"ok {function.__name__.removeprefix('check_')}" for function in CHECKS]
    assert [" ".join(line.split()[:2]) for line in shown(check).splitlines()[:-1]] == passed
    tested = shown(test)
    assert all(f"test_pixel_mean[{function.__name__}] PASSED" in tested for function in CHECKS)
    assert "pixel_mean" in shown(run)
    table = (output / "table.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    cells = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    assert set(cells) == {"pixel_mean", "random_real"}
    assert "–" not in cells["pixel_mean"].values() and float(cells["pixel_mean"]["s/iteration (median)"]) > 0
    shown(uninstall)
    assert "unknown method 'pixel_mean'" in shown(check, status=2)
