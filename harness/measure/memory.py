"""Peak memory of the distilling steps above an idle level.

On a GPU: what the caching allocator handed out and reserved (torch), and the memory in use on the whole device (NVML),
by device and not by process id, which containers hide. On any machine: the resident set of this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from harness.record import Memory

PERIOD = 0.01
"""Seconds between samples of a level that the system keeps no peak of."""


class Sampler:
    """The highest value of ``level`` from construction to ``stop``, sampled in the background."""

    def __init__(self, level: Callable[[], int], period: float = PERIOD) -> None:
        self._level, self._period = level, period
        self._peak = level()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        return max(self._peak, self._level())

    def _watch(self) -> None:
        while not self._over.wait(self._period):
            self._peak = max(self._peak, self._level())


class MemoryMeter:
    """In this order: construct it before the device is touched; ``context``; load the data and warm up; ``idle``;
    ``start``; the steps; ``stop``."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before_context = _nvml_levels() if device.type == "cuda" else {}
        self._uuid: str | None = None
        self._context_bytes: int | None = None
        self._idle: dict[str, int] = {}
        self._samplers: dict[str, Sampler] = {}

    def context(self) -> None:
        """Create the device's context and load its libraries, and note what they take."""
        if self._device.type != "cuda":
            return
        square = torch.ones(8, 8, device=self._device)
        torch.nn.functional.conv2d((square @ square)[None, None], square[None, None])
        torch.cuda.synchronize(self._device)
        wanted = str(torch.cuda.get_device_properties(self._device).uuid)
        self._uuid = next((uuid for uuid in self._before_context if uuid.endswith(wanted)), None)
        if self._uuid is not None:
            self._context_bytes = _nvml_used(self._uuid) - self._before_context[self._uuid]

    def idle(self) -> None:
        """Note the idle level, after giving back what earlier work has freed."""
        release()
        if self._device.type == "cuda":
            self._idle["allocated"] = torch.cuda.memory_allocated(self._device)
            self._idle["reserved"] = torch.cuda.memory_reserved(self._device)
        if self._uuid is not None:
            self._idle["device"] = _nvml_used(self._uuid)
        if (resident := host_bytes("VmRSS")) is not None:
            self._idle["host"] = resident

    def start(self) -> None:
        """From here on the peak counts."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        if self._uuid is not None:
            uuid = self._uuid
            self._samplers["device"] = Sampler(lambda: _nvml_used(uuid))
        if not reset_host_peak() and "host" in self._idle:
            self._samplers["host"] = Sampler(lambda: host_bytes("VmRSS") or 0)

    def stop(self) -> Memory:
        """The peaks since ``start``, above idle."""
        peak = {name: sampler.stop() for name, sampler in self._samplers.items()}
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            peak["allocated"] = torch.cuda.max_memory_allocated(self._device)
            peak["reserved"] = torch.cuda.max_memory_reserved(self._device)
        if "host" in self._idle and "host" not in peak:
            peak["host"] = host_bytes("VmHWM") or 0
        above = {name: max(0, value - self._idle[name]) for name, value in peak.items()}
        memory: Memory = {
            "meter": None,
            "idle_bytes": None,
            "context_bytes": self._context_bytes,
            "allocated_bytes": above.get("allocated"),
            "reserved_bytes": above.get("reserved"),
            "device_bytes": above.get("device"),
            "host_rss_bytes": above.get("host"),
            "period_seconds": PERIOD if "device" in above else None,
            "busy": None,
        }
        if "device" in above:
            memory["meter"], memory["idle_bytes"] = "nvml", self._idle["device"]
        elif "allocated" in above:
            memory["meter"], memory["idle_bytes"] = "torch", self._idle["allocated"]
        elif "host" in above:
            memory["meter"], memory["idle_bytes"] = "host_rss", self._idle["host"]
        return memory


def release() -> None:
    """Give memory that is no longer used back to the device and to the system, so that levels show what is live."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing happens where CUDA was not used
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


def _nvml_levels() -> dict[str, int]:
    """UUID → bytes in use, for every GPU that NVML shows; empty without NVML."""
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return {
            pynvml.nvmlDeviceGetUUID(handle): int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles
        }
    except pynvml.NVMLError:
        return {}


def _nvml_used(uuid: str) -> int:
    import pynvml

    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(uuid)).used)
