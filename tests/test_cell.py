"""One cell: its phases, its numbers under a clock set by hand, its failures, and its process."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import preprocess
from benchmarks.datasets import load_raw
from benchmarks.errors import UserError
from benchmarks.folders import default_cache
from harness import cell, progress
from harness.cell import curve_steps, run, windows
from harness.launch import local as launch
from harness.measure import memory
from harness.plan.experiments import Cell, Job, Request, plan
from harness.records import artifact, record
from harness.report import grouped
from methods.base import Synthetic
from tests.dummies import Dummy, dummy

__all__ = ["dummy"]  # a fixture


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting the garbage of the whole test session for every cell takes longer than the cell."""
    monkeypatch.setattr(memory, "release", lambda: None)


def job(output: Path, method: str = "dummy", config: dict[str, Any] | None = None, **changes: Any) -> Job:
    request = Request(
        (method,), ("digits",), budget="smoke", widths=(4,), device="cpu", output=output, command="a test"
    )
    (made,) = plan(request)
    made = dataclasses.replace(made, cell=dataclasses.replace(made.cell, evaluate_steps=3, **changes))
    return dataclasses.replace(made, config={**made.config, **(config or {})})


class Ticks:
    """A clock that moves one second every time it is read."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        self.time += 1.0
        return self.time


def test_a_cell_fills_in_its_record_and_leaves_an_artefact(tmp_path: Path, dummy: type[Dummy]) -> None:
    made = job(tmp_path, steps=5, networks_evaluated=2)
    before = torch.get_rng_state()
    found = run(made, Ticks())
    assert torch.equal(torch.get_rng_state(), before), "global random numbers were drawn"
    assert found["status"] == "ok" and found["message"] is None
    assert found == record.load(made.record_path)
    assert found["cell"] == made.cell.to_dict() and found["config"] == made.config
    assert len(found["accuracy"]["values"]) == 2 and found["accuracy"]["krr_values"] == []
    assert found["accuracy"]["mean"] == pytest.approx(sum(found["accuracy"]["values"]) / 2)
    cost = found["cost"]
    # Cycles of two steps and one left over, which is no whole cycle and hence no sample.
    assert cost["step_seconds"] == [0.5, 0.5] and cost["steps_per_sample"] == 2 and cost["distill_seconds"] == 3.0
    assert cost["prepare_seconds"] == 1.0 and cost["prepare_cached"] == 0
    assert cost["memory"]["meter"] == "host_rss" and cost["memory"]["device_bytes"] is None
    assert cost["parameters"] == 4 * 9 + 4 + 2 * 4 + 4 * 4 * 9 + 4 + 2 * 4 + 4 * 9 * 10 + 10
    assert found["provenance"]["threads"] == torch.get_num_threads()
    distilled = artifact.load(made.artifact_path)
    assert len(distilled.images) == 10 and distilled.cell["steps"] == 5
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".png", ".safetensors"]


def test_the_record_has_the_configuration_as_the_method_resolved_it(tmp_path: Path) -> None:
    made = job(tmp_path, "dsa", config={"outer_loop": None, "inner_loop": None})
    found = run(made)
    assert found["status"] == "ok"
    assert found["resolved"] == {**made.config, "outer_loop": 1, "inner_loop": 1} and found["config"] == made.config
    assert record.load(made.record_path)["resolved"] == dict(artifact.load(made.artifact_path).config)
    killed = launch._failed(made, "oom", "killed")
    late = launch._failed(dataclasses.replace(made, time_limit_seconds=1.0), "timeout", "late")
    assert len(grouped([found, killed, late])) == 1, "a cell that was killed is of the same group as one that ran"


@pytest.mark.parametrize("method", ["frepo", "random_real", "dummy"])
def test_the_same_cell_gives_the_same_bytes(tmp_path: Path, dummy: type[Dummy], method: str) -> None:
    jobs = [job(tmp_path / name, method, **({} if method == "random_real" else {"steps": 3})) for name in "ab"]
    found = [run(made) for made in jobs]
    assert [one["status"] for one in found] == ["ok", "ok"]
    assert jobs[0].artifact_path.read_bytes() == jobs[1].artifact_path.read_bytes()
    assert found[0]["accuracy"] == found[1]["accuracy"]
    other = job(tmp_path / "c", method, seed=1, **({} if method == "random_real" else {"steps": 3}))
    run(other)
    assert other.artifact_path.read_bytes() != jobs[0].artifact_path.read_bytes()


def test_the_artefact_tells_nothing_of_time_host_or_path(tmp_path: Path, dummy: type[Dummy]) -> None:
    made = job(tmp_path)
    found = run(made)
    content = made.artifact_path.read_bytes()
    for secret in (str(tmp_path), str(default_cache()), "a test", found["provenance"]["started"]):
        assert secret.encode() not in content


def test_a_method_without_steps_has_no_cost_per_step(tmp_path: Path) -> None:
    found = run(job(tmp_path, "random_real"), Ticks())
    cost = found["cost"]
    assert found["status"] == "ok" and found["cell"]["steps"] is None
    assert cost["step_seconds"] == [] and cost["distill_seconds"] is None and cost["warmup_seconds"] is None
    assert cost["memory"]["meter"] is None and cost["prepare_seconds"] == 1.0


@pytest.mark.parametrize(
    ("fail", "status", "message"),
    [
        ("nan", "diverged", "loss is nan at step 4"),
        ("late", "diverged", "images"),
        ("oom", "oom", "MemoryError"),
        ("error", "error", "RuntimeError: the first line (traceback in "),
        ("user", "error", "try another way"),
    ],
)
def test_failures_are_one_line_in_the_record(
    tmp_path: Path, dummy: type[Dummy], fail: str, status: str, message: str
) -> None:
    made = job(tmp_path, config={"fail": fail})
    found = run(made)
    assert found == record.load(made.record_path)
    assert found["status"] == status and message in str(found["message"]) and "\n" not in str(found["message"])
    assert not made.artifact_path.exists() and found["accuracy"]["values"] == []
    assert made.log_path.exists() == (fail == "error")
    if fail == "error":
        assert "Traceback" in made.log_path.read_text() and "and more" in made.log_path.read_text()


def returns(patch: pytest.MonkeyPatch, name: str, change: Callable[[Any, Dummy], Any]) -> None:
    """Lets the dummy's function ``name`` return what ``change`` makes of it."""
    real = getattr(Dummy, name)
    patch.setattr(Dummy, name, lambda method: change(real(method), method))


