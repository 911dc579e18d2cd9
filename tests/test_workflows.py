"""The workflows of GitHub are checked without GitHub: their schema, the versions of their actions, their commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import methods
from harness import evaluations, regress, run
from harness.launch import LAUNCHERS
from harness.plan.options import split
from harness.plan.request import Request, told

yaml = pytest.importorskip("ruamel.yaml", reason="comes with check-jsonschema, of the extra dev").YAML(typ="safe")
ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS: dict[str, dict[str, Any]] = {path.stem: yaml.load(path) for path in FILES}
ACTIONS = {
    *("actions/checkout@v7", "actions/setup-python@v6", "actions/upload-artifact@v7", "astral-sh/setup-uv@v10.0.1"),
}


def steps() -> Iterator[dict[str, Any]]:
    for workflow in WORKFLOWS.values():
        for job in workflow["jobs"].values():
            yield from job["steps"]


def validated(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    return subprocess.run([*command, *map(str, paths)], capture_output=True, text=True)


def test_the_schema_of_github_holds_and_a_planted_mistake_is_seen(tmp_path: Path) -> None:
    assert {*WORKFLOWS} == {"ci", "counters", "regress", "nightly-gpu", "release"}
    planted = tmp_path / "ci.yml"
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    planted.write_text(text.replace("runs-on:", "runson:", 1), encoding="utf-8")
    seen = validated(*FILES, planted)
    assert seen.returncode == 1 and f"{planted}::$.jobs.test" in seen.stdout
    assert not any(str(path) in seen.stdout for path in FILES), seen.stdout


def test_every_action_is_a_known_one_of_a_known_version_and_every_job_ends() -> None:
    assert {step["uses"] for step in steps() if "uses" in step} == ACTIONS
    for workflow in WORKFLOWS.values():
        assert "permissions" in workflow, "without, a token may write everything"
        assert all(job["timeout-minutes"] <= 120 for job in workflow["jobs"].values())


def test_what_a_stranger_sends_runs_on_no_machine_of_ours() -> None:
    for workflow in WORKFLOWS.values():
        own = any("self-hosted" in job["runs-on"] for job in workflow["jobs"].values())
        triggers = workflow.get("on", workflow.get(True))
        assert not (own and "pull_request" in triggers) and "pull_request_target" not in triggers
    assert WORKFLOWS["nightly-gpu"]["jobs"]["cost"]["if"] == "vars.GPU_RUNNER == 'true'", "forks have no such runner"


def test_scripts_are_scripts_and_our_commands_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a user can write is in the environment, and not in the text of a script."""
    monkeypatch.chdir(tmp_path)
    understood = []
    for script in [step["run"] for step in steps() if "run" in step]:
        assert "${{" not in script, script
        checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        for name, words in re.findall(r"(?:-m harness\.|frepo-bench )(\w+) (.*)", script.replace("\\\n", " ")):
            arguments = shlex.split(words)
            understood.append(name)
            if name == "run":
                others, options = split(arguments, [*methods.names(), *evaluations.names(), *LAUNCHERS])
                Request(**told(run._parser("run").parse(others), Request), options=options)
            else:
                assert name == "regress"
                regress.main([word for word in arguments if word != "$OPTIONS"])
                assert "no such folder or record" in capsys.readouterr().err
    assert sorted(understood) == ["regress", "regress", "regress", "run", "run"]
    assert {"make test", "make smoke"} <= {step.get("run") for step in steps()}
