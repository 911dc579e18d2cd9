"""Records: whole or not there, and damage told apart from results."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks.errors import UserError
from benchmarks.files import replacing
from harness.records import record
from harness.records.record import Record


def example(**changes: Any) -> Record:
    cell = {"method": "m", "dataset": "d", "ipc": 1, "seed": 0, "budget": "smoke", "protocol": "vico"}
    made = record.new(cell, {"lr": 0.1}, record.provenance("a command", device="cpu", fingerprint="abc"))
    made["status"] = "ok"
    made["accuracy"]["values"] = [0.5, 0.25]
    made.update(changes)  # type: ignore[typeddict-item]
    return made


def test_what_is_written_is_read(tmp_path: Path) -> None:
    record.write(example(), tmp_path / "r.json")
    assert record.load(tmp_path / "r.json") == example() | {
        "provenance": record.load(tmp_path / "r.json")["provenance"]
    }
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_the_schema_has_the_documented_parts() -> None:
    made = example()
    assert set(made) == {
        "schema", "protocol_version", "cell", "config", "resolved", "status", "message",
        "accuracy", "cost", "artifact", "provenance"
    }  # fmt: skip
    assert {"commit", "dirty", "command", "started", "device", "driver", "cuda", "torch", "python"} <= set(
        made["provenance"]
    )
    assert {"meter", "idle_bytes", "context_bytes", "allocated_bytes", "reserved_bytes", "device_bytes"} <= set(
        made["cost"]["memory"]
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "not a JSON object"),
        ('{"schema": 0}', "schema 0"),
        ("[" * 100_000, "recursion"),
        ('{"schema": 1}', "is missing"),
        (json.dumps(example(status="fine")), "unknown status 'fine'"),
        (json.dumps(example(accuracy=None)), "'accuracy' is not an object"),
        (json.dumps(example(cell={"method": "m"})), "cell.dataset is missing"),
        (json.dumps(example(accuracy={**example()["accuracy"], "values": []})), "ok without accuracies"),
        (json.dumps(example(accuracy={**example()["accuracy"], "values": ["x"]})), "not a list of numbers"),
        (json.dumps(example(accuracy={**example()["accuracy"], "values": [float("nan")]})), "not a list of numbers"),
        (json.dumps(example(cost={**example()["cost"], "memory": None})), "cost.memory is not an object"),
        (json.dumps(example(cost={**example()["cost"], "memory": {}})), "cost.memory.meter is missing"),
        (json.dumps(example(cost={**example()["cost"], "prepare_seconds": "1"})), "prepare_seconds is not a number"),
        (json.dumps(example(artifact={"name": "a.safetensors"})), "no name and sha256"),
        (json.dumps(example(cell={**example()["cell"], "ipc": "1"})), "cell.ipc is not a whole number"),
        (json.dumps(example(cell={**example()["cell"], "width": "1"})), "cell.width is not a whole number"),
        (json.dumps(example(cell={**example()["cell"], "steps": [1]})), "cell.steps is not a whole number"),
        (json.dumps(example(provenance={"threads": "2"})), "provenance.threads is not a number"),
        (json.dumps(example())[:-40], "damaged record"),
    ],
)
def test_damage_is_one_line_with_the_file(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    record.write(example(), tmp_path / "good.json")
    with pytest.raises(UserError, match="damaged record") as caught:
        record.load(tmp_path / "bad.json")
    assert problem in str(caught.value) and "\n" not in str(caught.value)
    records, damaged = record.load_all(tmp_path)
    assert len(records) == 1 and damaged == [str(caught.value)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": record.SCHEMA + 6}, f"schema {record.SCHEMA + 6}"),
        ({"protocol_version": str(int(record.PROTOCOL_VERSION) + 10)}, f"protocol {int(record.PROTOCOL_VERSION) + 10}"),
    ],
    ids=["schema", "protocol"],
)
def test_a_record_of_a_newer_version_is_not_damaged(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({**example(), **changes}))
    with pytest.raises(record.NewerVersion, match="was written by a newer version") as caught:
        record.load(path)
    assert said in str(caught.value) and str(path) in str(caught.value) and "damaged" not in str(caught.value)
    with pytest.raises(record.NewerVersion, match=said):
        record.refuse_newer(tmp_path)
    assert record.load_all(tmp_path) == ([], [str(caught.value)])


def test_records_of_this_version_and_damaged_ones_are_not_refused(tmp_path: Path) -> None:
    record.write(example(), tmp_path / "r.json")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "odd.json").write_text(json.dumps(example(protocol_version="of somebody else")))
    record.refuse_newer(tmp_path)


def test_a_record_of_before_the_artefact_was_written_down_is_read(tmp_path: Path) -> None:
    old = {name: value for name, value in example().items() if name != "artifact"}
    (tmp_path / "r.json").write_text(json.dumps(old))
    assert record.load(tmp_path / "r.json")["artifact"] is None


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("accuracy.values", [7.5]),
        ("accuracy.values", [-0.1]),
        ("accuracy.krr_values", [7.5]),
        ("accuracy.mean", 1.5),
        ("accuracy.std", -0.1),
        ("accuracy.curve", [{"step": 1, "seconds": 1.0, "values": [1.1]}]),
        ("accuracy.curve", [{"step": 1, "seconds": -1.0, "values": [0.1]}]),
        ("accuracy.curve", [{"step": 1, "seconds": 1.0}]),
        ("accuracy.curve", [{"step": 1, "seconds": "1", "values": [0.1]}]),
        ("accuracy.curve", [3]),
        ("accuracy.curve", {}),
        ("cost.step_seconds", [0.1, -0.1]),
        ("cost.step_seconds", [10**400]),
        ("cost.distill_seconds", -1.0),
        ("cost.distill_seconds", float("inf")),
        ("cost.flops_per_step", -1),
        ("cost.memory.host_rss_bytes", -1),
        ("cell.ipc", -1),
        ("cell.method", 3),
        ("cell.dataset", ["a"]),
        ("protocol_version", 1),
        ("provenance.device", 5),
        ("message", {"a": 1}),
    ],
    ids=str,
)
def test_what_nothing_measured_can_be_is_damage(tmp_path: Path, place: str, value: Any) -> None:
    made: Any = example()
    *folders, name = place.split(".")
    functools.reduce(dict.__getitem__, folders, made)[name] = value
    (tmp_path / "r.json").write_text(json.dumps(made))
    with pytest.raises(UserError, match="damaged record") as caught:
        record.load(tmp_path / "r.json")
    assert place in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [200, 900])
def test_deep_nesting_is_damage(tmp_path: Path, depth: int) -> None:
    """So deep that reading works, and that whoever works with it may run out of stack."""
    deep = "[" * depth + "]" * depth
    (tmp_path / "r.json").write_text(json.dumps(example()).replace('{"lr": 0.1}', f'{{"lr": {deep}}}'))
    assert record.load_all(tmp_path) == (
        [],
        [f"damaged record {tmp_path / 'r.json'}: nested more than 100 levels deep"],
    )


def test_a_file_name_that_is_no_text_does_not_cost_the_record(tmp_path: Path) -> None:
    made = example(message="no such file: \udcff – é")
    record.write(made, tmp_path / "r.json")
    assert record.load(tmp_path / "r.json") == made


def test_the_ends_of_the_ranges_are_fine(tmp_path: Path) -> None:
    made = example()
    made["accuracy"] |= {"values": [0.0, 1.0], "krr_values": [1.0], "mean": 0.5, "std": 0.0}
    made["accuracy"]["curve"] = [{"step": 1, "seconds": 0.0, "values": []}]
    made["cost"] |= {"step_seconds": [0.0], "prepare_seconds": 0.0}
    record.write(made, tmp_path / "r.json")
    assert record.load(tmp_path / "r.json") == made


def test_a_missing_record_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe\x00")
    for name in ("none.json", "bad.json"):
        with pytest.raises(UserError, match=name):
            record.load(tmp_path / name)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("before")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_no_record_and_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".r.json.tmp").write_text("half")
    assert record.load_all(tmp_path) == ([], [])
    record.write(example(), tmp_path / "r.json")
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


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
    monkeypatch.setattr(record, "__file__", str(tmp_path / "harness" / "records" / "record.py"))

    def dirty() -> object:
        return record.provenance("", device="cpu", fingerprint=None)["dirty"]

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


def test_a_pipe_among_the_records_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "r.json")
    assert record.load_all(tmp_path) == ([], [f"damaged record {tmp_path / 'r.json'}: it is no regular file"])
