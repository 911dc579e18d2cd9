"""Steps of a distillation: which are timed together, which are logged and kept, and how long all of them take."""

from __future__ import annotations

from collections.abc import Iterator

SAMPLES = 1000
"""About so many timing windows are kept."""
LOGGED, LOGGED_EARLY = 100, 50
"""About so many lines of losses, step times and memory are kept, evenly spaced; and so many log-spaced."""
PICTURED = 12
"""About so many times the images are shown to somebody who watches."""
LOOK_SECONDS = 10.0
"""After so long, and again after twice as long, the estimate is held against the steps that were taken."""
WRONG_BY, WRONG_SECONDS = 1.25, 10.0
"""An estimate is corrected where it is off by this factor and by so many seconds."""


def windows(steps: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive (begin, end) that cover 0 … ``steps``, ``size`` steps each, the last perhaps fewer."""
    for begin in range(0, steps, size):
        yield begin, min(begin + size, steps)


def curve_steps(points: int, steps: int) -> list[int]:
    """``points`` log-spaced steps from 1 to ``steps``, without repetition; fewer where there are fewer steps."""
    if points < 2:
        return [steps] * points
    return sorted({round(steps ** (i / (points - 1))) for i in range(points)})


def log_steps(steps: int) -> list[int]:
    """The steps of which events tell: ``LOGGED`` evenly spaced and ``LOGGED_EARLY`` log-spaced, the first and the last
    among them. Fewer where some fall together."""
    count = min(LOGGED, steps)
    even = {1 + round(i * (steps - 1) / max(count - 1, 1)) for i in range(count)}
    return sorted(even.union(curve_steps(LOGGED_EARLY, steps)))


class Estimate:
    """How long ``steps`` steps take, as last said."""

    def __init__(self, steps: int, seconds: float) -> None:
        """``seconds``: all steps together, by those of the warm-up."""
        self._steps, self._said = steps, seconds
        self._look, self._before = LOOK_SECONDS, (0, 0.0)

    def corrected(self, done: int, seconds: float) -> str | None:
        """A line where what was said is wrong, after ``done`` steps in ``seconds``; now and then, else None.

        The steps left are taken to be like those since the last look: early steps may well be slower.
        """
        if seconds < self._look or done == self._steps:
            return None
        before, at = self._before
        now = seconds + (seconds - at) / (done - before) * (self._steps - done)
        self._look, self._before = 2 * seconds, (done, seconds)
        low, high = sorted((now, self._said))
        if high - low < WRONG_SECONDS or high < WRONG_BY * low:
            return None
        self._said = now
        return f"after {done} of {self._steps} steps: about {duration(now)} for all of them"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
