"""One job, one fresh process: nothing that an earlier job allocated, cached or compiled weighs on a later one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.errors import UserError
from harness import stopping
from harness.launch import Launcher
from harness.launch.environment import environment
from harness.limits import show_seconds
from harness.plan.jobs import Job
from harness.plan.pending import asks, begun, existing, reason_to_distil
from harness.records import record
from harness.records.provenance import provenance
from harness.records.record import RECORD, EvaluationRecord, Record, Status
from harness.stopping import Stopped

if TYPE_CHECKING:
    from harness.plan.request import Evaluating

COMMAND = (sys.executable, "-P", "-m", "harness.cell")
"""-P: nothing is imported from the working directory, where a folder ``benchmarks`` may lie."""
GRACE_SECONDS = 60.0
"""A cell keeps its time limit itself, and is ended so long after it where a library does not let it."""


@dataclass(frozen=True)
class Config:
    """No options."""


def launcher(config: Config, output: Path, request: Evaluating) -> AbstractContextManager[Launcher]:
    """A process of this machine for each job, one after the other."""
    return started()


@contextlib.contextmanager
def started() -> Iterator[Launcher]:
    """`launch`, with the process of the first job on its way: its libraries load while ours plans what to run."""
    waiting = [_start()]
    try:
        yield lambda jobs: launch(jobs, waiting)
    finally:
        for process in waiting:
            _stop(process)


def launch(jobs: Iterable[Job], waiting: list[subprocess.Popen[bytes]] | None = None) -> Generator[Job, None, None]:
    """Run each of ``jobs`` in its own process, one after the other.

    ``waiting``: processes that were started and wait for a job; those that are used are taken out.

    A process that dies (a signal, a crash of a library, the kernel's out-of-memory killer) gets a record too. On any
    exception here the process is stopped before the exception goes on. Raises Stopped where a signal of
    `harness.stopping` asked for an end; the process that runs has saved its state by then.
    """
    for job in jobs:
        asked: list[Stopped] = []
        _run(job, waiting.pop() if waiting else _start(), asked)
        yield job
        if asked:
            raise asked[0]


def _run(job: Job, process: subprocess.Popen[bytes], asked: list[Stopped]) -> None:
    """Run ``job`` in ``process``; a request to stop that comes meanwhile goes into ``asked``.

    The cell is told, saves its state and ends; at a second request it is killed. Raises Stopped where anything of the
    job is left to do then, also where the cell alone was asked.
    """
    kills = _out_of_memory_kills()
    assert process.stdin is not None
    limit = job.time_limit_seconds

    def pass_on(number: int) -> None:
        asked.append(Stopped(number))
        process.terminate()  # SIGTERM, whichever it was: until the cell knows better, that ends it without a word
        with contextlib.suppress(OSError):
            os.write(2, b"stopping, as soon as the cell has saved its state; a second signal ends it at once\n")

    try:
        with stopping.handling(pass_on, process.kill):
            with contextlib.suppress(BrokenPipeError):  # it died while starting; its exit status says how
                process.stdin.write(job.to_json().encode() + b"\n")
            code = process.wait(None if limit is None else limit + GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        _stop(process)
    if code == stopping.NOT_DONE or (asked and code != 0):
        raise asked[0] if asked else Stopped()
    failed: tuple[Status, str]
    if code is None:
        failed = "timeout", f"the time limit of {show_seconds(limit or 0)} has passed"
    elif code == -signal.SIGKILL and _out_of_memory_kills() > kills:
        failed = "oom", "the kernel killed the process because memory ran out"
    elif code < 0:
        failed = "error", f"the process was ended by {signal.Signals(-code).name}"
    elif code > 0:
        failed = "error", f"the process ended with status {code}; its messages are above"
    else:
        failed = "error", "the process ended without a record"
    for each in (job, *job.beside):
        if code != 0 or existing(each) is None:
            _fail(each, *failed)


def _start() -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches this process alone, which then tells the cell. The cell in turn ends when
    # its standard input does, so that it never outlives us. What it prints goes where our messages go.
    return subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=2, bufsize=0, start_new_session=True, env=environment()
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # nothing to one that has ended
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _fail(job: Job, status: Status, message: str) -> None:
    """Write what became of ``job`` where its process could not: into the first record that it still had to make."""
    from harness.measure.forecast import forecast_bytes

    known = provenance(job.command, job.device, job.distillation.data_fingerprint, environment())
    failed: Record | EvaluationRecord
    distilled = existing(job)
    if distilled is None or reason_to_distil(job, distilled) is not None:
        failed = record.new(job.identity, job.distillation.to_dict(), job.config, job.asked, known)
        failed["cost"]["forecast_bytes"] = forecast_bytes(job)
        path = job.path / RECORD
    elif ask := next(asks(job, distilled), None):
        if ask.earlier:  # fewer values are better than none
            print(f"  {ask.question.evaluation}: {message}; the earlier answer is kept", file=sys.stderr, flush=True)
            return
        failed, path = begun(job, ask, known), ask.path
    else:
        return
    failed["status"], failed["message"] = status, message
    if status == "timeout":
        failed["time_limit_seconds"] = job.time_limit_seconds
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        record.write(failed, path)
    except OSError as error:
        raise UserError(f"{message}; nor could the record {path} be written: {error.strerror}") from error


def _out_of_memory_kills() -> int:
    """How many processes the kernel has killed for memory since it started; 0 where it does not say."""
    count = 0
    for source in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        try:
            for line in Path(source).read_text().splitlines():
                name, _, value = line.partition(" ")
                count += int(value) if name == "oom_kill" else 0
        except OSError:
            continue
    return count
