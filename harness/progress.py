"""How far cells are: a bar with rate and time left on a terminal, otherwise a line now and then.

Where several cells run at a time, each has a line at the foot of the terminal, and their other lines stay whole above.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from typing import Any

from benchmarks.errors import printable

PERIOD = 60.0
"""Seconds between two lines where there is no terminal."""
STATUS, STATUS_PERIOD = "FREPO_BENCH_STATUS", 1.0
"""The variable by which a cell is told that its parent shows how far it is; seconds between two such lines."""
MARK = "\r"
"""Begins a line that tells how far a cell is, to be shown in place of the one before."""
# tqdm is imported where it is used: --help must not wait for it.


class Progress:
    """Counts from ``begin`` up to ``total`` (None: nobody knows).

    What it shows goes to standard error and is gone when done.
    """

    def __init__(self, what: str, total: int | None, begin: int = 0) -> None:
        from tqdm import tqdm

        self._what, self.total = what, total
        self._shown, self._shown_done = time.monotonic(), begin
        self._told = -STATUS_PERIOD
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
        if STATUS in os.environ:
            if now - self._told >= STATUS_PERIOD:
                self._told = now
                of = "" if self.total is None else f" of {self.total}"
                say(f"{self._what}: {done}{of}{note and ', '}{note}", MARK)
            return
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
        from tqdm import tqdm

        tqdm.write(f"  {line}", file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


class Lines:
    """A line for each of several cells at the foot of a terminal; where there is none, nothing."""

    def __init__(self) -> None:
        self._bars: dict[str, Any] = {}

    def show(self, cell: str, text: str) -> None:
        """Let the line of ``cell`` say ``text``."""
        if not sys.stderr.isatty():
            return
        from tqdm import tqdm

        with _printing:
            bar = self._bars.get(cell)
            if bar is None:
                bar = self._bars[cell] = tqdm(total=0, bar_format="{desc}", leave=False, file=sys.stderr)
                _shown.add(cell)
            line = printable(f"{cell} {text}")[: shutil.get_terminal_size().columns - 1]
            bar.set_description_str(line)

    def end(self, cell: str) -> None:
        """Take the line of ``cell`` away."""
        with _printing:
            if cell in self._bars:
                self._bars.pop(cell).close()
                _shown.discard(cell)


_printing = threading.RLock()
_shown: set[str] = set()
"""Cells with a line at the foot of the terminal."""


def say(line: str, mark: str = "") -> None:
    """Print ``line`` on standard error, whole, whatever other threads print; above the lines of cells."""
    with _printing:
        if _shown:
            from tqdm import tqdm

            tqdm.write(printable(line), file=sys.stderr)
        else:
            sys.stderr.write(f"{mark}{printable(line)}\n")
            sys.stderr.flush()
