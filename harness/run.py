"""The command line: ``python -m harness.run --methods frepo,mtt --dataset cifar100``.

A request spans a grid of cells; those that have a result are skipped, each of the others runs in a process of its own,
and a table of all of them ends the run. Exit status: 0 every cell has a result (out of memory, a time limit and
divergence are results), 1 a cell failed, 2 the request is wrong (nothing was run), 130 interrupted, 141 nobody reads
the output any more.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import re
import shlex
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import methods
from benchmarks import DATASETS, NETWORKS
from benchmarks.errors import UserError, printable
from harness.command_line import LARGEST, Parser, end, exit_status, file_path, finite, whole
from harness.launch.local import started
from harness.limits import parse_bytes, parse_seconds, show_bytes
from harness.plan.experiments import (
    BUDGETS,
    DEFAULT_OUTPUT,
    EXPERIMENTS,
    PROTOCOLS,
    WIDTH,
    Job,
    Request,
    check,
    plan,
    requests,
    resolve,
    unpublished,
)
from harness.plan.options import describe, split
from harness.records import record
from harness.records.files import only_runner
from harness.records.record import FINAL, Record

PROGRAM = "python -m harness.run"
FLOOR = "random_real"
"""In every table: what a method adds to real images drawn at random is what it is worth."""
BY_USER = "stopped"
"""Why a run ended: Ctrl-C."""
AGAIN = ".again"
"""The folder inside the output where a cell runs that has a result already."""
ROOM_BYTES = 2**16
"""A record is smaller."""
# torch, tyro and pandas are imported where they are used: --help must not wait for them.


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise argparse.ArgumentTypeError("expected one or more names, comma between")
    return names


def _integers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*[+-]?\d+\s*", part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected whole numbers, comma between, not {text!r}")
    return tuple(dict.fromkeys(map(whole, parts)))


def _limit(parse: Callable[[str], float], most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = parse(text)
        except OverflowError:
            value = math.inf
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if value > most:
            raise argparse.ArgumentTypeError(f"{text} is too large")
        return value

    return read


def _parser(program: str) -> Parser:
    budgets = "; ".join(f"{name}: {budget.meaning}" for name, budget in BUDGETS.items())
    narrow = ", ".join(f"{b.cpu_width} under {name}" for name, b in BUDGETS.items() if b.cpu_width)
    parser = Parser(
        prog=program,
        usage=f"{program} --methods NAMES --dataset NAMES [options] [--METHOD.HYPER-PARAMETER VALUE]\n"
        f"       {program} --experiment NAME --dataset NAMES [options]",
        description="Distil data sets, measure what it costs, test what it gives. "
        "A plural takes a comma list; lists make a grid.",
        epilog=f"methods     {', '.join(methods.names())}\n"
        f"data sets   {', '.join(DATASETS)},\n            folder:PATH\n"
        f"networks    {', '.join(NETWORKS)}\n"
        f"experiments {', '.join(EXPERIMENTS)}\n\n"
        "--methods NAMES --help shows the hyper-parameters of these methods, as --METHOD.HYPER-PARAMETER.",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32),
        add_help=False,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-h", "--help", action="store_true", help="this text")
    add("--list", action="store_true", help="methods with their papers, data sets, networks, protocols; nothing is run")
    add("--experiment", metavar="NAME", help="a named request, with figures at the end; any other flag overrides")
    add("--methods", "--method", type=_names, metavar="NAMES")
    add("--datasets", "--dataset", type=_names, metavar="NAMES")
    add("--ipcs", "--ipc", type=_integers, metavar="N,…", help="synthetic images per class (1)")
    add(
        "--network",
        metavar="NAME",
        help="the same network for every method, with its usual norm (native: the protocol's)",
    )
    widths = f"channels of the first block ({WIDTH}; on a CPU {narrow})"
    add("--widths", "--width", type=_integers, metavar="N,…", help=widths)
    add("--depth", type=whole, metavar="N", help="blocks of the network (by image size)")
    add("--seeds", "--seed", type=_integers, metavar="N,…", help="distillation seeds (0)")
    add("--budget", metavar="NAME", help=f"{budgets} (quick)")
    add("--steps", type=whole, metavar="N", help="updates of the synthetic images (by method and budget)")
    add("--seconds", type=finite, metavar="S", help="as many steps as fit into so many seconds")
    add(
        "--seconds-include-prepare",
        action="store_true",
        default=None,
        help="--seconds pays for one-off preparation too",
    )
    add("--protocol", metavar="NAME", help="native: each paper's own evaluation; common: one for all (native)")
    add("--networks-evaluated", type=whole, metavar="N", help="networks trained on each distilled set (by budget)")
    add("--evaluate-steps", type=whole, metavar="N", help="at most so many steps to train each of them (by budget)")
    add("--networks-at-once", type=whole, metavar="N", help="train N of them at a time (as is fastest; 1 on a CPU)")
    add("--curve-points", type=whole, metavar="N", help="evaluate at N log-spaced steps too (0)")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (cuda if there is one)")
    add("--tf32", action="store_true", help="let a GPU round products to TF32; off, the ridge does not survive it")
    add(
        "--data-root",
        type=file_path,
        metavar="DIR",
        help="where data sets lie (FREPO_BENCH_DATA or a cache folder)",
    )
    add("--image-size", type=whole, metavar="N", help="resize images to N×N")
    add("--download", action="store_true", help="fetch data sets that are missing")
    add(
        "--cache",
        type=file_path,
        metavar="DIR",
        help="for preprocessed data, expert trajectories (FREPO_BENCH_CACHE)",
    )
    add("--output", type=file_path, metavar="DIR", help=f"records and sets ({DEFAULT_OUTPUT})")
    add("--no-random", action="store_true", help=f"do not add {FLOOR}, which else is in every table of accuracies")
    add("--forecast", action="store_true", help="what each cell will need, and whether it fits; nothing is run")
    size, duration = _limit(parse_bytes, LARGEST), _limit(parse_seconds, threading.TIMEOUT_MAX)
    add("--memory-limit", type=size, metavar="SIZE", help="such as 24GiB: more is out of memory")
    add("--time-limit", type=duration, metavar="TIME", help="such as 2h: longer cells are stopped")
    add("--force", action="store_true", help="run cells again that have a result")
    return parser


def main(
    arguments: Sequence[str] | None = None,
    *,
    launch: Callable[[Job], Record] | None = None,
    program: str = PROGRAM,
) -> int:
    """Run the command line ``arguments`` (by default those of the process); returns the exit status.

    ``launch``: what runs a cell; None: a process for each. ``program``: what the user calls this command.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_status(lambda: _main(arguments, program, launch))


