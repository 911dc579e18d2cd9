"""Cells as tasks of a Ray cluster: one that runs already, or one of this machine alone.

A task runs its cell as the local launcher does, in a fresh process, and ends with it. The records on the disk tell what
is done: where a worker or a node is lost, the record is looked at, and the cell goes on from its checkpoint elsewhere.
All nodes see the folders of the run, and have the same packages, under the same paths.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import platform
import signal
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.errors import UserError, printable
from harness import stopping
from harness.launch import Launcher, needed
from harness.launch.environment import environment
from harness.launch.slurm import memory_of
from harness.limits import parse_bytes, show_bytes
from harness.plan.jobs import Job
from harness.plan.pending import asks, existing, reason_to_distil
from harness.stopping import Stopped

if TYPE_CHECKING:
    from harness.plan.request import Evaluating

LOOK_SECONDS = 0.5
"""The longest wait, after which signals are looked at."""
LEASED = "somebody else does it"
"""What a task answers where another run has the lease of its cell."""
STORE_BYTES = 100 << 20
"""Object store of a cluster of this machine: nothing goes through it, and Ray would take a third of the memory."""


@dataclass(frozen=True)
class Config:
    """Where the cluster is, and what each cell takes of it."""

    address: str | None = None
    """auto, or an address such as 10.0.0.1:6379, of a cluster that runs; None: one of this machine, for this run"""
    cpus: int = 1
    """processors of a cell, and its threads where OMP_NUM_THREADS says nothing else"""
    gpus: float | None = None
    """GPUs of a cell, 0.5 for two cells on one; None: 1 with --device cuda, 0 with --device cpu"""
    memory: str | None = None
    """memory of a cell, such as 16GiB; None: as forecast, and what a process needs"""
    retries: int = 3
    """how often a cell whose worker or node was lost is started again"""
    temp_dir: str | None = None
    """folder of the logs of a cluster of this machine; None: Ray's own, /tmp/ray"""

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        for name, least in (("cpus", 1), ("gpus", 0), ("retries", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if self.gpus is not None and self.gpus > 1 and self.gpus % 1:
            raise ValueError(f"gpus above 1 must be whole, not {self.gpus:g}")
        if self.memory is not None:
            try:
                parse_bytes(self.memory)
            except (ValueError, OverflowError) as error:
                raise ValueError(f"memory: {error}") from None
        if self.address is not None and self.temp_dir is not None:
            raise ValueError("temp_dir is for a cluster of this machine: leave it out with address")


@contextlib.contextmanager
def launcher(config: Config, output: Path, request: Evaluating) -> Iterator[Launcher]:
    """Tasks of a cluster, which ends with this context if it is one of this machine alone.

    Raises UserError where ray is missing, where no cluster answers, and where the request does not say which kind of
    device the cells run on.
    """
    needed("--launcher ray", "ray", "ray")
    if request.device not in ("cpu", "cuda"):
        raise UserError("--launcher ray needs --device cuda or --device cpu: the cluster's devices are not seen here")
    if config.gpus is None:
        config = dataclasses.replace(config, gpus=float(request.device == "cuda"))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    paths = {"env_vars": {"PYTHONPATH": environment().get("PYTHONPATH", "")}}
    own = {"object_store_memory": STORE_BYTES, "include_dashboard": False, "_temp_dir": config.temp_dir}
    try:
        ray.init(config.address or "local", runtime_env=paths, logging_level="error", **({} if config.address else own))
    except Exception as error:  # Ray raises that class itself, among others
        reason = next(iter(str(error).splitlines()), "")
        where = f"no Ray cluster answers at {config.address}" if config.address else "Ray does not start here"
        raise UserError(f"{where}: {reason}") from error
    try:
        yield _Driver(config).run
    finally:
        ray.shutdown()


# --- on the node ------------------------------------------------------------------------------------------------------


def run_cell(text: str, folder: str, threads: str) -> str | None:
    """Run the job that ``text`` names in a process of its own; returns why it is not done, None: it is.

    ``folder``: where the command was given, to which its paths are relative. ``threads``: Ray sets OMP_NUM_THREADS to
    the processors of a task by itself, where the node has no value; the one of the command counts.
    """
    from harness.launch import local

    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(f"{folder} is not on {platform.node()}: all nodes need the folders of the run") from error
    os.environ["OMP_NUM_THREADS"] = threads
    # Ray cancels a task by Python's own flag for Ctrl-C, without a signal: nothing wakes a main thread that waits.
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, LOOK_SECONDS, LOOK_SECONDS)
    try:
        for _ in local.launch([Job.from_json(text)]):
            return None
    except Stopped as error:
        return f"{error} on {platform.node()}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return LEASED


# --- where the command runs -------------------------------------------------------------------------------------------


def resources(job: Job, config: Config, nodes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """What the task of ``job`` asks of the cluster, whose ``nodes`` have these resources.

    A cell whose seconds are a result gets a whole GPU; on processors alone, all those of the largest node.
    """
    cpus, gpus = float(config.cpus), config.gpus or 0.0
    if job.distillation.cost_only:
        cpus = cpus if gpus else max([cpus, *(node.get("CPU", 0.0) for node in nodes)])
        gpus = math.ceil(gpus)
    memory = memory_of(job) if config.memory is None else parse_bytes(config.memory)
    return {"num_cpus": cpus, "num_gpus": float(gpus), "memory": float(memory)}


def fits(asked: Mapping[str, float], node: Mapping[str, float]) -> bool:
    """Whether a node with these resources could run a task that asks for so much, if it had nothing else to do."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    return all(asked[name] <= node.get(key, 0.0) for name, key in names.items())


class _Driver:
    """The jobs of a run, as tasks."""

    def __init__(self, config: Config) -> None:
        import ray

        self.ray, self.config = ray, config
        self.task = ray.remote(max_calls=1, max_retries=0)(run_cell)
        self.threads = os.environ.get("OMP_NUM_THREADS") or str(config.cpus)
        self.running: dict[Any, Job] = {}
        self.lost: dict[str, int] = {}
        """Folder of a job → how often it was lost."""
        self.given_up = 0
        """Cells without a result that are not run again."""
        self.shown: set[str] = set()

    def run(self, jobs: Iterable[Job]) -> Generator[Job, None, None]:
        """Run ``jobs`` as tasks; one that somebody else does at present is left out.

        Raises Stopped as `local.launch` does, once all cells have saved their state, and UserError at the end where a
        cell has no result, with a line before that says why.
        """
        with stopping.asked_by_signals():
            try:
                for job in jobs:
                    self._submit(job)
                    yield from self._ended(0.0)
                while self.running:
                    yield from self._ended(LOOK_SECONDS)
                if self.given_up:
                    raise UserError(f"{self.given_up} without a result, as told above")
            except Stopped:
                self._cancel()
                while self.running:
                    yield from self._ended(LOOK_SECONDS, stopped=True)
                raise
            finally:  # whatever else ends this run: no cell is left, and each has saved its state
                self._cancel()
                if self.running:
                    self.ray.wait(list(self.running), num_returns=len(self.running))

    def _submit(self, job: Job) -> None:
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        asked = resources(job, self.config, nodes)
        if not any(fits(asked, node) for node in nodes):
            wanted = f"{asked['num_cpus']:g} processors, {asked['num_gpus']:g} GPUs and {show_bytes(asked['memory'])}"
            line = f"no node has {wanted}, which a cell asks for; see --ray.cpus, --ray.gpus and --ray.memory"
            if self.config.address is None:
                raise UserError(line)
            if line not in self.shown:  # a cluster may grow
                self.shown.add(line)
                _say(line)
        task = self.task.options(name=str(job), **asked)
        self.running[task.remote(job.to_json(), os.getcwd(), self.threads)] = job

    def _ended(self, seconds: float, *, stopped: bool = False) -> Generator[Job, None, None]:
        """Wait so long for a task to end, and yield the jobs that are done; those that were lost are run again.

        ``stopped``: nothing is run again. Raises Stopped where a signal asked for an end.
        """
        ready, _ = self.ray.wait(list(self.running), timeout=seconds) if self.running else ([], [])
        for reference in ready:
            job = self.running.pop(reference)
            reason = self._reason(reference)
            if reason is None or is_done(job):
                yield job
            elif reason != LEASED and not stopped:
                self._lost(job, reason)
        if not stopped:
            stopping.raise_waiting()

    def _reason(self, reference: Any) -> str | None:
        """Why a task that has ended has not done its cell; None: it has. Raises UserError where none could."""
        errors = self.ray.exceptions
        try:
            answer: str | None = self.ray.get(reference)
            return answer
        except errors.OutOfMemoryError:
            return "Ray ended its worker, as the memory of the node was nearly full (--ray.memory asks for more)"
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.LocalRayletDiedError):
            return "its worker or node was lost"
        except errors.TaskCancelledError:
            return "it was cancelled"
        except errors.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from error
            raise UserError(f"a cell could not be run: {_last_line(str(error))}") from error
        except errors.RayError as error:
            raise UserError(f"Ray: {_last_line(str(error))}") from error

    def _lost(self, job: Job, reason: str) -> None:
        self.lost[job.folder] = times = self.lost.get(job.folder, 0) + 1
        if times > self.config.retries:
            self.given_up += 1
            _say(f"{job}: {reason}, {times} times; the same command tries again")
            return
        _say(f"{job}: {reason}: it is run again, from its last checkpoint")
        self._submit(job)

    def _cancel(self) -> None:
        for reference in self.running:  # in the worker that is Ctrl-C, of which the cell is told
            self.ray.cancel(reference, force=False)


def is_done(job: Job) -> bool:
    """Whether the records of ``job`` say that nothing is left to do."""
    for each in (job, *job.beside):
        distilled = existing(each)
        if distilled is None or (not job.before and reason_to_distil(each, distilled) is not None):
            return False
        if any(asks(dataclasses.replace(each, force=False), distilled)):
            return False
    return True


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
