"""Questions about sets of views: which sets are distilled for them, when they are asked, and where answers lie."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from benchmarks.datasets import Benchmark
from benchmarks.errors import UserError
from harness import evaluate, evaluations
from harness.evaluations.base import Evaluation, Progress, Quantity
from harness.plan.jobs import Job
from harness.plan.planning import plan
from harness.plan.request import Request
from harness.records.record import EVALUATIONS
from harness.run import main
from methods.base import Synthetic
from tests.builders import all_in, in_process, quick
from tests.dummies import dummy
from tests.test_run import Pretending

__all__ = ["dummy", "quick"]  # fixtures
pytestmark = pytest.mark.usefixtures("quick", "dummy")


@dataclass(frozen=True)
class PartsConfig:
    """Which parts of the training images sets are distilled from."""

    parts: int = 2
    begin: int = 0
    """The first image."""


class Parts(Evaluation):
    """Remember the sets of the parts."""

    Config = PartsConfig
    sets = "sequence"
    each = "begin"
    quantities: ClassVar[Mapping[str, Quantity]] = {"images": Quantity("images", percent=False, against="part")}
    seen: ClassVar[list[tuple[list[Synthetic], list[str]]]] = []

    def views(self) -> tuple[str, ...]:
        begin = self.config.begin
        return tuple(f"@images:{begin + 100 * i}-{begin + 100 * (i + 1)}" for i in range(self.config.parts))

    def run(
        self, sets: Sequence[Synthetic], benchmarks: Sequence[Benchmark], seed: int, progress: Progress, begin: int = 0
    ) -> Mapping[str, list[float]]:
        assert len(sets) == len(benchmarks) and [each.name for each in benchmarks[1:]] == [benchmarks[-1].name]
        self.seen.append((list(sets), [each.name for each in benchmarks]))
        return {"images": [float(len(each.task.images)) for each in benchmarks]}


@dataclass(frozen=True)
class ChunkConfig:
    """Which images the set is distilled from, and which letters are asked about."""

    first: int = 100
    letters: tuple[str, ...] = ("a", "b")


class Chunk(Evaluation):
    """Ask a question for each letter of a set of the first images."""

    Config = ChunkConfig
    BUDGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"first": 60}}
    each = "letters"
    quantities: ClassVar[Mapping[str, Quantity]] = {"letter": Quantity("letter", percent=False)}

    def views(self) -> tuple[str, ...]:
        return (f"@images:0-{self.config.first}",)

    def run(
        self, sets: Sequence[Synthetic], benchmarks: Sequence[Benchmark], seed: int, progress: Progress, begin: int = 0
    ) -> Mapping[str, list[float]]:
        (letter,) = self.config.letters
        return {"letter": [float(ord(letter))]}


@pytest.fixture(autouse=True)
def asking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ``parts`` and ``chunk`` evaluations that the registry knows."""
    own: dict[str, type[Evaluation]] = {"parts": Parts, "chunk": Chunk}
    names, get = evaluations.names(), evaluations.get
    monkeypatch.setattr(evaluations, "names", lambda: [*names, *own])
    monkeypatch.setattr(evaluations, "get", lambda name: own[name] if name in own else get(name))
    monkeypatch.setattr(Parts, "seen", [])


def request(**changes: Any) -> Request:
    return Request(**{"methods": ("dummy",), "datasets": ("digits",), "device": "cpu", "budget": "smoke", **changes})


def command(output: Path, *more: str) -> list[str]:
    base = "--methods dummy --dataset digits --budget smoke --width 4 --device cpu --no-random"
    return [*base.split(), *more, "--output", str(output)]


def datasets(jobs: Iterable[Job]) -> list[str]:
    return [job.distillation.dataset for job in jobs]


def answers(output: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(output.glob(f"*/{EVALUATIONS}/parts-*.json"))]


# What is planned


def test_a_set_is_distilled_from_every_view_and_the_question_comes_last(tmp_path: Path) -> None:
    jobs = plan(request(output=tmp_path, evaluations=("accuracy", "parts"), seeds=(0, 1)))
    parts = ["digits@images:0-100", "digits@images:100-200"]
    assert datasets(jobs) == [name for name in ("digits", *parts) for _ in range(2)] + parts[1:] * 2
    assert [job.source for job in jobs] == datasets(jobs)
    *alone, first, second = jobs
    asked = {tuple(question.evaluation for question in job.questions) for job in alone[2:]}
    assert asked == {()} and {q.evaluation for job in alone[:2] for q in job.questions} == {"accuracy"}
    for job, seed in ((first, 0), (second, 1)):
        assert [q.evaluation for q in job.questions] == ["parts"] and datasets(job.before) == parts[:1]
        assert [each.distillation.seed for each in (*job.before, job)] == [seed, seed]
        assert job.path in [each.path for each in alone]
    assert Job.from_json(first.to_json()) == first


