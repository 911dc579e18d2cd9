"""One cell in its own process: prepare, warm up, distil under clock and meter, evaluate, write down.

``python -m harness.cell`` takes a ``Job`` as one line of JSON on standard input, and ends when that input does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

import methods
from benchmarks.datasets import Benchmark, load
from benchmarks.errors import UserError, printable
from benchmarks.protocols import PROTOCOLS, Protocol, Recipe
from benchmarks.task import generator_for
from harness.evaluate import evaluate, network_spec, networks_at_once
from harness.limits import MemoryIsFull, TimeIsUp, memory_limit, show_bytes, time_limit
from harness.measure.clock import Clock
from harness.measure.counters import Uncounted, count
from harness.measure.energy import EnergyMeter
from harness.measure.load import LoadMeter
from harness.measure.memory import MemoryMeter
from harness.measure.nvml import driver_version
from harness.plan.experiments import BUDGETS, Cell, Job, prepare_is_reduced, tuples
from harness.progress import Progress
from harness.records import artifact, record
from harness.records.record import Record
from harness.records.store import DiskStore, folder_for
from methods.base import Method, Synthetic
from methods.checks import NotFinite, check_losses, check_synthetic

SAMPLES = 1000
"""About so many timing windows are kept."""
WARMUP_STEPS = 3
"""Before cycles are timed; fewer where they take longer than ``WARMUP_SECONDS``."""
WARMUP_CYCLES, WARMUP_SECONDS = 10, 1.0
"""Cycles are timed until so many are done or so long has passed."""
TIMED_CYCLES, TIMED_SECONDS = 3, 5.0
"""Slow cycles: so many are timed, or fewer where they take longer than this."""
LOOK_SECONDS = 10.0
"""After so long, and again after twice as long, the estimate is held against the steps that were taken."""
WRONG_BY, WRONG_SECONDS = 1.25, 10.0
"""An estimate is corrected where it is off by this factor and by so many seconds."""
GPU_WINDOW_SECONDS = 0.05
"""A GPU is kept waiting at the end of every window, so windows are not shorter than this."""


class Diverged(Exception):
    """A loss or the synthetic set is no longer finite."""


@dataclass(frozen=True)
class Given:
    """A set that is there already: nothing is distilled, and the record has no cost of it."""

    synthetic: Synthetic
    """On the device of the job."""
    provenance: Mapping[str, Any]
    """Where it comes from; goes into the record."""
    look: Callable[[Benchmark], Mapping[str, Any]] = lambda benchmark: {}
    """Compares it with the real images; the result goes into the provenance as well."""


def run(job: Job, now: Callable[[], float] = time.perf_counter, given: Given | None = None) -> Record:
    """Run the cell and write its record, whatever becomes of it; an artefact as well where it is ``ok``.

    Out of memory and divergence are results. For any other error the record has one line, and a log file beside it the
    traceback. ``now``: the clock to read. ``given``: a set that is only to be evaluated.

    Raises UserError, which tells the accuracies, where the record cannot be written.
    """
    found = record.new(
        job.cell.to_dict(),
        job.config,
        record.provenance(job.command, device=record.device_name(job.device), fingerprint=job.cell.data_fingerprint),
    )
    found["provenance"] |= {**_versions(job.device), **(given.provenance if given else {})}
    _remove(job.log_path)
    try:
        with time_limit(job.time_limit_seconds):
            _Run(job, found, now, given).all()
        found["status"] = "ok"
    except TimeIsUp as error:
        found["status"], found["message"] = "timeout", str(error)
        found["cell"]["time_limit_seconds"] = job.time_limit_seconds
    except MemoryIsFull as error:
        found["status"], found["message"] = "oom", str(error)
    except Diverged as error:
        found["status"], found["message"] = "diverged", str(error)
    except UserError as error:
        found["message"] = str(error)
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        found["message"] = f"{type(error).__name__}: {first}".removesuffix(": ")
        if _out_of_memory(error):
            found["status"] = "oom"
        else:
            with contextlib.suppress(OSError):  # the disk may be full, and the line says enough
                job.log_path.write_text(traceback.format_exc(), encoding="utf-8")
                found["message"] = f"{found['message']} (traceback in {job.log_path.name})"
    if found["message"] is not None:
        found["message"] = printable(found["message"])
    if found["status"] != "ok":  # a set of an earlier try is not that of this record
        found["artifact"] = None
        _remove(job.artifact_path, job.artifact_path.with_suffix(".png"))
    try:
        record.write(found, job.record_path)
    except OSError as error:
        accuracies = ", ".join(f"{value:.4f}" for value in found["accuracy"]["values"])
        lost = f"; the test accuracies were {accuracies}" if accuracies else ""
        raise UserError(f"{job.record_path} cannot be written: {error.strerror}{lost}") from error
    return found


@dataclass
class _Run:
    """The phases of a cell, which fill in its record as they go."""

    job: Job
    found: Record
    now: Callable[[], float]
    given: Given | None

    def all(self) -> None:
        job, cell = self.job, self.job.cell
        device = torch.device(job.device)
        _set_precision(tf32=cell.tf32)
        clock, meter = Clock(device, self.now), MemoryMeter(device)
        meter.context()
        _load_libraries(device)
        protocol = PROTOCOLS[cell.protocol]
        if self.given is not None:
            self._evaluate_given(self.given, protocol, clock)
            return
        method_class = methods.get(cell.method)
        config = method_class.Config(**{name: tuples(value) for name, value in job.config.items()})
        benchmark = _benchmark(job)
        key = _store_key(benchmark, cell)
        # The seconds that an entry took count as this cell's own, so they must be those of this machine.
        machine = [self.found["provenance"][name] for name in ("device", "threads", "environment", "torch")]
        store = DiskStore(folder_for(Path(job.cache), *key, *machine), self.now)
        cost = self.found["cost"]
        cost["forecast_bytes"] = job.forecast_bytes
        cost["prepare"] = "reduced" if prepare_is_reduced(method_class, cell, job.config) else None
        cost["parameters"] = _parameters(benchmark.spec.build(generator_for("count")))
        cost["parameters_evaluated"] = _parameters(network_spec(benchmark, protocol).build(generator_for("count")))

        if method_class.iterative:
            with memory_limit(cell.memory_limit_bytes, device), self._beside("preparing"):
                cycle, step_seconds = self._warm_up(method_class, config, benchmark, store, clock)
            self._count(method_class, config, benchmark, store)
            steps = cell.steps or self._steps_for(cell.seconds, cycle, step_seconds)
            self.found["cell"]["steps"] = steps
            self._estimate(steps, step_seconds)
            meter.idle()
            with contextlib.ExitStack() as files:
                with memory_limit(cell.memory_limit_bytes, device), self._beside("distilling"):
                    method = method_class(benchmark.task, config, steps)
                    method.prepare(store)
                    snapshots = self._distil(method, benchmark, steps, step_seconds, clock, meter, files)
                synthetic = method.synthetic()
                del method
                if not cell.networks_evaluated:
                    with contextlib.suppress(NotFinite):  # it costs as much as a finite one
                        self._check_synthetic(synthetic, f"after step {steps}", benchmark)
                    return
                self._check_trainable(synthetic, f"after step {steps}", benchmark, protocol.recipe)
                self._evaluate(synthetic, benchmark, protocol, clock)
                self._curve(snapshots, steps, benchmark, protocol)
        else:
            with self._beside("preparing"):
                synthetic = self._prepare(lambda: method_class(benchmark.task, config, 0), store, clock).synthetic()
            self._check_trainable(synthetic, "after prepare()", benchmark, protocol.recipe)
            self._evaluate(synthetic, benchmark, protocol, clock)
        self._save(synthetic, benchmark, protocol)

    def _evaluate_given(self, given: Given, protocol: Protocol, clock: Clock) -> None:
        benchmark = _benchmark(self.job)
        self.found["provenance"] |= given.look(benchmark)
        self.found["cost"]["parameters_evaluated"] = _parameters(
            network_spec(benchmark, protocol).build(generator_for("count"))
        )
        self._check_synthetic(given.synthetic, "as it was read", benchmark)
        self._evaluate(given.synthetic, benchmark, protocol, clock)
        self._save(given.synthetic, benchmark, protocol)

    def _save(self, synthetic: Synthetic, benchmark: Benchmark, protocol: Protocol) -> None:
        digest = artifact.save(
            self.job.artifact_path,
            synthetic,
            benchmark,
            network=network_spec(benchmark, protocol),
            cell=self.found["cell"],
            config=self.found["resolved"] or self.found["config"],
        )
        self.found["artifact"] = {"name": self.job.artifact_path.name, "sha256": digest}

    def _warm_up(
        self, method_class: type[Method], config: Any, benchmark: Benchmark, store: DiskStore, clock: Clock
    ) -> tuple[int, float]:
        """Prepare, timed, and take a few steps with an instance that is thrown away.

        Kernels are chosen, caches warm and the store filled afterwards, and no random number of the cell was
        drawn. Returns the steps per cycle and the seconds per step.
        """
        cell = self.job.cell
        task = dataclasses.replace(benchmark.task, generator=generator_for("warm-up", cell.seed))
        method = self._prepare(lambda: method_class(task, config, cell.steps or SAMPLES), store, clock)
        cost, cycle = self.found["cost"], method.steps_per_cycle
        if not isinstance(cycle, int) or cycle < 1:
            raise UserError(f"{cell.method}.steps_per_cycle is {cycle!r}; expected a whole number of at least 1")
        self._check_synthetic(method.synthetic(), "before the first step", benchmark, initial=True)

        def timed(steps: int) -> float:
            begin = clock.read()
            for _ in range(steps):
                check_losses(method.step(), f"{cell.method}.step()", task.device)
            return clock.read() - begin

        warm = clock.read()
        first = timed(cycle)
        if first < WARMUP_SECONDS:
            timed(max(0, WARMUP_STEPS - cycle))
        seconds: list[float] = []

        def enough() -> bool:
            longest = TIMED_SECONDS if len(seconds) < TIMED_CYCLES else WARMUP_SECONDS
            return len(seconds) >= WARMUP_CYCLES or sum(seconds) >= longest

        while not enough():
            seconds.append(timed(cycle))
        median = statistics.median(seconds)
        cost["warmup_seconds"] = clock.read() - warm
        cost["compile_seconds"] = max(0.0, first - median)
        return cycle, median / cycle

    def _count(self, method_class: type[Method], config: Any, benchmark: Benchmark, store: DiskStore) -> None:
        """The counters, of one more instance that is thrown away; nothing where a method cannot be counted."""
        task = dataclasses.replace(benchmark.task, generator=generator_for("count"))

        def make() -> Method:
            method = method_class(task, config, self.job.cell.steps or SAMPLES)
            method.prepare(Uncounted(store))
            return method

        try:
            counted = count(make, task.device)
        except Exception as error:  # steps without counters have been taken: it is for lack of these alone
            _say(f"operations and live bytes are not counted: {type(error).__name__}: {error}")
            return
        cost = self.found["cost"]
        cost["flops_per_step"], cost["saved_bytes_per_step"] = counted.flops, counted.saved_bytes
        cost["peak_live_bytes"] = counted.peak_live_bytes

    def _prepare(self, make: Callable[[], Method], store: DiskStore, clock: Clock) -> Method:
        """What ``make`` gives, prepared; timed as if nothing had been in the cache."""
        cost = self.found["cost"]
        store.on_made = progress = Progress("preparing, entries made", None)
        begin = clock.read()
        method = make()
        # What follows from the task is resolved by now.
        self.found["resolved"] = json.loads(json.dumps(dataclasses.asdict(method.config)))
        method.prepare(store)
        cost["prepare_seconds"] = clock.read() - begin + sum(store.found.values())
        cost["prepare_cached"] = len(store.found)
        progress.close()
        return method

    def _steps_for(self, seconds: float | None, cycle: int, step_seconds: float) -> int:
        """As many whole cycles as fit into ``seconds``, and at least those that the budget asks for."""
        assert seconds is not None
        if self.job.cell.seconds_include_prepare:
            seconds -= self.found["cost"]["prepare_seconds"] or 0.0
        return max(BUDGETS[self.job.cell.budget].cycles, int(seconds / (cycle * step_seconds))) * cycle

    def _estimate(self, steps: int, step_seconds: float) -> None:
        networks = self.job.cell.networks_evaluated
        after = f", then {networks} network{'s' if networks > 1 else ''}" if networks else ""
        _say(f"{steps} steps at {1000 * step_seconds:.1f} ms, about {_duration(steps * step_seconds)}{after}")

    def _distil(
        self,
        method: Method,
        benchmark: Benchmark,
        steps: int,
        step_seconds: float,
        clock: Clock,
        meter: MemoryMeter,
        files: contextlib.ExitStack,
    ) -> dict[int, tuple[float, IO[bytes]]]:
        """The measured steps. Returns step → (seconds so far, file of the synthetic set) of the points of the curve.

        The files have no name, so that nothing is left of them however the process ends; ``files`` closes them.
        """
        cost = self.found["cost"]
        cycle = method.steps_per_cycle
        cycles = max(1, -(-steps // (cycle * SAMPLES)))
        if self.job.cell.device_kind != "cpu":
            cycles = max(cycles, math.ceil(GPU_WINDOW_SECONDS / (cycle * step_seconds)))
        cost["steps_per_sample"] = cycles * cycle
        wanted = curve_steps(self.job.cell.curve_points, steps)
        snapshots: dict[int, tuple[float, IO[bytes]]] = {}
        progress = Progress("distilling", steps)
        total = 0.0
        estimate = _Estimate(steps, steps * step_seconds)
        energy = EnergyMeter(meter.gpu)
        meter.start()
        energy.start()
        try:
            for begin, end in windows(steps, cycles * cycle):
                started = clock.read()
                for _ in range(end - begin):
                    losses = method.step()
                elapsed = clock.read() - started
                total += elapsed
                if (end - begin) % cycle == 0:
                    cost["step_seconds"].append(elapsed / (end - begin))
                cost["distill_seconds"] = total
                check_losses(losses, f"{self.job.cell.method}.step()", method.task.device)
                progress(end, self._checked(losses, end))
                if corrected := estimate.corrected(end, total):
                    progress.say(corrected)
                if any(begin < step <= end for step in wanted) and end < steps:
                    # On disk, so that they are no part of the memory that is being measured.
                    file = files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  (it is one)
                    synthetic = method.synthetic()
                    with contextlib.suppress(NotFinite):  # that point has no values
                        self._check_synthetic(synthetic, f"after step {end}", benchmark)
                    torch.save(vars(synthetic), file)
                    snapshots[end] = (total, file)
            cost["joules_per_step"] = energy.per_step(steps, total)
        finally:
            before, cost["memory"] = cost["memory"]["busy"], meter.stop()
            cost["memory"]["busy"] = _joined(before, cost["memory"]["busy"])
            progress.close()
        limit, resident = self.job.cell.memory_limit_bytes, cost["memory"]["host_rss_bytes"]
        if limit is not None and self.job.cell.device_kind == "cpu" and resident is not None and resident > limit:
            raise MemoryIsFull(f"{show_bytes(resident)}, more than the memory limit of {show_bytes(limit)}")
        return snapshots

    @contextlib.contextmanager
    def _beside(self, phase: str) -> Iterator[None]:
        """Write down where others kept the cores busy while the seconds of ``phase`` were measured."""
        # On a GPU one thread of the processor gives out the work.
        load = LoadMeter(torch.get_num_threads() if self.job.cell.device_kind == "cpu" else 1)
        try:
            yield
        finally:
            if words := load.stop():
                memory = self.found["cost"]["memory"]
                memory["busy"] = _joined(memory["busy"], f"while {phase} {words}")

    def _check_synthetic(self, synthetic: object, when: str, benchmark: Benchmark, *, initial: bool = False) -> None:
        """Raises UserError for a set that is not what the cell asks for, as `check_synthetic` does."""
        task, cell = benchmark.task, self.job.cell
        where = f"{cell.method} {when}" if self.given else f"{cell.method}.synthetic() {when}"
        check_synthetic(
            synthetic,
            where,
            classes=task.num_classes,
            ipc=cell.ipc,
            image=task.images.shape[1:],
            dtype=task.dtype,
            device=task.device,
            initial=initial,
        )

    def _check_trainable(self, synthetic: Synthetic, when: str, benchmark: Benchmark, recipe: Recipe) -> None:
        """Raises Diverged for a set that is not finite, and for a learned step size below 0 that ``recipe`` would use.

        Raises UserError for a set that is not what the cell asks for.
        """
        try:
            self._check_synthetic(synthetic, when, benchmark)
        except NotFinite as error:
            raise Diverged(str(error)) from error
        if recipe.learned_lr and synthetic.lr is not None and float(synthetic.lr.mean()) < 0:
            raise Diverged(f"the learned step size is {float(synthetic.lr.mean()):.3g} {when}")

    def _checked(self, losses: Mapping[str, Tensor], step: int) -> str:
        """The first loss in words; that it is not finite ends the cell, unless only its cost is asked for.

        A step size published for another network or data set may well diverge, and an iteration costs the same.
        """
        try:
            return _check(losses, step)
        except Diverged as error:
            if self.job.cell.networks_evaluated:
                raise
            self.found["message"] = self.found["message"] or f"{error}, which costs as much as a finite number"
            return str(error)

    def _evaluate(self, synthetic: Synthetic, benchmark: Benchmark, protocol: Protocol, clock: Clock) -> None:
        accuracy, cost, cell = self.found["accuracy"], self.found["cost"], self.job.cell
        with self._beside("evaluating"):
            begin = clock.read()
            cost["networks_at_once"] = self.job.networks_at_once or networks_at_once(
                synthetic,
                benchmark,
                protocol,
                networks=cell.networks_evaluated,
                max_steps=cell.evaluate_steps,
                read=clock.read,
            )
            accuracy["values"], accuracy["krr_values"] = self._values(synthetic, benchmark, protocol)
            cost["evaluate_seconds"] = clock.read() - begin
        accuracy["mean"], accuracy["std"] = record.summarise(accuracy["values"])

    def _curve(
        self, snapshots: Mapping[int, tuple[float, IO[bytes]]], steps: int, benchmark: Benchmark, protocol: Protocol
    ) -> None:
        """Evaluate what was set aside while distilling; the last point is the distilled set itself.

        A point has no values where nothing can be trained with the set as it was then.
        """
        if not self.job.cell.curve_points:
            return
        accuracy, seconds = self.found["accuracy"], self.found["cost"]["distill_seconds"]
        for step, (elapsed, file) in snapshots.items():
            file.seek(0)
            synthetic = Synthetic(**torch.load(file, map_location=benchmark.task.device))
            try:
                self._check_trainable(synthetic, f"after step {step}", benchmark, protocol.recipe)
                values, _ = self._values(synthetic, benchmark, protocol)
            except Diverged:
                values = []
            accuracy["curve"].append({"step": step, "seconds": elapsed, "values": values})
        assert seconds is not None
        accuracy["curve"].append({"step": steps, "seconds": seconds, "values": accuracy["values"]})

    def _values(
        self, synthetic: Synthetic, benchmark: Benchmark, protocol: Protocol
    ) -> tuple[list[float], list[float]]:
        cell, at_once = self.job.cell, self.found["cost"]["networks_at_once"]
        assert at_once is not None
        recipe_steps = protocol.recipe.steps(len(synthetic.images))
        progress = Progress(
            "evaluating", cell.networks_evaluated * min(cell.evaluate_steps or recipe_steps, recipe_steps)
        )
        try:
            return evaluate(
                synthetic,
                benchmark,
                protocol,
                seed=cell.seed,
                networks=cell.networks_evaluated,
                at_once=at_once,
                max_steps=cell.evaluate_steps,
                progress=lambda done, _: progress(done),
            )
        finally:
            progress.close()


class _Estimate:
    """How long ``steps`` steps take, as last said."""

    def __init__(self, steps: int, seconds: float) -> None:
        """``seconds``: all steps together, by those of the warm-up."""
        self._steps, self._said = steps, seconds
        self._look, self._before = LOOK_SECONDS, (0, 0.0)

    def corrected(self, done: int, seconds: float) -> str | None:
        """A line where what was said is wrong, after ``done`` steps in ``seconds``; now and then, else None.

        The steps left are taken to be like those since the last look: early steps may well be slower.
        """
        if seconds < self._look or done == self._steps:
            return None
        before, at = self._before
        now = seconds + (seconds - at) / (done - before) * (self._steps - done)
        self._look, self._before = 2 * seconds, (done, seconds)
        low, high = sorted((now, self._said))
        if high - low < WRONG_SECONDS or high < WRONG_BY * low:
            return None
        self._said = now
        return f"after {done} of {self._steps} steps: about {_duration(now)} for all of them"


def windows(steps: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive (begin, end) that cover 0 … ``steps``, ``size`` steps each but for the last."""
    for begin in range(0, steps, size):
        yield begin, min(begin + size, steps)


