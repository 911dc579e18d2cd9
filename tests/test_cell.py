"""One cell: its phases, its numbers under a clock set by hand, its failures, and its process."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from benchmarks import preprocess
from benchmarks.datasets import load_raw
from benchmarks.errors import UserError
from benchmarks.folders import default_cache
from harness import cell, distil, progress
from harness.evaluations import training
from harness.evaluations.accuracy import Accuracy
from harness.launch import local
from harness.launch.environment import ENVIRONMENT
from harness.measure import memory
from harness.plan.jobs import Job
from harness.plan.planning import plan
from harness.plan.request import Request
from harness.records import artifact, provenance, record
from harness.records.record import CHECKPOINT, EVENTS, LOG, RECORD, SET, Distilled, EvaluationRecord
from harness.steps import curve_steps, log_steps, windows
from methods.base import Synthetic
from tests.builders import quick
from tests.dummies import Dummy, dummy

__all__ = ["dummy", "quick"]  # fixtures
pytestmark = pytest.mark.usefixtures("quick", "default_signals")


def job(
    output: Path,
    method: str = "dummy",
    config: Mapping[str, Any] | None = None,
    request: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Job:
    """The job of one cell; ``changes`` to its distillation."""
    fields: dict[str, Any] = {"budget": "smoke", "widths": (4,), "device": "cpu", "output": output, "command": "a test"}
    fields |= request or {}
    if fields["budget"] != "cost":
        fields.setdefault("evaluate_steps", 3)
    made = plan(Request(methods=(method,), datasets=("digits",), **fields))[0]
    made = dataclasses.replace(
        made,
        distillation=dataclasses.replace(made.distillation, **changes),
        config={**made.config, **(config or {})},
    )
    return dataclasses.replace(made, folder=str(output / made.distillation.name(made.config)))


def by(protocol: str, **fields: Any) -> dict[str, Any]:
    """Fields of a request that evaluates by the recipe of ``protocol``."""
    return {"options": {"accuracy": ("--accuracy.protocol", protocol)}, **fields}


def run(made: Job, now: Callable[[], float] = time.perf_counter) -> Distilled:
    """Run the job here, and read what it wrote."""
    cell.run(made, now)
    return record.read(made.path)


def accuracy(distilled: Distilled, step: int | None = None) -> EvaluationRecord:
    """The evaluation of the accuracy of the set after ``step`` steps; None: the last."""
    (answer,) = (
        each for each in distilled.evaluations if each["evaluation"] == "accuracy" and each["sets"][0]["step"] == step
    )
    return answer


class Ticks:
    """A clock that moves one second every time it is read."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        self.time += 1.0
        return self.time


def test_a_cell_fills_in_its_records_and_leaves_a_set(tmp_path: Path, dummy: type[Dummy]) -> None:
    made = job(tmp_path, request={"networks_evaluated": 2}, steps=5)
    before = torch.get_rng_state()
    distilled = run(made, Ticks())
    assert torch.equal(torch.get_rng_state(), before), "global random numbers were drawn"
    written, answer = distilled.record, accuracy(distilled)
    assert written["status"] == answer["status"] == "ok" and written["message"] is None and written["steps"] == 5
    assert written["distillation"] == made.distillation.to_dict() and written["config"] == made.config
    assert written["identity"] == made.identity and made.path.name.endswith(made.identity)
    assert written["asked"] == {"budget": "smoke", "protocol": "native"}
    cost = written["cost"]
    # Cycles of two steps and one left over, which is no whole cycle and hence no sample.
    assert cost["step_seconds"] == [0.5, 0.5] and cost["steps_per_sample"] == 2 and cost["distill_seconds"] == 3.0
    assert cost["prepare_seconds"] == 1.0 and cost["prepare_cached"] == 0
    assert cost["memory"]["meter"] == "host_rss" and cost["memory"]["device_bytes"] is None
    assert cost["parameters"] == 4 * 9 + 4 + 2 * 4 + 4 * 4 * 9 + 4 + 2 * 4 + 4 * 9 * 10 + 10
    assert written["provenance"]["threads"] == answer["provenance"]["threads"] == torch.get_num_threads()
    assert written["provenance"]["data_fingerprint"] == load_raw("digits", Path(os.devnull)).fingerprint
    digest = hashlib.sha256((made.path / SET).read_bytes()).hexdigest()
    assert written["artifact"] == {"name": SET, "sha256": digest}
    assert answer["sets"] == [{"distillation": made.identity, "step": None, "sha256": digest}]
    assert answer["config"] == made.questions[0].config and answer["seed"] == made.distillation.seed
    assert answer["values"].keys() == {"accuracy"} and len(answer["values"]["accuracy"]) == 2
    # The clock is read after the first network as well, whose value is kept while the second is trained.
    assert answer["cost"] == {"seconds": 2.0, "networks_at_once": 1, "parameters": cost["parameters"]}
    loaded = artifact.load(made.path / SET)
    assert len(loaded.images) == 10 and dict(loaded.distillation) == written["distillation"] | {"steps": 5}
    names = {path.name for path in made.path.iterdir()}
    assert names == {"record.json", "set.safetensors", "set.png", "events.jsonl", "evaluations"}