def test_a_question_about_one_view_needs_its_set_alone_and_a_list_is_several_questions(tmp_path: Path) -> None:
    (job,) = plan(request(output=tmp_path, evaluations=("chunk",)))
    assert job.source == "digits@images:0-60", "the budget is that of the evaluation"
    assert [question.config["letters"] for question in job.questions] == [["a"], ["b"]]
    options = {"chunk": ["--chunk.letters", "c,d,c", "--chunk.first", "80"]}
    (job,) = plan(request(output=tmp_path, evaluations=("chunk",), options=options))
    assert job.source == "digits@images:0-80" and [q.config["letters"] for q in job.questions] == [["c"], ["d"]]


def test_a_list_of_a_field_of_single_values_is_several_questions(tmp_path: Path) -> None:
    options = {"parts": ["--parts.begin=0,100"]}
    jobs = plan(request(output=tmp_path, evaluations=("parts",), options=options))
    assert datasets(jobs[:3]) == [f"digits@images:{i}-{i + 100}" for i in (0, 100, 200)]
    assert [(datasets(job.before), job.distillation.dataset) for job in jobs[3:]] == [
        (["digits@images:0-100"], "digits@images:100-200"),
        (["digits@images:100-200"], "digits@images:200-300"),
    ]
    assert [q.config["begin"] for job in jobs[3:] for q in job.questions] == [0, 100]


def test_real_images_are_a_sequence_as_well(tmp_path: Path) -> None:
    jobs = plan(request(output=tmp_path, evaluations=("parts",), ceiling=True))
    ceilings = [job for job in jobs if job.distillation.method == "whole_data"]
    assert [len(job.before) for job in ceilings] == [0, 0, 1]
    assert {each.distillation.method for each in ceilings[-1].before} == {"whole_data"}


def test_views_that_do_not_exist_are_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for views, message in (
        (("@pictures:1",), "chunk asks about the view '@pictures:1' of a data set; views are @images:A-B"),
        (("@images:0-9", "@images:9-20"), "chunk asks about one set, and names 2 views"),
        (("@images:0-99999",), "digits@images:0-99999: the set has"),
    ):
        monkeypatch.setattr(Chunk, "views", lambda self, views=views: views)
        with pytest.raises(UserError, match=message):
            plan(request(output=tmp_path, evaluations=("chunk",)))


# When it is asked


def test_sets_are_there_before_the_question_whatever_the_order(tmp_path: Path) -> None:
    launcher = Pretending(order=lambda jobs: reversed(list(jobs)))
    assert main(command(tmp_path, "--evaluations", "parts", "--seeds", "0,1"), launcher=launcher) == 0
    assert len(launcher.distilled) == 4 and launcher.answered == ["parts", "parts"]
    assert [bool(job.before) for job in launcher.jobs] == [False] * 4 + [True] * 2
    by_identity = {each.record["identity"]: each.record["distillation"] for each in all_in(tmp_path)}
    for answer in answers(tmp_path):
        of = [by_identity[each["distillation"]] for each in answer["sets"]]
        assert [each["dataset"] for each in of] == ["digits@images:0-100", "digits@images:100-200"]
        assert {each["seed"] for each in of} == {answer["seed"]}


def test_a_set_that_failed_is_named_and_the_status_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path, "--evaluations", "parts"), launcher=Pretending(status="oom")) == 1
    said = "parts is not asked, as there is no set of dummy on digits@images:0-100, ipc 1, width 4, seed 0"
    assert said in capsys.readouterr().err and answers(tmp_path) == []
    launcher = Pretending()
    assert main(command(tmp_path, "--evaluations", "parts"), launcher=launcher) == 1 and launcher.jobs == []


def test_a_set_that_is_made_again_is_asked_about_again(tmp_path: Path) -> None:
    asked = command(tmp_path, "--evaluations", "parts")
    assert main(asked, launcher=Pretending()) == 0
    (before,) = answers(tmp_path)
    first = next(path for path in tmp_path.iterdir() if "0-100" in path.name)
    (first / "set.safetensors").unlink()
    launcher = Pretending(content="another")
    assert main(asked, launcher=launcher) == 0
    (after,) = answers(tmp_path)
    assert launcher.distilled == [first.name] and launcher.answered == ["parts"]
    assert before["identity"] == after["identity"] and before["sets"][1] == after["sets"][1]
    assert before["sets"][0]["sha256"] != after["sets"][0]["sha256"]
    launcher = Pretending()
    assert main(asked, launcher=launcher) == 0 and launcher.jobs == []


