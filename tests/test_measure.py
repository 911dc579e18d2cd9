"""The clock and the memory meter."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

from harness.measure import memory
from harness.measure.clock import Clock
from harness.measure.memory import MemoryMeter, Sampler

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

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(f"wait for {device}"))
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
    assert sampler.stop() == 5


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
        while sampler._peak < meter._idle["host"] + 120 * MIB:  # until the thread has looked
            pass
    del peak
    found = meter.stop()
    assert found["meter"] == "host_rss"
    assert found["host_rss_bytes"] is not None and 120 * MIB < found["host_rss_bytes"] < 200 * MIB
    assert found["idle_bytes"] is not None and found["idle_bytes"] > len(kept)
    assert found["device_bytes"] is None and found["allocated_bytes"] is None and found["context_bytes"] is None


def test_without_a_peak_of_the_host_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_bytes", lambda field: None)
    meter = MemoryMeter(CPU)
    meter.idle()
    meter.start()
    assert set(meter.stop().values()) == {None}


def test_nvml_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert memory._nvml_levels() == {}


def test_gpu_numbers_come_from_the_device_and_from_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU that is made up: NVML is the headline, and host memory stays under its own name."""
    used = {"GPU-1": 100}
    monkeypatch.setattr(memory, "_nvml_levels", lambda: dict(used))
    monkeypatch.setattr(memory, "_nvml_used", lambda uuid: used[uuid])
    for name, value in (("memory_allocated", 10), ("memory_reserved", 20)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
        monkeypatch.setattr(torch.cuda, f"max_{name}", lambda device, value=value: 3 * value)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    meter = MemoryMeter(torch.device("cuda"))
    meter._uuid, meter._context_bytes = "GPU-1", 50
    used["GPU-1"] = 160
    meter.idle()
    meter.start()
    used["GPU-1"] = 400
    found = meter.stop()
    assert found["meter"] == "nvml" and found["idle_bytes"] == 160 and found["device_bytes"] == 240
    assert found["allocated_bytes"] == 20 and found["reserved_bytes"] == 40 and found["context_bytes"] == 50
    meter._uuid = None
    meter._idle.pop("device")
    meter._samplers.clear()
    meter.start()
    assert meter.stop()["meter"] == "torch"
