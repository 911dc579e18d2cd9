"""What this machine can do: the rates that a method's own is held against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

SIDE = 2048
"""Of the square matrices that are multiplied."""
CONVOLUTIONS = ((64, 128, 256, 16), (64, 512, 512, 8))
"""Batch, channels in and out, and side of the 3×3 convolutions; the fastest counts."""
REPEATS = 5


@dataclass(frozen=True)
class Rates:
    """Billions of float32 operations a second, each the median of a few calls."""

    sgemm: float
    """Of a large matrix product."""
    convolution: float
    """Of the fastest of a few large convolutions, over both memory formats, forward."""


def rates(scale: int = 1, now: Callable[[], float] = time.perf_counter) -> Rates:
    """Measured now, with the threads that torch has. ``scale`` divides all sizes; ``now``: the clock to read."""
    side = SIDE // scale
    matrix = torch.randn(side, side)
    convolutions = []
    for batch, channels, out, size in CONVOLUTIONS:
        operations = 2 * batch * size**2 * out * channels * 9 / scale
        for memory_format in (torch.contiguous_format, torch.channels_last):
            images = torch.randn(batch // scale, channels, size, size).to(memory_format=memory_format)
            weight = torch.randn(out, channels, 3, 3).to(memory_format=memory_format)
            seconds = _median(lambda x=images, w=weight: F.conv2d(x, w, padding=1), now)  # type: ignore[misc]
            convolutions.append(operations / seconds / 1e9)
    return Rates(2 * side**3 / _median(lambda: matrix @ matrix, now) / 1e9, max(convolutions))


def _median(call: Callable[[], object], now: Callable[[], float]) -> float:
    """Seconds of one ``call``, after a first that does not count."""
    seconds = []
    with torch.no_grad():
        call()
        for _ in range(REPEATS):
            begin = now()
            call()
            seconds.append(now() - begin)
    return statistics.median(seconds)
