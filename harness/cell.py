"""One distillation in its own process, and the questions asked of its set: the order of the phases.

``python -m harness.cell`` takes a ``Job`` as one line of JSON on standard input, and ends when that input does.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch.nn import functional as F

from benchmarks.data.names import kind_of
from benchmarks.datasets import Benchmark, load
from benchmarks.errors import UserError, printable
from benchmarks.task import Task, generator_for
from harness import alive, evaluations, stopping
from harness.checkpoint import Parts
from harness.distil import Diverged, check_set, distil, distil_by_turns, say
from harness.evaluations.base import Evaluation, Untrainable
from harness.limits import MemoryIsFull, TimeIsUp, show_seconds, time_limit
from harness.measure.clock import Clock
from harness.measure.forecast import forecast_bytes
from harness.measure.load import LoadMeter, joined
from harness.measure.memory import MemoryMeter
from harness.plan.jobs import WHOLE_DATA, Job, from_json
from harness.plan.pending import Ask, asks, begun, count, existing, reason_to_distil
from harness.progress import Progress
from harness.records import artifact, lease, record
from harness.records.lease import LEASED
from harness.records.provenance import SAME_MACHINE, provenance
from harness.records.record import (
    CHECKPOINT,
    EVENTS,
    FINAL,
    LOG,
    PICTURE,
    RECORD,
    SET,
    SNAPSHOTS,
    TENSORBOARD,
    EvaluationRecord,
    Record,
)
from methods.base import Synthetic
from methods.checks import NotFinite

PR_SET_PDEATHSIG = 1
"""Of Linux's ``prctl``: a signal for this process when its parent ends."""


def run(job: Job, now: Callable[[], float] = time.perf_counter, check: Callable[[], None] = lambda: None) -> None:
    """Do what is left of ``job``: distil, and answer the questions. Every part has its record when it ends.

    Out of memory and divergence are results. For any other error the record has one line, and ``log.txt`` beside it the
    traceback. ``now``: the clock to read. ``check``: called before anything is written; it raises where the folder is
    not ours any more.

    Raises UserError where a record cannot be written.
    """
    try:
        job.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{job.path} cannot be written: {error.strerror}") from error
    if job.beside:
        together = (job, *job.beside)
        if any(reason_to_distil(each, existing(each)) is not None for each in together):
            _run_by_turns([_Cell(each, now, check) for each in together])
        return
    distilled = existing(job)
    cell = _Cell(job, now, check)
    if distilled is None or reason_to_distil(job, distilled) is not None:
        distilled = cell.distil()
    for ask in list(asks(job, distilled)):
        if cell.answer(ask)["status"] == "timeout":  # one limit holds for all together
            break


def _run_by_turns(cells: Sequence[_Cell]) -> None:
    """Time the steps of all ``cells`` by turns. A failure is that of all."""
    jobs, written, failure = [cell.job for cell in cells], [cell.new() for cell in cells], None
    try:
        with time_limit(jobs[0].time_limit_seconds), stopping.released():
            distil_by_turns(jobs, written, [cell.benchmark for cell in cells], cells[0].clock, cells[0].meter)
    except (Exception, TimeIsUp, MemoryIsFull) as error:
        failure = error
    for cell, record_ in zip(cells, written, strict=True):
        cell.job.path.mkdir(parents=True, exist_ok=True)
        with cell.outcome(record_, cell.job.path / RECORD):
            if failure is not None:
                raise failure


