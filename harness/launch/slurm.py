"""Cells as jobs of a Slurm cluster, submitted through submitit.

The files on the disk tell what is done, never Slurm's accounting. A job names a file with the cell in it, takes it as
it is when the job starts, and writes another file when the cell has ended. So the command that submitted the jobs may
end at any time: given again, it finds them by the file of its jobs, and submits only what is missing and not queued.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.errors import UserError, printable
from benchmarks.files import replacing
from harness import stopping
from harness.launch import Launcher, needed
from harness.launch.environment import environment
from harness.limits import parse_bytes, parse_seconds, show_bytes
from harness.plan.jobs import WHOLE_DATA, Job
from harness.plan.pending import existing
from harness.records.provenance import code_version
from harness.records.record import AGAIN
from harness.stopping import Stopped

if TYPE_CHECKING:
    from harness.plan.request import Evaluating

FOLDER = ".slurm"
"""The folder inside the output with the files of the jobs, and their logs."""
PROGRAMS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
OVER = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}
"""States of Slurm after which a job does not run any more."""
LOOK_SECONDS = 5.0
"""Between two looks at the files."""
COMMAND_SECONDS = 60.0
"""A command of Slurm that takes longer has failed."""
RESUBMISSIONS = 2
"""How often a job that ended without a word is submitted again while the command waits."""
SIGNAL_SECONDS = 90
"""So long before its time limit a job is told to save its state; half of a limit that is shorter than twice that."""
PROCESS_BYTES = {"cpu": 4 << 30, "cuda": 8 << 30}
"""Memory of a process beside images and tensors: libraries, and on a GPU the driver's context."""
APART = "again-"
"""Begins the name of a cell that is distilled beside an earlier result."""
UNASKED = ("command", "place", "slots")
"""Fields of a job that tell who asks for it, and not what for."""
LOG_LINES = 5
"""The last lines of the log of a job that failed, which are shown."""