def _main(arguments: Sequence[str], program: str, launch: Callable[[Job], Record] | None) -> int:
    rest, options = split(arguments, methods.names())
    parser = _parser(program)
    given = parser.parse(rest)
    if given.help:
        parser.print_help()
        if given.methods:
            print(f"\n{_hyperparameters(given)}")
        return 0
    if given.list:
        print(_listing())
        return 0
    for flag, value in (("--methods", given.methods or given.experiment), ("--dataset", given.datasets)):
        if value is None:
            raise UserError(f"{flag} is missing; for instance: {program} --methods frepo,mtt --dataset digits")
    ours = ("help", "list", "force", "no_random", "experiment")
    fields = {name: value for name, value in vars(given).items() if name not in ours and value is not None}
    fields |= {"options": options, "command": shlex.join([*program.split(), *arguments])}
    wanted = [Request(**fields)] if given.experiment is None else requests(given.experiment, fields)
    for request in wanted:  # before anything is added that nobody typed
        check(request)
    if not given.no_random:
        wanted = [_with_floor(request) for request in wanted]
    if given.forecast:
        jobs = [job for request in wanted for job in plan(request)]
        for name, dataset, ipc in [each for request in wanted for each in unpublished(request)]:
            _say(f"{name} on {dataset}, ipc {ipc}: no published setting, left out")
        from harness.measure import forecast

        print(forecast.table(jobs, given.memory_limit))
        return 0
    with contextlib.nullcontext(launch) if launch else started() as launch:
        planned = [(request, plan(request)) for request in wanted]
        for request, jobs in planned:
            for line in _announcement(request, jobs):
                _say(line)
        if FLOOR not in (given.methods or ()) and any(FLOOR in request.methods for request in wanted):
            _say(f"{FLOOR} runs as well, for comparison (--no-random leaves it out).")
        jobs = [job for _, part in planned for job in part]
        return carry_out(jobs, wanted[0].output, launch, force=given.force, drawn=given.experiment is not None)


