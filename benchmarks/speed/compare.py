"""Ours against plain PyTorch, and FRePo against JAX: the same iteration, in turns, on this machine.

    python -m benchmarks.speed.compare --widths 16,32 --threads 2

All have the same task, hyper-parameters (the paper's) and random draws, so they do the same work. Where others have
reported a straightforward port of their own, plain PyTorch is held against it, rescaled by the rate of matrix products.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import torch
from tabulate import tabulate

import methods
from benchmarks.errors import UserError, choose
from benchmarks.networks import NetworkSpec
from benchmarks.protocols import PROTOCOLS
from benchmarks.speed import reported, workload
from benchmarks.speed.machine import Rates, rates
from benchmarks.speed.plain_frepo import PlainFRePo
from benchmarks.speed.plain_matching import PlainDM, PlainDSA
from benchmarks.speed.plain_unroll import PlainBPTT, PlainMTT
from benchmarks.task import Task
from harness.measure.counters import Uncounted, count
from methods.base import Store

WARMUP = 3
"""Cycles that are not timed."""
WIDTHS = (16, 32, 64)
SETTINGS = ("10x1xcifar", "10x10xcifar", "100x1xcifar", "10x1xmnist")
"""Classes, images per class, shape."""
STEPS = {"mtt": (10, 20, 30), "bptt": (10, 20)}
"""Method → numbers of inner steps. Such methods have by default one width and one setting."""
STEPS_NAMES = {"mtt": "syn_steps", "bptt": "unroll"}
"""Method → the hyper-parameter that is their number."""
UNROLLED_WIDTHS, UNROLLED_SETTINGS = (32,), ("10x10xcifar",)


class Arm(Protocol):
    """What is timed."""

    task: Task
    steps_per_cycle: int

    def step(self) -> object:
        """One update of the synthetic images."""


PLAIN: Mapping[str, Callable[[Task, Any, int, Store], Arm]] = {
    "frepo": lambda task, config, total, _: PlainFRePo(task, config, total),
    "dsa": lambda task, config, *_: PlainDSA(task, config.lr_img, config.batch_real),
    "dm": lambda task, config, *_: PlainDM(task, config.lr_img, config.batch_real),
    "mtt": lambda task, config, _, store: PlainMTT(task, config, [e["parameters"] for e in store.values()]),
    "bptt": lambda task, config, *_: PlainBPTT(task, config),
}
"""Method → how it is made in plain PyTorch: from task, configuration, number of steps and the store of ours."""
SHORTER: Mapping[str, Mapping[str, Any]] = {
    "dsa": {"outer_loop": 1, "inner_loop": 1},  # the plain one trains no network between two updates
    "mtt": methods.get("mtt").BUDGETS["forecast"],  # one expert as short as can be: a step costs the same
}
"""Method → hyper-parameters other than the paper's."""


@dataclass(frozen=True)
class Setting:
    """One row."""

    method: str
    classes: int
    ipc: int
    shape: str
    width: int
    steps: int | None = None
    """Inner ones, where the method has them."""

    @property
    def images(self) -> int:
        """Synthetic ones."""
        return self.classes * self.ipc

    @property
    def reported(self) -> reported.Reported | None:
        if self.method != "frepo":
            return None
        return reported.FREPO.get((self.classes, self.ipc, self.shape, self.width))

    def __str__(self) -> str:
        text = f"{self.method}, {self.classes} classes, ipc {self.ipc}, {self.shape}, width {self.width}"
        return text if self.steps is None else f"{text}, {self.steps} inner steps"


@dataclass(frozen=True)
class Timing:
    """What was measured of one row."""

    setting: Setting
    seconds: Mapping[str, float]
    """Arm → median of one step."""
    flops: Mapping[str, float]
    """Arm → operations of one step; not of JAX."""
    live_bytes: Mapping[str, int] = field(default_factory=dict)
    """Arm → most bytes of tensors alive at once, from its construction on; where it was asked for."""

    def ratio(self, arm: str, to: str) -> float:
        return self.seconds[arm] / self.seconds[to]


