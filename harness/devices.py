"""Everything the suite knows of devices: their names, whether they are there, how to wait for them, and their memory.

``cuda`` is NVIDIA's or, in a ROCm build of torch, AMD's; ``xpu`` is Intel's, ``mps`` Apple's. torch gives cuda and xpu
the same functions in modules of their own; mps keeps no peak of its memory.

torch is imported where it is used: the command line reads names before it knows whether there is anything to run.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from benchmarks.errors import UserError

if TYPE_CHECKING:
    import torch

NAMES = "cpu, cuda, cuda:N, xpu, xpu:N or mps"


def check_name(name: str) -> None:
    """Raise UserError where ``name`` is none of ``NAMES``."""
    if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d+)?", name):
        raise UserError(f"--device must be {NAMES}, not {name!r}")


def count(kind: str) -> int:
    """How many devices of ``kind`` (``cuda``, ``xpu`` or ``mps``) there are here."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.accelerator.device_count() if accelerator is not None and accelerator.type == kind else 0


def find(wanted: str | None, *, there: bool = True) -> str:
    """``wanted``, by default ``cuda`` where it is there. Raises UserError where ``wanted`` must be there and is not."""
    if wanted is None:
        return "cuda" if count("cuda") else "cpu"
    kind, _, index = wanted.partition(":")
    if there and kind != "cpu" and int(index or 0) >= (number := count(kind)):
        raise UserError(f"--device {wanted}: there are {number} {kind.upper()} devices here; take --device cpu")
    return wanted


def check_float64(name: str, device: str) -> None:
    """Raise UserError where ``device`` has no float64, in which ``name`` computes."""
    from benchmarks.training import WITHOUT_FLOAT64

    if why := WITHOUT_FLOAT64.get(device.partition(":")[0]):
        raise UserError(f"{name} computes in float64, {why}: take --device cpu, or leave {name} out")


def synchronize(device: torch.device) -> None:
    """Wait until everything queued on ``device`` is finished."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def empty_caches() -> None:
    """Give back what torch keeps of freed memory; nothing happens where a device was not used."""
    import torch

    torch.cuda.empty_cache()
    torch.xpu.empty_cache()


def keeps_peaks(device: torch.device) -> bool:
    """Whether torch has counters of the peak memory there."""
    return device.type in ("cuda", "xpu")


def levels(device: torch.device) -> dict[str, int]:
    """Bytes that torch has now ``allocated`` to tensors and ``reserved`` for more; the latter not on mps."""
    import torch

    if device.type == "mps":
        return {"allocated": torch.mps.current_allocated_memory()}
    if not keeps_peaks(device):
        return {}
    module = torch.get_device_module(device)
    return {"allocated": module.memory_allocated(device), "reserved": module.memory_reserved(device)}


def reset_peaks(device: torch.device) -> None:
    """Make `peaks` start again from the present levels."""
    import torch

    if keeps_peaks(device):
        torch.get_device_module(device).reset_peak_memory_stats(device)


def peaks(device: torch.device) -> dict[str, int]:
    """The largest `levels` since `reset_peaks`, where torch keeps them."""
    import torch

    if not keeps_peaks(device):
        return {}
    module = torch.get_device_module(device)
    return {"allocated": module.max_memory_allocated(device), "reserved": module.max_memory_reserved(device)}


def free_and_total(device: str) -> tuple[int | None, int | None]:
    """Bytes of an accelerator that are free, and that there are; None where they are not known."""
    import torch

    kind, _, index = device.partition(":")
    if kind == "mps" or int(index or 0) >= count(kind):
        return None, None
    free, total = torch.get_device_module(device).mem_get_info(int(index or 0))
    return int(free), int(total)


def device_name(device: str) -> str | None:
    """The name of the accelerator ``device``; None: it has none of its own, or is not here."""
    import torch

    kind = device.partition(":")[0]
    if kind == "mps" or not count(kind):
        return None
    return str(torch.get_device_module(device).get_device_name(device))


def versions(device: str) -> dict[str, str | None]:
    """What this torch was built for: the version of ``cuda``, and of ``hip`` or ``xpu`` where it has one."""
    import torch

    kind = device.partition(":")[0]
    other = {"cuda": "hip", "xpu": "xpu"}.get(kind, "")
    version = getattr(torch.version, other, None)
    return {"cuda": torch.version.cuda if kind == "cuda" else None} | ({other: version} if version else {})
