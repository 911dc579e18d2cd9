"""The one clock. It waits for the device before every reading, so that queued work counts where it belongs."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from harness.devices import synchronize


class Clock:
    """Seconds since an arbitrary moment, with everything queued on ``device`` finished.

    ``now`` can be replaced, so that tests need not wait.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self._device = device
        self._now = now

    def read(self) -> float:
        synchronize(self._device)
        return self._now()
