"""Readings of one NVIDIA GPU from its driver: memory in use, energy, and whether it is ours alone.

NVML through the module ``pynvml`` (package nvidia-ml-py). What is read is of the device and not of a process: process
ids are the host's, and we may be in a container. The device is found by the UUID that CUDA has for it, and so
``CUDA_VISIBLE_DEVICES`` is respected. Nothing here raises: a reading is None where there is no answer, whatever the
reason, and the run goes on without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Device:
    """A GPU, or an instance of a split one (MIG), as it was before this process used it."""

    handle: Any
    uuid: str
    """The UUID as NVML writes it: ``GPU-…``, ``MIG-…``, in old drivers ``MIG-GPU-…/1/0``."""
    parent: str | None
    """The UUID of the GPU of which this is an instance."""
    tells_reserved: bool
    """Whether the driver has the call that tells the memory it keeps for itself apart from that in use."""
    used_bytes: int | None
    processes: int | None
    busy_percent: int | None


class Gpu:
    """Construct it before the process uses any GPU, to see what was there without it; ``find`` its own; then read."""

    def __init__(self) -> None:
        self.missing: str | None = None
        """Why there is no reading of the memory, in words; None where there has been every time."""
        self.device: Device | None = None
        self.devices: list[Device] = []
        """All GPUs and their instances."""
        try:
            self._nvml = _bindings()
            self.devices = list(_devices(self._nvml))
        except Exception as error:  # the bindings have their own, and a broken driver raises others
            self.missing = _words(error)

    def find(self, uuid: str) -> None:
        """Take the device that CUDA calls ``uuid``, with or without the prefix that NVML gives it."""
        fitting = [device for device in self.devices if _bare(device.uuid) == _bare(uuid)]
        if instances := [device for device in self.devices if fitting and device.parent == fitting[0].uuid]:
            # An older CUDA names the whole GPU where the process has one instance of it, whose memory alone is ours.
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
            chosen = [device for device in instances if visible.startswith("MIG-") and device.uuid.startswith(visible)]
            fitting = chosen or instances
        if len(fitting) == 1:
            self.device = fitting[0]
        elif not self.missing:
            self.missing = f"NVML: {len(fitting) or 'no'} devices fit the UUID {uuid}"

    def used(self) -> int | None:
        """Bytes in use on the device, by whomever, without those that the driver keeps for itself if it tells them."""
        if self.device is None:
            return None
        try:
            return _used(self._nvml, self.device.handle, tells_reserved=self.device.tells_reserved)
        except Exception as error:
            self.missing = self.missing or _words(error)
            return None

    def joules(self) -> float | None:
        """Energy of the GPU since the driver was loaded; None for an instance, whose GPU has other users."""
        if self.device is None or self.device.parent is not None:
            return None
        millijoules = _ask(self._nvml, "nvmlDeviceGetTotalEnergyConsumption", self.device.handle)
        return None if millijoules is None else millijoules / 1000

    def processes(self) -> int | None:
        """How many processes have a CUDA context there; a container may see fewer than there are."""
        return None if self.device is None else _processes(self._nvml, self.device.handle)


def uuids() -> list[str]:
    """The UUIDs of all GPUs, of a split GPU those of its instances; empty where NVML does not answer."""
    devices = Gpu().devices
    split = {device.parent for device in devices}
    return [device.uuid for device in devices if device.uuid not in split]


def driver_version() -> str | None:
    """Version of the NVIDIA driver; None without one."""
    try:
        return str(_bindings().nvmlSystemGetDriverVersion())
    except Exception:
        return None


def _bindings() -> Any:
    """The module, connected to the driver."""
    try:
        import pynvml
    except ImportError as error:
        raise RuntimeError("the package nvidia-ml-py is not installed") from error
    pynvml.nvmlInit()
    return pynvml


def _devices(nvml: Any) -> Iterator[Device]:
    """All GPUs and their instances. One that does not answer does not hide the others."""
    for i in range(nvml.nvmlDeviceGetCount()):
        gpu = _device(nvml, _ask(nvml, "nvmlDeviceGetHandleByIndex", i), None)
        if gpu is None:
            continue
        yield gpu
        for j in range(_ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", gpu.handle) or 0):  # there may be gaps
            if instance := _device(nvml, _ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", gpu.handle, j), gpu.uuid):
                yield instance


def _device(nvml: Any, handle: Any, parent: str | None) -> Device | None:
    if handle is None or (uuid := _ask(nvml, "nvmlDeviceGetUUID", handle)) is None:
        return None
    used = _tried(lambda: _used(nvml, handle, tells_reserved=True))
    tells_reserved = used is not None
    if used is None:
        used = _tried(lambda: _used(nvml, handle, tells_reserved=False))
    rates = _ask(nvml, "nvmlDeviceGetUtilizationRates", handle)
    return Device(
        handle, uuid, parent, tells_reserved, used, _processes(nvml, handle), None if rates is None else rates.gpu
    )


def _used(nvml: Any, handle: Any, *, tells_reserved: bool) -> int:
    """Bytes in use. Always by the same of the two calls for a device: the other differs by what is reserved.

    Drivers differ in whether ``used`` of the newer call contains what is reserved, but not in what is free.
    """
    if not tells_reserved:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
    return int(memory.total - memory.free - memory.reserved)


def _processes(nvml: Any, handle: Any) -> int | None:
    processes = _ask(nvml, "nvmlDeviceGetComputeRunningProcesses", handle)
    return None if processes is None else len(processes)


def _ask(nvml: Any, name: str, *arguments: Any) -> Any:
    """The answer of the function ``name`` of the bindings; None where the bindings, driver or device have no answer."""
    return _tried(lambda: getattr(nvml, name)(*arguments))


def _tried(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception:
        return None


def _bare(uuid: str) -> str:
    return uuid.lower().removeprefix("mig-").removeprefix("gpu-")


def _words(error: Exception) -> str:
    return f"NVML: {error}"
