"""The documents do what they say: their commands parse, their code runs, their links and the tree are the project's."""

from __future__ import annotations

import contextlib
import csv
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import methods
from harness import evaluate, export, launch, run, schedule, tune
from harness.__main__ import COMMANDS
from harness.command_line import Parser
from harness.launch import Launcher
from harness.plan.budgets import BUDGETS, WIDTH
from harness.plan.options import parse
from harness.plan.planning import inquiries_of, resolve
from harness.plan.request import EvaluateRequest, Request
from tests.test_artifact import digits, saved, some_set

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
GUIDES = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").iterdir())))
"""Documents for users; their commands are tried."""
DOCUMENTS = (*GUIDES, "CHANGELOG.md", "results/README.md")


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(language: str, document: str) -> list[str]:
    """The fenced blocks of ``document`` in ``language``."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(document), flags=re.MULTILINE | re.DOTALL)
    return [content for name, content in fenced if name == language]


def commands() -> list[str]:
    """The lines of the shell blocks of all guides, and what ``make demo`` runs."""
    shell = [block for document in GUIDES for block in blocks("bash", document)]
    lines = [line for block in shell for line in block.splitlines() if line and not line.startswith("#")]
    shown = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [*lines, *(line for line in shown.splitlines() if "harness.run" in line)]


def test_there_are_commands() -> None:
    assert "make demo" in commands()
    assert "make test" in commands()
    assert sum("harness.run" in command for command in commands()) >= 5


class Parsed(Exception):
    """Carries the request of a command line that was understood."""


@pytest.mark.parametrize("command", commands())
def test_a_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = shlex.split(command, comments=True)
    if program.startswith("PYTHONPATH="):
        monkeypatch.syspath_prepend(ROOT / program.removeprefix("PYTHONPATH="))
        program, *arguments = arguments
    if "frepo_jax" in command:
        pytest.importorskip("jax")
    if program == "cp":
        return
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", MAKEFILE, re.M)
        return
    if program == ".venv/bin/frepo-bench":
        named = COMMANDS[arguments[0]]
        program, arguments = ".venv/bin/python", ["-m", named.module, *named.arguments, *arguments[1:]]
    assert program in ("python", ".venv/bin/python")
    if arguments[1] == "pytest":
        return
    if arguments[1] in {f"harness.{name}" for name in ("data", "report", "figures", "regress", "schedule", "watch")}:
        parsed = Parser.parse

        def read(parser: Parser, words: Sequence[str]) -> None:
            raise Parsed(parsed(parser, words))

        monkeypatch.setattr(Parser, "parse", read)
        with pytest.raises(Parsed):
            importlib.import_module(arguments[1]).main(arguments[2:])
        return
    if arguments[1] == "harness.export":
        export.parse(arguments[2:])
        return
    if arguments[1] == "harness.evaluate":
        _, fields = evaluate.parse(arguments[2:])
        wanted = EvaluateRequest(**fields)
        inquiries_of(wanted, wanted.asked_evaluations, "quick")
        return
    if arguments[1] == "harness.tune":
        tune.parse(arguments[2:])
        return
    assert arguments[:2] == ["-m", "harness.run"]

    def stop(request: Request, left_out: list[str]) -> None:
        raise Parsed(request)

    def no_launcher(request: Request, output: Path) -> contextlib.AbstractContextManager[Launcher]:
        parse({request.launcher: launch.defaults(request.launcher)}, request.options)
        return contextlib.nullcontext(lambda jobs: (job for job in jobs))

    monkeypatch.setattr(launch, "launcher", no_launcher)
    monkeypatch.setattr(run, "plan", stop)
    with pytest.raises(Parsed) as caught:
        run.main(arguments[2:])
    request: Request = caught.value.args[0]
    inquiries_of(request, request.asked_evaluations, request.budget)
    classes = {name: methods.get(name) for name in request.methods}
    for dataset in request.datasets:
        for ipc in request.ipcs:
            resolve(classes, dataset, ipc, request.budget, request.options)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text_of(document)):
        assert target.startswith("https://") or (ROOT / document).parent.joinpath(target).exists(), target


def anchors(document: Path) -> set[str]:
    """The headings of ``document`` as links name them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_anchors_are_headings(document: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([\w-]+)\)", text_of(document)):
        page = (ROOT / document).parent / target if target else ROOT / document
        assert anchor in anchors(page), (target, anchor)


