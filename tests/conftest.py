"""What holds for every test: one thread, or TEST_THREADS, and no folder but a temporary one for data and caches."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

from harness import stopping
from harness.launch.environment import ENVIRONMENT

# Before torch is imported: the tests as well must end on a busy machine.
os.environ.update({**ENVIRONMENT, **os.environ})

import pytest
import torch

THREADS = os.environ.get("TEST_THREADS", "1")
torch.set_num_threads(int(THREADS))


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's data, nor reads or fills the user's cache; child processes inherit this."""
    folder = tmp_path_factory.mktemp("user")
    monkeypatch.setenv("FREPO_BENCH_DATA", str(folder / "data"))
    monkeypatch.setenv("FREPO_BENCH_CACHE", str(folder / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", THREADS)


@pytest.fixture(autouse=True)
def _nothing_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that fails while work is held keeps its frames alive: the next begins afresh."""
    monkeypatch.setattr(stopping, "_held", None)
    monkeypatch.setattr(stopping, "_waiting", None)


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Signals end a process, also where the tests run in the background, which ignores some of them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
