"""``python -m harness.check_method NAME``: what it prints, and its exit status."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness.check_method import main
from methods.checks import CHECKS
from tests.test_documents import ROOT, blocks
from tests.test_registry import Install, install  # noqa: F401  (a fixture)

METHOD = blocks("python", "docs/adding_a_method.md")[0]

RAISE = "        raise RuntimeError('two\\nlines')"


@pytest.mark.parametrize(
    ("old", "new", "failures"),
    [
        (
            "self.labels.clone()",
            "self.labels.clone().roll(1, 0)",
            [
                "set           theirs after 0 steps in float32: the labels of image 0 name class 2; expected class 0",
                "classes       theirs after 0 steps where only the classes [0, 2] have images: the labels of image 0",
            ],
        ),
        (
            "        self.optimiser.step()\n",
            "",
            ["steps         theirs in step 1: the images stay as they were; expected one update of them"],
        ),
        (
            "def state_dict(self):\n",
            f"def state_dict(self):\n{RAISE}\n",
            ["memory        RuntimeError: two\\nlines (", "resume        RuntimeError: two\\nlines ("],
        ),
        ("    def step(self):", "    def stop(self):", ["method 'theirs' (package_of_theirs:Mine) lacks step()"]),
    ],
    ids=["interleaved", "no-update", "error", "abstract"],
)
def test_each_failure_is_a_line(
    old: str,
    new: str,
    failures: list[str],
    install: Install,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = METHOD.replace("PixelMean(", "Mine(").replace(old, new)
    install("theirs", "package_of_theirs", source)
    assert main(["theirs"]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line.removeprefix("FAILED  ") for line in lines if line.startswith("FAILED  ")]
    assert [line[: len(failure)] for line, failure in zip(failed, failures, strict=True)] == failures
    if RAISE in source:
        raised = source.splitlines().index(RAISE) + 1
        assert all(line.endswith(f"package_of_theirs.py, line {raised})") for line in failed)
        assert lines[-1] == f"theirs: 2 of {len(CHECKS)} checks failed"


def test_an_unknown_name_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["random_rael"]) == 2
    assert "unknown method 'random_rael': did you mean 'random_real'?" in capsys.readouterr().err


def test_help_and_an_unknown_name_do_not_import_torch() -> None:
    code = (
        "import sys\nfrom harness.check_method import main\n"
        "assert main(['--help']) == 0 and main(['x']) == 2\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
