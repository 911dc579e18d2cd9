"""Convolution, ReLU and pooling as one function, and its gradients, by ``winograd.c``: float32 on a CPU.

The machine's C compiler compiles it for this very processor when it is first needed, in a second; the library is kept
in the cache folder. Where there is no compiler, torch's operators serve: the same to rounding, in twice the time.
``$FREPO_BENCH_CC`` names a compiler other than ``cc``; empty: none.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.errors import UserError
from benchmarks.folders import default_cache

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-Wl,--as-needed")
FEW = 4
"""Input channels that ``winograd.c`` sums directly, whatever the padding and the strides."""


def takes(x: Tensor, weight: Tensor, padding: int) -> bool:
    """Whether the functions here take maps ``x`` (B, C, H, W) and a ``weight`` (C', C, 3, 3) with that ``padding``."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and weight.shape[2:] == (3, 3)
        and (padding == 1 or (padding > 1 and x.shape[1] <= FEW))
        and not (x.shape[2] % 2 or x.shape[3] % 2)
        and x.numel() > 0
        and not _watched()
        and library() is not None
    )


def _watched() -> bool:
    """Whether somebody wants to see torch's own operators: counts them, compiles them, or rounds what they compute."""
    modes = torch._C._len_torch_dispatch_stack()
    return modes > 0 or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")


def conv_relu_pool(
    x: Tensor, weight: Tensor, bias: Tensor, padding: int, *, positive: bool
) -> tuple[Tensor, Tensor | None]:
    """(B, C, H, W) → (B, C', H'/2, W'/2), channels last; and, if ``positive``, the byte an entry that backward needs.

    Raises MemoryError.
    """
    x = _channels_last(x)
    shape = _shape(x, weight, padding)
    height, width = (size // 2 + padding - 1 for size in x.shape[2:])
    pooled = torch.empty(len(x), height, width, len(weight))
    through = torch.empty(pooled.shape, dtype=torch.uint8) if positive else None
    _call("conv_relu_pool", shape, x, _strides(x), _last(weight), bias.contiguous(), pooled, through)
    return pooled.permute(0, 3, 1, 2), through


def input_gradient(gradient: Tensor, positive: Tensor, x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """That in ``x`` (B, C, H, W) from the ``gradient`` (B, C', H'/2, W'/2) in its result. Raises MemoryError."""
    found = torch.empty(len(x), *x.shape[2:], x.shape[1])
    back = weight if x.shape[1] <= FEW else weight.flip(2, 3).transpose(0, 1)
    _call("input_gradient", _shape(x, weight, padding), _last(gradient), positive, _last(back), found)
    return found.permute(0, 3, 1, 2)


def weight_gradient(
    gradient: Tensor, positive: Tensor, x: Tensor, weight: Tensor, padding: int
) -> tuple[Tensor, Tensor]:
    """Those in ``weight`` (C', C, 3, 3) and the bias (C',). Raises MemoryError."""
    x = _channels_last(x)
    of_weight = torch.empty(len(weight), 3, 3, x.shape[1])
    of_bias = torch.empty(len(weight))
    shape = _shape(x, weight, padding)
    _call("weight_gradient", shape, x, _strides(x), _last(gradient), positive, of_weight, of_bias)
    return of_weight.permute(0, 3, 1, 2), of_bias


class _Shape(ctypes.Structure):
    """``Shape`` of ``winograd.c``."""

    _fields_ = [
        (name, ctypes.c_long) for name in ("count", "height", "width", "inputs", "outputs", "padding", "threads")
    ]


def _shape(x: Tensor, weight: Tensor, padding: int) -> _Shape:
    count, inputs, height, width = x.shape
    return _Shape(count, height, width, inputs, len(weight), padding, torch.get_num_threads())


def _strides(x: Tensor) -> ctypes.Array[ctypes.c_long]:
    return (ctypes.c_long * 4)(*x.stride())


def _last(tensor: Tensor) -> Tensor:
    """In memory B, H, W, C, whatever torch calls that where sizes are 1."""
    return tensor.permute(0, 2, 3, 1).contiguous()


def _channels_last(x: Tensor) -> Tensor:
    """``x``, with channels last if they are not few."""
    return x if x.shape[1] <= FEW or x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)


def _call(name: str, shape: _Shape, *arguments: Tensor | ctypes.Array[ctypes.c_long] | None) -> None:
    """A function of ``winograd.c``, which takes pointers."""
    pointers = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments]
    if getattr(library(), name)(ctypes.byref(shape), *pointers):
        raise MemoryError(f"no memory for a convolution of {shape.count} images")


@functools.cache
def library() -> ctypes.CDLL | None:
    """``winograd.c``, compiled; None where it cannot be. Raises UserError where the compiler asked for fails."""
    asked = os.environ.get("FREPO_BENCH_CC")
    compiler = shutil.which("cc" if asked is None else asked) if asked != "" else None
    try:
        if compiler is None:
            raise OSError("not found")
        return ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        if asked:
            detail = getattr(error, "stderr", None) or str(error)
            reason = detail.strip().splitlines()[0]
            raise UserError(f"FREPO_BENCH_CC={asked} cannot compile {SOURCE.name} ({reason}); unset it") from error
        return None


def _compiled(compiler: str) -> Path:
    """Where the library lies, for this source, compiler and processor. Raises OSError and SubprocessError."""
    if sys.platform != "linux":
        raise OSError("only tried on Linux")
    processor = set(re.findall(r"^(?:vendor_id|cpu family|model|flags|CPU|Features).*", _read("/proc/cpuinfo"), re.M))
    # torch brings an OpenMP of its own: a second one beside it would fight for the processor.
    openmp = sorted(set(re.findall(r"/\S*/lib(?:gomp|iomp5|omp)\S*", _read("/proc/self/maps"))))[:1]
    command = [compiler, *FLAGS, str(SOURCE), *openmp]
    key = repr((command, os.stat(compiler).st_mtime_ns, sorted(processor))).encode() + SOURCE.read_bytes()
    path = default_cache() / "compiled" / f"winograd-{hashlib.sha256(key).hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            subprocess.run([*command, "-o", str(made)], check=True, capture_output=True, text=True, timeout=100)
            made.replace(path)
    return path


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")
