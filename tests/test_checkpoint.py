"""Cells that are interrupted and go on: the same bytes, one record of all, and what is done where that cannot be."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import methods
from harness import cell, checkpoint, stopping
from harness.checkpoint import decoded, encoded, method_digest
from harness.distil import LEAST_CYCLES
from harness.evaluations.accuracy import Accuracy
from harness.launch import local
from harness.measure.energy import EnergyMeter
from harness.measure.memory import MemoryMeter, merged
from harness.plan.jobs import Job
from harness.records import provenance, record
from harness.records.files import steps_in
from harness.records.record import CHECKPOINT, EVENTS, RECORD, SET, Memory
from harness.run import main
from methods.base import Method
from tests.builders import in_process, quick
from tests.dummies import Dummy, dummy
from tests.test_cell import COST, accuracy, job, run

__all__ = ["dummy", "quick"]  # fixtures
pytestmark = pytest.mark.usefixtures("quick", "default_signals")
ITERATIVE = [name for name in methods.names() if methods.get(name).iterative]


@contextlib.contextmanager
def stopped_in(steps: int) -> Iterator[None]:
    """The cell ends after so many measured steps, as by a signal that arrives in the last of them."""
    with pytest.raises(stopping.Stopped), asked_to_stop_in(steps):
        yield


@contextlib.contextmanager
def asked_to_stop_in(steps: int) -> Iterator[None]:
    """Ask the cell to end in so many measured steps, as a signal that arrives in a step does."""
    write = checkpoint.Checkpoints.write

    def first(self: Any, position: Any, method: Method, record: Any) -> None:
        write(self, position, method, record)
        step, taken = method.step, [0]

        def counted() -> dict[str, torch.Tensor]:
            taken[0] += 1
            if taken[0] == steps:
                stopping.arrive(stopping.Stopped(signal.SIGTERM))
            return step()

        if taken[0] == 0:
            method.step = counted  # type: ignore[method-assign]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "write", first)
        yield


def interrupt(made: Job, *steps: int) -> None:
    """Run ``made`` and stop it, once after each number of ``steps``."""
    for each in steps:
        with stopped_in(each):
            run(made)


def alone(made: Job) -> Job:
    """The same without questions."""
    return dataclasses.replace(made, questions=())


def losses(made: Job) -> list[tuple[int, Mapping[str, float]]]:
    events = [json.loads(line) for line in (made.path / EVENTS).read_text().splitlines()]
    return [(event["step"], event["losses"]) for event in events]


@pytest.mark.parametrize("method", [name for name in ITERATIVE if name != "dc"])  # DSA keeps the same state
def test_an_interrupted_cell_gives_the_same_bytes(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.distil.WARMUP_CYCLES", 1)
    monkeypatch.setattr("harness.distil._Distilling.count", lambda self: None)
    config = {"outer_loop": 3, "inner_loop": 2} if method == "dsa" else {}
    steps, at = (40, 25) if method == "frepo" else (5, 2)  # until networks of the pool are trained again
    straight, interrupted = (alone(job(tmp_path / name, method, config=config, steps=steps)) for name in "ab")
    expected = run(straight).record
    interrupt(interrupted, at)  # of DSA inside a cycle
    assert not (interrupted.path / RECORD).exists() and sorted(steps_in(interrupted.path / CHECKPOINT)) == [0, at]
    written = run(interrupted).record
    assert (interrupted.path / SET).read_bytes() == (straight.path / SET).read_bytes()
    assert losses(interrupted) == losses(straight)
    assert [segment["steps"] for segment in written["segments"]] == [at, steps - at]
    assert math.isclose(sum(each["seconds"] for each in written["segments"]), written["cost"]["distill_seconds"] or 0)
    assert len(written["cost"]["step_seconds"]) == len(expected["cost"]["step_seconds"])
    assert not (interrupted.path / CHECKPOINT).exists(), "the record is final"


def test_seconds_come_from_all_segments(tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch) -> None:
    """Step n takes n seconds."""
    now, step = [0.0], Dummy.step

    def timed(method: Dummy) -> dict[str, torch.Tensor]:
        now[0] += 1.0 + method.done
        return step(method)

    monkeypatch.setattr(Dummy, "step", timed)
    made = alone(job(tmp_path, request={"curve_points": 3}, steps=8))
    with stopped_in(3):
        cell.run(made, lambda: now[0])
    assert sorted(steps_in(made.path / CHECKPOINT)) == [0, 3]
    cell.run(made, lambda: now[0])
    written = record.load(made.path / RECORD)
    assert written["cost"]["distill_seconds"] == sum(range(1, 9))
    assert written["cost"]["step_seconds"] == [1.5, 3.5, 5.5, 7.5], "also that of the window that was interrupted"
    assert [segment["seconds"] for segment in written["segments"]] == [6.0, 30.0]
    assert [(each["step"], each["seconds"]) for each in written["snapshots"]] == [(2, 3.0), (4, 10.0)]


def test_a_time_budget_counts_all_segments(tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch) -> None:
    made = alone(job(tmp_path, steps=None, seconds=1e-9))
    interrupt(made, 3)
    monkeypatch.setattr("harness.distil.LEAST_CYCLES", 1000)  # another estimate, as of a faster machine
    assert run(made).record["steps"] == LEAST_CYCLES * Dummy.steps_per_cycle


def test_a_killed_cell_loses_what_came_after_its_last_checkpoint(tmp_path: Path, dummy: type[Dummy]) -> None:
    straight, killed = (alone(job(tmp_path / name, steps=9)) for name in "ab")
    expected = run(straight).record
    killed = dataclasses.replace(killed, checkpoint_seconds=0.0)  # after every step, also inside a window of two

    class Killed(BaseException):
        pass

    step = Dummy.step

    def dies(method: Dummy) -> dict[str, torch.Tensor]:
        if method.done == 7 and (killed.path / EVENTS).exists() and steps_in(killed.path / CHECKPOINT):
            with open(killed.path / EVENTS, "a") as events:
                events.write('{"step": 8, "lo')
            raise Killed
        return step(method)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Dummy, "step", dies)
        run(killed)
    assert sorted(steps_in(killed.path / CHECKPOINT)) == [6, 7], "the last two"
    for path in (killed.path / CHECKPOINT).glob("step-7-*"):  # as a power cut leaves it
        path.write_bytes(path.read_bytes()[:-1])
    written = run(killed).record
    assert [segment["steps"] for segment in written["segments"]] == [6, 3]
    for name in ("prepare_cached", "steps_per_sample", "flops_per_step", "peak_live_bytes", "parameters"):
        assert written["cost"][name] == expected["cost"][name] is not None, name  # type: ignore[literal-required]
    assert (killed.path / SET).read_bytes() == (straight.path / SET).read_bytes() and losses(killed) == losses(straight)


# --- what is not gone on from


def _other_code(made: Job, patch: pytest.MonkeyPatch) -> Job:
    patch.setattr("harness.distil.method_digest", lambda method: "another")
    return made


def _other_version(made: Job, patch: pytest.MonkeyPatch) -> Job:
    patch.setattr("harness.distil.PROTOCOL_VERSION", "another")
    return made


def _other_points(made: Job, patch: pytest.MonkeyPatch) -> Job:
    return dataclasses.replace(made, curve_points=4)


def _other_configuration(made: Job, patch: pytest.MonkeyPatch) -> Job:
    return dataclasses.replace(made, config={**made.config, "lr": 0.2})


def _no_snapshot(made: Job, patch: pytest.MonkeyPatch) -> Job:
    (made.path / "snapshots" / "step-2.safetensors").unlink()
    return made


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_other_code, "it is of another method code"),
        (_other_version, "it is of another version"),
        (_other_points, "it is of another number of curve points"),
        (_other_configuration, "it is of another configuration"),
        (_no_snapshot, "its set step-2.safetensors is missing"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_kept(
    tmp_path: Path,
    dummy: type[Dummy],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Job, pytest.MonkeyPatch], Job],
    reason: str,
) -> None:
    made = alone(job(tmp_path, request={"curve_points": 3}, steps=8))
    interrupt(made, 3)
    capsys.readouterr()
    other = change(made, monkeypatch)
    written = run(other).record
    assert f"is not used, because {reason}; kept as checkpoint.refused" in capsys.readouterr().err
    assert [segment["steps"] for segment in written["segments"]] == [8] and written["status"] == "ok"
    assert sorted(steps_in(made.path / "checkpoint.refused")) == [0, 3] and not (made.path / CHECKPOINT).exists()


def test_the_code_of_a_method_is_all_that_it_imports_of_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    digests = {name: method_digest(methods.get(name)) for name in ITERATIVE}
    assert len(set(digests.values())) == len(digests)
    source = inspect.getsource

    def edited(module: Any) -> str:
        return source(module) + ("# edited" if module.__name__ == "methods._unroll" else "")

    monkeypatch.setattr(inspect, "getsource", edited)
    moved = {name for name in ITERATIVE if method_digest(methods.get(name)) != digests[name]}
    assert moved == {"mtt", "bptt", "rat_bptt", "datm", "ncfm"}


@pytest.mark.parametrize("cost_only", [False, True])
def test_on_another_machine_a_set_goes_on_and_says_so_but_not_a_cost(
    tmp_path: Path,
    dummy: type[Dummy],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cost_only: bool,
) -> None:
    made = alone(job(tmp_path, request=COST if cost_only else None, steps=8, seconds=None))
    interrupt(made, 5)
    monkeypatch.setattr(provenance, "device_name", lambda device: "another processor")
    capsys.readouterr()
    written, said = run(made).record, capsys.readouterr().err
    if cost_only:
        assert "its seconds are of another machine; kept as checkpoint.refused" in said
        assert [segment["steps"] for segment in written["segments"]] == [8]
    else:
        assert "the set may differ by rounding" in said and "goes on after step 5 of 8 steps" in said
        assert [segment["steps"] for segment in written["segments"]] == [5, 3]
        assert written["segments"][1]["device"] == "another processor" == written["provenance"]["device"]
        assert len(written["cost"]["step_seconds"]) == 1, "windows of this machine alone that are whole cycles"
        assert written["cost"]["joules_per_step"] is None


def test_a_method_whose_state_cannot_be_saved_runs_on(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Dummy, "state_dict", lambda self: {"task": self.task})
    assert run(alone(job(tmp_path))).record["status"] == "ok"
    line = "is not saved, TypeError: a state holds tensors, numbers, text and collections of them, and not Task"
    assert line in capsys.readouterr().err


def test_a_state_that_cannot_be_loaded_is_put_aside(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = alone(job(tmp_path))
    interrupt(made, 3)
    with monkeypatch.context() as patch:
        patch.setattr(Dummy, "load_state_dict", lambda self, state: state["nothing"])
        assert run(made).record["status"] == "error"
    assert run(made).record["status"] == "ok" and steps_in(made.path / "checkpoint.refused")


def test_a_state_comes_back_as_it_was() -> None:
    shared, values = torch.arange(6.0).reshape(2, 3).T, {"b": (1, 0.1, math.inf, "text")}
    state = {"a": [shared, shared, None, True], 3: values, "empty": {}, "0-d": torch.tensor(2)}
    tensors: dict[str, torch.Tensor] = {}
    told = json.loads(json.dumps(encoded(state, tensors)))
    back = decoded(told, tensors, torch.device("cpu"))
    assert torch.equal(back["a"][0], shared) and back["a"][0].stride() == shared.stride() == (1, 3)
    assert torch.equal(back["a"][1], shared) and back["0-d"] == 2
    assert back["a"][2:] == [None, True] and back[3] == values and back["empty"] == {}
    with pytest.raises(TypeError, match="and not object"):
        encoded([object()], {})


# --- the values of an evaluation, its meters, its record


def test_networks_that_were_tested_are_not_trained_again(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, straight = (job(tmp_path / name, request={"networks_evaluated": 3}) for name in "ab")
    expected, test, tested = accuracy(run(straight)), Accuracy.test, list[int]()

    def counted(*arguments: Any) -> Mapping[str, float]:
        tested.append(1)
        if len(tested) == 3:
            raise stopping.Stopped(signal.SIGTERM)
        return test(*arguments)

    monkeypatch.setattr(Accuracy, "test", counted)
    with pytest.raises(stopping.Stopped):
        run(made)
    half = accuracy(record.read(made.path))
    assert half["status"] == "ok" and half["config"]["networks"] == 2 == len(half["values"]["accuracy"])
    answer = accuracy(run(made))
    assert len(tested) == 4 and answer["values"] == expected["values"] and answer["config"] == expected["config"]


def test_other_cells_on_the_device_are_told_wherever_they_were(tmp_path: Path, dummy: type[Dummy]) -> None:
    made = job(tmp_path, steps=8, seconds=None)
    interrupt(dataclasses.replace(made, slots=2), 3)
    busy = run(dataclasses.replace(made, slots=3)).record["cost"]["memory"]["busy"] or ""
    assert [f"up to {others} other cell" in busy for others in (1, 2)] == [True, True]


def test_peaks_and_energy_are_those_of_all_stretches() -> None:
    nothing = record.new("", {}, {}, {}, {})["cost"]["memory"]
    first: Memory = {**nothing, "meter": "torch", "allocated_bytes": 5, "reserved_bytes": 9, "busy": "a"}
    second: Memory = {**nothing, "meter": "torch", "allocated_bytes": 7, "reserved_bytes": None, "busy": "a; b"}
    both = merged(merged({**nothing, "busy": "before"}, first), second)
    assert (both["allocated_bytes"], both["reserved_bytes"], both["busy"]) == (7, None, "before; a; b")

    class Counter:
        readings = iter([100.0, 130.0, 500.0, 510.0])

        def joules(self) -> float:
            return next(self.readings)

    meter = EnergyMeter(Counter(), 2.0)  # type: ignore[arg-type]
    for _ in range(2):
        meter.start()
        meter.stop()
    assert meter.per_step(2, 10.0) == 21.0


def test_the_copy_that_is_written_is_no_part_of_the_peak(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, start, stop, write = list[str](), MemoryMeter.start, MemoryMeter.stop, checkpoint.Checkpoints.write

    def said(word: str, call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: (calls.append(word), call(*arguments))[1]

    monkeypatch.setattr(MemoryMeter, "start", said("start", start))
    monkeypatch.setattr(MemoryMeter, "stop", said("stop", stop))
    monkeypatch.setattr(checkpoint.Checkpoints, "write", said("write", write))
    monkeypatch.setattr(checkpoint.Checkpoints, "due", lambda self: len(calls) == 2)
    run(alone(job(tmp_path, steps=6)))
    assert calls == ["write", "start", "stop", "write", "start", "stop"]


def test_records_without_segments_can_be_read(tmp_path: Path, dummy: type[Dummy]) -> None:
    made = alone(job(tmp_path))
    written = run(made).record
    del written["segments"]
    record.write(written, made.path / RECORD)
    assert "segments" not in record.load(made.path / RECORD)
    record.write({**written, "segments": [{"steps": 1}]}, made.path / RECORD)  # type: ignore[typeddict-item]
    with pytest.raises(Exception, match=r"segments\.0\.started is missing"):
        record.load(made.path / RECORD)


# --- signals


def test_a_reason_to_end_waits_only_where_the_work_is_held() -> None:
    reached = []
    with pytest.raises(stopping.Stopped), stopping.held():
        stopping.arrive(stopping.Stopped())
        stopping.arrive(KeyboardInterrupt())
        reached.append("held")
    assert reached == ["held"] and not stopping.waiting()
    with stopping.held(), pytest.raises(stopping.Stopped):
        stopping.arrive(stopping.Stopped())
        with stopping.released():
            pytest.fail("it waited")
    with pytest.raises(stopping.Stopped):
        stopping.arrive(stopping.Stopped())


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_signals_of_one_request_count_once(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], list[Any]()
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    before = signal.getsignal(number)
    with stopping.handling(calls.append, lambda: calls.append("again")):
        signal.raise_signal(number)
        signal.raise_signal(number)  # from the scheduler and from the parent
        signal.raise_signal(signal.SIGTERM)
        assert calls == [number]
        now[0] = 2 * stopping.AGAIN_SECONDS
        signal.raise_signal(number)
    assert calls == [number, "again"] and signal.getsignal(number) is before


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.handling(lambda number: pytest.fail("it was ignored"), lambda: None):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


CELL = """
import signal, sys, time
def end(number, _):
    print(signal.Signals(number).name, file=open({path!r}, "a"))
    sys.exit({code})
