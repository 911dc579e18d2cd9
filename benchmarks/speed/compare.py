"""Ours against plain PyTorch: the same iteration, in turns, on this machine.

    python -m benchmarks.speed.compare --widths 16,32 --threads 2

Both have the same task, hyper-parameters (the paper's) and random draws, so they do the same work.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from tabulate import tabulate

import methods
from benchmarks.errors import UserError, choose
from benchmarks.networks import NetworkSpec
from benchmarks.protocols import PROTOCOLS
from benchmarks.speed import workload
from benchmarks.speed.machine import Rates, rates
from benchmarks.speed.plain_frepo import PlainFRePo
from benchmarks.speed.plain_matching import PlainDM, PlainDSA
from benchmarks.task import Task

WARMUP = 3
"""Cycles that are not timed."""
SETTINGS = ((10, 1, "cifar"), (10, 10, "cifar"), (100, 1, "cifar"), (10, 1, "mnist"))
"""Classes, images per class, shape."""


class Plain(Protocol):
    def step(self) -> object:
        """One update of the synthetic images."""


PLAIN: Mapping[str, Callable[[Task, Any, int], Plain]] = {
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

    def __str__(self) -> str:
        return f"{self.method}, {self.classes} classes, ipc {self.ipc}, {self.shape}, width {self.width}"


@dataclass(frozen=True)
class Timing:
    """Median seconds of one step of either, and what ours computes in it."""

    setting: Setting
    plain: float
    ours: float
    flops: float

    @property
    def ratio(self) -> float:
        return self.ours / self.plain


def measure(
    setting: Setting,
    repeats: int,
    *,
    config: Mapping[str, Any] | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time ``repeats`` cycles of each, one after the other, who is first changing every time.

    ``config``: hyper-parameters other than the paper's. ``now``: the clock to read.
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
    ours = cls(workload.task(spec, ipc=setting.ipc), hyper, total)
    ours.prepare({})
    plain = PLAIN[setting.method](workload.task(spec, ipc=setting.ipc), hyper, total)
    cycle = ours.steps_per_cycle

    def run(method: Plain) -> float:
        begin = now()
        for _ in range(cycle):
            method.step()
        return (now() - begin) / cycle

    operations = workload.flops(lambda: run(ours)) / cycle
    run(plain)
    for _ in range(WARMUP):
        run(plain), run(ours)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for repeat in range(repeats):
        for which in (True, False) if repeat % 2 else (False, True):
            seconds[which].append(run(ours if which else plain))
    return Timing(setting, statistics.median(seconds[False]), statistics.median(seconds[True]), operations)


def table(timings: Sequence[Timing], machine: Rates) -> str:
    """The timings, the geometric means of the ratios by the number of synthetic images, and the machine's rates."""
    rows = []
    for timing in timings:
        setting, rate = timing.setting, timing.flops / timing.ours / 1e9
        rows.append(
            (
                setting.method,
                setting.classes,
                setting.ipc,
                setting.width,
                setting.shape,
                f"{1000 * timing.plain:.1f}",
                f"{1000 * timing.ours:.1f}",
                f"{timing.ratio:.2f}",
                f"{rate:.0f}",
                f"{rate / machine.convolution:.0%}",
            )
        )
    headers = ["method", "classes", "ipc", "width", "shape", "plain ms", "ours ms", "ours / plain", "GFLOP/s"]
    headers.append("of convolution rate")
    lines = [tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, stralign="right"), ""]
    for images, method in itertools.product(sorted({t.setting.images for t in timings}), PLAIN):
        ratios = [t.ratio for t in timings if t.setting.images == images and t.setting.method == method]
        if ratios:
            mean = statistics.geometric_mean(ratios)
            lines.append(
                f"{method}, {images} synthetic images: ours / plain {mean:.2f} (geometric mean of {len(ratios)})"
            )
    lines.append(
        f"{torch.get_num_threads()} threads; this machine in float32: matrix product {machine.sgemm:.0f} GFLOP/s, "
        f"convolution {machine.convolution:.0f} GFLOP/s. Products and convolutions are counted, nothing else."
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.compare",
        description="Time our methods against plain PyTorch, in turns.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--methods", default="frepo", metavar="NAMES", help=f"of {', '.join(PLAIN)}, comma between")
    parser.add_argument("--widths", default="16,32,64", metavar="NUMBERS", help="of the networks, comma between")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="timed cycles of each")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch; by default its own choice")
    given = parser.parse_args(arguments)
    try:
        settings = _settings(given.methods, given.widths)
        for flag, value in (("--repeats", given.repeats), ("--threads", given.threads)):
            if value is not None and value < 1:
                raise UserError(f"{flag} must be at least 1, not {value}")
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
            timings.append(measure(setting, given.repeats))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    print(table(timings, machine))
    return 0 if len(timings) == len(settings) else 130


def _settings(names: str, widths: str) -> list[Setting]:
    """Raises UserError for a method without a plain version, and for widths that are no numbers above 0."""
    try:
        numbers = [int(width) for width in widths.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserError(f"--widths must be whole numbers above 0, comma between, not {widths!r}")
    chosen = names.split(",")
    for name in chosen:
        choose("method in plain PyTorch", name, PLAIN)
    return [
        Setting(name, classes, ipc, shape, width)
        for name, width, (classes, ipc, shape) in itertools.product(chosen, numbers, SETTINGS)
    ]


if __name__ == "__main__":
    sys.exit(main())
