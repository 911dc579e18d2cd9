"""One cell, one fresh process: nothing that an earlier cell allocated, cached or compiled weighs on a later one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.errors import UserError
from harness import startup
from harness.limits import show_seconds
from harness.plan.experiments import Job
from harness.records import record
from harness.records.record import Record, Status
from harness.startup import ROOT

COMMAND = (sys.executable, "-P", "-m", "harness.cell")
"""-P: nothing is imported from the working directory, where a folder ``benchmarks`` may lie."""
ENVIRONMENT = {
    "GOMP_SPINCOUNT": "1000",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
"""Variables that every cell's process starts with, whatever the method; one that the user has set stays as it is.

``GOMP_SPINCOUNT``: how often a thread of torch's OpenMP looks for the others before it sleeps. By default it looks for
milliseconds, in which those it waits for may have no core: beside one other process a step took 30 times as long.
``GLIBC_TUNABLES``: memory in huge pages, which fresh activations fill faster.
``CUBLAS_WORKSPACE_CONFIG``: cuBLAS gives the same bits every time.
"""
GRACE_SECONDS = 60.0
"""A cell keeps its time limit itself, and is ended so long after it where a library does not let it."""


@contextlib.contextmanager
def started() -> Iterator[Callable[[Job], Record]]:
    """`launch`, with the process of the first job on its way: its libraries load while ours plans what to run."""
    waiting = [_start()]
    try:
        yield lambda job: launch(job, waiting.pop() if waiting else None)
    finally:
        for process in waiting:
            _stop(process)


def launch(job: Job, process: subprocess.Popen[bytes] | None = None) -> Record:
    """Run ``job`` in its own process and return the record that it wrote.

    ``process``: one that was started and waits for a job; None: a new one.

    A process that dies (a signal, a crash of a library, the kernel's out-of-memory killer) gets a record too. On any
    exception here, Ctrl-C among them, the process is stopped before the exception goes on.
    """
    kills = _out_of_memory_kills()
    process = process or _start()
    assert process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it died while starting; its exit status says how
            process.stdin.write(job.to_json().encode() + b"\n")
        limit = job.time_limit_seconds
        code = process.wait(None if limit is None else limit + GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        _stop(process)
    if code is None:
        return _failed(job, "timeout", f"the time limit of {show_seconds(limit or 0)} has passed")
    if code == 0:
        try:
            return record.load(job.record_path)
        except UserError as error:
            return _failed(job, "error", str(error))
    if code == -signal.SIGKILL and _out_of_memory_kills() > kills:
        return _failed(job, "oom", "the kernel killed the process for want of memory")
    if code < 0:
        return _failed(job, "error", f"the process was ended by {signal.Signals(-code).name}")
    return _failed(job, "error", f"the process ended with status {code}; its messages are above")


def _start() -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches this process alone, which then stops the cell. The cell in turn ends when
    # its standard input does, so that it never outlives us. What it prints goes where our messages go.
    return subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=2, bufsize=0, start_new_session=True, env=environment()
    )


def environment() -> dict[str, str]:
    """Variables of a process that measures: ``ENVIRONMENT``, and ours.

    It imports our packages from where we did, also where that is the working directory, and nothing else from there.
    """
    paths = [] if os.path.basename(ROOT) in ("site-packages", "dist-packages") else [ROOT]
    paths += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    python = {"PYTHONSAFEPATH": "1", **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})}
    return {**ENVIRONMENT, **os.environ, **python}


def restart_with_environment() -> None:
    """Begin this program anew with ``environment``, unless it has that: libraries read it when they are loaded.

    Does nothing in a process that is not a program of ours, such as a notebook.
    """
    if startup.begun and not ENVIRONMENT.keys() <= os.environ.keys():
        os.execve(sys.executable, sys.orig_argv, environment())


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # nothing to one that has ended
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _failed(job: Job, status: Status, message: str) -> Record:
    import torch

    failed = record.new(
        job.cell.to_dict(),
        job.config,
        record.provenance(
            job.command,
            device=record.device_name(job.device),
            fingerprint=job.cell.data_fingerprint,
            environment=environment(),
        ),
    )
    # The process had as many as we have: without them the record would be taken for one of another machine.
    failed["provenance"]["threads"] = torch.get_num_threads()
    failed["status"], failed["message"] = status, message
    failed["cost"]["forecast_bytes"] = job.forecast_bytes
    if status == "timeout":
        failed["cell"]["time_limit_seconds"] = job.time_limit_seconds
    try:
        record.write(failed, job.record_path)
    except OSError as error:
        failed["message"] = f"{message}; nor could the record be written: {error}"
    return failed


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
