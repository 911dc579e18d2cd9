"""The measured part of a cell: prepare, warm up, count, and distil under clock and meter.

The phases fill in the record as they go, so that what was measured before an error is in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import methods
from benchmarks.datasets import Benchmark
from benchmarks.errors import UserError, printable
from benchmarks.task import Task, generator_for
from harness import alive, stopping
from harness.checkpoint import Checkpoints, Position, Unsavable, method_digest
from harness.limits import MemoryIsFull, memory_limit, show_bytes, unwatched
from harness.measure.clock import Clock
from harness.measure.counters import Uncounted, count
from harness.measure.energy import EnergyMeter
from harness.measure.interleave import interleaved
from harness.measure.load import LoadMeter, joined
from harness.measure.memory import MemoryMeter, merged, release
from harness.plan.jobs import Distillation, Job, as_json, from_json
from harness.progress import Progress
from harness.records import artifact, events
from harness.records.provenance import SAME_MACHINE
from harness.records.record import (
    EVENTS,
    PROTOCOL_VERSION,
    SNAPSHOTS,
    TENSORBOARD,
    Memory,
    Record,
    decoder_of,
    new_segment,
    now,
)
from harness.records.store import DiskStore, folder_for
from harness.steps import PICTURED, SAMPLES, Estimate, curve_steps, duration, log_steps, windows
from methods.base import Method, Synthetic
from methods.checks import NotFinite, check_losses, check_synthetic

if TYPE_CHECKING:
    from harness.tensorboard import TensorBoard

LEAST_CYCLES = 3
"""Whole cycles that are run at least where seconds decide."""
WARMUP_STEPS = 3
"""Before cycles are timed; fewer where they take longer than ``WARMUP_SECONDS``."""
WARMUP_CYCLES, WARMUP_SECONDS = 10, 1.0
"""Cycles are timed until so many are done or so long has passed."""
TIMED_CYCLES, TIMED_SECONDS = 3, 5.0
"""Slow cycles: so many are timed, or fewer where they take longer than this."""
GPU_WINDOW_SECONDS = 0.05
"""A GPU is kept waiting at the end of every window, so windows are not shorter than this."""


class Diverged(Exception):
    """A loss or the synthetic set is no longer finite."""


def distil(job: Job, record: Record, benchmark: Benchmark, clock: Clock, meter: MemoryMeter) -> Synthetic:
    """Distil the set of ``job`` and fill in ``record``; snapshots and events go into the folder of the job.

    ``meter``: has read what the context takes. Raises Diverged and MemoryIsFull, which are results, and UserError where
    the method does not keep to its interface.
    """
    return _Distilling(job, record, benchmark, clock, meter).run()


def distil_by_turns(
    jobs: Sequence[Job], records: Sequence[Record], benchmarks: Sequence[Benchmark], clock: Clock, meter: MemoryMeter
) -> None:
    """Time the steps of several ``jobs`` by turns, and fill in their ``records``; there is no set and no memory."""
    distilling = [_Distilling(*each, clock, meter) for each in zip(jobs, records, benchmarks, strict=True)]
    for each in distilling:
        each.prepare()
        each.count()
    prepared = {each.job.distillation.method: each.method() for each in distilling}
    seconds = sum(each.job.distillation.seconds or 0.0 for each in distilling)
    with contextlib.ExitStack() as stack:
        for each in distilling:
            stack.enter_context(each.beside("distilling"))
        samples = interleaved(prepared, clock, seconds)
    for record, own in zip(records, samples.values(), strict=True):
        record["cost"]["step_seconds"] = own


@dataclass
class _Distilling:
    job: Job
    record: Record
    benchmark: Benchmark
    clock: Clock
    meter: MemoryMeter

    def __post_init__(self) -> None:
        distillation = self.job.distillation
        self.method_class = methods.get(distillation.method)
        self.config = from_json(self.method_class.Config, self.job.config)
        # The seconds that an entry took count as this cell's own, so they must be those of this machine.
        machine = [self.record["provenance"][name] for name in ("device", "threads", "environment", "torch")]
        key = _store_key(self.benchmark, distillation)
        self.store = DiskStore(folder_for(Path(self.job.cache), *key, *machine), self.clock.read)

        cost = self.record["cost"]
        cost["prepare"] = "reduced" if self.job.reduced else None
        cost["parameters"] = self.benchmark.spec.parameters()

        must_agree = {
            "configuration": self.job.identity,
            "version": [PROTOCOL_VERSION, self.record["provenance"]["frepo_bench"]],
            "method code": method_digest(self.method_class),
            "number of curve points": self.job.curve_points,
        }
        self.checkpoints = Checkpoints(self.job.path, self.job.checkpoint_seconds, must_agree)
        self.position = Position(0)
        self._others: Callable[[], str | None] = lambda: None
        """Work of others beside the present phase, in words."""
        self.board: TensorBoard | None = None

    def prepare(self) -> tuple[int, float]:
        """Everything that is timed before the first step that counts. Returns steps per cycle and seconds per step."""
        limit = self.job.distillation.memory_limit_bytes
        with memory_limit(limit, self.benchmark.task.device), self.beside("preparing"):
            return self._warm_up()

    def method(self, steps: int = SAMPLES) -> Method:
        """The method, prepared, before its first step of ``steps``."""
        method = self.method_class(self.benchmark.task, self.config, steps)
        method.prepare(self.store)
        return method

    def run(self) -> Synthetic:
        """The set. Reasons to end wait (`harness.stopping`) from the first step that counts until the caller is done:
        what was distilled to its end is written."""
        distillation, device = self.job.distillation, self.benchmark.task.device
        if not self.method_class.iterative:
            with memory_limit(distillation.memory_limit_bytes, device), self.beside("preparing"), stopping.released():
                method = self._prepare(lambda: self.method_class(self.benchmark.task, self.config, 0))
            return self._checked_set(method.synthetic(), "after prepare()")
        with stopping.released():
            step_seconds = self._begin()
        steps, done = self.position.steps, self.position.done
        with memory_limit(distillation.memory_limit_bytes, device), self.beside("distilling"):
            with stopping.released():
                method = self.method(steps)
                if done:
                    with unwatched():
                        self.checkpoints.load(done, method)
                        release()
            self._distil(method, step_seconds)
        return self._checked_set(method.synthetic(), f"after step {steps}")

    def _begin(self) -> float:
        """Prepare, and take up the last checkpoint or begin anew. Returns the seconds per step, as estimated."""
        distillation, saved = self.job.distillation, self.checkpoints.newest()
        if saved is not None and distillation.cost_only and self._is_elsewhere(saved[1]):
            self.checkpoints.put_aside("its seconds are of another machine")
            saved = None
        cycle, step_seconds = self.prepare()
        if saved is None:
            shutil.rmtree(self.job.path / SNAPSHOTS, ignore_errors=True)
            self.count()
            self.position = Position(distillation.steps or self._steps_for(distillation.seconds, cycle, step_seconds))
        else:
            self._take_up(*saved)
        steps, done = self.position.steps, self.position.done
        begun = "" if saved is None else f"goes on after step {done} of "
        say(f"{begun}{steps} steps at {1000 * step_seconds:.1f} ms, about {duration((steps - done) * step_seconds)}")
        if self.job.tensorboard:  # imported before the idle level is read: it is no part of the method's memory
            from harness.tensorboard import TensorBoard

            self.board = TensorBoard(self.job.path / TENSORBOARD, self.benchmark, done)
        self.meter.idle()
        return step_seconds

    def _warm_up(self) -> tuple[int, float]:
        """Prepare, timed, and take a few steps with an instance that is thrown away.

        Kernels are chosen, caches warm and the store filled afterwards, and no random number of the cell was
        drawn. Returns the steps per cycle and the seconds per step.
        """
        distillation, clock, config = self.job.distillation, self.clock, self.config
        task = dataclasses.replace(self.benchmark.task, generator=generator_for("warm-up", distillation.seed))
        method = self._prepare(lambda: self.method_class(task, config, distillation.steps or SAMPLES))
        cost, cycle = self.record["cost"], method.steps_per_cycle
        if not isinstance(cycle, int) or cycle < 1:
            raise UserError(
                f"{distillation.method}.steps_per_cycle is {cycle!r}; expected a whole number of at least 1"
            )
        self._check(method.synthetic(), "before the first step", initial=method.iterative)

        def timed(steps: int) -> float:
            begin = clock.read()
            for _ in range(steps):
                check_losses(method.step(), f"{distillation.method}.step()", task.device)
                alive.sign()
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

    def count(self) -> None:
        """The counters, of another instance that is thrown away; nothing where a method cannot be counted."""
        task = dataclasses.replace(self.benchmark.task, generator=generator_for("count"))

        def make() -> Method:
            method = self.method_class(task, self.config, self.job.distillation.steps or SAMPLES)
            method.prepare(Uncounted(self.store))
            return method

        try:
            counted = count(make, task.device)
        except Exception as error:  # steps without counters have been taken: it is for lack of these alone
            say(f"operations and live bytes are not counted: {type(error).__name__}: {error}")
            return
        cost = self.record["cost"]
        cost["flops_per_step"], cost["saved_bytes_per_step"] = counted.flops, counted.saved_bytes
        cost["peak_live_bytes"] = counted.peak_live_bytes

    def _prepare(self, make: Callable[[], Method]) -> Method:
        """The method that ``make`` gives, prepared; timed as if nothing had been in the cache."""
        cost = self.record["cost"]
        self.store.on_made = progress = Progress("preparing, entries made", None)
        begin = self.clock.read()
        method = make()
        # What follows from the task is resolved by now.
        self.record["resolved"] = as_json(method.config)
        method.prepare(self.store)
        own = self.clock.read() - begin - self.store.waited  # for entries that other cells made meanwhile
        cost["prepare_seconds"] = own + sum(self.store.cached.values())
        cost["prepare_cached"] = len(self.store.cached)
        progress.close()
        return method

    def _steps_for(self, seconds: float | None, cycle: int, step_seconds: float) -> int:
        """Steps of as many whole cycles as fit into ``seconds``, and at least ``LEAST_CYCLES``."""
        assert seconds is not None
        if self.job.distillation.seconds_include_prepare:
            seconds -= self.record["cost"]["prepare_seconds"] or 0.0
        return max(LEAST_CYCLES, int(seconds / (cycle * step_seconds))) * cycle

    def _is_elsewhere(self, saved: Mapping[str, Any]) -> bool:
        """Whether the steps of the record ``saved`` were taken on another machine, or with another torch."""
        own, last = self.record["provenance"], saved["segments"][-1]
        return any(own[name] != last[name] for name in SAME_MACHINE)

    def _take_up(self, position: Position, saved: dict[str, Any]) -> None:
        """Continue the record ``saved``; of another machine only what does not depend on it."""
        self.position = position
        if self._is_elsewhere(saved):
            last = saved["segments"][-1]
            was = f"{last['device']}, {last['threads']} threads, torch {last['torch']}"
            say(f"was begun on {was}: the set may differ by rounding from one that is made on a single machine")
            self.count()
            carried = {name: saved["cost"][name] for name in ("distill_seconds", "steps_per_sample")}
            saved = {**saved, "cost": {**self.record["cost"], **carried}}
            position.window_steps, position.window_seconds, position.joules = 0, 0.0, None
        else:
            kept = saved["cost"]["memory"]
            kept["busy"] = joined(kept["busy"], self.record["cost"]["memory"]["busy"])
        segments = [segment for segment in saved["segments"] if segment["steps"]]
        self.record.update({**saved, "segments": segments})  # type: ignore[typeddict-item]

    def _distil(self, method: Method, step_seconds: float) -> None:
        """The measured steps, from the present position on."""
        cost, position, name = self.record["cost"], self.position, f"{self.job.distillation.method}.step()"
        steps, cycle = position.steps, method.steps_per_cycle
        cycles = max(1, -(-steps // (cycle * SAMPLES)))
        if method.task.device.type != "cpu":
            cycles = max(cycles, math.ceil(GPU_WINDOW_SECONDS / (cycle * step_seconds)))
        # A distillation keeps its windows: what is logged and kept follows from them.
        size = cost["steps_per_sample"] = cost["steps_per_sample"] or cycles * cycle
        curve, logged = curve_steps(self.job.curve_points, steps), log_steps(steps)
        pictured = curve_steps(PICTURED, steps)
        progress = Progress("distilling", steps, position.done)
        estimate = Estimate(steps, steps * step_seconds)
        energy = EnergyMeter(self.meter.gpu, position.joules)
        self.record["segments"].append(new_segment(self.record["provenance"]))
        with contextlib.ExitStack() as stack:
            # What is written meanwhile goes to disk, so that it is no part of the memory that is being measured.
            written = stack.enter_context(events.continued(self.job.path / EVENTS, position.done))
            if self.board is not None:
                stack.callback(self.board.close)
            self._start(energy, self._save, method)
            stack.callback(progress.close)
            stack.callback(self._end_memory)
            for begin, end in windows(steps, size):
                if end <= position.done:
                    continue
                while position.done < end:
                    if self._is_to_save():
                        self._pause(energy)
                        self._start(energy, self._save, method)
                        stopping.raise_waiting()
                    losses = self._steps(method, end)
                seconds, total = position.window_seconds / position.window_steps, cost["distill_seconds"] or 0.0
                if position.window_steps % cycle == 0:
                    cost["step_seconds"].append(seconds)
                position.window_steps, position.window_seconds = 0, 0.0
                check_losses(losses, name, method.task.device)
                values = {loss: float(value) for loss, value in losses.items()}
                if any(begin < step <= end for step in logged):
                    event = self._event(end, total, seconds, values)
                    written.write(json.dumps(event) + "\n")
                    written.flush()
                    if self.board is not None:
                        self.board.scalars(event)
                progress(end, self._checked_losses(values, end))
                if corrected := estimate.corrected(end, total):
                    progress.say(corrected)
                if any(begin < step <= end for step in curve) and end < steps:
                    self._keep(method.synthetic(), end, total)
                if self.board is not None and any(begin < step <= end for step in pictured):
                    self._pause(energy)
                    self._start(energy, self._show, self.board, method, end)
            energy.stop()
            if self.record["segments"][-1]["steps"] == 0:  # the last checkpoint was of the end
                self.record["segments"].pop()
            cost["joules_per_step"] = energy.per_step(steps, cost["distill_seconds"] or 0.0)
        limit, resident = self.job.distillation.memory_limit_bytes, cost["memory"]["host_rss_bytes"]
        if limit is not None and method.task.device.type == "cpu" and resident is not None and resident > limit:
            raise MemoryIsFull(f"{show_bytes(resident)}, more than the memory limit of {show_bytes(limit)}")

    def _steps(self, method: Method, end: int) -> dict[str, torch.Tensor]:
        """Take the steps up to ``end``, or fewer where the state is to be saved; returns the losses of the last."""
        position, begin = self.position, self.position.done
        started = self.clock.read()
        while True:
            losses = method.step()
            position.done += 1
            alive.sign()
            if position.done == end or self._is_to_save():
                break
        elapsed, taken = self.clock.read() - started, position.done - begin
        position.window_steps += taken
        position.window_seconds += elapsed
        cost, segment = self.record["cost"], self.record["segments"][-1]
        segment["steps"] += taken
        segment["seconds"] += elapsed
        segment["ended"] = now()
        self.record["steps"], cost["distill_seconds"] = position.done, (cost["distill_seconds"] or 0.0) + elapsed
        return losses

    def _is_to_save(self) -> bool:
        return stopping.waiting() or self.checkpoints.due()

    def _pause(self, energy: EnergyMeter) -> None:
        """Stop the meters; `_start` goes on."""
        energy.stop()
        self._end_memory()
        self.position.joules = energy.joules

    def _start(self, energy: EnergyMeter, write: Callable[..., None], *what: Any) -> None:
        """Write something, which is no part of what is measured or limited, and start the meters."""
        with unwatched():
            write(*what)
            self.meter.start()
        energy.start()

    def _save(self, method: Method) -> None:
        """Write a checkpoint; where that fails, a line says so and the steps go on."""
        cost = self.record["cost"]
        memory: Memory = {**cost["memory"], "busy": joined(cost["memory"]["busy"], self._others())}
        saved: Record = {**self.record, "cost": {**cost, "memory": memory}}
        try:
            self.checkpoints.write(self.position, method, saved)
        except Unsavable as error:
            say(
                f"the state after step {self.position.done} is not saved, {error}: "
                "a cell that is interrupted goes on from an earlier one, or begins again"
            )

    def _end_memory(self) -> None:
        cost = self.record["cost"]
        cost["memory"] = merged(cost["memory"], self.meter.stop())

    def _event(self, step: int, total: float, seconds: float, losses: Mapping[str, float]) -> dict[str, Any]:
        """An event (`harness.records.events`)."""
        finite = {name: value if math.isfinite(value) else None for name, value in losses.items()}
        event = {"step": step, "steps": self.position.steps, "seconds": total, "step_seconds": seconds}
        return {**event, "losses": finite, "memory_bytes": self.meter.level()}

    def _show(self, board: TensorBoard, method: Method, step: int) -> None:
        """Let ``board`` show the set; one that is not finite is left out."""
        synthetic = method.synthetic()
        with contextlib.suppress(NotFinite):
            self._check(synthetic, f"after step {step}")
            board.images(synthetic, step)

    def _keep(self, synthetic: Synthetic, step: int, seconds: float) -> None:
        """Write a snapshot; a set that is not finite is left out."""
        with contextlib.suppress(NotFinite):
            self._check(synthetic, f"after step {step}")
            name = f"{SNAPSHOTS}/step-{step}.safetensors"
            (self.job.path / SNAPSHOTS).mkdir(exist_ok=True)
            digest = artifact.save_snapshot(self.job.path / name, synthetic)
            self.record["snapshots"].append({"name": name, "sha256": digest, "step": step, "seconds": seconds})

    def _check(self, synthetic: Synthetic, when: str, *, initial: bool = False) -> None:
        where = f"{self.job.distillation.method}.synthetic() {when}"
        check_set(synthetic, where, self.job, self.benchmark.task, initial=initial)
        if decoder := decoder_of(synthetic):
            self.record["decoder"] = decoder

    def _checked_set(self, synthetic: Synthetic, when: str) -> Synthetic:
        """``synthetic``. Raises Diverged where it is not finite and more than its cost is asked for."""
        try:
            self._check(synthetic, when)
        except NotFinite as error:
            self._diverged(str(error))
        return synthetic

    def _checked_losses(self, losses: Mapping[str, float], step: int) -> str:
        """The first loss in words."""
        for name, value in losses.items():
            if not math.isfinite(value):
                return self._diverged(f"{name} is {value} at step {step}")
        return next((f"{printable(name)} {value:.4g}" for name, value in losses.items()), "")

    def _diverged(self, words: str) -> str:
        """A number that is not finite ends the cell, unless only its cost is asked for.

        A step size published for another network or data set may well diverge, and an iteration costs the same.
        """
        if not self.job.distillation.cost_only:
            raise Diverged(words)
        self.record["message"] = self.record["message"] or f"{words}, which costs as much as a finite number"
        return words

    @contextlib.contextmanager
    def beside(self, phase: str) -> Iterator[None]:
        """Write down where others kept the cores busy while the seconds of ``phase`` were measured."""
        # On a GPU one thread of the processor gives out the work.
        load = LoadMeter(torch.get_num_threads() if self.benchmark.task.device.type == "cpu" else 1)
        self._others = lambda: (words := load.stop()) and f"while {phase} {words}"
        try:
            yield
        finally:
            memory = self.record["cost"]["memory"]
            memory["busy"] = joined(memory["busy"], self._others())


def check_set(synthetic: object, where: str, job: Job, task: Task, *, initial: bool = False) -> None:
    """Raises UserError for a set that is not what ``job`` asks for, as `check_synthetic` does."""
    check_synthetic(
        synthetic,
        where,
        classes=task.num_classes,
        present=task.classes,
        ipc=job.distillation.ipc,
        image=task.images.shape[1:],
        dtype=task.dtype,
        device=task.device,
        initial=initial,
    )


def _store_key(benchmark: Benchmark, distillation: Distillation) -> tuple[object, ...]:
    """Everything that an expert depends on, its settings and the machine apart.

    The name of a data set brings constants of its preprocessing and whether it is flipped, so the same pixels under two
    names are two things.
    """
    fitted = benchmark.preprocess
    statistics = fitted.name, fitted.mean.tolist(), fitted.std.tolist()
    return benchmark.raw_fingerprint, statistics, benchmark.flip, benchmark.spec, distillation.dtype, distillation.tf32


def say(line: str) -> None:
    """Print ``line`` below the one that names the cell."""
    print(f"  {printable(line)}", file=sys.stderr, flush=True)