def carry_out(
    jobs: Sequence[Job], output: Path, launch: Callable[[Job], Record], *, force: bool, drawn: bool = False
) -> int:
    """Run those of ``jobs`` that have no result, or with ``force`` all; then the tables, and where they are to be
    ``drawn`` the figures. Returns the exit status.

    Raises UserError, and runs nothing, while another run works in ``output``, and where a record there is of a newer
    version of the suite.
    """
    with only_runner(output, jobs[0].command if jobs else PROGRAM):
        record.refuse_newer(output)
        return _carry_out(jobs, output, launch, force=force, drawn=drawn)


def _carry_out(jobs: Sequence[Job], output: Path, launch: Callable[[Job], Record], *, force: bool, drawn: bool) -> int:
    records, failed, stopped = _run(jobs, output, launch, force=force)
    written = True
    if records:
        from harness import report

        print(report.show(records))
        # The files tell everything that lies there: a smaller run takes no measured row away.
        kept, damaged = record.load_all(output)
        for line in damaged:
            _say(line)
        try:
            report.write(kept, output)
            count = f"{len(kept)} record{'s' if len(kept) > 1 else ''}"
            _say(f"table.md, table.tex and table.csv in {output} tell of the {count} there")
            if drawn:
                _draw(kept, output)
        except UserError as error:
            _say(f"error: {error}")
            written = False
    if stopped is not None:
        on = " without --force goes on with those that have no result" if force else " goes on with the next"
        done = f"{len(records)} of {len(jobs)} cells are done and kept in {output}"
        print(file=sys.stderr)
        _say(f"{stopped}: {done}; the same command{on}")
        return 130 if stopped == BY_USER else 1
    return 0 if written and not failed and all(found["status"] in FINAL for found in records) else 1


def _with_floor(request: Request) -> Request:
    """``request`` with real images drawn at random among its methods, where accuracies are asked for."""
    if FLOOR in request.methods or request.budget == "cost":
        return request
    return dataclasses.replace(request, methods=(*request.methods, FLOOR))


def _draw(records: Sequence[Record], folder: Path) -> None:
    """Exponents and figures; without the packages that draw, a line says so and nothing is lost."""
    from harness import figures
    from harness.reports import scaling

    written = scaling.write(records, folder)
    try:
        written += figures.write(records, folder)
    except UserError as error:
        _say(str(error))
    if written:
        _say(f"and {', '.join(path.name for path in written)}")


def _run(
    jobs: Sequence[Job], output: Path, launch: Callable[[Job], Record], *, force: bool
) -> tuple[list[Record], bool, str | None]:
    """The records of ``jobs`` as far as they got; whether a cell failed whose earlier result is kept; and why the run
    stopped before its end, if it did."""
    records: list[Record] = []
    failed = False
    try:
        for number, job in enumerate(jobs, 1):
            place = f"[{number}/{len(jobs)}] {job.cell}"
            before = _existing(job)
            lost = None if before is None or force else _lost_set(job, before)
            if before is not None and lost is None and not force and _is_result(job, before):
                _say(f"{place}: {before['status']}, done before on {_where(before)} ({job.record_path.name})")
                records.append(before)
                continue
            _say(place)
            if lost is not None:
                _say(f"  {lost}: the cell is run again")
            if problem := _unwritable(output):
                return records, failed, f"stopped, as {output} cannot be written ({problem})"
            job = _with_forecast(job)
            started = time.monotonic()
            found = launch(job) if before is None or before["status"] not in FINAL else _replace(job, before, launch)
            _say(f"  {_outcome(found)} ({time.monotonic() - started:.0f} s)")
            if before is not None and _stays(before, found):
                _say("  the earlier result is kept")
                found, failed = before, True
            records.append(found)
    except KeyboardInterrupt:
        return records, failed, BY_USER
    return records, failed, None