def late(change: Callable[[Synthetic], Any]) -> Callable[[Synthetic, Dummy], Any]:
    """``change``, once the fourth step is done."""
    return lambda synthetic, method: change(synthetic) if method.done == 4 else synthetic


def replaced(**changes: Any) -> Callable[[Synthetic], Synthetic]:
    return lambda synthetic: dataclasses.replace(
        synthetic, **{name: change(getattr(synthetic, name)) for name, change in changes.items()}
    )


WRONG_SETS = {
    "nothing": (lambda synthetic: None, "nothing; expected a Synthetic"),
    "many": (
        replaced(images=lambda t: t.repeat(50, 1, 1, 1), labels=lambda t: t.repeat(50, 1)),
        "images are float32 (500, 1, 8, 8) on cpu; expected detached float32 (10, 1, 8, 8) on cpu, for 10 classes at "
        "ipc 1",
    ),
    "few": (replaced(images=lambda t: t[:3], labels=lambda t: t[:3]), "images are float32 (3, 1, 8, 8) on cpu; exp"),
    "shape": (replaced(images=lambda t: t[:, :, 1:]), "images are float32 (10, 1, 7, 8) on cpu; expected"),
    "dtype": (replaced(images=lambda t: t.double()), "images are float64 (10, 1, 8, 8) on cpu; expected"),
    "device": (replaced(images=lambda t: t.to("meta")), "images are float32 (10, 1, 8, 8) on meta; expected"),
    "array": (replaced(images=lambda t: t.numpy()), "images are of type ndarray; expected"),
    "graph": (
        replaced(images=lambda t: t.requires_grad_()),
        "(10, 1, 8, 8) on cpu, part of a graph; expected detached",
    ),
    "indices": (
        replaced(labels=lambda t: t.argmax(1)),
        "labels are int64 (10,) on cpu; expected detached float32 (10,",
    ),
    "labels": (replaced(labels=lambda t: t[:-1]), "labels are float32 (9, 10) on cpu; expected"),
    "space": (replaced(label_space=lambda s: "logits"), "label_space is 'logits'; expected probability or centred"),
    "logits": (
        replaced(labels=lambda t: 3 * t - 1),
        "probability labels from -1 to 2 with sums from -7 to -7; expected values from 0 to 1 with sums of 1",
    ),
    "negative": (replaced(labels=lambda t: 2 * t - 0.1), "probability labels from -0.1 to 1.9 with sums from 1 to 1;"),
    "flat": (
        replaced(labels=torch.zeros_like, label_space=lambda s: "centred"),
        "the same for every class; expected labels that tell classes apart",
    ),
    "order": (
        replaced(labels=lambda t: t.roll(1, 0)),
        "the labels of image 0 name class 9; expected class 0, for sets",
    ),
    "lr": (lambda synthetic: dataclasses.replace(synthetic, lr=0.1), "lr is of type float; expected detached float32"),
    "lr-shape": (lambda s: dataclasses.replace(s, lr=torch.ones(2, 2)), "lr is float32 (2, 2) on cpu; expected"),
}