def test_the_record_has_the_configuration_as_the_method_resolved_it(tmp_path: Path) -> None:
    made = job(tmp_path, "dsa", config={"outer_loop": None, "inner_loop": None})
    written = run(made).record
    assert written["status"] == "ok" and written["config"] == made.config
    assert written["resolved"] == {**made.config, "outer_loop": 1, "inner_loop": 1}
    assert written["resolved"] == dict(artifact.load(made.path / SET).config)


@pytest.mark.parametrize("method", ["frepo", "random_real", "dummy"])
def test_the_same_cell_gives_the_same_bytes(tmp_path: Path, dummy: type[Dummy], method: str) -> None:
    first, second = (job(tmp_path / name, method) for name in "ab")
    answers = [accuracy(run(made)) for made in (first, second)]
    assert (first.path / SET).read_bytes() == (second.path / SET).read_bytes()
    assert answers[0]["values"] == answers[1]["values"] and answers[0]["identity"] == answers[1]["identity"]
    cell.run(other := job(tmp_path, method, seed=1))
    assert (other.path / SET).read_bytes() != (first.path / SET).read_bytes()


def test_the_set_tells_nothing_of_time_host_or_path(tmp_path: Path, dummy: type[Dummy]) -> None:
    made = job(tmp_path)
    started = run(made).record["provenance"]["started"]
    content = (made.path / SET).read_bytes()
    for secret in (str(tmp_path), str(default_cache()), "a test", started):
        assert secret.encode() not in content


def test_a_method_without_steps_has_no_cost_per_step(tmp_path: Path) -> None:
    written = run(job(tmp_path, "random_real"), Ticks()).record
    cost = written["cost"]
    assert written["status"] == "ok" and written["steps"] is None
    assert cost["step_seconds"] == [] and cost["distill_seconds"] is None and cost["warmup_seconds"] is None
    assert cost["memory"]["meter"] is None and cost["prepare_seconds"] == 1.0


# --- a second question


