"""Launchers: by name, with options of their own, and imported only where they are asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness import evaluate, launch, run

SMALL = ["--methods", "random_real", "--dataset", "digits", "--budget", "smoke"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--launcher slum", "unknown launcher 'slum': did you mean 'slurm'?"),
        ("--slurm.partition gpu", "--slurm.partition: the launcher is local; say --launcher slurm, or leave it out"),
        ("--launcher slurm --jobs 2", "--jobs is for cells on this machine: leave it out with --launcher slurm"),
        ("--launcher slurm --slurm.partiton gpu", "did you mean --slurm.partition?"),
        ("--launcher slurm --slurm.gpus many", "--slurm.gpus takes a whole number"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, words: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*SMALL, "--output", str(tmp_path), *words.split()]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ") and expected in line and "\n" not in line


def test_experiments_take_a_launcher_and_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--experiment", "figure3", "--budget", "smoke", "--output", str(tmp_path), "--slurm.partition", "gpu"]
    assert run.main(words) == 2
    assert "the launcher is local" in capsys.readouterr().err


@pytest.mark.parametrize("command", [run, evaluate])
def test_help_shows_the_options_of_a_launcher(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    main = command.main  # type: ignore[attr-defined]
    assert main(["--launcher", "slurm", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--launcher NAME" in shown and "--slurm.partition" in shown and "--slurm.array-parallelism" in shown


def test_a_missing_package_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    assert run.main([*SMALL, "--output", str(tmp_path), "--launcher", "slurm"]) == 2
    assert capsys.readouterr().err.strip().endswith('pip install "frepo-bench[slurm]"')


def test_engines_are_imported_only_where_they_are_asked_for() -> None:
    code = "import sys, harness.run, harness.evaluate; print({'submitit', 'ray', 'torch', 'tyro'} & sys.modules.keys())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"
