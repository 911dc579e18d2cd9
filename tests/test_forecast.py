"""The forecast: as the real thing, against committed values, on the command line; and the limits."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import training
from benchmarks.datasets import PUBLISHED, RawData, Shape, blank, stand_in
from benchmarks.errors import UserError
from harness import limits
from harness.launch import local
from harness.limits import MemoryIsFull, TimeIsUp, memory_limit, parse_bytes, parse_seconds, time_limit
from harness.measure import forecast, memory
from harness.measure.counters import Counters
from harness.measure.forecast import ACCELERATOR, CPU, count_blank
from harness.plan.jobs import Job
from harness.plan.pending import reason_to_distil
from harness.plan.planning import plan
from harness.plan.request import Request
from harness.records import record
from harness.records.record import CHECKPOINT, EVENTS, RECORD
from harness.run import main
from tests import counters
from tests.counters import cells, changes, count_real
from tests.dummies import Dummy, dummy
from tests.test_cell import job, run

__all__ = ["dummy"]  # a fixture
ROOT = Path(__file__).parents[1]
COMMITTED = json.loads(counters.COMMITTED.read_text())
SMALL = [name for name in cells() if name.endswith("8x8 ipc 1 width 16")]


@pytest.mark.parametrize("name", cells())
def test_the_counters_of_every_method_are_those_committed_and_forecast(name: str) -> None:
    """Where they change for a reason, ``python -m tests.counters`` writes them anew."""
    made, raw = cells()[name]
    real = count_real(made, raw)
    if name in SMALL:
        is_forecast(real, made, raw)
    if COMMITTED["torch"] != counters.version():
        pytest.skip(f"committed under torch {COMMITTED['torch']}, and operators differ from version to version")
    table = changes({name: COMMITTED["counters"].get(name, {})}, {name: real})
    header = f"{'':32} {'counter':16} {'committed':>16} {'now':>16} {'ratio':>8}"
    assert not table, "\n".join(["counters changed; if they should: python -m tests.counters", header, *table])


def is_forecast(real: Counters, made: Job, raw: RawData) -> None:
    fake = count_blank(made.distillation, made.config, raw, CPU)
    assert real.flops == fake.flops and real.parameters == fake.parameters
    assert real.saved_bytes == pytest.approx(fake.saved_bytes, rel=1e-3)
    assert real.peak_live_bytes == pytest.approx(fake.peak_live_bytes, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "network"), [("dm", "convnet_doubling"), ("frepo", "convnet"), ("mtt", "convnet_doubling")]
)
def test_what_is_forecast_is_what_is_counted_on_another_network(name: str, network: str) -> None:
    made, raw = cells()[f"{name} 1x8x8 ipc 1 width 16"]
    made = dataclasses.replace(made, distillation=dataclasses.replace(made.distillation, network=network))
    is_forecast(count_real(made, raw), made, raw)


def test_no_counters_are_committed_of_what_is_no_longer_there() -> None:
    assert COMMITTED["counters"].keys() == cells().keys()


def test_a_change_is_a_line_with_old_new_and_ratio() -> None:
    old = Counters(100.0, 10.0, 1000, 5)
    new = dataclasses.replace(old, flops=150.0)
    (line,) = changes({"a": dataclasses.asdict(old)}, {"a": new})
    assert line.split() == ["a", "flops", "100.0", "150.0", "1.5"]
    assert changes({"a": dataclasses.asdict(old)}, {}) == ["a: committed, but no longer there"]
    assert len(changes({}, {"a": new})) == 4


def test_a_gpu_is_forecast_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the real batch is one chunk, and optimisers have fused kernels."""
    monkeypatch.setattr(training, "CPU_CHUNK_BYTES", 64 * 16 * 8 * 8 * 4)  # 64 images, few beside this cell's batch
    made, raw = cells()["frepo 1x8x8 ipc 1 width 16"]
    on_cpu, on_gpu = (count_blank(made.distillation, made.config, raw, device) for device in (CPU, ACCELERATOR))
    assert on_gpu.flops == pytest.approx(on_cpu.flops) and on_gpu.parameters == on_cpu.parameters
    assert on_gpu.peak_live_bytes > 2 * on_cpu.peak_live_bytes


