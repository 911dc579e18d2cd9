"""How long a grid takes on many devices: ``python -m harness.schedule CELLS.csv --devices 1,8,64``.

A row of ``CELLS.csv`` is a number of cells that take equally long. Its columns are the fields of
`harness.plan.schedule.Cells`, of which ``name`` and ``seconds`` are needed. With ``--experiment`` that file is written
instead, from a forecast of each cell and the rates that the records of a folder were measured at.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.errors import UserError, choose
from benchmarks.files import replacing
from harness.command_line import Parser, command, end, file_path, finite, whole
from harness.limits import parse_seconds, show_bytes
from harness.plan.request import integers, limit
from harness.plan.schedule import Cells, faster, simulate

PROGRAM = "python -m harness.schedule"


@command(PROGRAM)
def main(arguments: Sequence[str], program: str) -> int:
    """Simulate a run, or write what can be simulated."""
    parser = Parser(
        prog=program,
        description="Simulate a grid of cells on many devices: hours, the share in which they work, what bounds them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add, time = parser.add_argument, limit(parse_seconds, threading.TIMEOUT_MAX)
    add("cells", type=file_path, metavar="CELLS.csv", help="rows of name, count, seconds and more")
    add("--devices", type=integers, default=(1, 8, 64), metavar="N,…", help="how many there are; a row for each")
    add("--per-device", type=whole, default=1, metavar="N", help="cells at a time on each; cells of costs are alone")
    add("--faster", type=finite, default=1.0, metavar="X", help="the devices are X times as fast as those measured")
    add("--restart-every", type=time, metavar="TIME", help="all devices are lost and come back so often")
    add("--checkpoint-every", type=time, default=300.0, metavar="TIME", help="the most that a cell loses then")
    add("--experiment", metavar="NAME", help="write CELLS.csv: the cells of this experiment")
    add("--measured", type=file_path, metavar="DIR", help="records that tell the rates of methods on networks")
    add("--budget", metavar="NAME", help="of the experiment; by default paper, or its own where it has one")
    add("--seeds", type=integers, default=(0,), metavar="N,…", help="of the experiment")
    options = parser.parse(arguments)
    for name in ("devices", "per_device"):
        value = getattr(options, name)
        if min(value if isinstance(value, tuple) else (value,)) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    if options.faster <= 0:
        raise UserError("--faster must be a positive number")
    if options.experiment is not None:
        if options.measured is None:
            raise UserError("--measured is missing: a folder with records of --budget cost")
        write(_planned(options.experiment, options.budget, options.seeds, options.measured), options.cells)
        return 0
    cells = faster(read(options.cells), options.faster)
    kept = {"restart_seconds": options.restart_every, "checkpoint_seconds": options.checkpoint_every}
    print(table(cells, options.devices, per_device=options.per_device, **kept))
    return 0


def table(cells: Sequence[Cells], devices: Sequence[int], **settings: Any) -> str:
    """A row for each number of devices, as Markdown, and a sentence on what all cells need."""
    import tabulate

    tabulate.MIN_PADDING = 0
    rows = []
    for number in devices:
        run = simulate(cells, number, **settings)
        rows.append([f"{number}", _hours(run.seconds), f"{run.busy:.0%}", run.bound])
    headers = ["devices", "hours", "busy", "what bounds it"]
    shown = tabulate.tabulate(
        rows, headers, tablefmt="pipe", disable_numparse=True, colalign=("right",) * 3 + ("left",)
    )
    count, work = sum(each.count for each in cells), sum(each.count * each.seconds for each in cells)
    disk = sum(each.count * each.disk_bytes for each in cells)
    return f"{shown}\n\n{count} parts, {_hours(work)} hours of work, {show_bytes(disk)} on the disk."


def _hours(seconds: float) -> str:
    """Three digits: ``0.0123``, ``641,000``."""
    return f"{float(f'{seconds / 3600:.3g}'):,.6g}"


def read(path: Path) -> list[Cells]:
    """The rows of ``path``. Raises UserError where they cannot be understood, and where there is none."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no table as CSV in UTF-8: {error}") from error
    if not rows:
        raise UserError(f"{path} has no rows")
    return [_row(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]


def _row(row: Mapping[str | None, Any], place: str) -> Cells:
    known = {field.name: field for field in dataclasses.fields(Cells)}
    if unknown := [name for name in row if name not in known]:
        raise UserError(f"{place}: no column is called {unknown[0]!r}; there are {', '.join(known)}")
    try:
        made = Cells(
            name=row["name"],
            seconds=float(row["seconds"]),
            count=int(row.get("count") or 1),
            after=row.get("after") or "",
            alone=bool(int(row.get("alone") or 0)),
            disk_bytes=int(row.get("disk_bytes") or 0),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{place} cannot be understood: {error}") from error
    if made.count < 1 or not 0 <= made.seconds < math.inf:
        raise UserError(f"{place}: count must be at least 1, and seconds a number from 0")
    return made


def write(cells: Sequence[Cells], path: Path) -> None:
    """Write ``cells`` to ``path``, seconds with four digits."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Cells)], lineterminator="\n")
        writer.writeheader()
        for each in cells:
            fields = dataclasses.asdict(each)
            writer.writerow(fields | {"seconds": f"{each.seconds:.4g}", "alone": int(each.alone)})


def _planned(experiment: str, budget: str | None, seeds: tuple[int, ...], measured: Path) -> list[Cells]:
    from harness.plan.durations import cells_of, rates_of
    from harness.plan.experiments import EXPERIMENTS, requests
    from harness.plan.planning import merged, plan
    from harness.plan.request import with_floor
    from harness.records.record import read_all

    left_out: list[str] = []
    told = {"seeds": seeds, "forecast": True, "device": "cuda"}
    parts = EXPERIMENTS[choose("experiment", experiment, EXPERIMENTS)].parts
    if budget is not None or not all("budget" in part.settings for part in parts):
        told["budget"] = budget or "paper"
    wanted = [with_floor(request) for request in requests(experiment, told)]
    jobs = merged(job for request in wanted for job in plan(request, left_out))
    for line in dict.fromkeys(left_out):
        print(f"left out: {line}", file=sys.stderr)
    return cells_of(jobs, rates_of(read_all(measured)[0]))


if __name__ == "__main__":
    end(main())