@pytest.fixture
def counted(dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for every step that a dummy takes."""
    steps: list[int] = []
    monkeypatch.setattr(dummy, "step", lambda self, step=dummy.step: (steps.append(1), step(self))[1])
    return steps


def test_what_is_asked_later_of_a_set_distils_nothing(tmp_path: Path, counted: list[int]) -> None:
    made = job(tmp_path, request={"networks_evaluated": 2})
    first, steps = run(made), len(counted)
    written = (made.path / RECORD).read_bytes()
    assert run(made) == first  # nothing is left to do, not even a new date
    more = run(job(tmp_path, request={"networks_evaluated": 3}), Ticks())
    fewer = run(made)
    common = run(job(tmp_path, request=by("common", networks_evaluated=2)))
    assert len(counted) == steps and (made.path / RECORD).read_bytes() == written
    assert accuracy(more)["values"]["accuracy"][:2] == accuracy(first)["values"]["accuracy"]
    assert len(accuracy(more)["values"]["accuracy"]) == accuracy(more)["config"]["networks"] == 3
    assert accuracy(more)["cost"]["seconds"] == (accuracy(first)["cost"]["seconds"] or 0) + 1.0
    assert fewer == more, "three values answer a question for two"
    assert sorted(answer["config"]["protocol"] for answer in common.evaluations) == ["common", "vico"]


def test_values_are_the_same_in_the_cell_that_distilled_and_later_from_disk(tmp_path: Path, dummy: type[Dummy]) -> None:
    asked = job(tmp_path / "a", request={"networks_evaluated": 3, "protocol": "common"})
    together = accuracy(run(asked))
    alone = job(tmp_path / "b", request={"protocol": "common"})
    cell.run(dataclasses.replace(alone, questions=()))
    assert record.read(alone.path).evaluations == ()
    run(alone)
    later = accuracy(run(dataclasses.replace(alone, questions=asked.questions)))
    assert later["values"] == together["values"] and later["identity"] == together["identity"]


def test_work_beside_any_part_of_an_answer_is_told(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    for networks, words in ((2, "busy first"), (3, "then"), (4, None)):
        meter = type("Meter", (), {"__init__": lambda self, threads: None, "stop": lambda self, words=words: words})
        monkeypatch.setattr(cell, "LoadMeter", meter)
        answer = accuracy(run(job(tmp_path, request={"networks_evaluated": networks})))
    assert answer["busy"] == "busy first; then"


def test_values_of_another_machine_are_not_continued(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(tmp_path, request={"networks_evaluated": 2})
    answer = accuracy(run(made))
    (path,) = (made.path / "evaluations").iterdir()
    record.write({**answer, "values": {"accuracy": [0.0, 0.0]}}, path)
    monkeypatch.setattr(provenance, "device_name", lambda device: "another processor")
    more = accuracy(run(job(tmp_path, request={"networks_evaluated": 3})))
    assert more["values"]["accuracy"][:2] == answer["values"]["accuracy"]


# --- what goes wrong


@pytest.mark.parametrize(
    ("fail", "status", "message"),
    [
        ("nan", "diverged", "loss is nan at step 4"),
        ("late", "diverged", "images"),
        ("oom", "oom", "MemoryError"),
        ("error", "error", "RuntimeError: the first line (traceback in log.txt)"),
        ("user", "error", "try another way"),
    ],
)
def test_failures_are_one_line_in_the_record(
    tmp_path: Path, dummy: type[Dummy], fail: str, status: str, message: str
) -> None:
    made = job(tmp_path, config={"fail": fail})
    distilled = run(made)
    said = str(distilled.record["message"])
    assert distilled.record["steps"] == (4 if status == "diverged" else None), "those that were taken"
    assert distilled.record["status"] == status and message in said and "\n" not in said
    assert not distilled.set_path.exists() and distilled.record["artifact"] is None and distilled.evaluations == ()
    log = made.path / LOG
    assert log.exists() == (fail == "error")
    if fail == "error":
        assert "Traceback" in log.read_text() and "and more" in log.read_text()


def test_a_question_that_fails_leaves_the_set_and_the_earlier_answer(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, more = (job(tmp_path, request={"networks_evaluated": count}) for count in (2, 3))

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("in the third network")

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_together", fail)
        distilled = run(made)
    first = accuracy(distilled)
    assert distilled.record["status"] == "ok" and distilled.set_path.exists()
    assert first["status"] == "error" and str(first["message"]).startswith("RuntimeError: in the third network")
    assert "in the third network" in (made.path / LOG).read_text()
    before = accuracy(run(made))
    assert before["status"] == "ok" and len(before["values"]["accuracy"]) == 2
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_together", fail)
        assert accuracy(run(more)) == before
    assert "RuntimeError: in the third network" in capsys.readouterr().err
    full = accuracy(run(more))
    assert full["status"] == "ok" and full["values"]["accuracy"][:2] == before["values"]["accuracy"]


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
    "dtype": (replaced(images=lambda t: t.double()), "images are float64 (10, 1, 8, 8) on cpu; expected"),
    "device": (replaced(images=lambda t: t.to("meta")), "images are float32 (10, 1, 8, 8) on meta; expected"),
    "array": (replaced(images=lambda t: t.numpy()), "images are of type ndarray; expected"),
    "graph": (
        replaced(images=lambda t: t.requires_grad_()),
        "(10, 1, 8, 8) on cpu, part of a graph; expected detached",
    ),
    "labels": (replaced(labels=lambda t: t.argmax(1)), "labels are int64 (10,) on cpu; expected detached float32 (10,"),
    "space": (
        replaced(label_space=lambda s: "logits"),
        "label_space is 'logits'; expected probability, weighted or centred",
    ),
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


@pytest.mark.parametrize("fault", WRONG_SETS)
def test_a_set_that_is_not_what_was_asked_for_is_one_line(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Before the first step already, except for labels that are to be learned."""
    change, words = WRONG_SETS[fault]
    first = fault != "flat"
    returns(monkeypatch, "synthetic", (lambda synthetic, _: change(synthetic)) if first else late(change))
    distilled = run(made := job(tmp_path, steps=4))
    assert distilled.record["status"] == "error" and not (made.path / LOG).exists() and not distilled.set_path.exists()
    message = str(distilled.record["message"])
    assert message.startswith(f"dummy.synthetic() {'before the first step' if first else 'after step 4'}: ")
    assert words in message


def test_a_set_is_checked_after_a_cost_cell_and_on_the_way_of_a_curve(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    returns(monkeypatch, "synthetic", late(lambda synthetic: None))
    for request, steps in ({"budget": "cost"}, 4), ({"curve_points": 3}, 8):
        written = run(job(tmp_path, request=request, steps=steps, seconds=None)).record
        assert written["status"] == "error" and "dummy.synthetic() after step 4: nothing" in str(written["message"])


def test_learned_labels_may_move_and_a_set_that_is_not_finite_from_the_start_is_no_result(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    soft = torch.linspace(0, 1, 100).view(10, 10).softmax(1).flip(1)
    returns(monkeypatch, "synthetic", late(replaced(labels=lambda t: soft)))
    assert accuracy(run(job(tmp_path / "soft", steps=4)))["status"] == "ok"
    centred = replaced(labels=lambda t: soft - 0.2, label_space=lambda s: "centred")
    returns(monkeypatch, "synthetic", late(centred))
    assert accuracy(run(job(tmp_path / "centred", steps=4)))["status"] == "ok"
    returns(monkeypatch, "synthetic", lambda synthetic, _: replaced(images=lambda t: t / 0)(synthetic))
    written = run(job(tmp_path, steps=4)).record
    assert written["status"] == "error" and "before the first step: a value of the im" in str(written["message"])


@pytest.mark.parametrize(
    ("losses", "words", "at"),
    [
        (None, "nothing; expected a dictionary of losses", 1),
        (torch.ones(()), "float32 () on cpu; expected a dictionary of losses", 6),
        ({}, "of type dict; expected a dictionary of losses", 6),
        ({"loss": 1.0}, "'loss' is of type float; expected names of detached 0-d floating point tensors on cpu", 1),
        ({"loss": torch.ones(2)}, "'loss' is float32 (2,) on cpu; expected", 6),
        ({"loss": torch.ones((), dtype=torch.int64)}, "'loss' is int64 () on cpu; expected", 1),
        ({"loss": torch.ones((), requires_grad=True)}, "'loss' is float32 () on cpu, part of a graph; expected", 1),
        ({3: torch.ones(())}, "3 is float32 () on cpu; expected names", 1),
    ],
)
def test_losses_that_are_none_are_one_line(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, losses: object, words: str, at: int
) -> None:
    monkeypatch.setattr(distil, "WARMUP_CYCLES", 1)
    returns(monkeypatch, "step", lambda sound, method: losses if method.done >= at else sound)
    written = run(made := job(tmp_path, steps=8)).record
    assert written["status"] == "error" and str(written["message"]).startswith(f"dummy.step(): {words}")
    assert not (made.path / LOG).exists()


@pytest.mark.parametrize("cycle", [0, 2.0, None])
def test_a_cycle_that_is_no_number_of_steps_is_one_line(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, cycle: object
) -> None:
    monkeypatch.setattr(Dummy, "steps_per_cycle", cycle)
    message = run(job(tmp_path)).record["message"]
    assert message == f"dummy.steps_per_cycle is {cycle!r}; expected a whole number of at least 1"


def learn_step_size(patch: pytest.MonkeyPatch, rates: dict[int, float]) -> None:
    """Lets the dummy learn the step sizes ``rates``: steps done → step size."""

    def synthetic(method: Dummy) -> Synthetic:
        rate = torch.tensor(rates.get(method.done, 0.01))
        return Synthetic(method.images.clone(), method.labels.clone(), "probability", rate)

    patch.setattr(Dummy, "synthetic", synthetic)


def test_a_learned_step_size_that_cannot_train_is_divergence_of_the_evaluation(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    learn_step_size(monkeypatch, {4: -0.5})
    distilled = run(job(tmp_path, request=by("mtt"), steps=4))
    answer = accuracy(distilled)
    assert answer["status"] == "diverged" and answer["message"] == "the learned step size is -0.5"
    assert answer["values"] == {} and distilled.record["status"] == "ok" and distilled.set_path.exists()
    (other,) = (a for a in run(job(tmp_path, request=by("vico"), steps=4)).evaluations if a["status"] == "ok")
    assert other["config"]["protocol"] == "vico", "a recipe that ignores the step size"


def test_a_learned_step_size_that_is_not_finite_is_divergence(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    learn_step_size(monkeypatch, {4: math.nan})
    distilled = run(job(tmp_path, steps=4))
    assert distilled.record["status"] == "diverged" and not distilled.set_path.exists()
    assert "step size is not finite" in str(distilled.record["message"]) and distilled.evaluations == ()


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried …"), "oom", "OutOfMemoryError: CUDA out of memory. Tried …"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …"), "oom", "RuntimeError"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be …"), "oom", "RuntimeError: CUDA error"),
        (ValueError("can't allocate memory"), "error", "ValueError: can't"),
        (UserError("a\nb\x1b[31m"), "error", r"a\nb\x1b[31m"),
        (RuntimeError("red \x1b[31m\rtext\nmore"), "error", r"RuntimeError: red \x1b[31m (traceback in "),
        (RuntimeError("not UTF-8: \udcff"), "error", r"RuntimeError: not UTF-8: \udcff (traceback in "),
    ],
)
def test_out_of_memory_is_told_from_other_errors_and_messages_are_printable(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, error: Exception, status: str, said: str
) -> None:
    def fail(method: Dummy) -> None:
        raise error

    monkeypatch.setattr(Dummy, "step", fail)
    written = run(job(tmp_path)).record
    message = str(written["message"])
    assert written["status"] == status and message.startswith(said) and message.isprintable()


def test_a_set_never_stands_beside_a_record_that_is_not_of_it(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = job(tmp_path, data_fingerprint="another")
    moved.path.mkdir()
    for name in (SET, "set.png"):
        (moved.path / name).write_text("of an earlier try")
    written = run(moved).record
    assert written["status"] == "error" and "have changed since the run began" in str(written["message"])
    assert {path.name for path in moved.path.iterdir()} == {RECORD}
    save = artifact.save

    def late(*arguments: Any, **options: Any) -> str:
        save(*arguments, **options)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(artifact, "save", late)
    distilled = run(job(tmp_path))
    assert distilled.record["status"] == "error" and not distilled.set_path.exists()


def test_what_cannot_be_written_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = job(tmp_path, "random_real")
    made.path.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"status 1.*nor could the record .* be written"):
        list(local.launch([made]))
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{made.path} cannot be written" in line


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_loses_no_number(tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch) -> None:
    made = job(tmp_path)
    (made.path / LOG).mkdir(parents=True)  # nor can the log be written
    monkeypatch.setattr(cell, "_remove", lambda *paths: None)
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "save", full_disk)
        written = run(made).record
    assert written["status"] == "error" and written["message"] == "OSError: [Errno 28] No space left on device"
    assert len(written["cost"]["step_seconds"]) == 2
    run(dataclasses.replace(made, questions=()))
    monkeypatch.setattr(record, "write", full_disk)
    with pytest.raises(UserError, match=r"cannot be written: No space left on device; measured were accuracy \[0\."):
        cell.run(made)


def test_a_time_limit_in_an_evaluation_leaves_the_set(
    tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = {"time_limit": 3600.0, "networks_evaluated": 2}
    made, other = job(tmp_path, request=limited), job(tmp_path, request=by("common"))
    test = Accuracy.test
    tested: list[int] = []

    def late(*arguments: Any) -> Mapping[str, float]:
        tested.append(1)
        signal.setitimer(signal.ITIMER_REAL, 0)  # as it is when it has run down
        signal.raise_signal(signal.SIGALRM)
        return test(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Accuracy, "test", late)
        distilled = run(dataclasses.replace(made, questions=(*made.questions, *other.questions)))
    answer = accuracy(distilled)  # the question after it was not begun
    assert distilled.record["status"] == "ok" and distilled.set_path.exists() and len(tested) == 1
    assert answer["status"] == "timeout" and answer["message"] == "the time limit of 1 h has passed"
    assert answer["time_limit_seconds"] == 3600.0 and answer["values"] == {} and answer["cost"]["seconds"] is None
    steps = len(counted)
    assert accuracy(run(made)) == answer, "a result, until there is more time"
    assert accuracy(run(job(tmp_path, request={**limited, "time_limit": 7200.0})))["status"] == "ok"
    assert len(counted) == steps
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL and signal.getitimer(signal.ITIMER_REAL) == (0, 0)


# --- phases and their numbers


def test_seconds_become_whole_cycles_and_the_identity_stays(tmp_path: Path, dummy: type[Dummy]) -> None:
    """Every reading of the clock takes a second: a cycle of two steps is timed at one second, 0.5 s a step."""
    made = job(tmp_path, steps=None, seconds=6.5)
    written = run(made, Ticks()).record
    assert written["status"] == "ok" and written["steps"] == 12
    assert written["distillation"]["steps"] is None and written["identity"] == made.identity
    with_prepare = run(job(tmp_path, steps=None, seconds=6.5, seconds_include_prepare=True), Ticks())
    assert with_prepare.record["steps"] == 10
    assert run(job(tmp_path, steps=None, seconds=0.1), Ticks()).record["steps"] == 6, "three cycles at least"


COST = {"budget": "cost"}


def test_a_cost_cell_times_whole_cycles_and_evaluates_nothing(tmp_path: Path, dummy: type[Dummy]) -> None:
    distilled = run(made := job(tmp_path, request=COST), Ticks())
    written = distilled.record
    assert written["status"] == "ok" and written["steps"] == 40 and written["cost"]["step_seconds"] == [0.5] * 20
    assert distilled.evaluations == () and written["cost"]["memory"]["meter"] == "host_rss"
    assert made.questions == () and written["artifact"] is None and not distilled.set_path.exists()


def test_a_forecast_that_fails_costs_no_measurement(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(method: Dummy, sound: Callable[[Dummy], Any] = Dummy.step) -> Any:
        if isinstance(method.images, FakeTensor):
            raise TypeError("no fakes, please")
        return sound(method)

    monkeypatch.setattr(Dummy, "step", step)
    written = run(job(tmp_path, request=COST, steps=4, seconds=None)).record
    assert written["status"] == "ok" and written["cost"]["forecast_bytes"] is None and written["cost"]["step_seconds"]


def test_work_beside_methods_that_take_turns_is_in_all_their_records(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = type("Meter", (), {"__init__": lambda self, threads: None, "stop": lambda self: "the cores were busy"})
    monkeypatch.setattr(distil, "LoadMeter", meter)
    asked = Request(
        **{"methods": ("dummy", "dm"), "datasets": ("digits",), "budget": "cost", "interleave": True},  # type: ignore[arg-type]
        **{"seconds": 0.1, "widths": (4,), "device": "cpu", "output": tmp_path},  # type: ignore[arg-type]
    )
    (made,) = plan(asked)
    cell.run(made)
    for each in (made, *made.beside):
        written = record.read(each.path).record
        assert written["status"] == "ok" and len(written["cost"]["step_seconds"]) >= 3
        assert "while distilling the cores were busy" in str(written["cost"]["memory"]["busy"])


def test_a_cost_cell_says_that_less_was_prepared(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dummy, "BUDGETS", {**dummy.BUDGETS, "cost": {"lr": 0.5}})

    def prepare(**request: Any) -> str | None:
        made = job(tmp_path, request=request, steps=6, seconds=None)
        return run(made).record["cost"]["prepare"]

    assert prepare(budget="cost") == "reduced"
    assert prepare(budget="cost", options={"dummy": ("--dummy.lr", "0.1")}) is None  # as the method has it
    assert prepare(options={"dummy": ("--dummy.lr", "0.5")}) is None


@pytest.mark.parametrize(
    ("fail", "words"), [("nan", "loss is nan at step 4"), ("late", "a value of the images is not")]
)
def test_a_number_that_is_not_finite_does_not_end_a_cost_cell(
    tmp_path: Path, dummy: type[Dummy], fail: str, words: str
) -> None:
    made = job(tmp_path, config={"fail": fail}, request=COST, steps=8, seconds=None)
    distilled = run(made, Ticks())
    written = distilled.record
    assert written["status"] == "ok" and written["cost"]["step_seconds"] == [0.5] * 4
    assert words in str(written["message"]) and str(written["message"]).endswith("costs as much as a finite number")
    assert written["artifact"] is None and not distilled.set_path.exists()
    assert run(made) == distilled, "it is done"


def test_prepare_on_a_cache_hit_reports_the_true_cost(tmp_path: Path, dummy: type[Dummy]) -> None:
    first, second = (run(job(tmp_path / name, config={"entry": True}), Ticks()).record["cost"] for name in ("a", "b"))
    assert (first["prepare_cached"], second["prepare_cached"]) == (0, 1)
    assert len(list(default_cache().glob("store/*/entry-*"))) == 1 and first["prepare_seconds"] is not None
    # The second run spent one tick looking, and adds the one tick that making the entry took.
    assert second["prepare_seconds"] == 2.0


@pytest.mark.parametrize("what", ["device_name", "_version"])
def test_another_machine_lends_neither_its_entries_nor_its_seconds(
    what: str, tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        monkeypatch.setattr(provenance, what, lambda _, name=name: f"processor or version {name}")
        written = run(job(tmp_path / name, config={"entry": True}), Ticks()).record
        assert written["status"] == "ok" and written["cost"]["prepare_cached"] == 0


def test_the_same_pixels_under_another_name_have_their_own_entries(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name brings published constants, and whether images are flipped."""
    load = cell.load
    for folder, flip, constants in (("a", False, {}), ("b", True, {}), ("c", True, {"digits": ((0.5,), (0.25,))})):
        monkeypatch.setattr(cell, "load", lambda *a, flip=flip, **k: dataclasses.replace(load(*a, **k), flip=flip))
        monkeypatch.setitem(preprocess.CONSTANTS, "standardise_vico", constants)
        monkeypatch.setitem(preprocess.CONSTANTS, "standardise", constants)
        written = run(job(tmp_path / folder, config={"entry": True}), Ticks()).record
        assert written["status"] == "ok" and written["cost"]["prepare_cached"] == 0


def test_neither_the_warm_up_nor_counters_that_fail_change_a_set(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def uncounted(*_: object) -> None:
        raise RuntimeError("\x1b[31mno\ncounters")

    cell.run(made := job(tmp_path / "a"))
    monkeypatch.setattr(distil, "WARMUP_STEPS", 11)
    monkeypatch.setattr(distil, "count", uncounted)
    cell.run(more := job(tmp_path / "b"))
    assert (made.path / SET).read_bytes() == (more.path / SET).read_bytes()
    assert r"are not counted: RuntimeError: \x1b[31mno\ncounters" in capsys.readouterr().err


def test_a_slow_method_is_warmed_up_for_two_cycles(tmp_path: Path, counted: list[int]) -> None:
    ticks = Ticks()
    distilled = run(job(tmp_path, steps=4), lambda: 10 * ticks())
    assert distilled.record["cost"]["warmup_seconds"] == 50.0 and distilled.record["cost"]["compile_seconds"] == 0.0


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
    cost = run(job(tmp_path, steps=4), lambda: time[0]).record["cost"]
    assert cost["compile_seconds"] == compiling
    assert cost["step_seconds"] == [1.0, 1.0] and cost["distill_seconds"] == 4.0
    # The first cycle, and as that was slow no further steps but the three cycles that are timed at least.
    assert cost["warmup_seconds"] == first + 1 + 3 * 2


@pytest.mark.parametrize(("told", "expected"), [(None, 1), (2, 2), (7, 7)])
def test_the_record_tells_how_many_networks_were_trained_at_a_time(
    tmp_path: Path, dummy: type[Dummy], told: int | None, expected: int
) -> None:
    answer = accuracy(run(job(tmp_path, request={"networks_evaluated": 3, "networks_at_once": told})))
    assert answer["status"] == "ok" and answer["cost"]["networks_at_once"] == expected
    assert len(answer["values"]["accuracy"]) == 3


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
    assert run(job(tmp_path, steps=200), durations(monkeypatch, seconds)).record["status"] == "ok"
    said, *later = [line.strip() for line in capsys.readouterr().err.splitlines() if " steps" in line]
    assert said.startswith("200 steps at ") and said.endswith(f", {first}")
    assert later == [f"{line} for all of them" for line in corrected]


def test_time_left_is_by_the_pace_of_late(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten slow steps in ten minutes, then one in a second."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.Progress("distilling", 1000)
    for seconds, done in ((600.0, 10), (630.0, 40), (660.0, 70), (720.0, 130)):
        now[0] = seconds
        shown(done)
    assert [line.strip() for line in capsys.readouterr().err.splitlines()] == [
        "distilling: 10 of 1000, about 59400 s left",
        "distilling: 70 of 1000, about 930 s left",
        "distilling: 130 of 1000, about 870 s left",
    ]


def test_a_curve_is_of_the_sets_on_the_way(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    made = job(tmp_path, request={"curve_points": 3}, steps=8)
    distilled, steps = run(made, Ticks()), len(counted)
    written = distilled.record
    # 1, 3 and 8, at the end of their cycles; the last is the set itself.
    assert [(each["step"], each["seconds"]) for each in written["snapshots"]] == [(2, 1.0), (4, 2.0)]
    assert written["curve_points"] == 3
    for snapshot in written["snapshots"]:
        content = (made.path / "snapshots" / f"step-{snapshot['step']}.safetensors").read_bytes()
        assert hashlib.sha256(content).hexdigest() == snapshot["sha256"]
        assert accuracy(distilled, snapshot["step"])["sets"][0]["sha256"] == snapshot["sha256"]
    short = run(job(tmp_path, steps=4))
    assert accuracy(distilled, 4)["values"] == accuracy(short)["values"]
    assert accuracy(distilled)["values"].keys() == {"accuracy"} and len(distilled.evaluations) == 3
    steps = len(counted)
    plain = job(tmp_path, steps=8)
    assert plain.folder == made.folder and run(plain) == distilled and len(counted) == steps
    more = run(job(tmp_path, request={"curve_points": 4}, steps=8))
    assert len(counted) > steps and [each["step"] for each in more.record["snapshots"]] == [2, 4]


def test_a_point_of_the_curve_that_cannot_be_trained_is_divergence_of_that_point(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    learn_step_size(monkeypatch, {2: -0.5, 4: math.nan})
    distilled = run(job(tmp_path, request=by("mtt", curve_points=3), steps=8))
    assert distilled.record["status"] == "ok"
    assert [each["step"] for each in distilled.record["snapshots"]] == [2], "a set that is not finite is left out"
    assert [accuracy(distilled, step)["status"] for step in (2, None)] == ["diverged", "ok"]


def test_events_tell_how_it_went(tmp_path: Path, dummy: type[Dummy]) -> None:
    made = job(tmp_path, config={"fail": "nan"}, request=COST, steps=400, seconds=None)
    cell.run(made, Ticks())
    events = [json.loads(line) for line in (made.path / EVENTS).read_text().splitlines()]
    assert [event["step"] for event in events[:4]] == [2, 4, 6, 8] and events[-1]["step"] == 400
    assert 100 <= len(events) < 150, "early ones in addition"
    assert events[0] | {"memory_bytes": 0} == {
        **{"step": 2, "steps": 400, "seconds": 1.0, "step_seconds": 0.5, "memory_bytes": 0, "losses": {"loss": 1.0}},
    }
    assert events[1]["losses"] == {"loss": None} and events[1]["seconds"] == 2.0, "JSON has no number for it"
    assert memory.host_bytes("VmRSS") is None or all(isinstance(event["memory_bytes"], int) for event in events)


def test_windows_are_whole_and_samples_few(tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(windows(7, 3)) == [(0, 3), (3, 6), (6, 7)]
    monkeypatch.setattr(distil, "SAMPLES", 3)
    cost = run(job(tmp_path, steps=16), Ticks()).record["cost"]
    assert cost["steps_per_sample"] == 6 and cost["step_seconds"] == [1 / 6, 1 / 6, 1 / 4]


def test_steps_of_a_curve_and_of_events_hold_the_first_and_the_last() -> None:
    curves = {(0, 100): [], (1, 100): [100], (3, 100): [1, 10, 100], (5, 3): [1, 2, 3], (4, 1): [1]}
    assert {asked: curve_steps(*asked) for asked in curves} == curves
    assert log_steps(3) == [1, 2, 3] and log_steps(1) == [1]
    many = log_steps(100_000)
    assert many[:5] == [1, 2, 3, 4, 5] and many[-1] == 100_000 and 100 <= len(many) < 150
    assert max(after - before for before, after in itertools.pairwise(many)) <= 1011, "a hundredth of the steps"


def test_work_beside_a_cell_is_in_its_records(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    """Beside each phase whose seconds are measured, and between the two readings."""

    class Meter:
        def __init__(self, threads: int) -> None:
            self.before = len(counted)

        def stop(self) -> str:
            return f"{len(counted) - self.before} steps"

    for module in (cell, distil):
        monkeypatch.setattr(module, "LoadMeter", Meter)
    distilled = run(job(tmp_path, steps=7))
    preparing, distilling = str(distilled.record["cost"]["memory"]["busy"]).split("; ")
    assert distilling == "while distilling 7 steps" and accuracy(distilled)["busy"] == "0 steps"
    assert preparing.startswith("while preparing ") and preparing != "while preparing 0 steps"


def test_a_long_name_of_a_data_set_fits_into_that_of_the_folder(tmp_path: Path, dummy: type[Dummy]) -> None:
    made = job(tmp_path).distillation
    names = {dataclasses.replace(made, dataset="folder:" + letter * 250).name({}) for letter in "ab"}
    assert len(names) == 2 and all(len(name) < 255 - len(".earlier.tmp") for name in names)


def test_jobs_travel_as_json(tmp_path: Path) -> None:
    made = job(tmp_path, "frepo")
    assert Job.from_json(made.to_json()) == made and "\n" not in made.to_json()


# --- the process


def script(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Lets ``text`` run in place of the cell."""
    monkeypatch.setattr(local, "COMMAND", (sys.executable, "-c", text))


def launched(made: Job) -> Distilled:
    """Run the job in a process of its own, and read what was written."""
    assert list(local.launch([made])) == [made]
    return record.read(made.path)


KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (KILLED, "the process was ended by SIGKILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the process was ended by SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "the process was ended by SIGTERM"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGHUP)", "the process was ended by SIGHUP"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 3)", "the process was ended by signal 37"),
        ("raise SystemExit(3)", "the process ended with status 3; its messages are above"),
        ("pass", "the process ended without a record"),
    ],
)
def test_a_process_that_dies_has_a_record(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    script(monkeypatch, text)
    made = job(tmp_path)
    written = launched(made).record
    assert written["status"] == "error" and written["message"] == message and written["identity"] == made.identity
    assert run(made).record["status"] == "ok", "an error is no result"


def test_all_methods_of_a_process_that_dies_have_a_record(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, KILLED)
    made, other = (job(tmp_path, request=COST, seed=seed) for seed in (0, 1))
    together = dataclasses.replace(made, beside=(other,))
    launched(together)
    messages = {record.read(each.path).record["message"] for each in (made, other)}
    assert messages == {"the process was ended by SIGKILL"}


def test_a_process_that_dies_in_an_evaluation_leaves_the_distillation_as_it_is(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, more = (job(tmp_path, request={"networks_evaluated": networks}) for networks in (2, 3))
    before = run(dataclasses.replace(made, questions=()))
    with monkeypatch.context() as patch:
        script(patch, KILLED)
        killed = launched(made)
    assert killed.record == before.record and killed.set_path.exists()
    answer = accuracy(killed)
    assert answer["status"] == "error" and answer["message"] == "the process was ended by SIGKILL"
    assert answer["sets"][0]["sha256"] == before.record["artifact"]["sha256"] and answer["values"] == {}  # type: ignore[index]
    values = accuracy(run(made))["values"]
    script(monkeypatch, KILLED)
    assert accuracy(launched(more))["values"] == values, "what was there already is kept"
    assert accuracy(run(more))["values"]["accuracy"][:2] == values["accuracy"]


def test_the_kernel_killing_for_memory_is_out_of_memory(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, KILLED)
    kills = iter([4, 5])
    monkeypatch.setattr(local, "_out_of_memory_kills", lambda: next(kills))
    assert launched(job(tmp_path)).record["status"] == "oom"


def test_an_interrupt_ends_the_process(tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, "import time; time.sleep(600)")
    started = list[subprocess.Popen[bytes]]()
    waits = subprocess.Popen.wait

    def wait(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if not started:
            started.append(process)
            raise KeyboardInterrupt
        return waits(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        launched(made := job(tmp_path))
    assert started[0].returncode == -signal.SIGKILL and not made.path.exists()


def test_every_cell_starts_with_the_same_environment_but_for_what_the_user_has_set(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    expected = ENVIRONMENT | {"GOMP_SPINCOUNT": "7", "OMP_NUM_THREADS": "1"}
    script(monkeypatch, f"import os, sys; sys.exit(not {expected!r}.items() <= dict(os.environ).items())")
    failed = launched(job(tmp_path)).record
    assert failed["message"] == "the process ended without a record"  # which began as it should
    environment = failed["provenance"]["environment"]
    assert expected.items() <= environment.items() and "PATH" not in environment


def test_the_first_process_is_started_before_its_job_and_ended_where_there_is_none(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, "import sys; sys.exit(not sys.stdin.readline())")
    processes, start = list[Any](), local._start
    monkeypatch.setattr(local, "_start", lambda: processes.append(start()) or processes[-1])
    with local.started() as launch:
        assert len(processes) == 1
        jobs = [job(tmp_path), job(tmp_path, seed=1)]
        for count, made in enumerate(launch(jobs), 1):
            assert made == jobs[count - 1] and len(processes) == count
            assert record.load(made.path / RECORD)["message"] == "the process ended without a record"
    script(monkeypatch, "import time; time.sleep(600)")
    with pytest.raises(KeyboardInterrupt), local.started():
        raise KeyboardInterrupt
    assert [process.returncode for process in processes] == [0, 0, -signal.SIGKILL]


def test_a_cell_killed_midway_leaves_nothing_and_ends_with_its_parent(tmp_path: Path) -> None:
    """Its own process, for real: it ends when its input does, without a record."""
    made = job(tmp_path, "dm", steps=100_000)
    process = subprocess.Popen(local.COMMAND, stdin=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write(made.to_json().encode() + b"\n")
    assert b"100000 steps at" in process.stderr.readline()
    process.stdin.close()  # as when the parent is killed
    assert process.wait(60) == 1 and process.stderr.read() == b""
    process.stderr.close()
    assert {path.name for path in made.path.iterdir()} <= {EVENTS, CHECKPOINT}


def test_a_cell_whose_parent_died_at_once_ends_quietly() -> None:
    ran = subprocess.run(local.COMMAND, input=b"", capture_output=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, b"", b"")
