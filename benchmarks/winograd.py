"""Convolution, instance norm, ReLU and pooling, and their gradients, by ``winograd.c``: float32 on a CPU.

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
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared", "-Wl,--as-needed")
FEW = 4
"""Input channels that ``winograd.c`` sums directly, whatever the padding."""


def takes(x: Tensor, weight: Tensor, bias: Tensor, padding: int, *of_norm: Tensor) -> bool:
    """Whether the functions here take maps ``x`` (B, C, H, W), a ``weight`` (C', C, 3, 3), a ``bias`` and a padding.

    ``of_norm``: weight and bias of the instance norm behind them, if there is one.
    """
    return (
        all(_plain(one) for one in (x, weight, bias, *of_norm))
        and x.ndim == 4
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and all(one.shape == weight.shape[:1] for one in (bias, *of_norm))
        and (padding == 1 or (padding > 1 and x.shape[1] <= FEW))
        and not (x.shape[2] % 2 or x.shape[3] % 2)
        and x.numel() > 0
        and not _watched()
        and library() is not None
    )


def _plain(tensor: Tensor) -> bool:
    """Whether its numbers lie in memory as they are: it is neither of a subclass, which may have none, nor negated."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and not tensor.is_neg()
    )


def _watched() -> bool:
    """Whether somebody wants to see torch's own operators: counts them, compiles them, or rounds what they compute."""
    modes = torch._C._len_torch_dispatch_stack()
    return modes > 0 or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")


