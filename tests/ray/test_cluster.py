"""A grid on two nodes: the same bytes as on one machine, whatever is stopped or lost on the way."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from harness.records.files import steps_in
from harness.records.record import CHECKPOINT, SET
from tests.builders import all_in
from tests.slurm import slow

if os.environ.get("FREPO_BENCH_RAY") != "1":
    pytest.skip("a Ray cluster is started by make test-ray alone", allow_module_level=True)

SECONDS = 900.0
"""The longest that anything is waited for: a busy machine decides nothing."""
SMALL = ["--dataset", "digits", "--budget", "smoke", "--device", "cpu"]
LONG = [*SMALL, "--methods", "slow", "--no-random", "--checkpoint-every", "2s"]
"""Cells that dawdle until the gate is open, so that no test races with them."""
T = TypeVar("T")


def waited_for(look: Callable[[], T | None]) -> T:
    """What ``look`` returns once it is anything."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if seen := look():
            return seen
        time.sleep(0.05)
    raise AssertionError("nothing came")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file that the slow method waits for, which is installed like another package."""
    package = tmp_path_factory.mktemp("package")
    shutil.copy(slow.__file__, package / "slow_method.py")
    info = package / "slow_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow_method\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[frepo_bench.methods]\nslow = slow_method:Slow\n")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", f"{package}{os.pathsep}{Path(__file__).parents[2]}")
        patched.setenv(slow.GATE, str(package / "gate"))
        yield package / "gate"


@pytest.fixture(scope="module")
def cluster(gate: Path) -> Iterator[Any]:
    """Two nodes with a processor each."""
    utilities = pytest.importorskip("ray.cluster_utils")
    made = utilities.Cluster()
    for _ in range(2):
        add_node(made)
    yield made
    made.shutdown()


def add_node(cluster: Any) -> Any:
    # A node waits only so long for its agents, which share the processors with whatever else runs: ports that are known
    # need no waiting, and helpers that nobody asks for are left out.
    names = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    without = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    return cluster.add_node(num_cpus=1, memory=4 << 30, object_store_memory=80 << 20, **without, **ports)


class Command:
    """A run in a process of its own, and what it has printed."""

    def __init__(self, output: Path, *words: str, cluster: Any = None) -> None:
        command = [sys.executable, "-P", "-m", "harness.run", *words, "--output", str(output)]
        if cluster is not None:
            command += ["--launcher", "ray", "--ray.address", cluster.address, "--ray.memory", "1GiB"]
        self.log = output.with_suffix(".log")
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def text(self) -> str:
        return self.log.read_text()

    def status(self) -> int:
        return self.process.wait(SECONDS)


def sets_in(output: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in output.glob(f"*/{SET}")}


def last_step(output: Path) -> int | None:
    """The last step of a checkpoint in ``output``."""
    return max((step for folder in output.glob(f"*/{CHECKPOINT}") for step in steps_in(folder)), default=None)


def cells() -> list[tuple[int, int]]:
    """The cells that Ray's workers run: (process, the worker that is its parent)."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if b"harness.cell" in (folder / "cmdline").read_bytes():
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if (Path("/proc") / str(parent) / "cmdline").read_bytes().startswith(b"ray::"):
                    found.append((int(folder.name), parent))
        except (OSError, ValueError):
            continue
    return found


@pytest.fixture(scope="module")
def local(gate: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The sets of the slow cells, as one machine makes them."""
    output = tmp_path_factory.mktemp("local") / "out"
    gate.touch()
    assert Command(output, *LONG, "--seeds", "0,1").status() == 0
    gate.unlink()
    return sets_in(output)


def test_a_grid_has_the_bytes_of_a_local_run(cluster: Any, tmp_path: Path) -> None:
    words = [*SMALL, "--methods", "random_real,herding,dm"]
    runs = [Command(tmp_path / "local", *words), Command(tmp_path / "ray", *words, cluster=cluster)]
    assert [run.status() for run in runs] == [0, 0], runs[1].text()
    assert len(sets_in(tmp_path / "ray")) == 3
    assert sets_in(tmp_path / "ray") == sets_in(tmp_path / "local")
    here, there = (all_in(tmp_path / name) for name in ("local", "ray"))
    for one, other in zip(here, there, strict=True):
        assert one.evaluations[0]["values"] == other.evaluations[0]["values"]
        assert one.record["provenance"]["threads"] == other.record["provenance"]["threads"]


def test_threads_are_those_of_the_task(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own OMP_NUM_THREADS gives way to that of the command."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    run = Command(tmp_path / "ray", *SMALL, "--methods", "random_real", cluster=cluster)
    assert run.status() == 0, run.text()
    assert [each.record["provenance"]["environment"]["OMP_NUM_THREADS"] for each in all_in(tmp_path / "ray")] == ["2"]


def test_stopped_and_killed_on_the_way(
    cluster: Any, gate: Path, local: dict[str, bytes], tmp_path: Path, default_signals: None
) -> None:
    """Ctrl-C leaves a checkpoint, from which the same command goes on; the loss of a worker is survived."""
    output = tmp_path / "out"
    run = Command(output, *LONG, cluster=cluster)
    waited_for(lambda: last_step(output))
    run.process.send_signal(signal.SIGINT)
    assert run.status() == 130, run.text()
    stopped = last_step(output)
    assert stopped and "goes on with" in run.text() and cells() == []

    run = Command(output, *LONG, cluster=cluster)
    waited_for(lambda: (last_step(output) or 0) > stopped)
    ((_, worker),) = cells()
    os.kill(worker, signal.SIGKILL)
    waited_for(lambda: "its worker or node was lost: it is run again" in run.text())
    gate.touch()
    assert run.status() == 0, run.text()
    gate.unlink()
    assert sets_in(output).items() <= local.items() and len(sets_in(output)) == 1


def test_the_loss_of_a_node(cluster: Any, gate: Path, local: dict[str, bytes], tmp_path: Path) -> None:
    output = tmp_path / "out"
    run = Command(output, *LONG, "--seeds", "0,1", cluster=cluster)
    waited_for(lambda: len([folder for folder in output.glob(f"*/{CHECKPOINT}") if steps_in(folder)]) == 2)
    assert len(cells()) == 2
    (node,) = cluster.worker_nodes
    cluster.remove_node(node, allow_graceful=False)
    waited_for(lambda: "its worker or node was lost: it is run again" in run.text())
    gate.touch()
    assert run.status() == 0, run.text()
    gate.unlink()
    assert sets_in(output) == local
    add_node(cluster)


def test_what_no_node_has_is_told_and_waits(cluster: Any, tmp_path: Path, default_signals: None) -> None:
    run = Command(tmp_path / "out", *SMALL, "--methods", "random_real", "--ray.cpus", "2", cluster=cluster)
    waited_for(lambda: "no node has 2 processors, 0 GPUs and 1 GiB" in run.text())
    run.process.send_signal(signal.SIGINT)
    assert run.status() == 130
    assert cells() == [] and sets_in(tmp_path / "out") == {}