@pytest.mark.parametrize("document", [document for document in GUIDES if document.startswith("docs/")])
def test_every_page_is_linked_from_the_readme(document: str) -> None:
    assert f"]({document})" in text_of("README.md")


def test_the_front_page_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 150


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="needs the repository")
def test_the_tree_is_the_real_one() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    folders = {line.partition("/")[0] for line in listed.stdout.splitlines() if "/" in line and (ROOT / line).exists()}
    (tree,) = [block for block in blocks("", "README.md") if block.startswith("benchmarks/")]
    assert {line.split()[0].rstrip("/") for line in tree.splitlines()} == folders


def test_every_data_set_is_named() -> None:
    from benchmarks import DATASETS

    page = text_of("docs/data.md")
    for name in DATASETS:
        assert f"`{name}`" in page


def test_the_budgets_are_the_real_ones() -> None:
    for name, budget in BUDGETS.items():
        (row,) = [line for line in text_of("docs/running.md").splitlines() if line.startswith(f"| `{name}`")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        steps = "as published" if budget.evaluate_steps is None else str(budget.evaluate_steps)
        width = WIDTH if budget.cpu_width is None else budget.cpu_width
        assert cells[1:] == [budget.meaning, str(len(budget.seeds)), str(budget.networks_evaluated), steps, str(width)]


def test_the_code_that_uses_a_distilled_set_runs(tmp_path: Path) -> None:
    """The documents' own lines, in a fresh process, on a set of this test."""
    three_lines, own_loop = blocks("python", "docs/records.md")
    assert len(three_lines.splitlines()) == 3 and three_lines in blocks("python", "README.md")
    benchmark = digits(tmp_path)
    saved(tmp_path / "set.safetensors", benchmark, some_set(benchmark))
    path = re.search(r'load\("(.*)"\)', three_lines)
    assert path
    shown = three_lines.replace(path[1], str(tmp_path / "set.safetensors"))
    without = own_loop.splitlines()[-1].replace("transform(images)", "images")
    shorter = own_loop.replace("range(200)", "range(60)")
    script = f"import torch\ntorch.manual_seed(0)\n{shown}{shorter}{without}"
    ran = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    transformed, untransformed = (float(line.removeprefix("accuracy")) for line in ran.stdout.splitlines())
    assert transformed > 0.75
    assert untransformed < transformed - 0.2, "images that skip the transform are noise to the network"


def test_the_tables_of_schedules_are_those_of_the_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    page = text_of("docs/scaling.md")
    shown = [line for block in blocks("bash", "docs/scaling.md") for line in block.splitlines() if "table1.csv" in line]
    assert len(shown) == 2
    for command in shown:
        assert schedule.main(shlex.split(command)[3:]) == 0
        assert capsys.readouterr().out in page
    cells = schedule.read(ROOT / "results" / "scaling" / "table1.csv")
    experts = sum(each.count for each in cells if each.name.startswith("experts"))
    assert f"{sum(each.count for each in cells) - experts} cells, and {experts}\nexperts" in page


def test_what_was_reproduced_is_what_the_records_say() -> None:
    """A line for each claim, with the number of values and the verdict of the committed ones."""
    claims, *_ = text_of("docs/reproduced.md").split("\n## ")
    rows = [line.strip("| ").split(" | ") for line in claims.splitlines() if line[:2] == "| "]
    with (ROOT / "results/claims.csv").open(encoding="utf-8") as file:
        judged = [(row["n"], row["word"]) for row in csv.DictReader(file)]
    assert [(row[-2], row[-1]) for row in rows[1:]] == judged