def curve_steps(points: int, steps: int) -> list[int]:
    """``points`` log-spaced steps from 1 to ``steps``, without repetition; fewer where there are fewer steps."""
    if points < 2:
        return [steps] * points
    return sorted({round(steps ** (i / (points - 1))) for i in range(points)})


def _benchmark(job: Job) -> Benchmark:
    cell = job.cell
    benchmark = load(
        job.source,
        ipc=cell.ipc,
        network=cell.network,
        width=cell.width,
        depth=cell.depth,
        norm=cell.norm,
        preprocess=cell.preprocess,
        generator=generator_for("distil", cell.seed),
        root=Path(job.data_root),
        cache=Path(job.cache),
        image_size=cell.image_size,
        device=job.device,
        dtype=getattr(torch, cell.dtype),
    )
    if benchmark.raw_fingerprint != cell.data_fingerprint:
        raise UserError(f"{cell.dataset} has changed since the run began; start it again")
    return dataclasses.replace(benchmark, name=cell.dataset)


def _store_key(benchmark: Benchmark, cell: Cell) -> tuple[object, ...]:
    """All that an expert depends on, but its settings and the machine.

    The name of a data set brings constants of its preprocessing and whether it is flipped, so the same pixels under two
    names are two things.
    """
    fitted = benchmark.preprocess
    statistics = fitted.name, fitted.mean.tolist(), fitted.std.tolist()
    return benchmark.raw_fingerprint, statistics, benchmark.flip, benchmark.spec, cell.dtype, cell.tf32


