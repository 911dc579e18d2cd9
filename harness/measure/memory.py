"""Peak memory of the distilling steps above an idle level.

On a GPU: what the caching allocator handed out and reserved (torch), and the memory in use on the whole device (NVML),
by device and not by process id, which containers hide. On any machine: the resident set of this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch

from harness import devices
from harness.measure.load import joined
from harness.measure.nvml import Gpu
from harness.records.record import Memory, Meter

PERIOD = 0.01
"""Seconds between samples of a level that the system keeps no peak of, at least."""
PROCESSES_PERIOD = 1.0
"""The same for the number of processes on the GPU."""
DUTY = 0.01
"""Most of one core that a sampler may take: what costs more is sampled less often."""
SLACK = 128 * 2**20
"""Bytes that may come and go on a GPU without anybody else: libraries load code and take workspaces when they like."""
BUSY_PERCENT = 5
"""A GPU that was busier than this before we came has other work."""


class Sampler:
    """The lowest and the highest value of ``level`` from construction to ``stop``, sampled in the background.

    Where ``level`` has no answer, None, sampling ends and there is no highest value: a peak might have been missed.
    ``spent``: the seconds of computing that the calling thread has taken so far.
    """

    def __init__(
        self,
        level: Callable[[], int | None],
        period: float = PERIOD,
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        self._level, self._period, self._spent = level, period, spent
        self._begin = time.perf_counter()
        self._values = 0
        self.lowest: int | None = None
        self.highest: int | None = None
        self.seconds = 0.0
        """The mean time between two samples, once stopped."""
        self._gone = not self._look()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int | None:
        """The highest value."""
        self._over.set()
        self._thread.join()
        if self._gone or not self._look():
            self.highest = None
        self.seconds = (time.perf_counter() - self._begin) / max(1, self._values - 1)
        return self.highest

    def _watch(self) -> None:
        pause = self._period
        while not self._gone and not self._over.wait(pause):
            # The first samples and those of a driver that has become slow cost more. Waiting for the interpreter or for
            # the driver costs the run nothing and does not count.
            before = self._spent()
            self._gone = not self._look()
            pause = max(self._period, (self._spent() - before) / DUTY)

    def _look(self) -> bool:
        """Take one sample; False where there is none."""
        value = self._level()
        if value is None:
            return False
        self._values += 1
        self.lowest = value if self.lowest is None else min(self.lowest, value)
        self.highest = value if self.highest is None else max(self.highest, value)
        return True


class MemoryMeter:
    """In this order: construct it before the device is touched; ``context``; load the data and warm up; ``idle``;
    ``start``; the steps; ``stop``. After ``stop`` another ``start`` begins a new peak, above the same idle level."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.gpu = Gpu() if device.type == "cuda" else None
        self._context_bytes: int | None = None
        self._idle: dict[str, int] = {}
        self._samplers: dict[str, Sampler] = {}
        self._processes: Sampler | None = None

    def context(self) -> None:
        """Create the device's context and load its libraries, and note what they take."""
        if self._device.type == "cpu":
            return
        create_context(self._device)
        if self.gpu is None:
            return
        self.gpu.find(str(getattr(torch.cuda.get_device_properties(self._device), "uuid", None)))
        if self.gpu.device and self.gpu.device.used_bytes is not None and (used := self.gpu.used()) is not None:
            self._context_bytes = used - self.gpu.device.used_bytes

    def idle(self) -> None:
        """Note the idle level, after giving back what earlier work has freed."""
        release()
        levels: dict[str, int | None] = {"host": host_bytes("VmRSS"), **devices.levels(self._device)}
        if self.gpu:
            levels["device"] = self.gpu.used()
        self._idle = {name: level for name, level in levels.items() if level is not None}

    def start(self) -> None:
        """From here on the peak counts; what preparing has freed by now is no part of it."""
        release()
        devices.reset_peaks(self._device)
        if "allocated" in self._idle and not devices.keeps_peaks(self._device):
            self._samplers["allocated"] = Sampler(lambda: devices.levels(self._device)["allocated"])
        if self.gpu and "device" in self._idle:
            gpu = self.gpu
            self._samplers["device"] = Sampler(gpu.used)
            self._processes = Sampler(lambda: gpu.processes() or 0, PROCESSES_PERIOD)
        if not reset_host_peak() and "host" in self._idle:
            self._samplers["host"] = Sampler(lambda: host_bytes("VmRSS"))

    def level(self) -> int | None:
        """Bytes in use now above the idle level: allocated by torch on a GPU, else resident; None: unknown."""
        if now := devices.levels(self._device):
            return now["allocated"] - self._idle.get("allocated", 0)
        resident = host_bytes("VmRSS")
        return None if resident is None or "host" not in self._idle else resident - self._idle["host"]

    def stop(self) -> Memory:
        """The peaks since ``start``, above idle."""
        peak = {name: sampler.stop() for name, sampler in self._samplers.items()}
        peak |= devices.peaks(self._device)
        if "host" in self._idle and "host" not in peak:
            peak["host"] = host_bytes("VmHWM")
        above = {name: max(0, value - self._idle[name]) for name, value in peak.items() if value is not None}
        memory: Memory = {
            "meter": None,
            "idle_bytes": None,
            "context_bytes": self._context_bytes,
            "allocated_bytes": above.get("allocated"),
            "reserved_bytes": above.get("reserved"),
            "device_bytes": above.get("device"),
            "host_rss_bytes": above.get("host"),
            "period_seconds": None,
            "busy": self._busy(),
            "missing": self.gpu.missing if self.gpu else None,
        }
        meter: Meter = "nvml" if "device" in above else "torch" if self._device.type != "cpu" else "host_rss"
        name = {"nvml": "device", "torch": "allocated", "host_rss": "host"}[meter]
        if name in above:
            memory["meter"], memory["idle_bytes"] = meter, self._idle[name]
            memory["period_seconds"] = self._samplers[name].seconds if name in self._samplers else None
        return memory

    def _busy(self) -> str | None:
        """Signs that the GPU was not ours alone, in words. Call after the samplers have stopped."""
        if self.gpu is None or self.gpu.device is None:
            return None
        before, seen = self.gpu.device, []
        most = self._processes.stop() if self._processes else None
        if others := max(before.processes or 0, (most or 0) - 1):
            seen.append(f"{others} other process{'es' if others > 1 else ''} on the GPU")
        if before.tells_reserved and (before.used_bytes or 0) > SLACK:
            seen.append(f"{_mebibytes(before.used_bytes)} in use before this process used it")
        if (before.busy_percent or 0) > BUSY_PERCENT:
            seen.append(f"{before.busy_percent} % busy before this process used it")
        if (sampler := self._samplers.get("device")) and sampler.highest is not None:
            assert sampler.lowest is not None
            if (fallen := self._idle["device"] - sampler.lowest) > SLACK:
                seen.append(f"{_mebibytes(fallen)} given back by others while measuring")
            if (used := self.gpu.used()) is not None:
                ours = devices.levels(self._device)["reserved"] - self._idle["reserved"]
                if (grown := used - self._idle["device"] - ours) > SLACK:
                    seen.append(f"{_mebibytes(grown)} taken by others while measuring")
        return "; ".join(seen) or None