@pytest.mark.parametrize("at", ["before the first step", "after step 4"])
@pytest.mark.parametrize("fault", WRONG_SETS)
def test_a_set_that_is_not_what_was_asked_for_is_one_line(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, fault: str, at: str
) -> None:
    change, words = WRONG_SETS[fault]
    first = at == "before the first step"
    if first and fault == "flat":
        pytest.skip("labels that are to be learned may begin so")
    returns(monkeypatch, "synthetic", (lambda synthetic, _: change(synthetic)) if first else late(change))
    found = run(made := job(tmp_path, steps=4))
    assert found["status"] == "error" and not made.log_path.exists() and not made.artifact_path.exists()
    assert str(found["message"]).startswith(f"dummy.synthetic() {at}: ") and words in str(found["message"])


def test_a_set_is_checked_after_a_cost_cell_and_on_the_way_of_a_curve(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    returns(monkeypatch, "synthetic", late(lambda synthetic: None))
    for changes, step in (({"budget": "cost", "networks_evaluated": 0, "steps": 4}, 4), ({"curve_points": 3}, 4)):
        found = run(job(tmp_path, **{"steps": 8, **changes}))
        assert found["status"] == "error" and f"dummy.synthetic() after step {step}: nothing" in str(found["message"])


def test_learned_labels_may_move_and_a_set_that_is_not_finite_from_the_start_is_no_result(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    soft = torch.linspace(0, 1, 100).view(10, 10).softmax(1).flip(1)
    returns(monkeypatch, "synthetic", late(replaced(labels=lambda t: soft)))
    assert run(job(tmp_path, steps=4))["status"] == "ok"
    centred = replaced(labels=lambda t: soft - 0.2, label_space=lambda s: "centred")
    returns(monkeypatch, "synthetic", late(centred))
    assert run(job(tmp_path, steps=4))["status"] == "ok"
    returns(monkeypatch, "synthetic", lambda synthetic, _: replaced(images=lambda t: t / 0)(synthetic))
    found = run(job(tmp_path, steps=4))
    assert found["status"] == "error" and "before the first step: a value of the images is not fin" in found["message"]


@pytest.mark.parametrize("at", [1, 6], ids=["first", "late"])
@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (None, "nothing; expected a dictionary of losses"),
        ({}, "of type dict; expected a dictionary of losses"),
        (torch.ones(()), "float32 () on cpu; expected a dictionary of losses"),
        ({"loss": 1.0}, "'loss' is of type float; expected names of detached 0-d floating point tensors on cpu"),
        ({"loss": torch.ones(2)}, "'loss' is float32 (2,) on cpu; expected"),
        ({"loss": torch.ones((), dtype=torch.int64)}, "'loss' is int64 () on cpu; expected"),
        ({"loss": torch.ones((), requires_grad=True)}, "'loss' is float32 () on cpu, part of a graph; expected"),
        ({"loss": torch.ones((), device="meta")}, "'loss' is float32 () on meta; expected"),
        ({3: torch.ones(())}, "3 is float32 () on cpu; expected names"),
    ],
)
def test_losses_that_are_none_are_one_line(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, losses: object, words: str, at: int
) -> None:
    monkeypatch.setattr(cell, "WARMUP_CYCLES", 1)
    returns(monkeypatch, "step", lambda sound, method: losses if method.done >= at else sound)
    found = run(made := job(tmp_path, steps=8))
    assert found["status"] == "error" and str(found["message"]).startswith(f"dummy.step(): {words}")
    assert not made.log_path.exists()


