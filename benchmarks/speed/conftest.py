"""Options of the speed suites, what this machine can do, and a table of the rates that they reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
import torch
from tabulate import tabulate

from benchmarks.speed.machine import Rates, rates
from benchmarks.speed.workload import SHAPES, flops


@dataclass(frozen=True)
class Settings:
    """What the suites are run at."""

    shape: tuple[int, int, int]
    """Channels, height, width."""
    width: int
    budget: str
    """Whose hyper-parameters the methods have."""
    zca: tuple[int, tuple[int, int, int]]
    """Number and shape of the images that whitening is fitted to."""


class Timed(Protocol):
    def __call__(self, call: Callable[[], Any], count: int, unit: str) -> None:
        """Time ``call``, which gets through ``count`` of ``unit``."""


ROWS = pytest.StashKey[list[tuple[str, ...]]]()
RATES = pytest.StashKey[Rates]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("speed")
    group.addoption("--shape", choices=sorted(SHAPES), default="cifar", help="of the images (default: cifar)")
    group.addoption("--width", type=int, default=32, help="of the networks (default: 32)")
    group.addoption("--threads", type=int, help="of torch (default: its own choice)")
    group.addoption("--full-zca", action="store_true", help="fit ZCA to 50 000 images of CIFAR's shape: minutes")
    group.addoption("--tiny", action="store_true", help="numbers without meaning, to see that everything runs")


@pytest.fixture(scope="session")
def settings(pytestconfig: pytest.Config) -> Settings:
    option = pytestconfig.getoption
    if threads := option("--threads"):
        torch.set_num_threads(threads)
    if option("--tiny"):
        return Settings(SHAPES["digits"], 4, "smoke", (100, SHAPES["digits"]))
    zca = (50_000, SHAPES["cifar"]) if option("--full-zca") else (10_000, SHAPES["mnist"])
    return Settings(SHAPES[option("--shape")], option("--width"), "quick", zca)


@pytest.fixture(scope="session")
def machine(settings: Settings, pytestconfig: pytest.Config) -> Rates:
    found = rates(scale=16 if pytestconfig.getoption("--tiny") else 1)
    pytestconfig.stash[RATES] = found
    return found


@pytest.fixture
def timed(benchmark: Any, machine: Rates, request: pytest.FixtureRequest) -> Timed:
    """Times a call, and keeps throughput, FLOP rate and its fraction of the machine's own as extra information."""

    def time(call: Callable[[], Any], count: int, unit: str) -> None:
        operations = flops(call)
        benchmark(call)
        extra = benchmark.extra_info
        extra |= {"gflop": operations / 1e9, "sgemm_gflops": machine.sgemm, "convolution_gflops": machine.convolution}
        if benchmark.stats is None:  # --benchmark-disable
            return
        seconds = benchmark.stats.stats.median
        extra[f"{unit}_per_second"] = count / seconds
        extra["gflop_per_second"] = operations / 1e9 / seconds
        extra["fraction_of_convolution_rate"] = extra["gflop_per_second"] / machine.convolution
        request.config.stash.setdefault(ROWS, []).append(
            (
                request.node.name,
                f"{1000 * seconds:.4g}",
                f"{count / seconds:,.4g} {unit}/s",
                f"{extra['gflop_per_second']:.4g}",
                f"{extra['fraction_of_convolution_rate']:.0%}",
            )
        )

    return time


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    machine = config.stash[RATES]
    headers = ["", "median ms", "throughput", "GFLOP/s", "of convolution rate"]
    terminalreporter.section("rates")
    terminalreporter.write_line(tabulate(rows, headers, disable_numparse=True, stralign="right"))
    terminalreporter.write_line(
        f"This machine, {torch.get_num_threads()} threads, float32: matrix product {machine.sgemm:.0f} GFLOP/s, "
        f"convolution {machine.convolution:.0f} GFLOP/s. Products and convolutions are counted, nothing else."
    )