# --- the command line


def test_the_command_line_prints_a_table_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = Counters(2e9, 3 * 2**20, 5 * 2**20, 1234)
    monkeypatch.setattr(forecast, "_forecast", lambda asked, *_: known if asked.method == "dm" else refuse())
    output = tmp_path / "output"
    base = f"--methods dm --datasets cifar10,mnist --seeds 0,1 --device cuda --output {output} --forecast"

    def shown(extra: str) -> list[str]:
        assert main([*base.split(), *extra.split()]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]

    def refuse() -> Counters:
        raise UserError("a reason")

    header, cifar, _, mnist, without = shown("--memory-limit 800MiB")
    assert [word.strip() for word in cifar.split("|")[5:-1]] == ["1,234", "2", "3 MiB", "5 MiB", "704 MiB", "yes"]
    assert "random_real" in without and "a reason" in without and "mnist" in mnist and "parameters" in header
    assert shown("--memory-limit 700MiB")[1].split("|")[-2].strip() == "no"
    if not torch.cuda.is_available():
        assert shown("")[1].split("|")[-2].strip() == "?"
    assert not output.exists()


@pytest.mark.parametrize("options", ["--frepo.pool-size 2", "--mtt.syn-steps 1"])
def test_a_cost_cell_has_its_forecast_beside_what_was_counted(options: str, tmp_path: Path) -> None:
    method = options.partition(".")[0].removeprefix("--")
    request = {"budget": "cost", "options": {method: options.split()}}
    made = job(tmp_path, method, request=request, steps=2, seconds=None)
    cost = run(made).record["cost"]
    assert cost["forecast_bytes"] == cost["peak_live_bytes"] > 0  # type: ignore[operator]
    expected = forecast.forecast(made)
    assert cost["flops_per_step"] == expected.flops > 0
    assert cost["saved_bytes_per_step"] == expected.saved_bytes > 0


def test_a_method_that_asks_for_values_is_said_to_be_beyond_forecasting(dummy: type[Dummy]) -> None:
    fields: dict[str, Any] = {"budget": "smoke", "widths": (4,), "device": "cpu", "forecast": True}
    (made,) = plan(Request(methods=("dummy",), datasets=("mnist",), **fields))
    counted = forecast.forecast(made)
    # Images of 10 classes, and in a step the random ones and their multiple.
    assert counted.flops == 0 and counted.peak_live_bytes >= 3 * 10 * 28 * 28 * 4

    def step(self: Dummy) -> dict[str, Any]:
        return {"loss": torch.tensor(float(self.images.mean()))}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dummy, "step", step)
        longer = dataclasses.replace(made, distillation=dataclasses.replace(made.distillation, steps=99))
        with pytest.raises(UserError, match="dummy cannot be forecast"):
            forecast.forecast(longer)


def test_what_has_no_steps_is_said_to_have_none() -> None:
    wanted = Request(methods=("random_real",), datasets=("digits",), budget="smoke", device="cpu", ceiling=True)
    for made in plan(wanted):
        with pytest.raises(UserError, match=f"^{made.distillation.method} has no steps to forecast$"):
            forecast.forecast(made)


def test_published_shapes_take_no_memory_and_no_data() -> None:
    for name, shape in PUBLISHED.items():
        raw = stand_in(name)
        assert raw.train_images.shape == (shape.train, shape.channels, shape.size, shape.size)
        assert raw.train_images.untyped_storage().nbytes() == 1 and len(raw.class_names) == shape.classes
        assert int(raw.train_labels.bincount().min()) >= shape.train // shape.classes - 1
    assert stand_in("cub200", 64).test_images.shape[2:] == (64, 64)
    with pytest.raises(UserError, match="one image size"):
        stand_in("mnist", 32)
    assert blank("blank", Shape(1, 2, 2, 4, 2)).test_labels.tolist() == [0, 1]


