"""The clock and the memory meter."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from harness.measure import check, load, memory
from harness.measure.clock import Clock
from harness.measure.load import LoadMeter, Reading
from harness.measure.memory import MemoryMeter, Sampler
from harness.records.record import Memory, new

CPU = torch.device("cpu")
MIB = 2**20


def test_the_clock_reads_what_it_is_given() -> None:
    times = iter([1.0, 3.5])
    clock = Clock(CPU, lambda: next(times))
    assert (clock.read(), clock.read()) == (1.0, 3.5)


def test_the_clock_waits_for_a_gpu_before_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def now() -> float:
        events.append("read")
        return 0.0

    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: events.append(f"wait for {device}"))
    Clock(torch.device("cuda"), now).read()
    assert events == ["wait for cuda", "read"]


def test_the_sampler_sees_a_peak_that_is_gone_at_the_end() -> None:
    seen = threading.Event()
    levels = iter([1, 5])

    def level() -> int:
        value = next(levels, 2)
        if value == 2:
            seen.set()
        return value

    sampler = Sampler(level, period=1e-3)
    assert seen.wait(10)
    assert sampler.stop() == 5 and sampler.lowest == 1
    assert 0 < sampler.seconds < 10


def test_a_level_that_is_not_known_any_more_ends_the_sampling() -> None:
    levels = iter([1, 5, None])
    sampler = Sampler(lambda: next(levels), period=1e-3)  # asked once more, it would raise
    sampler._thread.join(10)
    assert not sampler._thread.is_alive() and sampler.stop() is None
    assert Sampler(lambda: None).stop() is None


def test_a_level_that_is_dear_is_sampled_less_often() -> None:
    """By a clock that says that every sample takes a second of computing: the next one is due in 100 seconds."""
    taken = itertools.count()
    sampler = Sampler(lambda: next(taken), period=1e-3, spent=itertools.count().__next__)
    time.sleep(0.1)
    assert sampler.stop() == 2, "the first, one in the background, and the last"


@pytest.mark.skipif(memory.host_bytes("VmHWM") is None, reason="the system does not tell the resident set")
@pytest.mark.parametrize("resettable", [True, False])
def test_host_memory_is_the_peak_above_idle(monkeypatch: pytest.MonkeyPatch, resettable: bool) -> None:
    if not resettable:  # the background thread samples instead
        monkeypatch.setattr(memory, "reset_host_peak", lambda: False)
    before = bytearray(256 * MIB)  # a peak that is none of the steps'
    del before
    kept = bytearray(32 * MIB)
    meter = MemoryMeter(CPU)
    meter.context()
    meter.idle()
    meter.start()
    peak = bytearray(b"x") * (128 * MIB)
    if not resettable:
        sampler = meter._samplers["host"]
        while (sampler.highest or 0) < meter._idle["host"] + 120 * MIB:  # until the thread has looked
            time.sleep(1e-3)
    del peak
    found = meter.stop()
    assert found["meter"] == "host_rss"
    assert found["host_rss_bytes"] is not None and 120 * MIB < found["host_rss_bytes"] < 200 * MIB
    assert found["idle_bytes"] is not None and found["idle_bytes"] > len(kept)
    assert found["device_bytes"] is None and found["allocated_bytes"] is None and found["context_bytes"] is None
    assert (found["period_seconds"] is None) == resettable and found["busy"] is None and found["missing"] is None


def test_without_a_peak_of_the_host_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_bytes", lambda field: None)
    meter = MemoryMeter(CPU)
    meter.idle()
    meter.start()
    assert set(meter.stop().values()) == {None}


def measured_afresh(step_seconds: float, kept: int, passing: int) -> object:
    check.STEP_SECONDS, check.KEPT, check.PASSING = step_seconds, kept, passing
    check.time.sleep = lambda seconds: None  # type: ignore[assignment]
    return check.measure(CPU)


@pytest.mark.skipif(memory.host_bytes("VmHWM") is None, reason="the system does not tell the resident set")
def test_the_check_measures_memory_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its duration is for a quiet machine: here no step is late, and none is waited for."""
    for name, value in {"STEP_SECONDS": 1000.0, "KEPT": 32 * MIB, "PASSING": 64 * MIB}.items():
        monkeypatch.setattr(check, name, value)
    # In a process of its own: one with a history has memory to give back in the meantime.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        expected, _, found = fresh.submit(measured_afresh, 1000.0, 32 * MIB, 64 * MIB).result()
    assert expected == 3000.0
    (_, (what, wanted, measured)) = check.rows(expected, 1.0, found)
    assert "host RSS" in what and wanted == 96.0 and measured == pytest.approx(96.0, rel=0.1)
    monkeypatch.setattr(check, "STEP_SECONDS", -1.0)
    assert check.main(["--device", "cpu"]) == 2


@pytest.mark.parametrize("device", ["cpu:x", "cpux", "tpu", "cuda:99"])
def test_the_check_of_a_device_that_is_not_there_is_one_line(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--device", device]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --device")


@pytest.mark.parametrize(("seconds", "nvml", "status"), [(3.1, 390, 0), (3.2, 390, 1), (3.0, 420, 1)])
def test_the_check_says_what_is_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: float, nvml: int, status: int
) -> None:
    found: Memory = new("", {}, {}, {}, {})["cost"]["memory"]
    found |= {"meter": "nvml", "device_bytes": nvml * MIB, "host_rss_bytes": 1000 * MIB, "busy": "others"}
    monkeypatch.setattr(check, "measure", lambda device: (3.0, seconds, found))
    assert check.main(["--device", "cpu"]) == status
    shown = capsys.readouterr().out
    assert "NVML" in shown and "RSS" not in shown and "others" in shown


def load_of(threads: int, *readings: tuple[float, float, float] | None) -> str | None:
    """What the meter says of two cores at these seconds: of the wall, of all processes, of this one."""
    found = iter([reading and Reading(*reading) for reading in readings])
    return LoadMeter(threads, cores=2, read=lambda: next(found)).stop()


@pytest.mark.parametrize(
    ("threads", "busy", "own", "words"),
    [
        (2, 20.0, 12.0, "other processes kept 0.8 of 2 cores busy, beside 2 of this one's threads"),
        (1, 20.0, 5.0, "other processes kept 1.5 of 2 cores busy, beside 1 of this one's threads"),
        (1, 20.0, 10.0, None),  # a core for each
        (2, 20.0, 19.0, None),  # the system itself
    ],
)
def test_load_above_the_cores_is_said(threads: int, busy: float, own: float, words: str | None) -> None:
    assert load_of(threads, (5.0, 100.0, 3.0), (15.0, 100.0 + busy, 3.0 + own)) == words


def test_load_is_not_told_of_a_short_time_or_without_an_account() -> None:
    assert load_of(2, (0.0, 0.0, 0.0), (0.4, 0.8, 0.1)) is None
    assert load_of(2, None, None) is None and load_of(2, (0.0, 0.0, 0.0), None) is None


@pytest.mark.skipif(
    not getattr(load.read(), "busy", 0), reason="Linux keeps an account of its cores, most sandboxes not"
)
def test_the_system_counts_what_this_process_computes() -> None:
    begin = load.read()
    while time.process_time() < begin.own + 0.3:  # type: ignore[union-attr]
        pass
    end = load.read()
    assert begin is not None and end is not None
    assert end.own - begin.own >= 0.3 and end.busy - begin.busy >= 0.25  # counted in hundredths on each core
    assert end.busy - begin.busy <= (end.wall - begin.wall) * load.available_cores() + 0.05