def measure(
    setting: Setting,
    repeats: int,
    *,
    config: Mapping[str, Any] | None = None,
    jax: bool = False,
    memory: bool = False,
    now: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time ``repeats`` cycles of each arm, one after the other, in another order every time.

    ``config``: hyper-parameters other than the paper's. ``jax``: FRePo in JAX is an arm too. ``memory``: count live
    bytes of the others. ``now``: the clock to read.
    """
    makers, task = arms_of(setting, 1000 + repeats, config or {}, jax=jax)
    arms = {name: make(task()) for name, make in makers.items()}

    def cycle(arm: str) -> None:
        for _ in range(arms[arm].steps_per_cycle):
            arms[arm].step()

    def run(arm: str) -> float:
        begin = now()
        cycle(arm)
        return (now() - begin) / arms[arm].steps_per_cycle

    counted = [arm for arm in arms if arm != "JAX"]
    operations = {arm: workload.flops(functools.partial(cycle, arm)) / arms[arm].steps_per_cycle for arm in counted}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    orders = itertools.cycle(itertools.permutations(arms))
    for order in itertools.islice(orders, WARMUP + repeats):
        for arm in order:
            seconds[arm].append(run(arm))
    arms.clear()
    return Timing(
        setting,
        {arm: statistics.median(found[WARMUP:]) for arm, found in seconds.items()},
        operations,
        {arm: live_bytes(make, task()) for arm, make in makers.items() if arm != "JAX"} if memory else {},
    )


def live_bytes(make: Callable[[Task], Arm], task: Task) -> int:
    """Most bytes of tensors alive at once that are not the task's, from construction on: exact, and repeatable."""
    return count(lambda: cast(Any, make(task)), task.device).peak_live_bytes


def arms_of(
    setting: Setting, total: int, config: Mapping[str, Any], *, jax: bool = False
) -> tuple[dict[str, Callable[[Task], Arm]], Callable[[], Task]]:
    """Arm → how it is made for a task; and the task, as many times as there are arms."""
    cls = methods.get(setting.method)
    protocol = PROTOCOLS[cls.PROTOCOL]
    channels, *size = workload.SHAPES[setting.shape]
    spec = NetworkSpec(
        protocol.network,
        channels,
        (size[0], size[1]),
        setting.classes,
        width=setting.width,
        norm=protocol.distill_norm,
    )
    steps = {} if setting.steps is None else {STEPS_NAMES[setting.method]: setting.steps}
    hyper = cls.Config(**{**SHORTER.get(setting.method, {}), **steps, **config})
    task = functools.partial(workload.task, spec, ipc=setting.ipc)
    trained: Store = {}
    cls(task(), hyper, total).prepare(trained)
    store = Uncounted(trained)

    def ours(task: Task, **changes: Any) -> Arm:
        method = cls(task, replace(hyper, **changes), total)
        method.prepare(store)
        return method

    makers: dict[str, Callable[[Task], Arm]] = {
        "plain": lambda task: PLAIN[setting.method](task, hyper, total, store),
        "ours": ours,
    }
    if setting.method in STEPS:
        makers["rematerialised"] = functools.partial(ours, rematerialize=True)
    if jax and setting.method == "frepo":
        from benchmarks.speed.jax_frepo import JaxFRePo

        makers["JAX"] = lambda task: JaxFRePo(task, hyper, total)
    return makers, task


def table(timings: Sequence[Timing], machine: Rates) -> str:
    """The timings, what they say together, and the machine's rates."""
    rows = [dict(_row(timing, machine)) for timing in timings]
    headers = [header for header in COLUMNS if any(header in row for row in rows)]
    cells = [[row.get(header, "") for header in headers] for row in rows]
    return "\n".join(
        [
            tabulate(cells, headers, tablefmt="pipe", disable_numparse=True, stralign="right"),
            "",
            *_means(timings, machine),
            *_check(timings, machine),
            f"{torch.get_num_threads()} threads; this machine in float32: matrix product {machine.sgemm:.0f} GFLOP/s, "
            f"convolution {machine.convolution:.0f} GFLOP/s. Products and convolutions are counted, nothing else.",
        ]
    )


COLUMNS = (
    *("method", "classes", "ipc", "width", "shape", "steps"),
    *("plain ms", "ours ms", "rematerialised ms", "JAX ms"),
    *("ours / plain", "operations ours / plain"),
    *("rematerialised / ours", "operations rematerialised / ours"),
    *("ours / JAX", "plain / expected"),
    *("plain MiB", "ours MiB", "rematerialised MiB"),
    *("GFLOP/s", "of convolution rate"),
)
"""In this order; one without an entry is left out."""
RATIOS = (("ours", "plain"), ("rematerialised", "ours"), ("ours", "JAX"))


def _row(timing: Timing, machine: Rates) -> Iterator[tuple[str, str]]:
    """Column, entry."""
    setting, rate = timing.setting, timing.flops["ours"] / timing.seconds["ours"] / 1e9
    for name in ("method", "classes", "ipc", "width", "shape", "steps"):
        if (value := getattr(setting, name)) is not None:
            yield name, str(value)
    for arm, seconds in timing.seconds.items():
        yield f"{arm} ms", f"{1000 * seconds:.1f}"
    for arm, to in RATIOS:
        if {arm, to} <= timing.seconds.keys():
            yield f"{arm} / {to}", f"{timing.ratio(arm, to):.2f}"
        if {arm, to} <= timing.flops.keys():
            yield f"operations {arm} / {to}", f"{timing.flops[arm] / timing.flops[to]:.2f}"
    if (expected := _expected(timing, machine)) is not None:
        yield "plain / expected", f"{expected:.2f}"
    for arm, size in timing.live_bytes.items():
        yield f"{arm} MiB", f"{size / 2**20:.1f}"
    yield "GFLOP/s", f"{rate:.0f}"
    yield "of convolution rate", f"{rate / machine.convolution:.0%}"


def _expected(timing: Timing, machine: Rates) -> float | None:
    """Plain PyTorch by what others' port would take here; None where none has been reported."""
    theirs = timing.setting.reported
    return timing.seconds["plain"] / reported.rescaled(theirs.straight, machine.sgemm) if theirs else None


def _means(timings: Sequence[Timing], machine: Rates) -> Iterator[str]:
    """Geometric means of the ratios, by method and number of synthetic images."""
    for images, method in itertools.product(sorted({t.setting.images for t in timings}), PLAIN):
        own = [t for t in timings if t.setting.images == images and t.setting.method == method]
        found = {
            f"{arm} / {to}": [t.ratio(arm, to) for t in own if {arm, to} <= t.seconds.keys()] for arm, to in RATIOS
        }
        for name, field_name in (("JAX", "jax"), ("straight", "straight")):
            found[f"ours / (reported {name}, rescaled)"] = [
                t.seconds["ours"] / reported.rescaled(getattr(t.setting.reported, field_name), machine.sgemm)
                for t in own
                if t.setting.reported
            ]
        for name, ratios in found.items():
            if ratios:
                mean = statistics.geometric_mean(ratios)
                yield f"{method}, {images} synthetic images: {name} {mean:.2f} (geometric mean of {len(ratios)})"


def _check(timings: Sequence[Timing], machine: Rates) -> Iterator[str]:
    """Whether plain PyTorch is as fast as others' port, where that is known."""
    known = {str(t.setting): ratio for t in timings if (ratio := _expected(t, machine)) is not None}
    if not known:
        return
    off = [name for name, ratio in known.items() if abs(ratio - 1) > reported.TOLERANCE]
    yield (
        f"Expected of plain: what was reported for a straightforward port, times {reported.SGEMM:.0f} / "
        f"{machine.sgemm:.0f}, the rates of matrix products there and here. Within {reported.TOLERANCE:.0%} of it: "
        f"{len(known) - len(off)} of {len(known)} rows{'; not: ' + '; '.join(off) if off else ''}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.compare",
        description="Time our methods against plain PyTorch, in turns.",
    )
    comma = "comma between"
    parser.add_argument(
        "--methods", default="frepo", metavar="NAMES", help=f"of {', '.join(PLAIN)}, {comma} (default: frepo)"
    )
    unrolled = ", ".join(STEPS)
    parser.add_argument(
        "--widths",
        metavar="NUMBERS",
        help=f"of the networks, {comma} (default: {_listed(WIDTHS)}; {unrolled}: {_listed(UNROLLED_WIDTHS)})",
    )
    parser.add_argument(
        "--settings",
        metavar="NAMES",
        help=f"classes, ipc and shape of the images, {comma} (default: {_listed(SETTINGS)}; {unrolled}: "
        f"{_listed(UNROLLED_SETTINGS)})",
    )
    parser.add_argument(
        "--steps",
        metavar="NUMBERS",
        help=f"inner steps, {comma} (default: {'; '.join(f'{name}: {_listed(own)}' for name, own in STEPS.items())})",
    )
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="timed cycles of each (default: 15)")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch and JAX; by default torch's own choice")
    parser.add_argument("--jax", action="store_true", help="time FRePo in JAX as well, which must be installed")
    parser.add_argument("--memory", action="store_true", help="count the bytes of live tensors as well; not of JAX")
    given = parser.parse_args(arguments)
    try:
        settings = _settings(given.methods, given.widths, given.settings, given.steps)
        for flag, value in (("--repeats", given.repeats), ("--threads", given.threads)):
            if value is not None and value < 1:
                raise UserError(f"{flag} must be at least 1, not {value}")
        if given.jax and importlib.util.find_spec("jax") is None:
            raise UserError("--jax needs the package jax: pip install jax")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.threads:
        torch.set_num_threads(given.threads)
    machine = rates()
    timings: list[Timing] = []
    try:
        for number, setting in enumerate(settings, 1):
            print(f"[{number}/{len(settings)}] {setting}", file=sys.stderr, flush=True)
            timings.append(measure(setting, given.repeats, jax=given.jax, memory=given.memory))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    print(table(timings, machine))
    return 0 if len(timings) == len(settings) else 130