class _Cell:
    """A job in this process, whose data is loaded once."""

    def __init__(self, job: Job, now: Callable[[], float], check: Callable[[], None]) -> None:
        self.job, self._check = job, check
        self.device = torch.device(job.device)
        _set_precision(tf32=job.tf32)
        self.clock, self.meter = Clock(self.device, now), MemoryMeter(self.device)
        self.meter.context()
        _load_libraries(self.device)
        self._begin = time.monotonic()

    @functools.cached_property
    def benchmark(self) -> Benchmark:
        """The data, loaded when it is first asked for. Raises UserError as `benchmarks.datasets.load` does."""
        return _benchmark(self.job)

    def new(self) -> Record:
        """The record of the distillation, with nothing measured yet."""
        job = self.job
        written = record.new(job.identity, job.distillation.to_dict(), job.config, job.asked, self._provenance())
        if (shared := self._shared()) and job.distillation.seconds is not None:
            shared += ", so that fewer steps fit into its seconds"
        written["cost"]["memory"]["busy"] = shared
        return written

    def _shared(self) -> str | None:
        """Cells that may have shared the device, in words."""
        others = self.job.slots - 1
        if others < 1:
            return None
        return f"up to {others} other cell{'s' if others > 1 else ''} of the run shared the device"

    def distil(self) -> Record:
        """Distil the set and write its record, whatever becomes of it; the set as well where it is ``ok``."""
        job, distillation, written = self.job, self.job.distillation, self.new()
        written["curve_points"] = job.curve_points
        continued = () if (job.path / CHECKPOINT).exists() else (EVENTS, SNAPSHOTS, TENSORBOARD)
        _remove(*(job.path / name for name in (SET, PICTURE, LOG, *continued)))
        with self.outcome(written, job.path / RECORD), contextlib.ExitStack() as stack:
            if distillation.method != WHOLE_DATA:
                # At the end, when everything is measured, however that went.
                stack.callback(lambda: written["cost"].__setitem__("forecast_bytes", forecast_bytes(job)))
                with stopping.released():
                    benchmark = self.benchmark
                synthetic = distil(job, written, benchmark, self.clock, self.meter)
                if not distillation.cost_only:
                    self._check()
                    digest = artifact.save(
                        job.path / SET,
                        synthetic,
                        benchmark,
                        distillation=written["distillation"] | {"steps": written["steps"]},
                        config=written["resolved"],
                    )
                    written["artifact"] = {"name": SET, "sha256": digest}
        if written["status"] in FINAL and written["status"] != "timeout":  # more time goes on from there
            _remove(job.path / CHECKPOINT)
        return written

    def answer(self, ask: Ask) -> EvaluationRecord:
        """Evaluate, and write the record of it, whatever becomes of it. Values that are there already are kept."""
        job, question = self.job, ask.question
        written = begun(job, ask, self._provenance())
        kept = 0 if ask.earlier is None else count(ask.earlier)
        with self.outcome(written, ask.path, stays=lambda: kept > 0):
            with stopping.released():
                evaluation_class = evaluations.get(question.evaluation)
                evaluation = evaluation_class(from_json(evaluation_class.Config, question.config))
                benchmarks: Sequence[Benchmark] = _Benchmarks((*job.before, job)) if job.before else [self.benchmark]
                sets = [self._set(each, None, benchmarks, place) for place, each in enumerate(job.before)]
                sets.append(self._set(job, ask.step, benchmarks, len(sets)))
            load_meter = LoadMeter(torch.get_num_threads() if self.device.type == "cpu" else 1)
            started, shown = self.clock.read(), Progress(f"evaluating, {question.evaluation}", None)

            def progress(done: int, total: int) -> None:
                shown.total = total
                shown(done)

            def filled(values: Mapping[str, Sequence[float]], missing: int | None) -> EvaluationRecord:
                """``written`` with ``values`` added, and all that they cost."""
                numbers, before = _checked(values, evaluation_class, written, missing), written["values"]
                seconds = self.clock.read() - started + (written["cost"]["seconds"] or 0.0)
                made: EvaluationRecord = {
                    **written,
                    "values": {name: [*before.get(name, []), *numbers.get(name, [])] for name in before | numbers},
                    "cost": {"seconds": seconds, **evaluation.cost},
                    "busy": joined(written["busy"], self._shared(), load_meter.stop()),
                }
                if by_class := [*written.get("class_accuracies", []), *evaluation.class_accuracies]:
                    made["class_accuracies"] = by_class
                return made

            def keep(values: Mapping[str, Sequence[float]]) -> None:
                """Write the values so far: they answer the question for fewer, and the rest can be asked later."""
                nonlocal kept
                part = filled(values, None)
                if question.grows is None or count(part) <= kept:
                    return
                part["status"], part["config"] = "ok", {**part["config"], question.grows: count(part)}
                self._check()
                with stopping.held(), contextlib.suppress(OSError):  # a full disk is told at the end
                    ask.path.parent.mkdir(exist_ok=True)
                    record.write(part, ask.path)
                    kept = count(part)

            evaluation.keep = keep
            evaluation.parts = self._parts(ask, written)
            begin = count(written)
            try:
                with stopping.released():
                    values = evaluation.run(sets, benchmarks, job.distillation.seed, progress, begin)
            finally:
                shown.close()
            written.update(filled(values, None if question.wanted is None else question.wanted - begin))
        if written["status"] in FINAL and written["status"] != "timeout":
            _remove(ask.parts)
        return written

    def _parts(self, ask: Ask, written: EvaluationRecord) -> Parts:
        """Results of networks by an interrupted process, as far as they may be used; none where all is asked anew."""
        if self.job.force:
            _remove(ask.parts)
        machine = {name: written["provenance"].get(name) for name in SAME_MACHINE}
        version = [written["protocol_version"], written["provenance"].get("frepo_bench")]
        key = {"identity": ask.identity, "sets": list(ask.sets), "version": version, **machine}
        return Parts(ask.parts, json.loads(json.dumps(key)))

    def _set(self, job: Job, step: int | None, benchmarks: Sequence[Benchmark], place: int) -> Synthetic:
        """The set of ``job`` after ``step`` (None: the last), decoded, on the device; its data is at ``place``.

        Raises Untrainable for a set that is not finite.
        """
        task = benchmarks[place].task
        if job.distillation.method == WHOLE_DATA:
            return _whole(task, job.distillation.seed)
        if step is None:
            synthetic = artifact.load(job.path / SET).synthetic
        else:
            synthetic = artifact.load_snapshot(job.path / SNAPSHOTS / f"step-{step}.safetensors")
        synthetic = dataclasses.replace(
            synthetic,
            images=synthetic.images.to(task.device),
            labels=synthetic.labels.to(task.device),
            lr=None if synthetic.lr is None else synthetic.lr.to(task.device),
        )
        try:
            check_set(synthetic, f"{job.distillation.method}: the set", job, task)
        except NotFinite as error:
            raise Untrainable(str(error)) from error
        return synthetic.decoded()

    def _provenance(self) -> dict[str, Any]:
        known = provenance(self.job.command, self.job.device, self.job.distillation.data_fingerprint)
        # What is no published set is found there again, when more is asked of the set.
        return known | ({"source": self.job.source} if kind_of(self.job.source) else {})

    @contextlib.contextmanager
    def outcome(
        self, written: Record | EvaluationRecord, path: Path, *, stays: Callable[[], bool] = lambda: False
    ) -> Iterator[None]:
        """Write ``written`` to ``path`` with the status with which the work in here ends.

        ``stays``: whether ``path`` has values by then, which nothing without values replaces.

        Reasons to end wait, except in work that is `stopping.released`. Raises UserError where the record cannot be
        written, and Stopped with nothing written where a signal asked for an end.
        """
        limit = self.job.time_limit_seconds
        # One limit holds for all parts together, and nothing interrupts what is written here and below.
        left = None if limit is None else max(limit - (time.monotonic() - self._begin), 1e-3)
        try:
            with time_limit(left), stopping.put_off():
                yield
            written["status"] = "ok"
        except TimeIsUp:
            written["status"] = "timeout"
            written["message"] = f"the time limit of {show_seconds(limit or 0.0)} has passed"
            written["time_limit_seconds"] = limit
        except MemoryIsFull as error:
            written["status"], written["message"] = "oom", str(error)
        except (Diverged, Untrainable) as error:
            written["status"], written["message"] = "diverged", str(error)
        except UserError as error:
            written["message"] = str(error)
        except Exception as error:
            first = next(iter(str(error).splitlines()), "")
            written["message"] = f"{type(error).__name__}: {first}".removesuffix(": ")
            if _out_of_memory(error):
                written["status"] = "oom"
            else:
                with contextlib.suppress(OSError):  # the disk may be full, and the line says enough
                    text = traceback.format_exc()  # perhaps with a file name that is no UTF-8
                    (self.job.path / LOG).write_text(text, encoding="utf-8", errors="backslashreplace")
                    written["message"] = f"{written['message']} (traceback in {LOG})"
        if written["message"] is not None:
            written["message"] = printable(written["message"])
        if written["status"] != "ok" and "artifact" in written:  # the limit may strike after the set was written
            written["artifact"] = None  # type: ignore[typeddict-unknown-key]
            _remove(self.job.path / SET, self.job.path / PICTURE)
        try:
            self._check()
            if written["status"] != "ok" and stays():
                say(f"  {path.stem}: {written['status']}: {written['message']}; the earlier answer is kept")
            else:
                path.parent.mkdir(exist_ok=True)
                record.write(written, path)
        except OSError as error:
            values: dict[str, list[float]] = written.get("values", {})  # type: ignore[assignment]
            shown = "; ".join(f"{name} {numbers}" for name, numbers in values.items())
            lost = f"; measured were {shown}" if shown else ""
            raise UserError(f"{path} cannot be written: {error.strerror}{lost}") from error


