"""The paper's experiments: what each asks for, which part of it, and what is said before it starts."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import datasets
from benchmarks.errors import UserError
from harness import figures
from harness.evaluations.cross_architecture import CrossArchitectureConfig
from harness.plan import planning
from harness.plan.experiments import ARCHITECTURES, EXPERIMENTS, MATRIX, requests
from harness.plan.jobs import Job
from harness.plan.planning import merged, plan
from harness.records.record import Distilled
from harness.reports import images
from harness.reports.reported import reported
from harness.run import _answer, main
from methods.frepo import FRePo
from tests.builders import evaluated, in_process, made, quick
from tests.dummies import dummy
from tests.test_run import Pretending

__all__ = ["dummy", "quick"]  # fixtures


def planned(experiment: str, *only: str, **told: Any) -> list[Job]:
    """The jobs by the shapes of the data alone."""
    asked = {"forecast": True, "device": "cpu", **told}
    return merged(job for request in requests(experiment, asked, only) for job in plan(request, []))


def run(output: Path, *words: str, launcher: Any = None) -> int:
    return main([*words, "--device", "cpu", "--output", str(output)], launcher=launcher or Pretending())


def tasks(jobs: list[Job]) -> set[tuple[str, str, int]]:
    return {(job.distillation.method, job.distillation.dataset, job.distillation.ipc) for job in jobs}


@pytest.fixture(autouse=True)
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds, and other tests try it."""
    monkeypatch.setitem(sys.modules, "seaborn", None)


# What is asked for