def _settings(names: str, widths: str | None, settings: str | None, steps: str | None) -> list[Setting]:
    """In what order they are measured. Raises UserError for what cannot be read or is not known."""
    chosen = []
    for name in names.split(","):
        choose("method in plain PyTorch", name, PLAIN)
        unrolled = name in STEPS
        grid = itertools.product(
            _numbers("--widths", widths or _listed(UNROLLED_WIDTHS if unrolled else WIDTHS)),
            map(_setting, (settings or _listed(UNROLLED_SETTINGS if unrolled else SETTINGS)).split(",")),
            _numbers("--steps", steps or _listed(STEPS[name])) if unrolled else [None],
        )
        chosen += [Setting(name, *setting, width, inner) for width, setting, inner in grid]
    return chosen


def _setting(text: str) -> tuple[int, int, str]:
    """Classes, images per class and shape. Raises UserError."""
    classes, _, rest = text.partition("x")
    ipc, _, shape = rest.partition("x")
    try:
        numbers = int(classes), int(ipc)
    except ValueError:
        numbers = 0, 0
    if min(numbers) < 1 or shape not in workload.SHAPES:
        known = ", ".join(workload.SHAPES)
        raise UserError(f"--settings must be like {SETTINGS[0]}, with a shape of {known}; not {text!r}")
    return *numbers, shape


def _numbers(flag: str, text: str) -> list[int]:
    """Raises UserError."""
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserError(f"{flag} must be whole numbers above 0, comma between, not {text!r}")
    return numbers


def _listed(values: Sequence[object]) -> str:
    return ",".join(map(str, values))


if __name__ == "__main__":
    sys.exit(main())
