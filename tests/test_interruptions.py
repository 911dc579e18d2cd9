"""Moments that are hard to hit: the end of a cell, signals that are swallowed, limits beside copies, networks kept."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import alive, checkpoint, limits, stopping
from harness.evaluations import membership_inference, training
from harness.evaluations.base import Evaluation
from harness.evaluations.cross_architecture import CrossArchitecture, CrossArchitectureConfig
from harness.evaluations.membership_inference import MembershipInference, MembershipInferenceConfig
from harness.evaluations.robust_scores import RobustScores, RobustScoresConfig
from harness.launch import local
from harness.plan.pending import existing
from harness.records import artifact, record
from harness.records.files import steps_in
from harness.records.record import CHECKPOINT, SET
from methods.base import Synthetic
from tests.builders import quick, small
from tests.dummies import Dummy, dummy
from tests.test_cell import job, run
from tests.test_checkpoint import alone

__all__ = ["dummy", "quick"]  # fixtures
pytestmark = pytest.mark.usefixtures("quick", "default_signals")


# --- the end of a cell


@pytest.fixture
def waits() -> Iterator[None]:
    """Nothing waits afterwards, as in a cell, whose process ends."""
    yield
    with contextlib.suppress(stopping.Stopped):
        stopping.raise_waiting()


@pytest.mark.usefixtures("waits")
def test_a_signal_after_the_last_step_throws_no_set_away(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = artifact.save

    def asked(*arguments: Any, **options: Any) -> str:
        stopping.arrive(stopping.Stopped(signal.SIGTERM))
        return save(*arguments, **options)

    monkeypatch.setattr(artifact, "save", asked)
    made = job(tmp_path)
    with pytest.raises(stopping.Stopped):  # before the question is asked
        run(made)
    written = record.read(made.path)
    assert written.record["status"] == "ok" and (made.path / SET).exists() and not written.evaluations


@pytest.mark.usefixtures("waits")
def test_a_signal_in_the_last_step_lets_the_cell_end(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = alone(job(tmp_path, steps=4))
    step = Dummy.step

    def last(method: Dummy) -> dict[str, torch.Tensor]:
        if method.done == 3 and steps_in(made.path / CHECKPOINT):
            stopping.arrive(stopping.Stopped(signal.SIGTERM))
        return step(method)

    monkeypatch.setattr(Dummy, "step", last)
    assert run(made).record["status"] == "ok"


def test_a_checkpoint_beside_a_result_is_left_over(tmp_path: Path, dummy: type[Dummy]) -> None:
    made = alone(job(tmp_path))
    run(made)
    (made.path / CHECKPOINT).mkdir()  # as where a process is killed between the record and the removal
    assert existing(made) is not None and not (made.path / CHECKPOINT).exists()


def test_what_a_killed_process_left_of_a_checkpoint_goes_with_the_next(tmp_path: Path, dummy: type[Dummy]) -> None:
    made = alone(job(tmp_path, steps=3))
    (made.path / CHECKPOINT).mkdir(parents=True)
    torn = made.path / CHECKPOINT / ".step-2-0123.safetensors.tmp"
    torn.write_bytes(b"torn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.distil._Distilling._steps", lambda *_: pytest.fail("enough"))
        with pytest.raises(pytest.fail.Exception):
            run(made)
    assert steps_in(made.path / CHECKPOINT) == [0] and not torn.exists()


def test_a_window_that_lasts_longer_than_the_interval_is_saved_inside(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.distil.SAMPLES", 1)  # one window for all steps
    saved, write = list[int](), checkpoint.Checkpoints.write

    def counted(self: Any, position: Any, *others: Any) -> None:
        saved.append(position.done)
        write(self, position, *others)

    monkeypatch.setattr(checkpoint.Checkpoints, "write", counted)
    written = run(dataclasses.replace(alone(job(tmp_path, steps=4)), checkpoint_seconds=0.0)).record
    assert saved[1:] == [0, 1, 2, 3] and len(written["cost"]["step_seconds"]) == 1


# --- signals


def test_a_reason_that_a_callback_swallows_comes_back() -> None:
    with pytest.raises(stopping.Stopped), stopping.released(), contextlib.suppress(BaseException):
        stopping.arrive(stopping.Stopped(signal.SIGTERM))
    assert not stopping.waiting()
    with pytest.raises(stopping.Stopped), stopping.released():
        stopping.arrive(stopping.Stopped(signal.SIGTERM))
    assert not stopping.waiting(), "it has been raised"


def test_the_memory_limit_rests_while_the_state_is_copied() -> None:
    with limits.memory_limit(2**24, torch.device("cpu")), limits.unwatched():
        copy = torch.ones(2**24)  # four times the limit
        assert copy.sum() == 2**24
        del copy
    with pytest.raises(limits.MemoryIsFull), limits.memory_limit(2**24, torch.device("cpu")):
        copies, deadline = [torch.ones(2**24)], time.monotonic() + 60
        while time.monotonic() < deadline:
            if len(copies) < 50:  # the system may take other pages of this process away meanwhile
                copies.append(torch.ones(2**22))
            time.sleep(0.01)


# --- networks that were trained


class Interrupted(BaseException):
    pass


def answered(make: Callable[[], Evaluation], monkeypatch: pytest.MonkeyPatch) -> tuple[int, Mapping[str, Any]]:
    """The networks that ``make()`` trains, and its values: interrupted before each of them, and undisturbed."""
    benchmark, trained = small(), [0, 0]
    images, labels = benchmark.task.images[:20], benchmark.task.labels[:20]
    synthetic = Synthetic(images, torch.nn.functional.one_hot(labels, 10).float(), "probability", torch.tensor(0.01))
    train = training.train_together

    def counted(networks: Any, *arguments: Any, **options: Any) -> Any:
        if trained[1] == 0:
            raise Interrupted
        trained[0], trained[1] = trained[0] + 1, trained[1] - 1
        return train(networks, *arguments, **options)

    monkeypatch.setattr(training, "train_together", counted)

    def ask(parts: Any, begin: int = 0) -> Any:
        evaluation = make()
        evaluation.parts = parts
        evaluation.keep = lambda values: kept.append({name: list(own) for name, own in values.items()})
        return evaluation.run([synthetic], [benchmark], 0, lambda done, total: None, begin)

    kept: list[dict[str, list[float]]] = []
    trained[1] = 1000
    expected, count = ask({}), trained[0]
    trained[:] = [0, 0]
    parts: dict[str, Any] = {}
    before: dict[str, list[float]] = {}
    while True:
        kept.clear()
        try:
            values = ask(parts, max(map(len, before.values()), default=0))
            break
        except Interrupted:
            for name, own in kept[-1].items() if kept else ():
                before.setdefault(name, []).extend(own)
            trained[1] += 2 if isinstance(make(), RobustScores) else 1  # a network and its twin
    together = {name: [*before.get(name, []), *own] for name, own in values.items()}
    assert together == expected
    assert trained[0] <= count + 1, "a network was trained again"
    return count, together


def test_networks_are_tested_with_and_without_each_part_together(monkeypatch: pytest.MonkeyPatch) -> None:
    count, values = answered(
        lambda: RobustScores(RobustScoresConfig(protocol="vico", networks=3, steps=3, networks_at_once=1)), monkeypatch
    )
    assert count == 6 and {len(own) for own in values.values()} == {3}


def test_step_sizes_that_were_tried_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CrossArchitectureConfig(
        protocol="vico", networks=2, steps=3, architectures=("own",), lr_search=(0.5, 1.0, 2.0), networks_at_once=1
    )
    assert answered(lambda: CrossArchitecture(config), monkeypatch)[0] == 5


def test_attacked_networks_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_inference, "_attacks", lambda *given: {"trained_auc": sum(given[-1]) / 10})
    config = MembershipInferenceConfig(lengths=(2, 4), repeats=3)
    assert answered(lambda: MembershipInference(config), monkeypatch)[0] == 3


def test_results_of_other_sets_and_damaged_ones_are_not_used(tmp_path: Path) -> None:
    parts = checkpoint.Parts(tmp_path / "a.parts", {"sets": ["x"]})
    parts["one"], parts["two"] = {"t": torch.tensor(1.5)}, {"t": torch.tensor(2.5)}
    path = next((tmp_path / "a.parts").glob("two-*"))
    path.write_bytes(path.read_bytes()[:-1])
    again = checkpoint.Parts(tmp_path / "a.parts", {"sets": ["x"]})
    assert set(again) == {"one"} and again["one"]["t"] == 1.5
    assert not checkpoint.Parts(tmp_path / "a.parts", {"sets": ["y"]})


# --- signs of life

CELL = """
import os, sys, time
sys.stdin.readline()
from harness import alive
for _ in range({signs}):
    alive._last = -9
    alive.sign()
    time.sleep(0.3)
{then}
"""


@pytest.mark.parametrize("hangs", [True, False])
def test_a_cell_without_a_sign_of_life_is_killed_and_not_done(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr(alive, "PERIOD", 0.1)
    code = CELL.format(signs=1 if hangs else 10, then="time.sleep(600)" if hangs else "raise SystemExit(3)")
    monkeypatch.setattr(local, "COMMAND", (sys.executable, "-c", code))
    made = dataclasses.replace(job(tmp_path), cell_timeout_seconds=1.0 if hangs else 60.0)
    assert list(local.launch([made])) == [made]
    written = record.read(made.path).record
    assert written["status"] == "error"
    silent = "no sign of life for 1 s (--cell-timeout): the process was killed"
    assert written["message"] == (silent if hangs else "the process ended with status 3; its messages are above")


def test_a_process_that_was_suspended_itself_sees_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(alive.time, "monotonic", lambda: now[0])
    signs = alive.Signs()
    for _ in range(3):
        now[0] += 1.0
        signs.look()
    assert signs.silent == 3.0
    now[0] += 1000.0
    signs.look()
    assert signs.silent == 3.0 + 2 * alive.PERIOD
    monkeypatch.setenv(alive.VARIABLE, str(signs.descriptor))
    monkeypatch.setattr(alive, "_last", 0.0)
    os.utime(signs.descriptor, (0, 0))
    signs.look()
    alive.sign()
    signs.look()
    assert signs.silent == 0.0
    signs.close()


def test_what_a_method_started_ends_with_its_cell(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "child"
    code = f"""
import os, sys, time
sys.stdin.readline()
if os.fork() == 0:
    open({str(path)!r}, "w").write(str(os.getpid()))
    time.sleep(600)
while not os.path.exists({str(path)!r}) or not open({str(path)!r}).read():
    time.sleep(0.01)
"""
    monkeypatch.setattr(local, "COMMAND", (sys.executable, "-c", code))
    list(local.launch([job(tmp_path)]))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:  # a killed process whose parent is gone is there until somebody collects it
            if "\nState:\tZ" in Path(f"/proc/{path.read_text()}/status").read_text():
                break
        except OSError:
            break
        time.sleep(0.01)
    else:
        pytest.fail("it runs on")
