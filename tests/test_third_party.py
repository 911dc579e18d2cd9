"""The pages on adding a method and an evaluation do what they say: their files make packages, their commands run."""

from __future__ import annotations

import json
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


class Page:
    """A page whose files are a package ``name``, and whose commands are tried in an environment of their own.

    Without random real images, which nothing here is about.
    """

    def __init__(self, path: str, name: str, tmp_path: Path) -> None:
        if find_spec("pip") is None or find_spec("setuptools") is None or int(version("setuptools").split(".")[0]) < 77:
            pytest.skip("installing needs pip and setuptools 77 in this environment")
        venv.create(tmp_path / "venv")
        (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")  # which has all that this process has
        (packages / "these.pth").write_text("\n".join([str(ROOT), *filter(os.path.isdir, sys.path)]))
        self.commands = "".join(blocks("sh", path)).splitlines()
        self.output = tmp_path / "output"
        self._places = {".venv/bin/python": tmp_path / "venv/bin/python", f"../{name}": tmp_path / name}
        (tmp_path / name).mkdir()
        files = re.findall(r"^`([\w.]+)`, .*?:\n\n```\w+\n(.*?)^```$", text_of(path), flags=re.MULTILINE | re.DOTALL)
        self.files = [file for file, _ in files]
        for file, content in files:
            (tmp_path / name / file).write_text(content, encoding="utf-8")

    def shown(self, command: str, status: int = 0) -> str:
        """What ``command`` prints, which ends with ``status``."""
        words = [part if not part.startswith("results/local/") else self.output for part in shlex.split(command)]
        arguments = [str(self._places.get(str(part), part)) for part in words]
        if "harness.run" in arguments:
            arguments.append("--no-random")
        if "install" in arguments:  # without a network
            arguments += ["--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"]
        ran = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
        assert ran.returncode == status, ran.stdout + ran.stderr
        assert "Warning" not in ran.stderr
        return ran.stdout + ran.stderr

    def table(self) -> dict[str, dict[str, str]]:
        """Method → column → cell, of ``table.md``."""
        table = (self.output / "table.md").read_text(encoding="utf-8")
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
        return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def test_the_page_adds_a_method_and_takes_it_away(tmp_path: Path) -> None:
    page = Page("docs/adding_a_method.md", "pixel_mean", tmp_path)
    assert page.files == ["pixel_mean.py", "pyproject.toml", "test_pixel_mean.py"]
    install, check, test, run, uninstall = page.commands
    page.shown(install)
    passed = [f"ok {function.__name__.removeprefix('check_')}" for function in CHECKS]
    assert [" ".join(line.split()[:2]) for line in page.shown(check).splitlines()[:-1]] == passed
    tested = page.shown(test)
    assert all(f"test_pixel_mean[{function.__name__}] PASSED" in tested for function in CHECKS)
    assert "pixel_mean" in page.shown(run)
    cells = page.table()
    assert set(cells) == {"pixel_mean"}
    assert "–" not in cells["pixel_mean"].values() and float(cells["pixel_mean"]["s/iteration (median)"]) > 0
    page.shown(uninstall)
    assert "unknown method 'pixel_mean'" in page.shown(check, status=2)


def test_the_page_adds_an_evaluation_and_takes_it_away(tmp_path: Path) -> None:
    page = Page("docs/adding_an_evaluation.md", "rotated_accuracy", tmp_path)
    assert page.files == ["rotated_accuracy.py", "pyproject.toml"]
    install, run, again, figures, uninstall = page.commands
    page.shown(install)
    assert "accuracy, turned" in page.shown(run)
    cells = page.table()
    assert set(cells) == {"dm"} and 0 < float(cells["dm"]["accuracy, turned (%)"]) < 100
    sets = {path: path.stat().st_mtime_ns for path in page.output.glob("*/set.safetensors")}
    assert page.shown(again).count("distilled before") == 1
    assert {path: path.stat().st_mtime_ns for path in sets} == sets
    columns = [f"accuracy, turned (%), quarter_turns={turns}" for turns in (1, 2)]
    values = []
    for folder in (path.parent for path in sets):
        answers = [json.loads(path.read_text()) for path in folder.glob("evaluations/rotated_accuracy-*.json")]
        assert sorted(answer["config"]["quarter_turns"] for answer in answers) == [1, 2]
        values += [f"{100 * answer['values']['rotated_accuracy'][0]:.1f}" for answer in answers]
    assert sorted(row[column] for row in page.table().values() for column in columns) == sorted(values)
    if find_spec("matplotlib") and find_spec("seaborn"):
        page.shown(figures)
        assert len(list(page.output.glob("rotated_accuracy-*.png"))) == 2
    page.shown(uninstall)
    assert "unknown" in page.shown(again, status=2)
    page.shown(f".venv/bin/python -m harness.report {page.output}")
    kept = [row[column] for row in page.table().values() for column in row if "quarter_turns" in column]
    assert len(kept) == 2 and all(float(value) < 1 for value in kept), "fractions, as no plugin says that they are"
