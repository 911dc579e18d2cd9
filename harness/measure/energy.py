"""Energy of the distilling steps, by the counter that the driver keeps of the whole GPU."""

from __future__ import annotations

from harness.measure.nvml import Gpu

SECONDS = 1.0
"""The counter moves several times a second only: what it says of less time is not kept."""


class EnergyMeter:
    """``start``, the steps, ``per_step``. Knows nothing without a GPU, or where the GPU has no such counter."""

    def __init__(self, gpu: Gpu | None) -> None:
        self._gpu = gpu
        self._begin: float | None = None

    def start(self) -> None:
        self._begin = self._gpu.joules() if self._gpu else None

    def per_step(self, steps: int, seconds: float) -> float | None:
        """Joules since ``start`` for each of ``steps``, which took ``seconds``; None where it is not known."""
        end = self._gpu.joules() if self._gpu else None
        if self._begin is None or end is None or end < self._begin or seconds < SECONDS:
            return None  # a driver loaded anew counts from nothing
        return (end - self._begin) / steps