@pytest.mark.parametrize("budget", ["smoke", "quick", "paper"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_knows_its_data_and_can_be_asked_for_under_any_budget(experiment: str, budget: str) -> None:
    told = {} if experiment == "figure3_cost" else {"budget": budget}
    jobs = planned(experiment, **told)
    assert jobs and all(job.distillation.dataset for job in jobs)
    assert {job.asked["budget"] for job in jobs} <= {budget, "cost"}
    for job in jobs:
        folders = {other.folder for other in jobs if not other.before}
        assert set(job.key) <= folders, "a set that nothing distils"


def test_table1_is_the_grid_of_the_paper() -> None:
    entries = [entry for entry in reported()["entries"] if entry["source"] == "frepo-table1"]
    assert tasks(planned("table1")) == {(entry["method"], entry["dataset"], entry["ipc"]) for entry in entries}
    assert {q.config["protocol"] for job in planned("table1", "frepo") for q in job.questions} == {"frepo"}


def test_table3_is_the_grid_of_the_paper() -> None:
    entries = [entry for entry in reported()["entries"] if entry["source"] == "frepo-table3"]
    own = {(entry["method"], entry["dataset"], entry["ipc"]) for entry in entries if entry["method"] != "random_real"}
    jobs = planned("table3")
    assert tasks(jobs) == own
    assert {(job.distillation.dataset, job.distillation.depth) for job in jobs if job.distillation.method == "mtt"} == {
        ("imagenette", 5),
        ("imagewoof", 5),
    }


def test_table2_asks_every_set_about_every_network() -> None:
    cells = {(cell["row"], cell["column"]) for cell in reported()["cells"] if cell["table"] == "table2"}
    jobs = planned("table2")
    assert {row for row, _ in cells} == {job.distillation.method for job in jobs}
    assert {column for _, column in cells} == set(ARCHITECTURES.values())
    for job in jobs:
        first, *others = job.questions
        assert first.evaluation == "accuracy"
        assert [question.config["architectures"] for question in others] == [[name] for name in ARCHITECTURES]
    assert {q.config["steps"] for job in jobs for q in job.questions} == {1000, 500}
    jobs = planned("table2", "frepo", evaluate_steps=7, networks_evaluated=2)
    assert {(q.config["steps"], q.config["networks"]) for job in jobs for q in job.questions} == {(7, 2)}


def test_the_columns_of_table2_are_the_networks_that_the_evaluation_asks_about() -> None:
    assert CrossArchitectureConfig().architectures == tuple(ARCHITECTURES)


def test_attacks_have_real_images_and_both_augmentations() -> None:
    jobs = planned("table4", "mnist", budget="paper")
    assert {job.distillation.dataset for job in jobs} == {
        f"mnist@images:{10_000 * i}-{10_000 * (i + 1)}" for i in range(5)
    }
    assert {job.distillation.method for job in jobs} == {"frepo", "dm", "dsa", "whole_data"}
    for job in jobs:
        assert [q.config["augment"] for q in job.questions] == ["frepo", "none"]
        assert job.questions[0].config["lengths"][-1] == 16_000 and job.questions[0].config["grid"] == "published"
    assert [job.folder for job in planned("figure5cd", budget="smoke")] == [
        job.folder for job in planned("table4", budget="smoke")
    ]


def test_continual_learning_distils_each_step_of_five_orders() -> None:
    jobs = planned("figure5ab", "frepo", budget="paper")
    alone, sequences = [job for job in jobs if not job.before], [job for job in jobs if job.before]
    assert len(alone) == 5 * (5 + 10) and {job.distillation.ipc for job in alone} == {20}
    assert [len(job.key) for job in sequences] == [5] * 5 + [10] * 5
    assert {job.distillation.steps for job in alone} == {500_000} and all(job.config["use_flip"] for job in alone)


def test_ablations_change_one_thing_each() -> None:
    first, *others = planned("ablations")
    usual = {**first.config, **first.distillation.to_dict()}
    differing = [
        {name: value for name, value in {**job.config, **job.distillation.to_dict()}.items() if usual[name] != value}
        for job in others
    ]
    assert all(len(change) == 1 for change in differing) and len(differing) == len(set(map(str, differing)))
    names = {"pool_size", "max_online_updates", "batch_size", "init", "learn_label", "use_flip", "optimiser"}
    assert {name for change in differing for name in change} == names | {"norm", "network", "width"}


def test_the_matrix_is_every_network_by_every_recipe() -> None:
    for job in planned("protocol_matrix", "dm", "frepo"):
        asked = [q.config for q in job.questions if q.evaluation == "cross_architecture"]
        assert [config["architectures"][0] for config in asked] == list(MATRIX)
        assert {tuple(config["lr_search"]) for config in asked} == {(1.0,)}


def test_experiments_share_their_distillations(tmp_path: Path) -> None:
    first, second = Pretending(), Pretending()
    words = ("--only", "dm,random_real", "--dataset", "digits", "--ipcs", "10", "--width", "4", "--budget", "smoke")
    assert run(tmp_path, "--experiment", "table1", *words, launcher=first) == 0
    networks = ("--cross-architecture.architectures", "own", "convnet:none")
    assert run(tmp_path, "--experiment", "table2", *words, *networks, launcher=second) == 0
    assert len(first.distilled) == 2 and second.distilled == []
    assert second.answered == ["cross_architecture"] * 2 * 2, "accuracy is known"


def test_a_network_that_the_images_are_too_small_for_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--experiment", "table2", "--dataset", "digits", "--only", "dm", "--budget", "smoke")
    assert run(tmp_path, *words, launcher=(launcher := Pretending())) == 2
    assert launcher.distilled == []
    assert "resnet18 makes maps of 1 pixel of 8×8 images" in capsys.readouterr().err


def test_figures_of_images_are_drawn_where_an_experiment_has_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Path] = []

    def draw(distilled: Sequence[Distilled], folder: Path) -> list[Path]:
        drawn.append(folder)
        return []

    monkeypatch.setattr(figures, "write", lambda distilled, folder: [])
    monkeypatch.setattr(images, "write", draw)
    asked = ("--dataset", "digits", "--only", "random_real", "--budget", "smoke")
    for experiment in ("table1", "figure1", "figure4"):
        assert run(tmp_path, "--experiment", experiment, "--ipcs", "1", *asked) == 0
    assert len(drawn) == 2


def test_a_line_says_which_item_of_a_list_it_is_about() -> None:
    known = {"architectures": ["resnet18"], "networks": 1}
    (answer,) = evaluated(made(()), {"accuracy": [0.5]}, "cross_architecture", config=known).evaluations
    assert _answer(answer) == "resnet18: accuracy 50.00 %, n = 1"
    (failed,) = evaluated(made(()), {}, "cross_architecture", config=known, status="oom", message="full").evaluations
    assert _answer(failed) == "cross_architecture resnet18: oom: full"
    (attack,) = evaluated(made(()), {"lr_auc": [0.5]}, "membership_inference", config={"chunk": 2}).evaluations
    assert _answer(attack) == "chunk 2: LR AUC 0.5, n = 1"


# A part of it, and flags


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (("dm", "frepo", "mnist"), {("dm", "mnist"), ("frepo", "mnist")}),
        (("kip", "cub200"), None),
        (("random_real", "cub200"), {("random_real", "cub200")}),
    ],
)
def test_only_takes_the_methods_and_data_sets_that_it_names(only: tuple[str, ...], expected: Any) -> None:
    if expected is None:
        with pytest.raises(UserError, match="nothing in the experiment is all of kip, cub200"):
            planned("table1", *only)
    else:
        assert {(method, dataset) for method, dataset, _ in tasks(planned("table1", *only))} == expected