@pytest.mark.parametrize("cycle", [0, 2.0, None])
def test_a_cycle_that_is_no_number_of_steps_is_one_line(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, cycle: object
) -> None:
    monkeypatch.setattr(Dummy, "steps_per_cycle", cycle)
    message = run(job(tmp_path))["message"]
    assert message == f"dummy.steps_per_cycle is {cycle!r}; expected a whole number of at least 1"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("a\nb\x1b[31m"), r"a\nb\x1b[31m"),
        (RuntimeError("red \x1b[31m\rtext\nmore"), r"RuntimeError: red \x1b[31m (traceback in "),
    ],
    ids=["user", "other"],
)
def test_messages_are_printable(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(method: Dummy) -> None:
        raise error

    monkeypatch.setattr(Dummy, "step", fail)
    found = run(made := job(tmp_path))
    assert str(found["message"]).startswith(message) and str(found["message"]).isprintable()
    assert record.load(made.record_path)["message"] == found["message"]


def test_what_a_cell_says_is_printable(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def uncounted(*_: object) -> None:
        raise RuntimeError("\x1b[31mno\ncounters")

    monkeypatch.setattr(cell, "count", uncounted)
    assert run(job(tmp_path))["status"] == "ok"
    assert r"are not counted: RuntimeError: \x1b[31mno\ncounters" in capsys.readouterr().err


def learn_step_size(patch: pytest.MonkeyPatch, rates: dict[int, float]) -> None:
    """Lets the dummy learn the step sizes ``rates``: steps done → step size."""

    def synthetic(method: Dummy) -> Synthetic:
        rate = torch.tensor(rates.get(method.done, 0.01))
        return Synthetic(method.images.clone(), method.labels.clone(), "probability", rate)

    patch.setattr(Dummy, "synthetic", synthetic)


@pytest.mark.parametrize(("rate", "words"), [(-0.5, "step size is -0.5"), (float("nan"), "step size is not finite")])
def test_a_learned_step_size_that_cannot_train_is_divergence(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, rate: float, words: str
) -> None:
    learn_step_size(monkeypatch, {4: rate})
    made = job(tmp_path, protocol="mtt", steps=4)
    found = run(made)
    assert found["status"] == "diverged" and words in str(found["message"])
    assert not made.artifact_path.exists() and not made.log_path.exists() and found["accuracy"]["values"] == []


def test_a_negative_step_size_does_not_matter_to_a_recipe_that_ignores_it(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    learn_step_size(monkeypatch, {4: -0.5})
    assert run(job(tmp_path, protocol="vico", steps=4))["status"] == "ok"


def test_a_point_of_the_curve_that_cannot_be_trained_has_no_values(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    learn_step_size(monkeypatch, {2: -0.5, 4: 0.01, 8: 0.01})
    found = run(job(tmp_path, protocol="mtt", steps=8, curve_points=3))
    assert found["status"] == "ok"
    assert [len(point["values"]) for point in found["accuracy"]["curve"]] == [0, 1, 1]


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried …"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be …"), True),  # torch.AcceleratorError
        (RuntimeError("shapes do not match"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, memory: bool) -> None:
    assert cell._out_of_memory(error) is memory


def test_a_set_never_stands_beside_a_record_that_is_not_of_it(tmp_path: Path, dummy: type[Dummy]) -> None:
    made = job(tmp_path)
    assert run(made)["status"] == "ok" and made.artifact_path.exists()
    assert run(dataclasses.replace(made, config={**made.config, "fail": "nan"}))["status"] == "diverged"
    assert made.artifact_path.exists()  # another cell's
    moved = job(tmp_path, data_fingerprint="another")
    for ending in (".safetensors", ".png"):
        (tmp_path / f"{moved.stem}{ending}").write_text("of an earlier try")
    assert run(moved)["status"] == "error"
    assert not list(tmp_path.glob(f"{moved.stem}.[sp]*"))


def test_what_cannot_be_written_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = job(tmp_path, "random_real")
    made.record_path.mkdir()  # as a folder that has become read-only: not even the record can be written
    found = launch.launch(made)
    assert found["status"] == "error" and "nor could the record be written" in str(found["message"])
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{made.record_path} cannot be written" in line


def test_a_cell_whose_parent_died_at_once_ends_quietly() -> None:
    ran = subprocess.run(launch.COMMAND, input=b"", capture_output=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, b"", b"")


def test_data_that_changed_after_planning_are_not_used(tmp_path: Path, dummy: type[Dummy]) -> None:
    found = run(job(tmp_path, data_fingerprint="another"))
    assert found["status"] == "error" and "has changed" in str(found["message"])


def test_seconds_become_whole_cycles_and_the_identity_stays(tmp_path: Path, dummy: type[Dummy]) -> None:
    """Every reading of the clock takes a second: a cycle of two steps is timed at one second, 0.5 s a step."""
    made = job(tmp_path, steps=None, seconds=6.5)
    found = run(made, Ticks())
    assert found["status"] == "ok" and found["cell"]["steps"] == 12
    again = Cell(**found["cell"])
    assert again.stem(made.config) == made.stem
    with_prepare = run(job(tmp_path, steps=None, seconds=6.5, seconds_include_prepare=True), Ticks())
    assert with_prepare["cell"]["steps"] == 10
    short = run(job(tmp_path, steps=None, seconds=0.1), Ticks())
    assert short["cell"]["steps"] == 2


def test_a_cost_cell_times_whole_cycles_and_evaluates_nothing(tmp_path: Path, dummy: type[Dummy]) -> None:
    cost = {"budget": "cost", "networks_evaluated": 0, "steps": None}
    found = run(short := job(tmp_path, seconds=0.1, **cost), Ticks())
    assert found["status"] == "ok" and found == record.load(short.record_path)
    assert found["cell"]["steps"] == 6 and found["cost"]["step_seconds"] == [0.5] * 3  # three cycles at least
    assert found["accuracy"] == {"values": [], "mean": None, "std": None, "krr_values": [], "curve": []}
    assert found["cost"]["evaluate_seconds"] is None and found["cost"]["memory"]["meter"] == "host_rss"
    assert run(job(tmp_path, seconds=6.5, **cost), Ticks())["cell"]["steps"] == 12
    assert {path.suffix for path in tmp_path.iterdir()} == {".json"}


def test_a_cost_cell_says_that_less_was_prepared(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dummy, "BUDGETS", {**dummy.BUDGETS, "cost": {"lr": 0.5, "steps": 6}})
    cost = {"budget": "cost", "networks_evaluated": 0, "steps": 6}
    assert run(job(tmp_path, config={"lr": 0.5}, **cost))["cost"]["prepare"] == "reduced"
    assert run(job(tmp_path, config={"lr": 0.1}, **cost))["cost"]["prepare"] is None  # as the method has it
    assert run(job(tmp_path, config={"lr": 0.5}, steps=6))["cost"]["prepare"] is None


def test_a_loss_that_is_not_finite_does_not_end_a_cost_cell(tmp_path: Path, dummy: type[Dummy]) -> None:
    cost = {"budget": "cost", "networks_evaluated": 0, "steps": 8}
    found = run(job(tmp_path, config={"fail": "nan"}, **cost), Ticks())
    assert found["status"] == "ok" and found["cost"]["step_seconds"] == [0.5] * 4
    assert str(found["message"]).startswith("loss is nan at step 4")


def test_a_slow_method_is_warmed_up_for_two_cycles(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Dummy] = []
    step = dummy.step
    monkeypatch.setattr(dummy, "step", lambda method: taken.append(method) or step(method))  # type: ignore[func-returns-value]
    ticks = Ticks()
    run(job(tmp_path, steps=4), lambda: 10 * ticks())
    assert sum(method is taken[0] for method in taken) == 2 * dummy.steps_per_cycle


def test_prepare_on_a_cache_hit_reports_the_true_cost(tmp_path: Path, dummy: type[Dummy]) -> None:
    first = run(job(tmp_path / "a", config={"entry": True}), Ticks())["cost"]
    second = run(job(tmp_path / "b", config={"entry": True}), Ticks())["cost"]
    assert (first["prepare_cached"], second["prepare_cached"]) == (0, 1)
    made = next(path for path in default_cache().glob("store/*/entry-*"))
    assert made.exists() and first["prepare_seconds"] is not None and second["prepare_seconds"] is not None
    # The second run spent one tick looking, and adds the one tick that making the entry took.
    assert second["prepare_seconds"] == 2.0


@pytest.mark.parametrize("what", ["device_name", "_version"])
def test_another_machine_lends_neither_its_entries_nor_its_seconds(
    what: str, tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        monkeypatch.setattr(record, what, lambda _, name=name: f"processor or version {name}")
        found = run(job(tmp_path / name, config={"entry": True}), Ticks())
        assert found["cost"]["prepare_cached"] == 0


def test_the_same_pixels_under_another_name_have_their_own_entries(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name brings published constants, and whether images are flipped."""
    load = cell.load
    for folder, flip, constants in (("a", False, {}), ("b", True, {}), ("c", True, {"digits": ((0.5,), (0.25,))})):
        monkeypatch.setattr(cell, "load", lambda *a, flip=flip, **k: dataclasses.replace(load(*a, **k), flip=flip))
        monkeypatch.setitem(preprocess.CONSTANTS, "standardise_vico", constants)
        monkeypatch.setitem(preprocess.CONSTANTS, "standardise", constants)
        found = run(job(tmp_path / folder, config={"entry": True}), Ticks())
        assert found["status"] == "ok" and found["cost"]["prepare_cached"] == 0


def test_the_warm_up_changes_nothing(tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch) -> None:
    run(made := job(tmp_path / "a"))
    monkeypatch.setattr(cell, "WARMUP_STEPS", 11)
    run(more := job(tmp_path / "b"))
    assert made.artifact_path.read_bytes() == more.artifact_path.read_bytes()


@pytest.mark.parametrize(("first", "compiling"), [(9.0, 8.0), (1.0, 0.0), (0.5, 0.0)])
def test_what_the_first_cycle_takes_longer_is_a_number_of_its_own(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, first: float, compiling: float
) -> None:
    """Cycles of two steps; the very first step takes ``first`` seconds and every other one a second."""
    ends = itertools.accumulate(itertools.chain([first], itertools.repeat(1.0)))
    time, step = [0.0], Dummy.step

    def timed(method: Dummy) -> dict[str, torch.Tensor]:
        time[0] = next(ends)
        return step(method)

    monkeypatch.setattr(Dummy, "step", timed)
    cost = run(job(tmp_path, steps=4), lambda: time[0])["cost"]
    assert cost["compile_seconds"] == compiling
    assert cost["step_seconds"] == [1.0, 1.0] and cost["distill_seconds"] == 4.0
    # The first cycle, and as that was slow no further steps but the three cycles that are timed at least.
    assert cost["warmup_seconds"] == first + 1 + 3 * 2


@pytest.mark.parametrize(("told", "expected"), [(None, 1), (2, 2), (7, 7)])
def test_the_record_tells_how_many_networks_were_trained_at_a_time(
    tmp_path: Path, dummy: type[Dummy], told: int | None, expected: int
) -> None:
    made = dataclasses.replace(job(tmp_path, steps=4, networks_evaluated=3), networks_at_once=told)
    found = run(made)
    assert found["status"] == "ok" and found["cost"]["networks_at_once"] == expected
    assert len(found["accuracy"]["values"]) == 3 and record.load(made.record_path) == found


def test_the_record_has_the_digest_of_its_set(tmp_path: Path, dummy: type[Dummy]) -> None:
    found = run(made := job(tmp_path))
    digest = hashlib.sha256(made.artifact_path.read_bytes()).hexdigest()
    assert found["artifact"] == {"name": made.artifact_path.name, "sha256": digest}
    assert run(job(tmp_path, config={"fail": "nan"}))["artifact"] is None
    assert artifact.lost(made.artifact_path, 1, digest) is None and artifact.lost(made.artifact_path, 1, None) is None


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_loses_no_number(tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "evaluate", lambda *_, **__: ([0.25, 0.5], []))
    made = job(tmp_path)
    made.log_path.mkdir()  # nor can the log be written
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "save", full_disk)
        found = run(made)
    assert found["status"] == "error" and found["message"] == "OSError: [Errno 28] No space left on device"
    assert record.load(made.record_path)["accuracy"]["values"] == [0.25, 0.5]
    monkeypatch.setattr(record, "write", full_disk)
    with pytest.raises(UserError) as caught:
        run(made)
    assert str(caught.value) == (
        f"{made.record_path} cannot be written: No space left on device; the test accuracies were 0.2500, 0.5000"
    )


def durations(patch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> Callable[[], float]:
    """Lets the n-th step of the dummy's life take ``seconds(n)``; gives the clock."""
    time, step = [0.0], Dummy.step

    def timed(method: Dummy) -> dict[str, torch.Tensor]:
        time[0] += seconds(method.done)
        return step(method)

    patch.setattr(Dummy, "step", timed)
    return lambda: time[0]


@pytest.mark.parametrize(
    ("seconds", "first", "corrected"),
    [
        (lambda n: 1.0, "about 3 min", []),
        # A cold machine: all steps of the warm-up are slow, and so are the first that count.
        (lambda n: 3.0 if n < 8 else 1.0, "about 10 min", ["after 32 of 200 steps: about 4 min"]),
        # Networks are trained afresh now and then, and the warm-up saw none of that.
        (
            lambda n: 1.0 if n % 20 < 18 else 11.0,
            "about 3 min",
            ["after 20 of 200 steps: about 10 min", "after 40 of 200 steps: about 7 min"],
        ),
        (
            lambda n: 1.0 + n / 50,
            "about 4 min",
            ["after 36 of 200 steps: about 5 min", "after 102 of 200 steps: about 8 min"],
        ),
        (lambda n: 0.1 if n < 14 else 0.01, "about 20 s", []),  # wrong, and over before anybody cares
    ],
    ids=["even", "slow at first", "slow now and then", "slower and slower", "short"],
)
def test_an_estimate_is_corrected_by_the_steps_that_were_taken(
    tmp_path: Path,
    dummy: type[Dummy],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: Callable[[int], float],
    first: str,
    corrected: list[str],
) -> None:
    assert run(job(tmp_path, steps=200), durations(monkeypatch, seconds))["status"] == "ok"
    said, *later = [line.strip() for line in capsys.readouterr().err.splitlines() if " steps" in line]
    assert said.startswith("200 steps at ") and f", {first}, then 1 network" in said
    assert later == [f"{line} for all of them" for line in corrected]


def test_networks_at_a_time_are_chosen_once_and_hold_for_the_curve(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[dict[str, Any]] = []
    taken: list[int] = []
    evaluate = cell.evaluate

    def choose(*given: Any, read: Any, **options: Any) -> int:
        chosen.append(options)
        return 2

    def spy(*given: Any, at_once: int, **options: Any) -> Any:
        taken.append(at_once)
        return evaluate(*given, at_once=at_once, **options)

    monkeypatch.setattr(cell, "networks_at_once", choose)
    monkeypatch.setattr(cell, "evaluate", spy)
    found = run(job(tmp_path, steps=8, curve_points=3, networks_evaluated=2))
    assert found["status"] == "ok" and found["cost"]["networks_at_once"] == 2
    assert chosen == [{"networks": 2, "max_steps": 3}] and taken == [2, 2, 2]


def test_time_left_is_by_the_pace_of_late(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten slow steps in ten minutes, then one in a second."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.Progress("distilling", 1000)
    for time, done in ((600.0, 10), (630.0, 40), (660.0, 70), (720.0, 130)):
        now[0] = time
        shown(done)
    assert [line.strip() for line in capsys.readouterr().err.splitlines()] == [
        "distilling: 10 of 1000, about 59400 s left",
        "distilling: 70 of 1000, about 930 s left",
        "distilling: 130 of 1000, about 870 s left",
    ]


def test_curves_are_of_the_steps_on_the_way(tmp_path: Path, dummy: type[Dummy]) -> None:
    made = job(tmp_path, steps=8, curve_points=3)
    curve = (found := run(made, Ticks()))["accuracy"]["curve"]
    assert [point["step"] for point in curve] == [2, 4, 8]  # 1, 3 and 8, at the end of their cycles
    assert [point["seconds"] for point in curve] == [1.0, 2.0, 4.0]
    assert curve[-1]["values"] == found["accuracy"]["values"]
    short = run(job(tmp_path, steps=4))
    assert curve[1]["values"] == short["accuracy"]["values"]


def test_windows_are_whole_and_samples_few(tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(windows(7, 3)) == [(0, 3), (3, 6), (6, 7)]
    monkeypatch.setattr(cell, "SAMPLES", 3)
    cost = run(job(tmp_path, steps=16), Ticks())["cost"]
    assert cost["steps_per_sample"] == 6 and cost["step_seconds"] == [1 / 6, 1 / 6, 1 / 4]


@pytest.mark.parametrize(
    ("points", "steps", "expected"),
    [(0, 100, []), (1, 100, [100]), (3, 100, [1, 10, 100]), (5, 3, [1, 2, 3]), (4, 1, [1])],
)
def test_curve_steps(points: int, steps: int, expected: list[int]) -> None:
    assert curve_steps(points, steps) == expected


def test_jobs_travel_as_json(tmp_path: Path) -> None:
    made = job(tmp_path, "frepo")
    assert Job.from_json(made.to_json()) == made and "\n" not in made.to_json()


# The process


def script(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Lets ``text`` run in place of the cell."""
    monkeypatch.setattr(launch, "COMMAND", (sys.executable, "-c", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "SIGTERM"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGHUP)", "SIGHUP"),
        ("raise SystemExit(3)", "status 3"),
        ("pass", "damaged record"),
    ],
)
def test_a_process_that_dies_has_a_record(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    script(monkeypatch, text)
    made = job(tmp_path)
    found = launch.launch(made)
    assert found["status"] == "error" and message in str(found["message"])
    assert record.load(made.record_path)["message"] == found["message"]


def test_the_kernel_killing_for_memory_is_out_of_memory(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    kills = iter([4, 5])
    monkeypatch.setattr(launch, "_out_of_memory_kills", lambda: next(kills))
    assert launch.launch(job(tmp_path))["status"] == "oom"


def test_an_interrupt_ends_the_process(tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, "import time; time.sleep(600)")
    started = []
    popen = subprocess.Popen

    class Interrupted(popen):  # type: ignore[type-arg, valid-type, misc]
        def wait(self, timeout: float | None = None) -> int:
            if not started:
                started.append(self)
                raise KeyboardInterrupt
            return int(super().wait(timeout))

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        launch.launch(made := job(tmp_path))
    assert started[0].returncode == -signal.SIGKILL and not made.record_path.exists()


def test_every_cell_starts_with_the_same_environment_but_for_what_the_user_has_set(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in launch.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    expected = launch.ENVIRONMENT | {"GOMP_SPINCOUNT": "7", "OMP_NUM_THREADS": "1"}
    script(monkeypatch, f"import os, sys; sys.exit(not {expected!r}.items() <= dict(os.environ).items())")
    failed = launch.launch(job(tmp_path))
    assert "damaged record" in str(failed["message"])  # of a process that ended well
    environment = failed["provenance"]["environment"]
    assert expected.items() <= environment.items() and "PATH" not in environment


def test_a_program_that_measures_begins_anew_with_the_environment_of_cells() -> None:
    text = """import os; from harness import launch, startup
startup.begun = {}
launch.restart_with_environment()
print(os.environ.get("GOMP_SPINCOUNT"))"""
    environment = {name: value for name, value in os.environ.items() if name not in launch.ENVIRONMENT}
    for begun, value in ((True, launch.ENVIRONMENT["GOMP_SPINCOUNT"]), (False, None)):  # False: in a notebook
        command = [sys.executable, "-c", text.format(begun)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert ran.stdout == f"{value}\n"


def test_work_beside_a_cell_is_in_its_record(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each phase whose seconds are measured, and of what happened between the two readings."""
    steps: list[int] = []
    monkeypatch.setattr(dummy, "step", lambda self, plain=dummy.step: (steps.append(1), plain(self))[1])

    class Meter:
        def __init__(self, threads: int) -> None:
            self.before = len(steps)

        def stop(self) -> str:
            return f"{len(steps) - self.before} steps"

    monkeypatch.setattr(cell, "LoadMeter", Meter)
    found = run(job(tmp_path, steps=7))
    preparing, distilling, evaluating = str(found["cost"]["memory"]["busy"]).split("; ")
    assert (distilling, evaluating) == ("while distilling 7 steps", "while evaluating 0 steps")
    assert preparing.startswith("while preparing ") and preparing != "while preparing 0 steps"


def test_the_first_process_is_started_before_its_job_and_ended_where_there_is_none(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, "import sys; sys.exit(not sys.stdin.readline())")
    processes, start = list[Any](), launch._start
    monkeypatch.setattr(launch, "_start", lambda: processes.append(start()) or processes[-1])
    with launch.started() as run:
        assert len(processes) == 1
        for count in (1, 2):
            assert "damaged record" in str(run(job(tmp_path))["message"]) and len(processes) == count
    script(monkeypatch, "import time; time.sleep(600)")
    with pytest.raises(KeyboardInterrupt), launch.started():
        raise KeyboardInterrupt
    assert [process.returncode for process in processes] == [0, 0, -signal.SIGKILL]


def test_a_cell_killed_midway_leaves_nothing_and_ends_with_its_parent(tmp_path: Path) -> None:
    """Its own process, for real: it ends when its input does, without a record, and the next try is the first."""
    made = job(tmp_path, "frepo", steps=100_000)
    process = subprocess.Popen(launch.COMMAND, stdin=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write(made.to_json().encode() + b"\n")
    assert b"100000 steps at" in process.stderr.readline()
    process.stdin.close()  # as when the parent is killed
    assert process.wait(60) == 1 and process.stderr.read() == b""
    process.stderr.close()
    assert list(tmp_path.iterdir()) == []


def test_cells_share_the_data_of_their_plan(tmp_path: Path) -> None:
    raw = load_raw("digits", Path(os.devnull))
    assert job(tmp_path, "frepo").cell.data_fingerprint == raw.fingerprint
