"""Ours against plain PyTorch, and FRePo against JAX: the same iteration, in turns, on this machine.

    python -m benchmarks.speed.compare --widths 16,32 --threads 2

All have the same task, hyper-parameters (the paper's) and random draws, so they do the same work. Where others have
reported a straightforward port of their own, plain PyTorch is held against it, rescaled by the rate of matrix products.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
from benchmarks.task import Task

WARMUP = 3
"""Cycles that are not timed."""
SETTINGS = ("10x1xcifar", "10x10xcifar", "100x1xcifar", "10x1xmnist")
"""Classes, images per class, shape."""
WIDTHS = (16, 32, 64)


class Arm(Protocol):
    def step(self) -> object:
        """One update of the synthetic images."""


PLAIN: Mapping[str, Callable[[Task, Any, int], Arm]] = {
    "frepo": PlainFRePo,
    "dsa": lambda task, config, _: PlainDSA(task, config.lr_img, config.batch_real),
    "dm": lambda task, config, _: PlainDM(task, config.lr_img, config.batch_real),
}
"""Method → how it is made in plain PyTorch: from task, configuration and number of steps."""
SHORTER: Mapping[str, Mapping[str, Any]] = {"dsa": {"outer_loop": 1, "inner_loop": 1}}
"""Method → hyper-parameters without which the plain one does less: between two updates it trains no network."""


@dataclass(frozen=True)
class Setting:
    """One row."""

    method: str
    classes: int
    ipc: int
    shape: str
    width: int

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
        return f"{self.method}, {self.classes} classes, ipc {self.ipc}, {self.shape}, width {self.width}"


@dataclass(frozen=True)
class Timing:
    """What was measured of one row."""

    setting: Setting
    seconds: Mapping[str, float]
    """Arm → median of one step."""
    flops: float
    """What ours computes in a step."""

    def ratio(self, arm: str, to: str) -> float:
        return self.seconds[arm] / self.seconds[to]


def measure(
    setting: Setting,
    repeats: int,
    *,
    config: Mapping[str, Any] | None = None,
    jax: bool = False,
    now: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time ``repeats`` cycles of each arm, one after the other, in another order every time.

    ``config``: hyper-parameters other than the paper's. ``jax``: FRePo in JAX is an arm too. ``now``: the clock.
    """
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
    hyper, total = cls.Config(**{**SHORTER.get(setting.method, {}), **(config or {})}), 1000 + repeats

    def task() -> Task:
        return workload.task(spec, ipc=setting.ipc)

    ours = cls(task(), hyper, total)
    ours.prepare({})
    arms: dict[str, Arm] = {"plain": PLAIN[setting.method](task(), hyper, total), "ours": ours}
    if jax and setting.method == "frepo":
        from benchmarks.speed.jax_frepo import JaxFRePo

        arms["JAX"] = JaxFRePo(task(), hyper, total)
    cycle = ours.steps_per_cycle

    def run(arm: str) -> float:
        begin = now()
        for _ in range(cycle):
            arms[arm].step()
        return (now() - begin) / cycle

    operations = workload.flops(lambda: run("ours")) / cycle
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    orders = itertools.cycle(itertools.permutations(arms))
    for order in itertools.islice(orders, WARMUP + repeats):
        for arm in order:
            seconds[arm].append(run(arm))
    return Timing(setting, {arm: statistics.median(seconds[arm][WARMUP:]) for arm in arms}, operations)


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
    "method",
    "classes",
    "ipc",
    "width",
    "shape",
    "plain ms",
    "ours ms",
    "JAX ms",
    "ours / plain",
    "ours / JAX",
    "plain / expected",
    "GFLOP/s",
    "of convolution rate",
)
"""In this order; one without an entry is left out."""


def _row(timing: Timing, machine: Rates) -> Iterator[tuple[str, str]]:
    """Column, entry."""
    setting, rate = timing.setting, timing.flops / timing.seconds["ours"] / 1e9
    for name in ("method", "classes", "ipc", "width", "shape"):
        yield name, str(getattr(setting, name))
    for arm, seconds in timing.seconds.items():
        yield f"{arm} ms", f"{1000 * seconds:.1f}"
    for arm, to in RATIOS:
        if {arm, to} <= timing.seconds.keys():
            yield f"{arm} / {to}", f"{timing.ratio(arm, to):.2f}"
    if (expected := _expected(timing, machine)) is not None:
        yield "plain / expected", f"{expected:.2f}"
    yield "GFLOP/s", f"{rate:.0f}"
    yield "of convolution rate", f"{rate / machine.convolution:.0%}"


RATIOS = (("ours", "plain"), ("ours", "JAX"))


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
        if not found["ours / JAX"]:
            found["ours / (reported JAX, rescaled)"] = [
                t.seconds["ours"] / reported.rescaled(t.setting.reported.jax, machine.sgemm)
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
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    comma = "comma between"
    parser.add_argument("--methods", default="frepo", metavar="NAMES", help=f"of {', '.join(PLAIN)}, {comma}")
    parser.add_argument("--widths", default=_listed(WIDTHS), metavar="NUMBERS", help=f"of the networks, {comma}")
    parser.add_argument(
        "--settings", default=_listed(SETTINGS), metavar="NAMES", help=f"classes x ipc x shape of the images, {comma}"
    )
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="timed cycles of each")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch and JAX; by default torch's own choice")
    parser.add_argument("--jax", action="store_true", help="time FRePo in JAX as well, which must be installed")
    given = parser.parse_args(arguments)
    try:
        settings = _settings(given.methods, given.widths, given.settings)
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
            timings.append(measure(setting, given.repeats, jax=given.jax))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    print(table(timings, machine))
    return 0 if len(timings) == len(settings) else 130


def _settings(names: str, widths: str, settings: str) -> list[Setting]:
    """Raises UserError for a method without a plain version, and for what cannot be read."""
    chosen = names.split(",")
    for name in chosen:
        choose("method in plain PyTorch", name, PLAIN)
    return [
        Setting(name, *_setting(setting), width)
        for name, width, setting in itertools.product(chosen, _numbers("--widths", widths), settings.split(","))
    ]


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