def test_force_distils_every_set_once_and_asks_again(tmp_path: Path) -> None:
    asked = command(tmp_path, "--evaluations", "parts")
    assert main(asked, launcher=Pretending()) == 0
    launcher = Pretending()
    assert main([*asked, "--force"], launcher=launcher) == 0
    assert len(launcher.distilled) == 2 and launcher.answered == ["parts"]


def test_a_real_cell_gives_the_sets_in_their_order_each_with_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = command(tmp_path, "--evaluations", "parts,chunk", "--chunk.first", "100")
    assert main(asked, launcher=in_process) == 0
    ((sets, names),) = Parts.seen
    assert names == ["digits@images:0-100", "digits@images:100-200"]
    assert [tuple(each.images.shape) for each in sets] == [(10, 1, 8, 8)] * 2
    assert not sets[0].images.equal(sets[1].images)
    (answer,) = answers(tmp_path)
    assert answer["values"] == {"images": [100.0, 100.0]} and answer["cost"]["seconds"] > 0
    assert "and the 1 set before it: distilled before on" in (shown := capsys.readouterr().err)
    assert "2 distillations, 0 done; 3 evaluations, 0 done" in shown and "images 100," in shown
    assert main([*asked, "--parts.begin", "100"], launcher=in_process) == 0
    assert len(Parts.seen) == 2 and Parts.seen[1][0][0].images.equal(sets[1].images)
    assert "3 distillations, 2 done; 3 evaluations, 2 done" in capsys.readouterr().err
    assert len(all_in(tmp_path)) == 3


# Sets that are there already


def test_sequences_are_found_in_a_folder_and_incomplete_ones_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(*more: str, launcher: Any = in_process) -> int:
        return evaluate.main([str(tmp_path), "--device", "cpu", *more], launcher=launcher)

    assert main(command(tmp_path, "--evaluations", "parts", "--seeds", "0,1"), launcher=in_process) == 0
    seen = len(Parts.seen)
    assert ask("--evaluations", "parts") == 0 and len(Parts.seen) == seen, "nothing is asked twice"
    assert ask("--evaluations", "parts", "--parts.begin", "100") == 2
    assert "parts of dummy on digits: left out, there is no set of digits@images:200-300" in capsys.readouterr().err
    for path in tmp_path.glob(f"*/{EVALUATIONS}/*.json"):
        path.unlink()
    lost = next(path for path in tmp_path.iterdir() if "0-100" in path.name and "seed1" in path.name)
    (lost / "record.json").unlink()
    assert ask("--evaluations", "parts") == 0 and len(Parts.seen) == seen + 1
    shown = capsys.readouterr().err
    assert shown.count("there is no set of digits@images:0-100") == 1 and "0-100, ipc" not in shown
    (answer,) = answers(tmp_path)
    assert answer["seed"] == 0 and len(answer["sets"]) == 2


def test_sets_of_other_views_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path, "--evaluations", "accuracy"), launcher=in_process) == 0
    folder = next(path for path in tmp_path.iterdir() if path.is_dir()).name
    assert evaluate.main([str(tmp_path), "--evaluations", "chunk"], launcher=in_process) == 2
    assert f"{folder}: left out, asked for are sets distilled from @images:0-60" in capsys.readouterr().err


def test_a_set_in_a_file_is_no_sequence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path / "own", "--evaluations", "chunk"), launcher=in_process) == 0
    (path,) = (tmp_path / "own").glob("*/set.safetensors")
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(path.read_bytes())
    asked = [str(copy), "--name", "other", "--device", "cpu", "--output", str(tmp_path / "out")]
    assert evaluate.main([*asked, "--evaluations", "parts"], launcher=in_process) == 2
    assert "parts asks about sets distilled from @images:0-100, @images:100-200, not" in capsys.readouterr().err
    assert evaluate.main([*asked, "--evaluations", "chunk", "--chunk.first", "60"], launcher=in_process) == 0


def test_the_interface_of_an_evaluation_names_its_list(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.evaluations.base import check_class

    check_class(Parts, "parts")
    monkeypatch.setattr(Parts, "each", "nothing")
    with pytest.raises(UserError, match="each is 'nothing', which is no field of its Config"):
        check_class(Parts, "parts")