def merged(before: Memory, now: Memory) -> Memory:
    """Peaks of two stretches of the same steps: the larger of both, and none where one of them was not measured."""
    both: dict[str, object] = {**now, "busy": joined(before["busy"], now["busy"])}
    if before["meter"] is None:  # the first stretch
        return cast(Memory, both)
    for name in ("allocated_bytes", "reserved_bytes", "device_bytes", "host_rss_bytes"):
        numbers = before.get(name), now.get(name)
        both[name] = None if None in numbers else max(cast(tuple[int, int], numbers))
    both["missing"] = before["missing"] or now["missing"]
    return cast(Memory, both)


def _mebibytes(number: int | None) -> str:
    return f"{(number or 0) / 2**20:,.0f} MiB"


def create_context(device: torch.device) -> None:
    """Use the GPU for the first time, and the libraries of matrix products and convolutions."""
    square = torch.ones(8, 8, device=device)
    torch.nn.functional.conv2d((square @ square)[None, None], square[None, None])
    devices.synchronize(device)


def release() -> None:
    """Give memory that is no longer used back to the device and to the system, so that levels show what is live."""
    gc.collect()
    devices.empty_caches()
    with contextlib.suppress(AttributeError, OSError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)


def host_bytes(field: str) -> int | None:
    """``VmRSS`` (resident now) or ``VmHWM`` (its peak) of this process; None where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def reset_host_peak() -> bool:
    """Make VmHWM start again from the present level; False where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
