"""Energy of the distilling steps, by the counter that the driver keeps of the whole GPU."""

from __future__ import annotations

from harness.measure.nvml import Gpu

SECONDS = 1.0
"""The counter moves several times a second only: what it says of less time is not kept."""


class EnergyMeter:
    """``start``, the steps, ``stop``, as often as the steps are interrupted; then ``per_step``.

    Knows nothing without a GPU, or where the GPU has no such counter.
    """

    def __init__(self, gpu: Gpu | None, joules: float | None = 0.0) -> None:
        """``joules``: of the steps that another process took before."""
        self._gpu = gpu
        self._begin: float | None = None
        self.joules = joules
        """Energy between every start and its stop; None where it is not known."""

    def start(self) -> None:
        self._begin = self._gpu.joules() if self._gpu else None

    def stop(self) -> None:
        end = self._gpu.joules() if self._gpu else None
        if self._begin is None or end is None or end < self._begin:  # a driver loaded anew counts from nothing
            self.joules = None
        elif self.joules is not None:
            self.joules += end - self._begin

    def per_step(self, steps: int, seconds: float) -> float | None:
        """Joules for each of ``steps``, which took ``seconds``; None where it is not known."""
        return None if self.joules is None or seconds < SECONDS else self.joules / steps
