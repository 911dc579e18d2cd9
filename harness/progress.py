"""How far a cell is: a bar with rate and time left on a terminal, otherwise a line now and then."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

PERIOD = 60.0
"""Seconds between two lines where there is no terminal."""


class Progress:
    """Counts from ``begin`` up to ``total`` (None: nobody knows).

    What it shows goes to standard error and is gone when done.
    """

    def __init__(self, what: str, total: int | None, begin: int = 0) -> None:
        self._what, self.total = what, total
        self._shown, self._shown_done = time.monotonic(), begin
        self._bar = tqdm(total=total, initial=begin, desc=f"  {what}", leave=False, disable=not sys.stderr.isatty())

    def __call__(self, done: int, note: str = "") -> None:
        """``done`` of the total is done; ``note`` stands at the end of the bar."""
        if not self._bar.disable:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.total = self.total
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if now - self._shown < PERIOD or done == self.total:
            return
        left = ""
        if self.total is not None:
            # By the pace since the last line: what came before may have been slower.
            pace = (now - self._shown) / max(1, done - self._shown_done)
            left = f" of {self.total}, about {pace * (self.total - done):.0f} s left"
        self._shown, self._shown_done = now, done
        print(f"  {self._what}: {done}{left}", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Print ``line`` above the bar."""
        tqdm.write(f"  {line}", file=sys.stderr)

    def close(self) -> None:
        self._bar.close()
