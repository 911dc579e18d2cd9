"""A folder in which cells run → a line about each of them, again and again, until none runs any more.

    python -m harness.watch results/local

It only reads: leases tell which cells run, on whatever machine, and their events how far they are.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.errors import UserError, printable
from harness.command_line import Parser, command, end, file_path
from harness.limits import show_bytes
from harness.plan.request import DEFAULT_OUTPUT
from harness.progress import PERIOD, Lines, say
from harness.records import events, record
from harness.records.lease import FOLDER, Watch
from harness.records.record import AGAIN, EVENTS, FINAL, RECORD
from harness.steps import duration

PROGRAM = "python -m harness.watch"
LOOK_SECONDS = 2.0
"""Between two looks at the folder."""
BETWEEN_SECONDS = 30.0
"""A run is over when no cell has run for so long: the process of the next one first has to start."""


def running(folder: Path, watch: Watch) -> Iterator[Path]:
    """The folders of the cells in ``folder`` that somebody works on."""
    for lease in sorted((folder / FOLDER).glob("[!.]*")):
        if not lease.name.endswith(AGAIN) and watch.holder(lease, remove=False) is not None:
            again = folder / AGAIN / lease.name  # a set that is distilled anew, beside the earlier one
            yield again if again.exists() else folder / lease.name


def describe(cell: Path, now: Callable[[], float] = time.time) -> str:
    """How far the cell in the folder ``cell`` is. ``now``: seconds of the clock that files are dated by."""
    try:
        last = next(reversed(events.read(cell / EVENTS)), None)
    except UserError as error:  # the other cells are shown all the same
        return str(error)
    if last is None or last["step"] == last["steps"]:
        return "evaluating" if last or _status(cell) in FINAL else "preparing"
    parts = [f"step {last['step']} of {last['steps']}"]
    for name, value in list(last["losses"].items())[:1]:
        parts.append(f"{name} {'not finite' if value is None else f'{value:.4g}'}")
    parts.append(f"{last['step_seconds']:.3g} s per iteration")
    if last["memory_bytes"] is not None:
        parts.append(show_bytes(last["memory_bytes"]))
    with contextlib.suppress(FileNotFoundError):  # the cell may begin again meanwhile
        parts.append(f"last event {duration(max(0.0, now() - (cell / EVENTS).stat().st_mtime))} ago")
    return printable(", ".join(parts))


def _status(cell: Path) -> str | None:
    """The status in the record of a cell; None where there is no record that can be read."""
    with contextlib.suppress(OSError, UserError):
        return record.load(cell / RECORD)["status"]
    return None


def watch(folder: Path, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show the cells that run in ``folder`` until none has run for `BETWEEN_SECONDS`: on a terminal a line for each at
    its foot, elsewhere all of them every `PERIOD`."""
    lines, leases, known, quiet, since = Lines(), Watch(), set[Path](), 0.0, PERIOD
    while quiet < BETWEEN_SECONDS:
        now = set(running(folder, leases))
        for cell in sorted(known - now):
            lines.end(cell.name)
            say(f"{cell.name}: {_status(folder / cell.name) or 'has no record yet'}")
        for cell in sorted(now):
            lines.show(cell.name, describe(cell))
            if since >= PERIOD and not sys.stderr.isatty():
                say(f"{cell.name}: {describe(cell)}")
        known, quiet = now, 0.0 if now else quiet + LOOK_SECONDS
        since = LOOK_SECONDS if since >= PERIOD else since + LOOK_SECONDS
        sleep(LOOK_SECONDS)
    say(f"no cell has run in {folder} for {BETWEEN_SECONDS:.0f} s")


@command(PROGRAM)
def main(arguments: Sequence[str], program: str) -> int:
    """Show the cells that run in a folder."""
    parser = Parser(prog=program, description="Show the cells that run in a folder.", allow_abbrev=False)
    parser.add_argument(
        "folder", type=file_path, nargs="?", default=DEFAULT_OUTPUT, metavar="FOLDER", help="the --output of a run"
    )
    parser.add_argument("--once", action="store_true", help="one look, on standard output")
    options = parser.parse(arguments)
    if not options.folder.is_dir():
        raise UserError(f"no such folder: {options.folder}")
    if not options.once:
        watch(options.folder)
        return 0
    lines = [f"{cell.name}: {describe(cell)}" for cell in running(options.folder, Watch())]
    print("\n".join(lines) or f"no cell runs in {options.folder}")
    return 0


if __name__ == "__main__":
    end(main())
