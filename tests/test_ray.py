"""The launcher for Ray, with a stand-in for the cluster; tests/ray has a real one."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.errors import UserError
from harness import cell, run
from harness.launch import ray as launch_ray
from harness.launch.ray import Config, fits, is_done, resources
from harness.plan.jobs import Job
from harness.plan.planning import plan
from harness.plan.request import Request
from harness.stopping import Stopped
from tests.builders import quick

__all__ = ["quick"]
SMALL = ["--methods", "random_real", "--dataset", "digits", "--budget", "smoke"]
NODES = [{"CPU": 4.0, "memory": 8.0 * 2**30}, {"CPU": 2.0, "GPU": 1.0, "memory": 8.0 * 2**30}]


def job_in(output: Path, method: str = "random_real", **changes: Any) -> Job:
    request = Request(methods=(method,), datasets=("digits",), budget="smoke", device="cpu", output=output)
    return plan(dataclasses.replace(request, **changes))[0]


def test_what_a_task_asks_for(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    config = Config(cpus=2, gpus=0.5, memory="3GiB")
    assert resources(job, config, NODES) == {"num_cpus": 2.0, "num_gpus": 0.5, "memory": 3 * 2**30}
    # Whose seconds are the result is alone: with a whole GPU, or all processors of the largest node
    costs = job_in(tmp_path, "dm", budget="cost")
    assert resources(costs, config, NODES) == {"num_cpus": 2.0, "num_gpus": 1.0, "memory": 3 * 2**30}
    assert resources(costs, dataclasses.replace(config, gpus=0.0), NODES)["num_cpus"] == 4.0
    # Without a word about memory: no less than the libraries and the forecast need
    assert resources(job, Config(gpus=0.0), NODES)["memory"] >= 2 * 2**30


def test_what_fits_on_a_node() -> None:
    asked = {"num_cpus": 2.0, "num_gpus": 0.0, "memory": 2.0**30}
    assert [fits(asked, node) for node in NODES] == [True, True]
    assert [fits({**asked, "num_gpus": 0.5}, node) for node in NODES] == [False, True]
    assert [fits({**asked, "num_cpus": 3.0}, node) for node in NODES] == [True, False]
    assert not any(fits({**asked, "memory": 2.0**34}, node) for node in NODES)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--ray.gpus 1.5", "above 1 must be whole"),
        ("--ray.cpus 0", "--ray.cpus must be at least 1"),
        ("--ray.memory lots", "--ray.memory: expected something like 24GiB"),
        ("--ray.address auto --ray.temp-dir /tmp/x", "for a cluster of this machine"),
    ],
)
def test_options_that_do_not_fit(words: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*SMALL, "--output", str(tmp_path), "--launcher", "ray", *words.split()]) == 2
    line = capsys.readouterr().err.strip()
    assert expected in line and "\n" not in line


def test_without_the_package_or_a_kind_of_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "--output", str(tmp_path), "--launcher", "ray"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run.main([*words, "--device", "cpu"]) == 2
    assert capsys.readouterr().err.strip().endswith('pip install "frepo-bench[ray]"')
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert run.main(words) == 2
    assert "needs --device cuda or --device cpu" in capsys.readouterr().err


def test_a_record_tells_whether_a_job_is_done(tmp_path: Path, quick: None) -> None:
    job = job_in(tmp_path)
    assert not is_done(job)
    cell.run(job)
    assert is_done(job)
    assert not is_done(dataclasses.replace(job, questions=job_in(tmp_path, networks_evaluated=9).questions))


# --- the driver -------------------------------------------------------------------------------------------------------


class Lost(Exception):
    """What Ray raises where a worker has gone."""


class Failed(Exception):
    """What Ray raises where a task raised ``cause``."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Cluster:
    """Stands for the package ray: the tasks end one after another as ``ends`` say; an exception there is raised."""

    def __init__(self, ends: Sequence[Callable[[Job], Any]]) -> None:
        self.ends, self.given = list(ends), list[dict[str, Any]]()
        self.tasks: dict[int, Job] = {}
        self.threads: list[str] = []
        self.cancelled: list[int] = []
        classes = dict.fromkeys(("OutOfMemoryError", "TaskCancelledError"), type("Other", (Exception,), {}))
        classes |= dict.fromkeys(("WorkerCrashedError", "NodeDiedError", "LocalRayletDiedError"), Lost)
        self.exceptions = SimpleNamespace(**classes, RayTaskError=Failed, RayError=Failed)

    def remote(self, **options: Any) -> Any:
        assert options == {"max_calls": 1, "max_retries": 0}
        return lambda function: self

    def options(self, name: str, **given: Any) -> Any:
        self.given.append(given)

        def start(text: str, folder: str, threads: str) -> int:
            assert folder == os.getcwd()
            self.threads.append(threads)
            self.tasks[len(self.given)] = Job.from_json(text)
            return len(self.given)

        return SimpleNamespace(remote=start)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": node} for node in NODES] + [{"Alive": False, "Resources": {"CPU": 99.0}}]

    def wait(self, running: list[int], timeout: float | None = None, num_returns: int = 1) -> tuple[list[int], Any]:
        return ([], running) if timeout == 0.0 else (running[:num_returns], running[num_returns:])

    def get(self, reference: int) -> Any:
        return self.ends.pop(0)(self.tasks[reference])

    def cancel(self, reference: int, force: bool) -> None:
        assert not force
        self.cancelled.append(reference)


