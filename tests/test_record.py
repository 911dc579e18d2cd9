"""Records: whole or not there, damage told apart from results, and folders of distillations however deep."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.errors import UserError
from benchmarks.files import replacing
from harness.plan.jobs import Distillation
from harness.records import provenance, record
from harness.records.record import EVALUATIONS, RECORD, Distilled
from tests.builders import evaluated, made, saved


def example() -> Distilled:
    return made((0.5, 0.25), config={"lr": 0.1})


def write(distilled: Distilled, folder: Path) -> Path:
    """The folder of ``distilled``, written into ``folder``."""
    saved(folder, distilled)
    return folder / f"0-{distilled.folder}"


def change(path: Path, place: str, value: Any) -> None:
    """Put ``value`` into the JSON file ``path``, where ``place`` says, such as ``cost.memory.meter``."""
    content: Any = json.loads(path.read_text())
    *above, name = place.split(".")
    functools.reduce(dict.__getitem__, above, content)[name] = value
    path.write_text(json.dumps(content))


def answer_in(folder: Path) -> Path:
    (path,) = (folder / EVALUATIONS).glob("*.json")
    return path


def is_damaged(path: Path, load: Callable[[Path], object], place: str, value: Any, problem: str) -> None:
    """The file ``path`` cannot be loaded with ``value`` at ``place``."""
    change(path, place, value)
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value).startswith(f"damaged record {path}: ") and problem in str(caught.value)


# Folders


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = write(example(), tmp_path)
    assert record.read_all(tmp_path) == ([Distilled(folder, example().record, example().evaluations)], [])
    assert {path.name for path in folder.rglob("*")} == {RECORD, EVALUATIONS, "accuracy-0.json"}


def test_folders_are_read_however_deep_and_hidden_ones_are_not(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("b/c/d", "a", ".again", "b/.x.earlier")]
    folders = [write(example(), place) for place in places]
    (tmp_path / "a" / "notes.json").write_text("{")
    write(example(), folders[0] / EVALUATIONS)  # what lies inside a distillation is its own
    distilled, damaged = record.read_all(tmp_path)
    assert [each.folder for each in distilled] == [folders[1], folders[0]] and damaged == []
    assert [each.folder for each in record.read_all(folders[2])[0]] == [folders[2]], "it was named"
    assert record.read_all(tmp_path / "nowhere") == ([], [])


def test_a_damaged_evaluation_leaves_the_others(tmp_path: Path) -> None:
    folder = write(evaluated(example(), {"brightness": [-3.0]}, "brightness", config={}), tmp_path)
    (folder / EVALUATIONS / "accuracy-0.json").write_text("{")
    ((distilled,), (line,)) = record.read_all(tmp_path)
    assert [evaluation["evaluation"] for evaluation in distilled.evaluations] == ["brightness"]
    assert str(folder / EVALUATIONS / "accuracy-0.json") in line and "\n" not in line
    with pytest.raises(UserError, match=r"accuracy-0\.json"):
        record.read(folder)


# Damage


@pytest.mark.parametrize("of", [lambda folder: folder / RECORD, answer_in], ids=["distillation", "evaluation"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "not a JSON object"),
        ('{"schema": 0}', "schema 0"),
        ("[" * 100_000, "recursion"),
        ('{"schema": 2}', "is missing"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (None, "damaged record"),
    ],
    ids=str,
)
def test_damage_is_one_line_with_the_file(
    tmp_path: Path, of: Callable[[Path], Path], content: str | bytes | None, problem: str
) -> None:
    """None: the end of the file is missing."""
    path = of(write(example(), tmp_path))
    if content is None:
        content = path.read_bytes()[:-40]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (line,) = record.read_all(tmp_path)[1]
    assert line.startswith(f"damaged record {path}: ") and problem in line and "\n" not in line


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        ("status", "fine", "status is 'fine', which is none of ok, oom"),
        ("message", {"a": 1}, "message is not a text"),
        ("protocol_version", 1, "protocol_version is not a text"),
        ("distillation", {"method": "m"}, "distillation.dataset is missing"),
        ("distillation.ipc", "1", "distillation.ipc is not a whole number"),
        ("distillation.ipc", -1, "distillation.ipc is not a whole number"),
        ("distillation.width", True, "distillation.width is not a whole number"),
        ("distillation.steps", [1], "distillation.steps is not a whole number"),
        ("distillation.method", 3, "distillation.method is not a text"),
        ("distillation.dataset", ["a"], "distillation.dataset is not a text"),
        ("asked", {"budget": "quick"}, "asked.protocol is missing"),
        ("steps", -1, "steps is not a whole number"),
        ("curve_points", 1.5, "curve_points is not a whole number"),
        ("cost", None, "cost is not an object"),
        ("cost.memory", None, "cost.memory is not an object"),
        ("cost.memory", {}, "cost.memory.meter is missing"),
        ("cost.memory.meter", "a guess", "cost.memory.meter is 'a guess', which is none of nvml"),
        ("cost.memory.busy", 3, "cost.memory.busy is not a text"),
        ("cost.memory.host_rss_bytes", -1, "cost.memory.host_rss_bytes is not a whole number of at least 0"),
        ("cost.prepare_seconds", "1", "cost.prepare_seconds is not a number"),
        ("cost.distill_seconds", -1.0, "cost.distill_seconds is not a number of at least 0"),
        ("cost.distill_seconds", float("inf"), "cost.distill_seconds is not a number"),
        ("cost.flops_per_step", -1, "cost.flops_per_step is not a number of at least 0"),
        ("cost.step_seconds", [0.1, -0.1], "cost.step_seconds.1 is not a number"),
        ("cost.step_seconds", [10**400], "cost.step_seconds.0 is not a number"),
        ("artifact", {"name": "a.safetensors"}, "artifact.sha256 is missing"),
        ("snapshots", [{"name": "a", "sha256": "b", "step": -1, "seconds": 1.0}], "snapshots.0.step is not"),
        ("snapshots", [3], "snapshots.0 is not an object"),
        ("provenance", {"threads": "2"}, "provenance.threads is not a number"),
        ("provenance", {"device": 5}, "provenance.device is not a text"),
    ],
    ids=str,
)
def test_what_no_distillation_can_be_is_damage(tmp_path: Path, place: str, value: Any, problem: str) -> None:
    is_damaged(write(example(), tmp_path) / RECORD, record.load, place, value, problem)


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        ("status", "fine", "status is 'fine', which is none of ok, oom"),
        ("seed", "0", "seed is not a whole number"),
        ("evaluation", None, "evaluation is not a text"),
        ("sets", [], "sets are missing"),
        ("sets", [{"step": None}], "sets.0.distillation is missing"),
        ("sets", [{"distillation": "a", "step": -1}], "sets.0.step is not a whole number"),
        ("sets", [{"distillation": "a", "step": None, "sha256": 1}], "sets.0.sha256 is not a text"),
        ("values", {"accuracy": []}, "status ok without values"),
        ("values", {"accuracy": ["x"]}, "values.accuracy.0 is not a number"),
        ("values", {"accuracy": [float("nan")]}, "values.accuracy.0 is not a number"),
        ("values", {"accuracy": 0.5}, "values.accuracy is not a list"),
        ("values", {"accuracy": [7.5]}, "values.accuracy is out of range"),
        ("values", {"accuracy": [0.5], "krr_accuracy": [-0.1]}, "values.krr_accuracy is out of range"),
        ("class_accuracies", [[0.5, None], [1.5]], "class_accuracies are out of range"),
        ("class_accuracies", [["x"]], "class_accuracies.0.0 is not a number"),
        ("cost", {"seconds": -1.0}, "cost.seconds is not a number of at least 0"),
        ("busy", 3, "busy is not a text"),
        ("tf32", None, "tf32 is not true or false"),
        ("config.networks", "5", "config.networks is '5', which it cannot be"),
        ("config.networks", 0, "config: networks is 0; it must be at least 1"),
        ("config.protocol", ["frepo"], "config.protocol is"),
    ],
    ids=str,
)
def test_what_no_evaluation_can_be_is_damage(tmp_path: Path, place: str, value: Any, problem: str) -> None:
    is_damaged(answer_in(write(example(), tmp_path)), record.load_evaluation, place, value, problem)


def test_values_that_are_no_series_of_the_networks_are_damage(tmp_path: Path) -> None:
    config = {"networks": 2, "class_steps": 5}
    values = {"continual_accuracy": [0.5] * 10}
    folder = write(evaluated(example(), values, "continual_learning", config=config), tmp_path)
    (path,) = folder.rglob("continual_learning-*.json")
    assert record.load_evaluation(path)["values"] == values
    is_damaged(path, record.load_evaluation, "config.networks", 50, "which config.networks does not divide")


@pytest.mark.parametrize("depth", [200, 900])
def test_deep_nesting_is_damage(tmp_path: Path, depth: int) -> None:
    """So deep that reading works, and that whoever works with it may run out of stack."""
    path = write(example(), tmp_path) / RECORD
    deep = "[" * depth + "]" * depth
    path.write_text(path.read_text().replace('"lr": 0.1', f'"lr": {deep}'))
    assert record.read_all(tmp_path) == ([], [f"damaged record {path}: nested more than 100 levels deep"])


def test_the_ends_of_the_ranges_are_fine(tmp_path: Path) -> None:
    folder = write(example(), tmp_path)
    for place, value in (("cost.step_seconds", [0.0]), ("cost.prepare_seconds", 0.0), ("steps", 0)):
        change(folder / RECORD, place, value)
    change(answer_in(folder), "values", {"accuracy": [0.0, 1.0], "a_loss": [-7.0]})
    assert record.read_all(tmp_path)[1] == []


def test_a_file_name_that_is_no_text_does_not_cost_the_record(tmp_path: Path) -> None:
    written = made(message="no such file: \udcff – é").record
    record.write(written, tmp_path / "r.json")
    assert record.load(tmp_path / "r.json") == written


def test_a_pipe_among_the_records_does_not_hang(tmp_path: Path) -> None:
    folder = write(example(), tmp_path)
    os.mkfifo(folder / EVALUATIONS / "b.json")
    (tmp_path / "other").mkdir()
    os.mkfifo(tmp_path / "other" / RECORD)
    distilled, damaged = record.read_all(tmp_path)
    pipes = folder / EVALUATIONS / "b.json", tmp_path / "other" / RECORD
    assert len(distilled) == 1 and damaged == [f"damaged record {path}: it is no regular file" for path in pipes]


def test_a_missing_record_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json"):
        record.load(tmp_path / "none.json")


# Versions


@pytest.mark.parametrize("of", [lambda folder: folder / RECORD, answer_in], ids=["distillation", "evaluation"])
@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("schema", record.SCHEMA + 6, f"schema {record.SCHEMA + 6}"),
        ("protocol_version", f"{int(record.PROTOCOL_VERSION) + 9}", f"protocol {int(record.PROTOCOL_VERSION) + 9}"),
    ],
)
def test_a_record_of_a_newer_version_is_not_damaged(
    tmp_path: Path, of: Callable[[Path], Path], place: str, value: Any, said: str
) -> None:
    path = of(write(example(), tmp_path / "however" / "deep"))
    change(path, place, value)
    with pytest.raises(record.NewerVersion, match="was written by a newer version") as caught:
        record.refuse_newer(tmp_path)
    assert said in str(caught.value) and str(path) in str(caught.value) and "damaged" not in str(caught.value)
    assert record.read_all(tmp_path)[1] == [str(caught.value)]


def test_records_of_this_version_and_damaged_ones_are_not_refused(tmp_path: Path) -> None:
    folder = write(example(), tmp_path)
    change(folder / RECORD, "protocol_version", "of somebody else")
    answer_in(folder).write_text("{")
    record.refuse_newer(tmp_path)


# Writing


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("before")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_no_record_and_is_overwritten(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / EVALUATIONS):
        folder.mkdir(exist_ok=True)
        (folder / f".{RECORD}.tmp").write_text("half")
    assert record.read_all(tmp_path) == ([], [])
    record.write(example().record, tmp_path / RECORD)
    assert {path.name for path in tmp_path.iterdir()} == {RECORD, EVALUATIONS}
    assert record.read_all(tmp_path) == ([Distilled(tmp_path, example().record)], [])


def test_two_processes_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    """As two runs that share a cache do: the second waits for the first, and the last one stands, whole."""
    path, entered = tmp_path / "entry", threading.Event()

    def second() -> None:
        entered.set()
        with replacing(path) as temporary:
            temporary.write_text("second")

    other = threading.Thread(target=second)
    with replacing(path) as temporary:
        temporary.write_text("the first, which is longer")
        other.start()
        entered.wait()
        other.join(0.1)
        assert other.is_alive() and temporary.read_text() == "the first, which is longer"
    other.join()
    assert path.read_text() == "second" and [file.name for file in tmp_path.iterdir()] == ["entry"]


def test_code_that_is_not_committed_is_dirty_and_results_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    for folder in ("benchmarks", "methods", "harness", "results"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("")
    git("init")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "all")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "harness" / "records" / "provenance.py"))

    def dirty() -> object:
        return provenance.provenance("", "cpu", "")["dirty"]

    (tmp_path / "results" / "new.json").write_text("")
    (tmp_path / "results" / "a.py").write_text("changed")
    assert dirty() is False
    (tmp_path / "methods" / "new.py").write_text("")
    assert dirty() is True
    (tmp_path / "methods" / "new.py").unlink()
    (tmp_path / "harness" / "a.py").write_text("changed")
    assert dirty() is True


def test_the_spread_is_that_of_a_sample() -> None:
    mean, std = record.summarise([0.1, 0.2, 0.3])
    assert mean == pytest.approx(0.2) and std == pytest.approx(0.1)
    assert record.summarise([0.4]) == (0.4, None)
    assert record.summarise([]) == (None, None)


def test_the_fields_of_a_distillation_are_those_of_its_record(tmp_path: Path) -> None:
    assert record.DISTILLATION.keys() == {each.name for each in dataclasses.fields(Distillation)}
    path = write(example(), tmp_path) / RECORD
    change(path, "distillation.colour", "red")
    with pytest.raises(UserError, match=r"unknown distillation\.colour$"):
        record.load(path)