signal.signal(signal.SIGTERM, end)
sys.stdin.readline()
open({path!r}, "a").close()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_parent_passes_signals_on_and_writes_no_record(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "told"
    code = CELL.format(path=str(path), code=stopping.NOT_DONE)
    monkeypatch.setattr(local, "COMMAND", (sys.executable, "-c", code))

    def ask() -> None:
        while not path.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=ask)
    thread.start()
    with pytest.raises(stopping.Stopped) as error:
        list(local.launch([made := job(tmp_path), job(tmp_path, seed=1)]))
    thread.join()
    assert error.value.number == number and path.read_text() == "SIGTERM\n" and not made.path.exists()


def test_a_cell_that_was_signalled_alone_is_not_done(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "COMMAND", (sys.executable, "-c", f"raise SystemExit({stopping.NOT_DONE})"))
    with pytest.raises(stopping.Stopped, match="stopped"):
        list(local.launch([made := job(tmp_path)]))
    assert not made.path.exists()


def test_a_run_says_from_where_the_same_command_goes_on(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]
) -> None:
    def launcher(jobs: Iterable[Job]) -> Generator[Job, None, None]:
        for each in jobs:
            with stopped_in(3):
                run(each)
            raise stopping.Stopped(signal.SIGTERM)
            yield each

    flags = f"--methods dummy --no-random --dataset digits --budget smoke --width 4 --device cpu --output {tmp_path}"
    arguments = [*flags.split(), "--evaluate-steps", "3"]
    assert main(arguments, launcher=launcher) == stopping.NOT_DONE
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("stopped by SIGTERM; 0 of 1 cells are done") and last.endswith(
        "the same command goes on with [1/1] dummy on digits, ipc 1, width 4, seed 0, after its step 3"
    )
    assert main(arguments, launcher=in_process) == 0
    assert "goes on after step 3 of 4 steps" in capsys.readouterr().err


def test_a_cell_saves_its_state_at_a_signal_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own process, for real."""
    made = alone(job(tmp_path, "frepo", steps=1000))
    process = subprocess.Popen(local.COMMAND, stdin=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write(made.to_json().encode() + b"\n")
    events = made.path / EVENTS
    while not (events.exists() and events.read_bytes()) and process.poll() is None:
        time.sleep(0.01)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        process.send_signal(number)
    assert process.wait(60) == stopping.NOT_DONE
    assert [line.split(b" at ")[0] for line in process.stderr.read().splitlines()] == [b"  1000 steps"]
    process.stdin.close()
    process.stderr.close()
    (_, before) = sorted(steps_in(made.path / CHECKPOINT))
    assert before > 0 and not (made.path / RECORD).exists()
    interrupt(made, 2)
    assert f"goes on after step {before} of 1000 steps" in capsys.readouterr().err
    assert max(steps_in(made.path / CHECKPOINT)) == before + 2
