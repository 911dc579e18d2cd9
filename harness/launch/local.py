"""One job, one fresh process: nothing that an earlier job allocated, cached or compiled weighs on a later one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

from benchmarks.errors import UserError
from harness import alive, stopping
from harness.launch import Launcher
from harness.launch.environment import environment
from harness.launch.slots import Device, alone, devices
from harness.limits import show_seconds
from harness.plan.jobs import Job
from harness.plan.pending import asks, begun, existing, reason_to_distil
from harness.progress import MARK, STATUS, Lines, say
from harness.records import lease, record
from harness.records.lease import LEASED
from harness.records.provenance import provenance
from harness.records.record import RECORD, EvaluationRecord, Record, Status
from harness.stopping import Stopped

if TYPE_CHECKING:
    from harness.plan.request import Evaluating

COMMAND = (sys.executable, "-P", "-m", "harness.cell")
"""-P: nothing is imported from the working directory, where a folder ``benchmarks`` may lie."""
GRACE_SECONDS = 60.0
"""A cell keeps its time limit itself, and is ended so long after it where a library does not let it."""
RELAY_SECONDS = 1.0
"""Time for the last lines of a cell; something that it started may keep its output open for longer."""


class Process(subprocess.Popen[bytes]):
    """The process of a cell."""

    signs: alive.Signs


@dataclass(frozen=True)
class Config:
    """No options."""


def launcher(config: Config, output: Path, request: Evaluating) -> AbstractContextManager[Launcher]:
    """A process of this machine for each job, as many at a time as ``request`` says."""
    return started(request.jobs)


@contextlib.contextmanager
def started(at_once: int | None = 1) -> Iterator[Launcher]:
    """`launch`, with the process of the first job on its way: its libraries load while ours plans what to run."""
    waiting = [_start()] if at_once in (None, 1) else []
    try:
        yield lambda jobs: launch(jobs, waiting, at_once)
    finally:
        for process in waiting:
            _stop(process)


def launch(
    jobs: Iterable[Job], waiting: list[Process] | None = None, at_once: int | None = 1
) -> Generator[Job, None, None]:
    """Run each of ``jobs`` in its own process, ``at_once`` at a time (None: one for each GPU); yield them as they end.

    ``waiting``: processes that were started and wait for a job; those that are used are taken out.

    A process that dies (a signal, a crash of a library, the kernel's out-of-memory killer) gets a record too. A job is
    not yielded where somebody else holds the lease on its folder: nothing was done, and it is theirs to do. On any
    exception here the processes are stopped before the exception goes on. Raises Stopped where a signal of
    `harness.stopping` asked for an end, once all that run have saved their state.
    """
    yield from _Launch(waiting if waiting is not None else [], at_once).run(jobs)


@dataclass(eq=False)
class _Cell:
    """A job in its process."""

    job: Job
    process: Process
    device: Device
    kills: int
    """Processes that the kernel had killed for memory, for other reasons than this cell."""
    relay: Thread | None = None
    """Prints its lines, where several run at a time."""
    hangs: bool = False

    def wait(self) -> int | None:
        """The exit status; None where the process takes too long, or ``hangs``."""
        silence, begin = self.job.cell_timeout_seconds, time.monotonic()
        self.process.signs.look()
        self.process.signs.silent = 0.0  # it may have waited for its job
        while True:
            left = None if self.limit is None else begin + self.limit - time.monotonic()
            if left is not None and left <= 0:
                return None
            if silence is not None and self.process.signs.silent > silence:
                self.hangs = True
                return None
            periods = [each for each in (left, None if silence is None else alive.PERIOD) if each is not None]
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(min(periods, default=None))
            self.process.signs.look()

    @property
    def limit(self) -> float | None:
        return None if self.job.time_limit_seconds is None else self.job.time_limit_seconds + GRACE_SECONDS


class _Launch:
    """The cells that run at present."""

    def __init__(self, waiting: list[Process], at_once: int | None) -> None:
        self._waiting, self._at_once = waiting, at_once
        self._devices: list[Device] = []
        self._cells: list[_Cell] = []
        self._ended = SimpleQueue[tuple[_Cell, int | BaseException | None]]()
        """Cells that have ended, with the exit status (None: it came too late), or why there is none."""
        self._asked: Stopped | None = None
        """The signal that asked for an end."""
        self._stopped: Stopped | None = None
        """Why no other job is started."""
        self._lines = Lines()

    def run(self, jobs: Iterable[Job]) -> Generator[Job, None, None]:
        left, upcoming = iter(jobs), None
        try:
            with stopping.handling(self._pass_on, self._kill):
                while True:
                    while self._stopped is None and (upcoming is not None or self._has_room()):
                        upcoming = upcoming or next(left, None)
                        device = None if upcoming is None else self._device_for(upcoming)
                        if upcoming is None or device is None or self._stopped is not None:
                            break
                        self._begin(upcoming, device)
                        upcoming = None
                    if not self._cells:
                        break
                    if (job := self._next_ended()) is not None:
                        yield job
                if self._stopped is not None:
                    raise self._stopped
        finally:
            for cell in self._cells:
                _stop(cell.process)
                self._lines.end(cell.job.place)

    def _has_room(self) -> bool:
        return not self._devices or any(device.used < device.slots for device in self._devices)

    def _device_for(self, job: Job) -> Device | None:
        """A device with as many free slots as ``job`` needs, the one with the most; None: there is none at present."""
        if not self._devices:
            self._devices = devices(job.device, self._at_once)
        fitting = [device for device in self._devices if device.slots - device.used >= device.takes(job)]
        return max(fitting, key=lambda device: device.slots - device.used, default=None)

    def _begin(self, job: Job, device: Device) -> None:
        several = sum(each.slots for each in self._devices) > 1
        kills = _out_of_memory_kills()
        if several:
            process = _start(device.variables(job), piped=True)
        else:
            process = self._waiting.pop() if self._waiting else _start()
        cell = _Cell(job, process, device, kills)
        self._cells.append(cell)
        device.used += device.takes(job)
        if several:
            self._lines.show(job.place, str(job))
            cell.relay = Thread(target=self._relay, args=(cell,), daemon=True)
            cell.relay.start()
        assert process.stdin is not None
        slots = 1 if alone(job) else device.slots
        with contextlib.suppress(BrokenPipeError):  # it died while starting; its exit status says how
            process.stdin.write(dataclasses.replace(job, slots=slots).to_json().encode() + b"\n")
        if self._asked is not None:  # meanwhile, and this cell was not told
            process.terminate()
        Thread(target=self._wait, args=(cell,), daemon=True).start()

    def _wait(self, cell: _Cell) -> None:
        code: int | BaseException | None
        try:
            code = cell.wait()
        except BaseException as error:
            code = error
        if cell.relay is not None:
            cell.relay.join(RELAY_SECONDS)
        self._ended.put((cell, code))

    def _relay(self, cell: _Cell) -> None:
        """Print the lines of ``cell``, each whole and behind its place in the run."""
        assert isinstance(cell.process.stdout, RawIOBase)
        with BufferedReader(cell.process.stdout) as lines:
            for raw in lines:
                line = raw.decode(errors="replace").rstrip("\n")
                if line.startswith(MARK):
                    self._lines.show(cell.job.place, line.removeprefix(MARK))
                else:
                    say(f"{cell.job.place} {line.strip()}")

    def _pass_on(self, number: int) -> None:
        self._asked = Stopped(number)
        self._stopped = self._stopped or self._asked
        for cell in self._cells:
            cell.process.terminate()  # SIGTERM, whichever it was: until the cell knows better, that ends it silently
        which = "the cell has saved its" if len(self._cells) == 1 else "the cells have saved their"
        with contextlib.suppress(OSError):
            if self._cells:
                os.write(2, f"stopping, as soon as {which} state; a second signal ends it at once\n".encode())

    def _kill(self) -> None:
        for cell in self._cells:
            cell.process.kill()

    def _next_ended(self) -> Job | None:
        """The job of the next cell that ends; None where it is not done."""
        cell, code = self._ended.get()
        if isinstance(code, BaseException):
            raise code
        self._cells.remove(cell)
        cell.device.used -= cell.device.takes(cell.job)
        _stop(cell.process)
        self._lines.end(cell.job.place)
        if code == LEASED:
            return None
        if code == stopping.NOT_DONE or (self._asked is not None and code != 0):
            self._stopped = self._asked or self._stopped or Stopped()
            return None
        return cell.job if self._has_records(cell, code) else None

    def _has_records(self, cell: _Cell, code: int | None) -> bool:
        """Write the records that are missing of a cell that ended with ``code``; whether it was ours to do."""
        failed: tuple[Status, str]
        if cell.hangs:
            silence = show_seconds(cell.job.cell_timeout_seconds or 0)
            failed = "error", f"no sign of life for {silence} (--cell-timeout): the process was killed"
        elif code is None:
            failed = "timeout", f"the time limit of {show_seconds(cell.job.time_limit_seconds or 0)} has passed"
        elif code == -signal.SIGKILL and _out_of_memory_kills() > cell.kills:
            failed = "oom", "the kernel killed the process because memory ran out"
            for other in self._cells:
                other.kills += 1
        elif code < 0:
            failed = "error", f"the process was ended by {_name(-code)}"
        elif code > 0:
            failed = "error", f"the process ended with status {code}; its messages are above"
        else:
            failed = "error", "the process ended without a record"
        jobs = [each for each in (cell.job, *cell.job.beside) if code != 0 or existing(each) is None]
        try:
            with lease.taken((lease.path_of(each.path) for each in jobs), cell.job.command):
                for each in jobs:
                    _fail(each, *failed)
        except lease.Held:  # somebody has seen that the process is gone, and does it again
            return False
        return True


def _start(variables: dict[str, str] | None = None, *, piped: bool = False) -> Process:
    """The process of a cell, with ``variables`` in addition to ours; ``piped``: we read what it prints."""
    # A session of its own: Ctrl-C reaches this process alone, which then tells the cell. The cell in turn ends when
    # its standard input does, so that it never outlives us. What it prints goes where our messages go.
    shown = {STATUS: "1"} if piped and sys.stderr.isatty() else {}
    signs = alive.Signs()
    process = Process(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if piped else 2,
        stderr=subprocess.STDOUT if piped else None,
        bufsize=0,
        start_new_session=True,
        pass_fds=(signs.descriptor,),
        env=environment() | (variables or {}) | shown | {alive.VARIABLE: str(signs.descriptor)},
    )
    process.signs = signs
    return process


def _stop(process: Process) -> None:
    process.kill()  # nothing to one that has ended
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # what the method started and left behind
    process.wait()
    process.signs.close()
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


def _name(number: int) -> str:
    """The name of a signal, which those for real time do not have."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