def _stays(before: Record, found: Record) -> bool:
    """Whether the result ``before`` is kept: a set that is there gives way to a set alone, no result to an error."""
    if found["status"] == "ok":
        return False
    return before["status"] == "ok" or (before["status"] in FINAL and found["status"] not in FINAL)


def _replace(job: Job, before: Record, launch: Callable[[Job], Record]) -> Record:
    """Run ``job`` again in a folder of its own: its result ``before`` is there until another takes its place."""
    folder = Path(job.output) / AGAIN
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir()
    try:
        again = dataclasses.replace(job, output=str(folder))
        found = launch(again)
        moved = [(again.log_path, job.log_path)]
        if not _stays(before, found):
            # The record last: a set that is not the one of its record is noticed, and the cell runs again.
            picture = [path.with_suffix(".png") for path in (again.artifact_path, job.artifact_path)]
            moved += [(again.artifact_path, job.artifact_path), (picture[0], picture[1])]
            moved += [(again.record_path, job.record_path)]
        for new, old in moved:
            if new.exists():
                os.replace(new, old)
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unwritable(folder: Path) -> str | None:
    """Why nothing can be written into ``folder``, such as a full disk; None: it can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ROOM_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror
    return None


def _with_forecast(job: Job) -> Job:
    """``job`` with its forecast where memory is what is asked: elsewhere it is not worth its seconds."""
    if job.cell.steps is None and job.cell.seconds is None:
        return job
    if job.cell.memory_limit_bytes is None and job.cell.budget != "cost":
        return job
    from harness.measure import forecast

    try:
        needed = forecast.forecast(job).peak_live_bytes
    except UserError as error:
        _say(f"  {error}")
        return job
    _say(f"  forecast: {show_bytes(needed)} of live tensors")
    return dataclasses.replace(job, forecast_bytes=needed)


def _existing(job: Job) -> Record | None:
    """The record of ``job``, if there is one. A damaged one is put aside, never used and never lost."""
    if not job.record_path.exists():
        return None
    try:
        return record.load(job.record_path)
    except UserError as error:
        names = (f"{job.record_path.name}.damaged{number}" for number in ("", *map("-{}".format, range(2, 1000))))
        aside = next(path for name in names if not (path := job.record_path.with_name(name)).exists())
        with contextlib.suppress(OSError):  # a folder that cannot be written stops the run, and says so
            job.record_path.replace(aside)
            _say(f"{error}; kept as {aside.name}, the cell is run again")
        return None


def _is_result(job: Job, found: Record) -> bool:
    """Whether ``found`` says what becomes of ``job``: an error does not, nor a time limit that was shorter."""
    struck = found["cell"].get("time_limit_seconds")
    if found["status"] == "timeout" and struck is not None:
        return job.time_limit_seconds is not None and job.time_limit_seconds <= struck
    return found["status"] in FINAL


def _lost_set(job: Job, found: Record) -> str | None:
    """Why the distilled set of ``found`` is not there as it was written, in words; None: it is, or there never was."""
    if found["status"] != "ok" or not found["accuracy"]["values"]:
        return None
    from harness.records import artifact

    written = found["artifact"]
    return artifact.lost(job.artifact_path, job.cell.ipc, None if written is None else written["sha256"])


def _where(found: Record) -> str:
    """Device and, of a processor, threads: neither is in the name of a record, so another's is not measured again."""
    measured = found["provenance"]
    device, threads = measured.get("device") or "an unknown device", measured.get("threads")
    if threads is None or found["cell"].get("device_kind") != "cpu":
        return str(device)
    return f"{device} with {threads} thread{'s' if threads > 1 else ''}"