# --- limits


def test_limits_are_read_as_they_are_written() -> None:
    sizes = {"24GiB": 24 * 2**30, "512 MiB": 2**29, "8GB": 8 * 10**9, "1.5kib": 1536, "77": 77, "9 B": 9}
    assert {text: parse_bytes(text) for text in sizes} == sizes
    times = {"90": 90.0, "90s": 90.0, "30min": 1800.0, "2h": 7200.0, "0.5 d": 43200.0, "1m": 60.0}
    assert {text: parse_seconds(text) for text in times} == times
    for wrong in ("", "GiB", "-1GiB", "0", "12 parsecs", "1e3", "nan"):
        for parse in (parse_bytes, parse_seconds):
            with pytest.raises(ValueError, match="expected something like"):
                parse(wrong)
    assert [limits.show_seconds(t) for t in (90, 300, 7200, 0.5)] == ["90 s", "5 min", "2 h", "0.5 s"]
    assert [limits.show_bytes(n) for n in (12, 1536, 2**30, 5 * 2**40)] == ["12 B", "1.5 KiB", "1 GiB", "5 TiB"]


def test_a_wrong_limit_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--methods", "dm", "--dataset", "digits", "--memory-limit", "much"]) == 2
    assert "--memory-limit: expected something like 24GiB, not 'much'" in capsys.readouterr().err


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "release", lambda: None)


def test_a_time_limit_leaves_what_was_measured(
    tmp_path: Path, dummy: type[Dummy], quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(tmp_path, request={"time_limit": 3600.0})
    assert "time_limit" not in "".join(made.distillation.to_dict())
    step = Dummy.step

    def late(method: Dummy) -> dict[str, Any]:
        if method.done == 2 and (made.path / EVENTS).exists():  # in the measured steps
            signal.setitimer(signal.ITIMER_REAL, 0)  # as it is when it has run down
            signal.raise_signal(signal.SIGALRM)
        return step(method)

    with monkeypatch.context() as patch:
        patch.setattr(Dummy, "step", late)
        distilled = run(made)
    written, cost = distilled.record, distilled.record["cost"]
    assert written["status"] == "timeout" and written["message"] == "the time limit of 1 h has passed"
    assert written["time_limit_seconds"] == 3600.0 and len(cost["step_seconds"]) == 1
    assert cost["memory"]["meter"] is not None and cost["peak_live_bytes"] is not None
    assert {path.name for path in made.path.iterdir()} == {RECORD, EVENTS, CHECKPOINT} and distilled.evaluations == ()
    longer = run(dataclasses.replace(made, time_limit_seconds=7200.0)).record
    assert longer["status"] == "ok" and longer["time_limit_seconds"] is None, "more time goes on"
    assert [segment["steps"] for segment in longer["segments"]] == [3, 1] and not (made.path / CHECKPOINT).exists()
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL and signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_time_limit_that_does_not_strike_leaves_no_trace(tmp_path: Path, dummy: type[Dummy], quick: None) -> None:
    limited, free = job(tmp_path, request={"time_limit": 3600.0}), job(tmp_path)
    distilled = run(limited)
    assert distilled.record["status"] == "ok" and distilled.record["time_limit_seconds"] is None
    assert run(free) == distilled and limited.folder == free.folder


def test_a_timeout_is_a_result_until_there_is_more_time(tmp_path: Path, dummy: type[Dummy]) -> None:
    made = dataclasses.replace(job(tmp_path), time_limit_seconds=3600.0)
    written = record.new(made.identity, made.distillation.to_dict(), made.config, made.asked, {})
    written["status"], written["time_limit_seconds"] = "timeout", 3600.0
    for limit, again in ((3600.0, False), (1800.0, False), (7200.0, True), (None, True)):
        reason = reason_to_distil(dataclasses.replace(made, time_limit_seconds=limit), written)
        assert reason == ("" if again else None), limit


def test_the_launcher_ends_a_cell_that_does_not_keep_its_time(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "COMMAND", ("sleep", "60"))
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.0)
    (made,) = local.launch([job(tmp_path, request={"time_limit": 1e-3})])
    written = record.load(made.path / RECORD)
    assert written["status"] == "timeout" and written["time_limit_seconds"] == 1e-3