@dataclass(frozen=True)
class Config:
    """What each cell asks of Slurm, and how its jobs are handled."""

    partition: str | None = None
    """partition of the cluster; None: the cluster's default"""
    gpus: int | None = None
    """GPUs of a cell; None: 1 with --device cuda, 0 with --device cpu"""
    cpus: int = 4
    """processors of a cell, and its threads where OMP_NUM_THREADS says nothing else"""
    memory: str | None = None
    """memory of a cell, such as 16GiB; None: as forecast, and what a process needs"""
    time: str = "1d"
    """time limit of a job, such as 4h: a cell that needs more saves its state and is queued again"""
    requeues: int = 10
    """how often a cell is queued again after a time limit, a preemption or the loss of a node"""
    array_parallelism: int = 256
    """most jobs of an array that run at a time"""
    max_array: int | None = None
    """most jobs of an array; None: the cluster's limit"""
    setup: str = ""
    """shell lines before a cell starts, such as 'module load cuda'"""
    extra: tuple[str, ...] = ()
    """more options of sbatch, such as account=lab,qos=high"""
    poll: float = 60.0
    """seconds between two looks at the queue, which is asked about all jobs at once"""

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        for name, least in (("gpus", 0), ("cpus", 1), ("requeues", 0), ("array_parallelism", 1), ("max_array", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if not self.poll > 0:
            raise ValueError(f"poll must be a positive number, not {self.poll:g}")
        for name, parse in (("memory", parse_bytes), ("time", parse_seconds)):
            try:
                if (text := getattr(self, name)) is not None:
                    parse(text)
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{name}: {error}") from None
        if wrong := next((pair for pair in self.extra if not re.fullmatch(r"[a-z][a-z-]*(=\S+)?", pair)), None):
            raise ValueError(f"extra takes options of sbatch such as account=lab, not {wrong!r}")

    @property
    def minutes(self) -> int:
        """The time limit; Slurm counts in minutes."""
        return math.ceil(parse_seconds(self.time) / 60)


@contextlib.contextmanager
def launcher(config: Config, output: Path, request: Evaluating) -> Iterator[Launcher]:
    """Jobs of Slurm that work in ``output``.

    Raises UserError where submitit or Slurm's commands are missing, and where the request does not say which kind of
    device the cells run on.
    """
    needed("--launcher slurm", "submitit", "slurm")
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        raise UserError(f"--launcher slurm: there is no {', '.join(missing)} here; run it where jobs are submitted")
    if request.device not in ("cpu", "cuda"):
        raise UserError("--launcher slurm needs --device cuda or --device cpu: the cluster's devices are not seen here")
    if config.gpus is None:
        config = dataclasses.replace(config, gpus=int(request.device == "cuda"))
    yield _Driver(config, output).run


# --- on the node ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A job: the path of the file that names the cell and the code. submitit pickles this, and nothing else."""

    path: str

    def __call__(self) -> None:
        """Run the cell, as it stands in the file, in a process of its own; the file of its end tells the command.

        A cell that a signal stopped has saved its state by then, and its job is queued again.
        """
        from harness.launch import local

        file = CellFile(Path(self.path))
        told = file.read()
        if told is None:
            _say(f"{self.path} is gone: there is nothing to do")
            return
        job = Job.from_json(json.dumps(told["job"]))
        os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        here = code_version()
        known = {
            "digest": told["digest"],
            "job": _job_id(),
            "node": platform.node(),
            "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "warning": None if told["code"] == here else _differs(told["code"], here),
        }
        if known["warning"]:
            _say(f"warning: {known['warning']}")
        starts = file.start(_job_id())
        given_up = f"it was started {starts} times and has not ended; --slurm.requeues allows more"
        if starts > told["requeues"] + 1:
            file.end({**known, "given_up": given_up})
            return
        try:
            for _ in local.launch([job]):
                file.end(known)
            if file.ended() is None:  # somebody else does the cell at present
                file.end({**known, "leased": True})
        except Stopped as error:
            _say(str(error))
            if file.ended() is not None:  # the signal came too late
                return
            if starts > told["requeues"]:
                file.end({**known, "given_up": given_up})
            elif error.number is None or not _is_cancelled():
                _queue_again()

    def checkpoint(self) -> Any:
        """The same job again, as submitit asks for it: the state is in the folder of the cell."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _queue_again() -> None:
    """Let submitit queue this job again, by the signal that it takes for that."""
    from submitit.core.job_environment import JobEnvironment

    signal.raise_signal(getattr(signal, f"SIG{JobEnvironment.USR_SIG}"))


def _is_cancelled() -> bool:
    """Whether this job was cancelled, by its user or for good: it must not come back. False where Slurm is silent."""
    shown = _slurm("scontrol", "show", "job", "--oneliner", os.environ["SLURM_JOB_ID"])
    found = re.search(r"JobState=(\w+) Reason=(\w+)", shown or "")
    return found is not None and found[1] in ("CANCELLED", "COMPLETING") and found[2] != "TimeLimit"


def _job_id() -> str:
    """The job as squeue shows it: ``12``, or ``12_3`` of an array."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array else os.environ.get("SLURM_JOB_ID", "")


def _differs(submitted: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    def words(code: Mapping[str, Any]) -> str:
        return f"{(code['commit'] or 'no commit')[:10]}{' with changes' if code['dirty'] else ''}"

    return f"the code has changed since it was submitted: {words(submitted)} then, {words(here)} now"


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CellFile:
    """The file that names a cell; beside it one with its starts, and one with its end."""

    path: Path

    def write(self, job: Job, code: Mapping[str, Any], requeues: int) -> str:
        """Name ``job``, its code, and how often it may start again; returns the digest of the job."""
        fields = json.loads(job.to_json())
        asked = {name: value for name, value in fields.items() if name not in UNASKED}
        digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        _write(self.path, {"job": fields, "digest": digest, "code": code, "requeues": requeues})
        return digest

    def read(self) -> dict[str, Any] | None:
        return _read(self.path)

    def start(self, job_id: str) -> int:
        """Note a start; returns the number of them."""
        path = self.path.with_suffix(".starts")
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{job_id} on {platform.node()}\n")
        return len(path.read_text(encoding="utf-8").splitlines())

    def end(self, known: Mapping[str, Any]) -> None:
        _write(self.path.with_suffix(".ended"), known)

    def ended(self) -> dict[str, Any] | None:
        """What is known of the end of the cell; None while there is none."""
        return _read(self.path.with_suffix(".ended"))

    def forget(self, *, cell: bool) -> None:
        """Remove starts and end; with ``cell`` the file itself, too."""
        for suffix in (".starts", ".ended", *([self.path.suffix] if cell else [])):
            with contextlib.suppress(OSError):
                self.path.with_suffix(suffix).unlink()


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _read(path: Path) -> dict[str, Any] | None:
    """The JSON object in ``path``; None where there is none, or one that is not whole."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


@dataclass
class Batch:
    """Cells that were submitted together: a job, or an array of jobs."""

    name: str
    """The name of the job, by which squeue finds it."""
    id: str | None
    """The number of the job; None while sbatch has not answered, or where the command was killed before it did."""
    cells: list[str]
    """The names of their files, in the order of the array."""
    open: list[str]
    """Those of the cells whose jobs are not known to be over."""

    def job_of(self, cell: str) -> str:
        """The job of ``cell`` as squeue shows it; empty while it is unknown."""
        if self.id is None:
            return ""
        return self.id if len(self.cells) == 1 else f"{self.id}_{self.cells.index(cell)}"


def read_batches(path: Path) -> list[Batch]:
    """The batches that ``path`` remembers. Raises UserError for a file that is damaged."""
    try:
        return [Batch(**each) for each in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}, which tells what is queued, cannot be read ({error}): see squeue, end what is queued for this "
            "folder, and remove the file"
        ) from error


def chunks(cells: Sequence[str], most: int) -> list[list[str]]:
    """``cells`` in parts of at most ``most``, in their order."""
    return [list(cells[begin : begin + most]) for begin in range(0, len(cells), most)]


# --- where the command runs -------------------------------------------------------------------------------------------


@dataclass
class _Driver:
    """The jobs of one output folder, as the command sees them."""

    config: Config
    output: Path
    batches: list[Batch] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)
    """Cells that the command waits for: name of the file → what it says."""
    digests: dict[str, str] = field(default_factory=dict)
    absent: Counter[str] = field(default_factory=Counter)
    """Cell → how many looks at the queue in a row did not show its job."""
    again: Counter[str] = field(default_factory=Counter)
    """Cell → how often it was submitted again."""
    given_up: int = 0
    """Cells without a result that are not submitted again."""
    shown: str = ""
    """The last line about the queue."""

    @property
    def folder(self) -> Path:
        return self.output.absolute() / FOLDER

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def file(self, cell: str) -> CellFile:
        return CellFile(self.folder / "cells" / f"{cell}.json")

    def cell_of(self, job: Job) -> str:
        """The name of the file of ``job``: the same for every command about the same folders."""
        places = [os.path.relpath(folder, self.output) for folder in job.key]
        digest = hashlib.sha256(repr(places).encode()).hexdigest()[:8]
        apart = APART if AGAIN in Path(places[-1]).parts else ""
        return f"{apart}{re.sub(r'[^A-Za-z0-9_-]', '_', job.path.name)}-{digest}"

    def run(self, jobs: Iterable[Job]) -> Generator[Job, None, None]:
        """Submit ``jobs``, except those that are queued already, and yield each when it has ended.

        A cell that somebody else does at present is left out. Raises Stopped where a signal of `harness.stopping` asked
        for an end: the jobs stay in the queue. Raises UserError where Slurm takes no job, and at the end where a cell
        has no result, with a line before that says why.
        """
        self.jobs = {self.cell_of(job): job for job in jobs}
        with stopping.asked_by_signals():
            try:
                yield from self._run()
            finally:
                self._leave()

    def _run(self) -> Generator[Job, None, None]:
        left, code = self._not_queued(), code_version()
        for cell, job in self.jobs.items():
            if cell in left:
                self.file(cell).forget(cell=False)
            self.digests[cell] = self.file(cell).write(job, code, self.config.requeues)
        if len(left) < len(self.jobs):
            _say(f"{_count(len(self.jobs) - len(left), 'cell')} queued before, {len(left)} to submit")
        while self.jobs:
            left = self._submit(left)
            look = time.monotonic() + self.config.poll
            while self.jobs:
                for cell in self._ended():
                    ended = None if cell in left else self.file(cell).ended()
                    if ended is None:
                        continue
                    if ended.get("digest") != self.digests[cell]:  # it ran as an earlier command had asked for it
                        self._close(cell)
                        self.file(cell).forget(cell=False)
                        left.append(cell)
                    elif reason := ended.get("given_up"):
                        self._give_up(cell, str(reason))
                    elif ended.get("leased"):
                        del self.jobs[cell]
                        self._tidy(cell, str(ended.get("job")))
                    else:
                        yield from self._end(cell, ended)
                if self.jobs:
                    with stopping.released():
                        time.sleep(min(LOOK_SECONDS, self.config.poll))
                if time.monotonic() >= look:
                    left += self._look(left)
                    break
        if self.given_up:
            raise UserError(f"{_count(self.given_up, 'cell')} without a result, as told above")

    def _ended(self) -> list[str]:
        """The cells with an end, by a listing of the folder: a network file system shows new files there first."""
        names = set(os.listdir(self.file("").path.parent))
        return [cell for cell in self.jobs if self.file(cell).path.with_suffix(".ended").name in names]

    def _end(self, cell: str, ended: Mapping[str, Any]) -> Generator[Job, None, None]:
        job, shown = self.jobs.pop(cell), str(ended.get("job"))
        for each in (job, *job.beside):
            with contextlib.suppress(OSError):
                os.listdir(each.path)  # lets a network file system look for the record again
        records = [existing(each) for each in (job, *job.beside)]
        if warning := ended.get("warning"):
            _say(f"warning: {job}: {warning}")
        yield job
        if any(record is None or record["status"] == "error" for record in records):
            self._show_log(shown)
            self._close(cell)
        else:
            self._tidy(cell, shown)

    def _tidy(self, cell: str, shown: str) -> None:
        """Remove the files of a ``cell`` that ended well, and of its job, called ``shown``."""
        for path in self.logs.glob(f"{shown}_*"):
            path.unlink(missing_ok=True)
        self.file(cell).forget(cell=True)
        self._close(cell)

    def _give_up(self, cell: str, reason: str, shown: str = "") -> None:
        job = self.jobs.pop(cell)
        self.given_up += 1
        _say(f"{job}: {reason}; the same command submits it again")
        self._show_log(shown or self._job_of(cell))
        self._close(cell)

    def _show_log(self, shown: str) -> None:
        """The last lines of what the job ``shown`` printed, and where there is more."""
        for path in self.logs.glob(f"{shown}_0_log.out") if shown else ():
            with contextlib.suppress(OSError):
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
                _say("\n".join([f"  the log of job {shown} ends, in {path}:", *(f"    {line}" for line in lines)]))

    def _leave(self) -> None:
        """Say what stays in the queue, and cancel what would have no place to come back to."""
        self._cancel_apart()
        waiting = [cell for cell in self.jobs if self._job_of(cell)]
        if waiting:
            numbers = dict.fromkeys(self._job_of(cell).partition("_")[0] for cell in waiting)
            _say(
                f"{_count(len(waiting), 'cell stays', 'cells stay')} in the queue, to run without this command: the "
                f"same command goes on with them, scancel {' '.join(numbers)} ends them"
            )

    def _cancel_apart(self) -> None:
        """Cancel cells that are distilled again beside an earlier result: that place ends with the command."""
        cells = [cell for batch in self.batches for cell in batch.open if cell.startswith(APART)]
        if numbers := [number for cell in cells if (number := self._job_of(cell))]:
            _slurm("scancel", *numbers)
        for cell in cells:
            self.jobs.pop(cell, None)
            self._close(cell)

    # --- what is queued -----------------------------------------------------------------------------------------------

    def _not_queued(self) -> list[str]:
        """The cells without a job in the queue. Raises UserError where an earlier run had some, and squeue fails."""
        self.batches = read_batches(self._path)
        if not self.batches:
            return list(self.jobs)
        states = self._states()
        if states is None:
            raise UserError("jobs of an earlier run may be queued, but squeue does not answer: try again later")
        self._cancel_apart()
        for cell, shown in [(cell, batch.job_of(cell)) for batch in self.batches for cell in batch.open]:
            ended = self.file(cell).ended()
            if ended is not None and cell not in self.jobs:  # nothing is asked of it any more
                self._tidy(cell, shown)
            elif ended is not None or _is_over(states.get(shown)):
                self._close(cell)
        queued = {cell for batch in self.batches for cell in batch.open}
        return [cell for cell in self.jobs if cell not in queued]

    def _look(self, left: Sequence[str]) -> list[str]:
        """Look at the queue; returns the cells to be submitted again. ``left``: those that are not submitted yet."""
        waiting = [cell for cell in self.jobs if cell not in left]
        states = self._states() if waiting else {}
        if states is None:
            self._show("squeue does not answer; the files of the cells are still watched")
            return []
        lost = []
        for cell in waiting:
            state = states.get(self._job_of(cell))
            self.absent[cell] = self.absent[cell] + 1 if _is_over(state) else 0
            if self.absent[cell] < 2 or self.file(cell).ended() is not None:  # its files may be on their way
                continue
            shown, self.absent[cell] = self._job_of(cell), 0
            if state == "CANCELLED":
                self._give_up(cell, f"its job {shown} was cancelled")
            elif self.again[cell] == RESUBMISSIONS:
                self._give_up(cell, f"its job {shown} is gone without a result ({state}), for the third time")
            else:
                _say(f"{self.jobs[cell]}: its job {shown} is gone without a result ({state}): it is submitted again")
                self._show_log(shown)
                self._close(cell)
                self.again[cell] += 1
                lost.append(cell)
        live = [state for cell in self.jobs if not _is_over(state := states.get(self._job_of(cell)))]
        counted = Counter("running" if state == "RUNNING" else "waiting" for state in live)
        if counted:
            self._show(f"queue: {counted['running']} running, {counted['waiting']} waiting")
        return lost

    def _show(self, line: str) -> None:
        if line != self.shown:
            _say(line)
        self.shown = line

    def _states(self) -> dict[str, str] | None:
        """Job → its state, in one question about all batches. None where squeue fails."""
        names = ",".join(batch.name for batch in self.batches)
        shown = _slurm("squeue", "--noheader", "--array", "--states=all", "--format=%i|%j|%T", f"--name={names}")
        if shown is None:
            return None
        states = {}
        for line in shown.splitlines():
            number, _, rest = line.strip().partition("|")
            name, _, state = rest.rpartition("|")
            states[number] = state
            for batch in self.batches:
                if batch.name == name and batch.id is None:  # the command was killed before it knew the number
                    batch.id = number.partition("_")[0]
                    self._save()
        return states

    def _batch_of(self, cell: str) -> Batch | None:
        return next((batch for batch in self.batches if cell in batch.open), None)

    def _job_of(self, cell: str) -> str:
        batch = self._batch_of(cell)
        return "" if batch is None else batch.job_of(cell)

    def _close(self, cell: str) -> None:
        """The job of ``cell`` is over; a batch without any other is forgotten, its script unless a log is kept."""
        batch = self._batch_of(cell)
        if batch is None:
            return
        batch.open.remove(cell)
        if not batch.open:
            self.batches.remove(batch)
            if batch.id is not None and not any(self.logs.glob(f"{batch.id}_*log.out")):
                (self.logs / f"{batch.id}_submission.sh").unlink(missing_ok=True)
                for link in self.logs.glob(".submission_file_*.sh"):
                    if not link.exists():
                        link.unlink(missing_ok=True)
        self._save()

    @property
    def _path(self) -> Path:
        return self.folder / "jobs.json"

    def _save(self) -> None:
        _write(self._path, [dataclasses.asdict(batch) for batch in self.batches])

    # --- submitting ---------------------------------------------------------------------------------------------------

    def _submit(self, cells: Sequence[str]) -> list[str]:
        """Submit ``cells``, those that ask for the same in arrays; returns those that the queue does not take yet.

        Raises UserError where Slurm refuses, and none of our jobs is queued that could make room by its end.
        """
        groups: dict[tuple[int, bool], list[str]] = {}
        for cell in cells:
            groups.setdefault(self._needs(self.jobs[cell]), []).append(cell)
        left = list(cells)
        for (memory, exclusive), alike in groups.items():
            for part in chunks(alike, self.config.max_array or largest_array()):
                try:
                    self._submit_batch(part, memory, exclusive=exclusive)
                except _Refused as error:
                    stopping.raise_waiting()  # Ctrl-C ends sbatch as well
                    if not self.batches:
                        raise UserError(f"Slurm does not take the job: {error}") from error
                    self._show(
                        f"Slurm takes no more jobs for now, {_count(len(left), 'cell waits', 'cells wait')}: {error}"
                    )
                    return left
                left = [cell for cell in left if cell not in part]
        return left

    def _submit_batch(self, cells: list[str], memory: int, *, exclusive: bool) -> None:
        """Submit ``cells`` as one job or array. Raises _Refused."""
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        self.logs.mkdir(parents=True, exist_ok=True)
        batch = Batch(f"frepo-{uuid.uuid4().hex[:12]}", None, cells, list(cells))
        self.batches.append(batch)
        self._save()  # before sbatch: a command that is killed now finds the jobs by their name
        executor = submitit.SlurmExecutor(folder=self.logs, max_num_timeout=self.config.requeues + 1)
        executor.update_parameters(**self.parameters(memory, exclusive=exclusive), job_name=batch.name)
        tasks = [Cell(str(self.file(cell).path)) for cell in cells]
        inside = "SLURM_JOB_ID" in os.environ  # of a job: its variables are no wishes for another
        try:
            with submitit.helpers.clean_env() if inside else contextlib.nullcontext():
                submitted = executor.submit_array(tasks)
        except (FailedJobError, FailedSubmissionError) as error:
            self.batches.remove(batch)
            self._save()
            raise _Refused(_last_line(str(error))) from error
        batch.id = submitted[0].job_id.partition("_")[0]
        self._save()
        _say(f"submitted {_count(len(cells), 'cell')} as job {batch.id}{_needed(memory, self.config)}")

    def parameters(self, memory: int, *, exclusive: bool) -> dict[str, Any]:
        """What submitit writes into the script of a job that needs ``memory`` bytes."""
        config = self.config
        python = {name: environment()[name] for name in ("PYTHONPATH", "PYTHONSAFEPATH") if name in environment()}
        asked: dict[str, Any] = {
            "partition": config.partition,
            "gpus_per_node": config.gpus or None,
            "cpus_per_task": config.cpus,
            "mem": f"{math.ceil(memory / 2**20)}M",
            "time": config.minutes,
            "signal_delay_s": min(SIGNAL_SECONDS, 30 * config.minutes),
            "array_parallelism": config.array_parallelism,
            "setup": [*(f"export {name}={shlex.quote(value)}" for name, value in python.items()), config.setup],
            "stderr_to_stdout": True,
            "exclusive": exclusive or None,
            # srun does not take the number of processors from sbatch since Slurm 22.05.
            # It begins the log again where a job starts again, unless it is told not to.
            "srun_args": [f"--cpus-per-task={config.cpus}", "--open-mode=append"],
            # Whatever the cluster's default, a job comes back after a preemption.
            "additional_parameters": {"requeue": True, **dict(map(_pair, config.extra))},
        }
        return {name: value for name, value in asked.items() if value is not None}

    def _needs(self, job: Job) -> tuple[int, bool]:
        """Bytes of memory, and whether the cell must be alone on its node."""
        alone = job.distillation.cost_only and job.device_kind == "cpu"
        return memory_of(job) if self.config.memory is None else parse_bytes(self.config.memory), alone


class _Refused(Exception):
    """sbatch did not take a job."""


def memory_of(job: Job) -> int:
    """Bytes of memory for ``job``: its forecast, its data while they are read, and what a process needs.

    Rounded up to a power of two, so that many cells need the same and share an array.
    """
    from harness.measure.forecast import data_bytes, forecast

    needs = []
    for each in (job, *job.beside, *job.before):
        live = 0
        if job.device_kind == "cpu" and each.distillation.method != WHOLE_DATA:
            with contextlib.suppress(Exception):  # what cannot be forecast is small, or is told by --slurm.memory
                live = forecast(each).peak_live_bytes
        needs.append(2 * live + 3 * data_bytes(each))
    return 1 << math.ceil(math.log2(max(needs) + PROCESS_BYTES[job.device_kind]))


def largest_array() -> int:
    """The most jobs of an array that the cluster takes; 1000, a common limit, where it does not say."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _slurm("scontrol", "show", "config") or "", re.MULTILINE)
    return max(1, int(found[1]) - 1) if found else 1000


def _pair(text: str) -> tuple[str, str | bool]:
    name, equals, value = text.partition("=")
    return name, value if equals else True


def _needed(memory: int, config: Config) -> str:
    gpus = f", {_count(config.gpus, 'GPU')}" if config.gpus else ""
    return f": {_count(config.cpus, 'processor')}{gpus}, {show_bytes(memory)} each"


def _is_over(state: str | None) -> bool:
    """Whether a job in this ``state`` will not run; None: squeue does not know it any more."""
    return state is None or state in OVER


def _slurm(*command: str) -> str | None:
    """What a command of Slurm prints; None where it fails, or does not answer in time."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=COMMAND_SECONDS, start_new_session=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("sbatch: error:")), lines[-1] if lines else "")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def _say(text: str) -> None:
    for line in text.splitlines():
        print(printable(line), file=sys.stderr, flush=True)