def _checked(
    values: Mapping[str, Sequence[float]],
    evaluation: type[Evaluation],
    written: EvaluationRecord,
    missing: int | None,
) -> dict[str, list[float]]:
    """``values``, which ``evaluation`` returned. Raises UserError for those that a record or a table cannot hold.

    ``missing``: how many of each were asked for; None: any number.
    """
    numbers = {name: list(map(float, series)) for name, series in values.items()}
    if unknown := sorted(numbers.keys() - evaluation.quantities.keys()):
        known = ", ".join(evaluation.quantities)
        raise UserError(f"{written['evaluation']} returned {', '.join(unknown)}; its quantities are {known}")
    for name, series in numbers.items():
        if series and missing is not None and len(series) != missing:
            raise UserError(
                f"{written['evaluation']} returned {len(series)} values of {name}; asked for were {missing}"
            )
    if problem := record.evaluation_problem({**written, "status": "ok", "values": numbers}):
        raise UserError(f"{written['evaluation']} returned what no record holds: {problem}")
    return numbers


def _whole(task: Task, seed: int) -> Synthetic:
    """All real training images with one-hot labels, in a random order: some recipes do not shuffle."""
    order = torch.randperm(len(task.labels), generator=generator_for("whole data", seed)).to(task.device)
    labels = F.one_hot(task.labels[order], task.num_classes).to(task.dtype)
    return Synthetic(task.images[order], labels, "probability")