def test_only_takes_the_parts_that_it_names() -> None:
    usual = FRePo.BUDGETS["quick"]["pool_size"]
    assert {job.config["pool_size"] for job in planned("ablations", "pool-size", "published")} == {1, 5, usual, 20}
    (request,) = requests("figure5ab", {"forecast": True, "device": "cpu"}, ("5-steps", "dm"))
    assert request.methods == ("dm",) and request.options == {
        "continual_learning": ["--continual_learning.class_steps", "5", "--continual_learning.order", "0"]
    }
    with pytest.raises(UserError, match="unknown part, data set or method 'pool-sise': did you mean 'pool-size'"):
        planned("ablations", "pool-sise")


def test_options_of_the_command_line_hold() -> None:
    options = {
        "frepo": ["--frepo.pool_size", "7"],
        "cross_architecture": ["--cross_architecture.architectures", "alexnet:none"],
    }
    for job in planned("table2", options=options):
        (architecture,) = [q.config["architectures"] for q in job.questions if q.evaluation == "cross_architecture"]
        assert architecture == ["alexnet:none"] and job.config.get("pool_size", 7) == 7
    (job,) = planned("ablations", "pool-size", options={"frepo": options["frepo"]})
    assert job.config["pool_size"] == 7
    with pytest.raises(UserError, match=r"--bptt.lr: bptt is neither a method nor an evaluation of --experiment"):
        planned("table2", options={"bptt": ["--bptt.lr", "1"]})
    for job in planned("table2", evaluations=("accuracy",)):
        assert [question.evaluation for question in job.questions] == ["accuracy"]


def test_only_needs_an_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--methods", "dm", "--dataset", "digits", "--only", "dm") == 2
    assert "--only runs a part of an experiment: it means nothing without --experiment" in capsys.readouterr().err


# What is not here


@pytest.fixture
def mnist_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the published sets only ``mnist`` is here; it shows the digits."""
    load: Callable[..., Any] = datasets.load_raw

    def found(name: str, root: Path, **options: Any) -> Any:
        if name == "mnist":
            return dataclasses.replace(load("digits", root), name="mnist")
        return load(name, root, **options)

    monkeypatch.setattr(datasets, "load_raw", found)
    planning.loaded.cache_clear()


@pytest.mark.usefixtures("mnist_alone")
def test_data_that_is_not_here_is_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = Pretending()
    words = ["--experiment", "table1", "--methods", "dm", "--width", "4", "--budget", "smoke"]
    assert run(tmp_path, *words, launcher=launcher) == 0
    shown = capsys.readouterr().err
    assert {job.distillation.dataset for job in launcher.jobs} == {"mnist"}
    assert shown.count("left out: cifar10 is not in ") == 1
    assert f"this makes its part: python -m harness.run {' '.join(words)} --device cpu" in shown
    assert "--only cifar10\n" in shown and "6 distillations, 0 done; 6 evaluations, 0 done" in shown
    assert run(tmp_path, *words, "--only", "cifar10", launcher=launcher) == 2
    assert "error: cifar10 is not in " in capsys.readouterr().err
    assert run(tmp_path, *words, "--dataset", "mnist,cifar10") == 2, "what the user names must be there"


@pytest.mark.usefixtures("mnist_alone")
def test_settings_without_a_source_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = Pretending()
    assert run(tmp_path, "--experiment", "table1", "--budget", "paper", "--only", "mnist", launcher=launcher) == 0
    shown = capsys.readouterr().err
    assert "left out: kip on mnist, ipc 50: no published setting" in shown
    assert {job.distillation.method for job in launcher.jobs} == {"frepo", "dm", "dsa", "random_real"}


# Before it starts


@pytest.mark.usefixtures("quick", "dummy")
def test_the_rest_takes_as_long_as_records_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual = "--methods dummy --dataset digits --budget smoke --width 4 --no-random --networks-evaluated"

    def told(more: str, launcher: Any = None) -> str:
        assert run(tmp_path, *f"{usual} {more}".split(), launcher=launcher) == 0
        return capsys.readouterr().err

    shown = told("1", in_process)
    assert "1 distillation, 0 done; 1 evaluation, 0 done" in shown
    assert "Left to do: for 2 parts no record tells how long; about 32.2 KiB on the disk, " in shown
    shown = told("3 --seeds 0,1 --steps 40")
    assert "2 distillations, 0 done; 2 evaluations, 0 done\nLeft to do: about " in shown and "no record" not in shown
    assert "1 distillation, 1 done; 1 evaluation, 0 done\nLeft to do: about " in told("3")
    shown = told("3")
    assert "1 distillation, 1 done; 1 evaluation, 1 done" in shown and "Left to do" not in shown
    assert "1 distillation, 0 done; 1 evaluation, 0 done" in told("3 --force")