def driven(monkeypatch: pytest.MonkeyPatch, *ends: Callable[[Job], Any], **config: Any) -> tuple[Any, Cluster]:
    cluster = Cluster(ends)
    monkeypatch.setitem(sys.modules, "ray", cluster)  # type: ignore[arg-type]
    return launch_ray._Driver(Config(gpus=0.0, memory="1GiB", **config)), cluster


def lost(job: Job) -> None:
    raise Lost


def test_a_lost_cell_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    driver, cluster = driven(monkeypatch, lost, lambda job: "stopped by SIGTERM on n1", lambda job: None, cpus=2)
    job = job_in(tmp_path)
    assert list(driver.run([job])) == [job]
    assert cluster.threads == ["2", "2", "2"]
    assert cluster.given == [{"num_cpus": 2.0, "num_gpus": 0.0, "memory": 2**30}] * 3
    told = capsys.readouterr().err
    assert "its worker or node was lost: it is run again" in told and "stopped by SIGTERM on n1: it is run" in told


def test_a_cell_is_given_up_after_so_many_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    driver, cluster = driven(monkeypatch, lost, lost, retries=1)
    with pytest.raises(UserError, match="1 without a result, as told above"):
        list(driver.run([job_in(tmp_path)]))
    assert len(cluster.given) == 2
    assert "lost, 2 times; the same command tries again" in capsys.readouterr().err


def test_a_worker_that_was_lost_after_its_cell_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    def finish(job: Job) -> None:
        cell.run(job)
        raise Lost

    driver, cluster = driven(monkeypatch, finish)
    job = job_in(tmp_path)
    assert list(driver.run([job])) == [job]
    assert len(cluster.given) == 1


def test_a_cell_that_somebody_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, cluster = driven(monkeypatch, lambda job: launch_ray.LEASED)
    assert list(driver.run([job_in(tmp_path)])) == []
    assert len(cluster.given) == 1


@pytest.mark.parametrize(
    ("cause", "expected"),
    [(UserError("/x is not on n1"), "^/x is not on n1$"), (ImportError("no harness"), "a cell could not be run: no h")],
)
def test_what_no_retry_mends(cause: Exception, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: Job) -> None:
        raise Failed(cause)

    driver, _ = driven(monkeypatch, fail)
    with pytest.raises(UserError, match=expected):
        list(driver.run([job_in(tmp_path)]))


def test_a_cell_that_no_node_could_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, _ = driven(monkeypatch, cpus=5)
    with pytest.raises(UserError, match="no node has 5 processors, 0 GPUs and 1 GiB"):
        list(driver.run([job_in(tmp_path)]))


def test_a_signal_cancels_and_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default_signals: None) -> None:
    """What was done by then is told; what was not is run again by the next command."""

    def interrupted(job: Job) -> None:
        signal.raise_signal(signal.SIGINT)

    driver, cluster = driven(monkeypatch, interrupted, lambda job: "stopped by SIGINT on n1", lambda job: None)
    first, second, third = (job_in(tmp_path, seeds=(seed,)) for seed in range(3))
    told = []
    with pytest.raises(Stopped):
        for job in driver.run([first, second, third]):
            told.append(job)
    assert told == [first, third]
    assert cluster.cancelled == [2, 3]