def _check(losses: Mapping[str, Tensor], step: int) -> str:
    """The first loss in words. Raises Diverged where one is not finite."""
    values = {name: float(value) for name, value in losses.items()}
    for name, value in values.items():
        if not abs(value) < float("inf"):
            raise Diverged(f"{name} is {value} at step {step}")
    return next((f"{printable(name)} {value:.4g}" for name, value in values.items()), "")


def _out_of_memory(error: BaseException) -> bool:
    """Also where torch has only words for it: its CPU allocator, and the libraries on a GPU."""
    words = ("can't allocate memory", "CUDA out of memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
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


def _joined(*words: str | None) -> str | None:
    return "; ".join(filter(None, words)) or None


def _remove(*paths: Path) -> None:
    """Remove what is there, as far as the folder lets us."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


def _versions(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {"threads": torch.get_num_threads()}
    if device.startswith("cuda"):
        found |= {"cuda": torch.version.cuda, "driver": driver_version()}
    return found


def _parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _say(line: str) -> None:
    print(f"  {printable(line)}", file=sys.stderr, flush=True)


def _end_with_input() -> None:
    """Our parent holds the other end: when it is gone, whatever ended it, we are not wanted any more."""
    while os.read(0, 1):  # not through sys.stdin, whose lock this thread would hold when the interpreter ends
        pass
    os._exit(1)


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to deal with
    line = sys.stdin.buffer.readline()
    if not line:  # our parent was gone before it could say what to do
        return 1
    job = Job.from_json(line.decode())
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        run(job)
    except UserError as error:  # the disk is full, the folder gone
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    # Without Python's own end, which searches all of torch for garbage for half a second. Kept from searching alone,
    # libraries such as triton complain of what they find left.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