def _outcome(found: Record) -> str:
    if found["status"] != "ok":
        return f"{found['status']}: {found['message']}"
    if not found["accuracy"]["values"]:
        samples = found["cost"]["step_seconds"]
        return f"{statistics.median(samples):.3g} s per iteration" if samples else "no whole cycle of steps was timed"
    mean, std = found["accuracy"]["mean"], found["accuracy"]["std"]
    spread = "" if std is None else f" ± {std:.2%}"
    count = len(found["accuracy"]["values"])
    return f"test accuracy {mean:.2%}{spread} over {count} network{'s' if count > 1 else ''}"


def _announcement(request: Request, jobs: Sequence[Job]) -> list[str]:
    """What will run, and on what."""
    import torch

    count = Counter(job.record_path.exists() for job in jobs)
    done = f" ({count[True]} have a record)" if count[True] else ""
    cells = f"{len(jobs)} cell{'s' if len(jobs) > 1 else ''}{done}"
    where = record.device_name(jobs[0].device)
    if jobs[0].device == "cpu":
        threads = torch.get_num_threads()
        where += f", {threads} thread{'s' if threads > 1 else ''}"
    lines = [
        f"{cells}: {', '.join(request.methods)} on {', '.join(request.datasets)}, budget {request.budget}, {where}"
    ]
    width = jobs[0].cell.width
    if request.widths is None and width < WIDTH:
        lines.append(
            f"Networks have width {width} instead of {WIDTH}, because this is a CPU (--width {WIDTH} overrides)."
        )
    return lines


def _hyperparameters(given: argparse.Namespace) -> str:
    """The hyper-parameters as they stand for the first data set, ipc and budget asked for."""
    dataset, ipc = (given.datasets or ("digits",))[0], (given.ipcs or (1,))[0]
    budget = given.budget or Request.budget
    check(Request(given.methods, (dataset,), (ipc,), budget=budget))
    classes = {name: methods.get(name) for name in given.methods}
    resolved = resolve(classes, dataset, ipc, budget, {})
    shown = describe({name: config for name, (config, _) in resolved.items()})
    return f"Hyper-parameters, with the values they have on {dataset}, ipc {ipc}, budget {budget}:\n{shown}"


def _listing() -> str:
    """Methods with citation and native protocol, data sets, networks, protocols."""
    from benchmarks.protocols import PROTOCOLS as RECIPES

    cited = {}
    for name in methods.names():
        try:
            method = methods.get(name)
            cited[name] = f"{_citation(method)} [protocol {method.PROTOCOL}]"
        except UserError as error:  # one package that is broken does not hide the others
            cited[name] = printable(str(error))
    lines = ["methods", *_columns(cited)]
    lines += ["data sets", *(f"  {name}" for name in (*DATASETS, "folder:PATH"))]
    lines += ["networks", *(f"  {name}" for name in NETWORKS)]
    lines += [f"protocols ({' or '.join(PROTOCOLS)})", *(f"  {name}" for name in RECIPES)]
    lines += ["budgets", *_columns({name: budget.meaning for name, budget in BUDGETS.items()})]
    lines += ["experiments", *_columns({name: known.meaning for name, known in EXPERIMENTS.items()})]
    return "\n".join(lines)


def _columns(texts: Mapping[str, str]) -> list[str]:
    width = max(map(len, texts), default=0)
    return [f"  {name:<{width}}  {text}" for name, text in texts.items()]


def _citation(method: type[Any]) -> str:
    """The first paragraph about the method that has a year in it, which is the paper; else the first."""
    paragraphs = (sys.modules[method.__module__].__doc__ or method.__doc__ or "").split("\n\n")
    cited = next((text for text in paragraphs if re.search(r"\b(19|20)\d\d\b", text)), paragraphs[0])
    return " ".join(cited.split())


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


if __name__ == "__main__":
    end(main())