def convolve(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    """``F.conv2d`` of (B, C, H, W): (B, C', H', W'), channels last. Raises MemoryError."""
    shape = _shape(x.shape, weight, padding)
    maps = _new(x, len(x), len(weight), *(size + 2 * padding - 2 for size in x.shape[2:]))
    _call("convolve", shape, x, _strides(x), _last(weight), bias.contiguous(), None, None, maps)
    return maps


def conv_relu_pool(
    x: Tensor, weight: Tensor, bias: Tensor, padding: int, *, positive: bool
) -> tuple[Tensor, Tensor | None]:
    """(B, C, H, W) → (B, C', H'/2, W'/2), channels last; and, if ``positive``, the byte an entry that backward needs.

    Raises MemoryError.
    """
    shape = _shape(x.shape, weight, padding)
    height, width = (size // 2 + padding - 1 for size in x.shape[2:])
    pooled = x.new_empty(len(x), height, width, len(weight))
    through = torch.empty_like(pooled, dtype=torch.uint8) if positive else None
    _call("convolve", shape, x, _strides(x), _last(weight), bias.contiguous(), pooled, through, None)
    return pooled.permute(0, 3, 1, 2), through


def input_gradient(
    gradient: Tensor, weight: Tensor, size: torch.Size, padding: int, positive: Tensor | None = None
) -> Tensor:
    """That in x of ``size`` (B, C, H, W), channels last, from that in the maps (B, C', H', W').

    Or, with what ``conv_relu_pool`` left for backward, from that in its result. Raises MemoryError.
    """
    found = _new(gradient, *size)
    back = weight if size[1] <= FEW else weight.flip(2, 3).transpose(0, 1)
    gradient = gradient if positive is None else _last(gradient)
    arguments = gradient, _strides(gradient), positive, _last(back), found
    _call("input_gradient", _shape(size, weight, padding), *arguments)
    return found


def weight_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, padding: int, positive: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Those in ``weight`` (C', C, 3, 3) and the bias (C',); from what ``input_gradient`` takes. Raises MemoryError."""
    of_weight = x.new_empty(len(weight), 3, 3, x.shape[1])
    of_bias = x.new_empty(len(weight))
    gradient = gradient if positive is None else _last(gradient)
    arguments = x, _strides(x), gradient, _strides(gradient), positive, of_weight, of_bias
    _call("weight_gradient", _shape(x.shape, weight, padding), *arguments)
    return of_weight.permute(0, 3, 1, 2), of_bias


def norm_relu_pool(y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """(B, C, H, W) → (B, C, H/2, W/2), channels last: instance norm, ReLU, pooling; and what backward needs of it."""
    count, channels, height, width = y.shape
    pooled = y.new_empty(count, height // 2, width // 2, channels)
    positive = torch.empty_like(pooled, dtype=torch.uint8)
    mean, rstd = y.new_empty(2, count, channels)
    arguments = _last(y), weight.contiguous(), bias.contiguous(), ctypes.c_float(eps), mean, rstd, pooled, positive
    _call("norm_relu_pool", _shape(y.shape, weight), *arguments)
    return pooled.permute(0, 3, 1, 2), (mean, rstd, positive)


def norm_relu_pool_gradient(
    gradient: Tensor, y: Tensor, weight: Tensor, kept: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Those in ``y`` (B, C, H, W), channels last, in weight and bias (C,), from that in what became of it."""
    mean, rstd, positive = kept
    found, (of_weight, of_bias) = _new(y, *y.shape), y.new_empty(2, *mean.shape)
    arguments = _last(y), weight.contiguous(), mean, rstd, _last(gradient), positive, found, of_weight, of_bias
    _call("norm_relu_pool_gradient", _shape(y.shape, weight), *arguments)
    return found, of_weight.sum(0), of_bias.sum(0)


class _Shape(ctypes.Structure):
    """``Shape`` of ``winograd.c``."""

    _fields_ = [
        (name, ctypes.c_long) for name in ("count", "height", "width", "inputs", "outputs", "padding", "threads")
    ]


def _shape(size: torch.Size, weight: Tensor, padding: int = 0) -> _Shape:
    count, inputs, height, width = size
    return _Shape(count, height, width, inputs, len(weight), padding, torch.get_num_threads())


def _new(like: Tensor, count: int, channels: int, height: int, width: int) -> Tensor:
    """Maps (B, C, H, W), in memory B, H, W, C, whatever torch's defaults are."""
    return like.new_empty(count, height, width, channels).permute(0, 3, 1, 2)


def _strides(x: Tensor) -> ctypes.Array[ctypes.c_long]:
    return (ctypes.c_long * 4)(*x.stride())


def _last(tensor: Tensor) -> Tensor:
    """In memory B, H, W, C, whatever torch calls that where sizes are 1."""
    return tensor.permute(0, 2, 3, 1).contiguous()


def _call(name: str, shape: _Shape, *arguments: Tensor | ctypes.Array[ctypes.c_long] | ctypes.c_float | None) -> None:
    """A function of ``winograd.c``, which takes pointers, and ``eps``."""
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
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home folder
        if asked:
            said = getattr(error, "stderr", None)  # bytes, where it took too long
            lines = (said if isinstance(said, str) else str(error)).strip().splitlines()
            reason = lines[0] if lines else "it does not say why"
            raise UserError(f"FREPO_BENCH_CC={asked} cannot compile {SOURCE.name} ({reason}); unset it") from error
        return None


def _compiled(compiler: str) -> Path:
    """Where the library lies, for this source, compiler and processor. Raises OSError and SubprocessError."""
    if sys.platform != "linux":
        raise OSError("only tried on Linux")
    processor = set(re.findall(r"^(?:vendor_id|cpu family|model|flags|CPU|Features).*", _read("/proc/cpuinfo"), re.M))
    # torch brings an OpenMP of its own: a second one beside it would fight for the processor.
    loaded = set(re.findall(r"/.*/lib(?:gomp|iomp5|omp)\b.*", _read("/proc/self/maps")))
    openmp = sorted(loaded, key=lambda path: not path.startswith(str(Path(torch.__file__).parent)))[:1]
    command = [compiler, *FLAGS, str(SOURCE), *openmp]
    key = repr((command, os.stat(compiler).st_mtime_ns, sorted(processor))).encode() + SOURCE.read_bytes()
    path = default_cache() / "compiled" / f"winograd-{hashlib.sha256(key).hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            subprocess.run(
                [*command, "-o", str(made)], check=True, capture_output=True, text=True, errors="replace", timeout=100
            )
            with made.open("rb") as file:
                os.fsync(file.fileno())  # half a library would end the process
            made.replace(path)
    return path


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")
