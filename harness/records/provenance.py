"""Circumstances of a measurement: code, versions, machine, environment."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness import devices
from harness.measure.nvml import driver_version

ENVIRONMENT = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "ATEN_", "DNNL_", "ONEDNN_", "TORCH_", "PYTORCH_", "CUBLAS_", "CUDNN_"),
    *("NVIDIA_TF32_OVERRIDE", "GLIBC_TUNABLES", "MALLOC_", "LD_PRELOAD"),
)
"""Beginnings of the environment variables that can move a number: threads, kernels, allocators."""
SAME_MACHINE = ("device", "threads", "torch")
"""What must agree for a set to have the same bytes, and for values to be continued instead of computed anew."""


def provenance(
    command: str, device: str, fingerprint: str, environment: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """The circumstances of this process, or of one that differs from it in the ``environment`` alone."""
    import torch

    return {
        **_commit(),
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "environment": {name: environment[name] for name in sorted(environment) if name.startswith(ENVIRONMENT)},
        "driver": driver_version() if device.startswith("cuda") else None,
        **devices.versions(device),
        "torch": _version("torch"),
        "torchvision": _version("torchvision"),
        "frepo_bench": _version("frepo-bench"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "data_fingerprint": fingerprint,
    }


def cpu_name() -> str:
    """The processor as it names itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_name(device: str) -> str:
    """The name of the processor or of the accelerator ``device``; itself where it is that of another machine."""
    if device == "cpu":
        return cpu_name()
    if device == "mps" and devices.count("mps"):
        return f"{cpu_name()} (mps)"
    return devices.device_name(device) or device


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def code_version() -> dict[str, Any]:
    """The commit, whether the code differs from it, and a digest of the code that moves with any change."""
    root, digest = Path(__file__).resolve().parents[2], hashlib.sha256()
    for path in sorted(path for name in ("benchmarks", "methods", "harness") for path in (root / name).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return {**_commit(), "digest": digest.hexdigest()}


def _commit() -> dict[str, Any]:
    """The commit of this working tree and whether the code differs from it; nulls where there is no repository.

    A new method that is not committed counts as a difference; results and documents do not.
    """
    here = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != here:
            return {"commit": None, "dirty": None}  # installed inside another repository
        changed = git("status", "--porcelain", "--untracked-files=all", "--", "benchmarks", "methods", "harness")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