class _Benchmarks(Sequence[Benchmark]):
    """The data of each of ``jobs``, loaded when they are asked for. Only the last one is kept: they may be many."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._load = functools.lru_cache(maxsize=1)(lambda place: _benchmark(jobs[place]))

    def __len__(self) -> int:
        return len(self._jobs)

    @overload
    def __getitem__(self, place: int) -> Benchmark: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Benchmark]: ...
    def __getitem__(self, place: int | slice) -> Benchmark | Sequence[Benchmark]:
        if isinstance(place, slice):
            return _Benchmarks(self._jobs[place])
        return self._load(range(len(self._jobs))[place])


def _benchmark(job: Job) -> Benchmark:
    distillation = job.distillation
    alive.sign()
    benchmark = load(
        job.source,
        ipc=max(distillation.ipc, 1),
        network=distillation.network,
        width=distillation.width,
        depth=distillation.depth,
        norm=distillation.norm,
        preprocess=distillation.preprocess,
        generator=generator_for("distil", distillation.seed),
        root=Path(job.data_root),
        cache=Path(job.cache),
        image_size=distillation.image_size,
        device=job.device,
        dtype=getattr(torch, distillation.dtype),
    )
    alive.sign()
    if benchmark.raw_fingerprint != distillation.data_fingerprint:
        raise UserError(
            f"the images of {distillation.dataset} are not those from which the set was distilled, or have changed "
            "since the run began"
        )
    return dataclasses.replace(benchmark, name=distillation.dataset)


def _out_of_memory(error: BaseException) -> bool:
    """Also where torch has only words for it: its CPU allocator, and the libraries on a GPU."""
    words = (
        *("can't allocate memory", "CUDA out of memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED"),
        "MPS backend out of memory",
    )
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _set_precision(*, tf32: bool) -> None:
    """torch lets convolutions round to TF32 unless told otherwise; kernels that give the same bits every time."""
    precision = "tf32" if tf32 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def _load_libraries(device: torch.device) -> None:
    """Optimisers import for seconds the first time, and convolutions choose kernels: no method should pay for that."""
    images = torch.ones(1, 1, 8, 8, device=device)
    weight = torch.ones(1, 1, 3, 3, device=device, requires_grad=True)
    torch.nn.functional.conv2d(images, weight).sum().backward()  # type: ignore[no-untyped-call]
    torch.optim.Adam([weight]).step()


def _remove(*paths: Path) -> None:
    """Remove what is there, as far as the folder lets us."""
    for path in paths:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _end_with_input() -> None:
    """Our parent holds the other end: when it is gone, whatever ended it, we are not wanted any more."""
    while os.read(0, 1):  # not through sys.stdin, whose lock this thread would hold when the interpreter ends
        pass
    os._exit(1)


def _end_with_parent() -> None:
    """Let the kernel end this process when its parent ends, at once, where it can (Linux)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_without_lease() -> None:
    """Somebody else does this cell: nothing of ours may be written any more."""
    with contextlib.suppress(OSError):
        os.write(2, b"  its lease was taken over while this process was suspended, and it ends\n")
    os._exit(LEASED)


def main() -> int:
    """Carry out the job on standard input. Returns 0, 1 after a line about what cannot be written, or `NOT_DONE`.

    `LEASED`: somebody else holds the lease on a folder of the job, and nothing was done.
    """
    _end_with_parent()
    with stopping.asked_by_signals():
        line = sys.stdin.buffer.readline()
        if not line:  # our parent was gone before it could say what to do
            return 1
        job = Job.from_json(line.decode())
        threading.Thread(target=_end_with_input, daemon=True).start()
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(lease.release_all)  # those on entries of the store as well
                paths = [lease.path_of(each.path) for each in (job, *job.beside)]
                with stopping.released():
                    leases = stack.enter_context(lease.taken(paths, job.command, _end_without_lease))

                def check() -> None:
                    for each in leases:
                        each.check()

                run(job, check=check)
        except lease.Held as holder:
            say(f"in use by {holder}")
            return LEASED
        except lease.Lost:
            return LEASED
        except UserError as error:  # the disk is full, the folder gone
            say(str(error))
            return 1
        except stopping.Stopped:
            return stopping.NOT_DONE
    return 0


if __name__ == "__main__":
    status = main()
    # Without Python's own end, which searches all of torch for garbage for half a second. Kept from searching alone,
    # libraries such as triton complain of what they find left.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
