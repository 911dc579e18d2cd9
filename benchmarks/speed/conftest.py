"""Options of the speed suites, and a table of the rates that they reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
import torch
from tabulate import tabulate

SHAPES = {"cifar": (3, 32, 32), "mnist": (1, 28, 28), "digits": (1, 8, 8)}
"""Name → channels, height, width."""


@dataclass(frozen=True)
class Settings:
    """Sizes that the suites are run at."""

    shape: tuple[int, int, int]
    """Channels, height, width."""
    width: int
    zca: tuple[int, tuple[int, int, int]]
    """Number and shape of the images that whitening is fitted to."""
    scale: int = 1
    """Divides the sizes of the machine's own convolutions."""
    training_steps: int = 20
    """Of every network that is trained."""


class Timed(Protocol):
    """A function that times ``call``, which processes ``count`` of ``unit``."""

    def __call__(self, call: Callable[[], Any], count: float, unit: str) -> None: ...


ROWS = pytest.StashKey[list[tuple[str, str, str]]]()


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
        return Settings(SHAPES["digits"], 4, (100, SHAPES["digits"]), scale=16, training_steps=2)
    zca = (50_000, SHAPES["cifar"]) if option("--full-zca") else (10_000, SHAPES["mnist"])
    return Settings(SHAPES[option("--shape")], option("--width"), zca)


@pytest.fixture
def timed(benchmark: Any, settings: Settings, request: pytest.FixtureRequest) -> Timed:
    """Time a call, and keep its rate as extra information."""

    def time(call: Callable[[], Any], count: float, unit: str) -> None:
        benchmark(call)
        if benchmark.stats is None:  # --benchmark-disable
            return
        seconds = benchmark.stats.stats.median
        benchmark.extra_info[f"{unit}_per_second"] = count / seconds
        rows = request.config.stash.setdefault(ROWS, [])
        rows.append((request.node.name, f"{1000 * seconds:.4g}", f"{count / seconds:,.4g} {unit}/s"))

    return time


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if rows := config.stash.get(ROWS, []):
        terminalreporter.section(f"rates, {torch.get_num_threads()} threads")
        terminalreporter.write_line(tabulate(rows, ["", "median ms", "rate"], disable_numparse=True, stralign="right"))