@pytest.mark.skipif(memory.host_bytes("VmRSS") is None, reason="the system does not tell the resident set")
def test_memory_above_the_limit_is_out_of_memory(
    tmp_path: Path, dummy: type[Dummy], quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, made = job(tmp_path), job(tmp_path, request={"memory_limit": 64 * 2**20})
    assert made.distillation.memory_limit_bytes == 2**26 and made.folder != free.folder

    step, kept = Dummy.step, list[bytearray]()

    def hungry(self: Dummy) -> dict[str, Any]:
        if not kept:
            kept.append(bytearray(b"x") * (256 * 2**20))
            while True:  # the watcher sees it
                assert kept
        return step(self)  # for the forecast

    with monkeypatch.context() as patch:
        patch.setattr(Dummy, "step", hungry)
        written = run(made).record
    assert written["status"] == "oom" and written["message"] == "more than the memory limit of 64 MiB"
    assert written["cost"]["forecast_bytes"] is not None, "what it would have needed"
    assert run(dataclasses.replace(made, folder=str(tmp_path / "again"))).record["status"] == "ok"
    assert signal.getsignal(signal.SIGVTALRM) == signal.SIG_DFL


def test_a_peak_that_nobody_saw_in_time_is_out_of_memory_too(
    tmp_path: Path, dummy: type[Dummy], quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = memory.MemoryMeter.stop

    def high(self: memory.MemoryMeter) -> Any:
        return {**stop(self), "host_rss_bytes": 2**30}

    monkeypatch.setattr(memory.MemoryMeter, "stop", high)
    written = run(job(tmp_path, request={"memory_limit": 2**29})).record
    assert written["status"] == "oom" and written["message"] == "1 GiB, more than the memory limit of 512 MiB"


def test_a_gpu_is_limited_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    fractions: list[float] = []
    device = torch.device("cuda")

    class Properties:
        total_memory = 40 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: fractions.append(share))
    with memory_limit(10 * 2**30, device):
        assert fractions == [0.25]
    with memory_limit(80 * 2**30, device):
        pass
    assert fractions == [0.25, 1.0, 1.0, 1.0]


def test_what_is_caught_on_the_way_does_not_swallow_a_limit() -> None:
    assert not issubclass(TimeIsUp, Exception) and not issubclass(MemoryIsFull, Exception)
    with pytest.raises(TimeIsUp, match=r"the time limit of 0\.001 s has passed"), time_limit(1e-3):
        try:
            while True:
                pass
        except Exception:
            pytest.fail("the limit was swallowed")


@pytest.mark.skipif(memory.host_bytes("VmRSS") is None, reason="the system does not tell the resident set")
def test_a_signal_that_somebody_else_sent_is_no_limit(quick: None) -> None:
    """It does what it would do without a limit, which for a cell's process is to end it."""
    no_limit(signal.SIGALRM, lambda: time_limit(3600))
    no_limit(signal.SIGVTALRM, lambda: memory_limit(2**50, torch.device("cpu")))
    code = (
        "import os, signal, sys, torch\nfrom harness.limits import memory_limit, time_limit\n"
        "for number in (signal.SIGALRM, signal.SIGVTALRM):\n"
        "    if not (child := os.fork()):\n"
        "        with time_limit(3600), memory_limit(2**50, torch.device('cpu')):\n"
        "            signal.raise_signal(number)\n"
        "        os._exit(0)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def no_limit(number: signal.Signals, limit: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    arrived: list[int] = []
    before = signal.signal(number, lambda sent, _: arrived.append(sent))
    try:
        with limit():
            signal.raise_signal(number)
        assert arrived == [number]
        signal.signal(number, signal.SIG_IGN)
        with limit():
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)
