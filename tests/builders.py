"""Folders of distillations as the harness writes them, made by hand: in memory, and on disk."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from benchmarks.datasets import Benchmark, load
from benchmarks.task import generator_for
from harness import cell, evaluations
from harness.evaluations.base import Evaluation, Progress, Quantity
from harness.measure import memory
from harness.plan.jobs import Job
from harness.records import record
from harness.records.record import Distilled
from methods.base import Synthetic

MIB = 2**20
DISTILLATION = {
    "method": "frepo",
    "dataset": "mnist",
    "ipc": 1,
    "network": "convnet_doubling",
    "width": 32,
    "depth": 3,
    "norm": "batch",
    "preprocess": "standardise",
    "seed": 0,
    "steps": 1000,
    "device_kind": "cpu",
    "dtype": "float32",
    "data_fingerprint": "0123456789abcdef",
    **{"image_size": None, "seconds": None, "seconds_include_prepare": False, "cost_only": False, "tf32": False},
    **{"memory_limit_bytes": None, "interleaved": None},
}
RECIPE = {
    **{"protocol": "frepo", "network": None, "width": None, "depth": None, "steps": None},
    **{"networks": 5, "networks_at_once": None},
}
"""Configuration of the evaluation of the accuracy; the network is that which distilled."""


def small(
    source: str = "digits",
    *,
    ipc: int = 1,
    network: str = "convnet",
    depth: int | None = None,
    norm: Literal["none", "batch", "instance"] = "instance",
) -> Benchmark:
    """A benchmark of images that come with a library, with a narrow network."""
    return load(
        source,
        ipc=ipc,
        network=network,
        width=4,
        depth=depth,
        norm=norm,
        preprocess="standardise",
        generator=generator_for("test"),
        root=Path("nowhere"),
    )


def made(
    values: Sequence[float] = (0.90, 0.92),
    *,
    krr: Sequence[float] = (),
    status: Any = "ok",
    message: str | None = None,
    meter: Any = "host_rss",
    peak: int | None = 100 * MIB,
    config: Mapping[str, Any] | None = None,
    device: str = "A CPU",
    budget: str = "quick",
    protocol: str = "frepo",
    evaluation: Mapping[str, Any] | None = None,
    **distillation: Any,
) -> Distilled:
    """A distillation, and where there are ``values`` the evaluation of its accuracy by ``protocol``.

    ``evaluation``: what its configuration has otherwise.
    """
    asked = {"budget": budget, "protocol": "common" if protocol == "common" else "native"}
    fields = {**DISTILLATION, **distillation}
    provenance = {"device": device, "torch": "2.13.0", "python": "3.11.7"}
    name = record.identity(fields, dict(config or {}), device)
    written = record.new(name, fields, config or {}, asked, provenance)
    written["status"], written["message"], written["steps"] = status, message, fields["steps"]
    cost, memory = written["cost"], written["cost"]["memory"]
    cost["step_seconds"] = [0.010, 0.030, 0.011]
    cost["prepare_seconds"], cost["distill_seconds"], cost["parameters"] = 2.0, 30.0, 123456
    memory["meter"] = meter
    memory["device_bytes" if meter == "nvml" else "host_rss_bytes"] = peak
    if fields["method"] != "whole_data" and budget != "cost":
        written["artifact"] = {"name": record.SET, "sha256": f"of {name}"}
    distilled = Distilled(Path(name), written)
    if not values:
        return distilled
    raw = {"accuracy": values, **({"krr_accuracy": krr} if krr else {})}
    return evaluated(distilled, raw, protocol=protocol, **(evaluation or {}))


def evaluated(
    distilled: Distilled,
    values: Mapping[str, Sequence[float]],
    name: str = "accuracy",
    *,
    config: Mapping[str, Any] | None = None,
    status: Any = "ok",
    message: str | None = None,
    step: int | None = None,
    provenance: Mapping[str, Any] | None = None,
    tf32: bool = False,
    **changes: Any,
) -> Distilled:
    """The same with one more evaluation, of ``step``; ``changes`` to ``config``, by default that of the accuracy."""
    written = distilled.record
    files: dict[int | None, Any] = {None: written["artifact"], **{s["step"]: s for s in written["snapshots"]}}
    own = {key: written["distillation"][key] for key in ("network", "width", "depth")}
    evaluation = record.new_evaluation(
        "",
        name,
        [{"distillation": written["identity"], "step": step, "sha256": (files[step] or {}).get("sha256")}],
        {**(RECIPE | own if config is None else config), **changes},
        provenance or {},
        seed=written["distillation"]["seed"],
        device_kind=written["distillation"]["device_kind"],
        tf32=tf32,
    )
    if provenance is None:  # one and the same, so that a test changes both
        evaluation["provenance"] = written["provenance"]
    evaluation["values"] = {quantity: list(numbers) for quantity, numbers in values.items()}
    evaluation["status"], evaluation["message"] = status, message
    evaluation["cost"] = {"seconds": 7.0, "networks_at_once": 1.0, "parameters": 654321.0}
    evaluation["identity"] = record.identity(evaluation["sets"], name, evaluation["config"], tf32)
    return replace(distilled, evaluations=(*distilled.evaluations, evaluation))


def cost(
    method: str = "frepo", seconds: float = 0.1, peak: int | None = 100 * MIB, live: int = 50, **changes: Any
) -> Distilled:
    """A distillation of which only the cost of a step was asked for."""
    distilled = made((), method=method, peak=peak, budget="cost", **changes)
    numbers = distilled.record["cost"]
    numbers["step_seconds"] = [seconds] * 3 if distilled.record["status"] == "ok" else []
    numbers["peak_live_bytes"] = live * MIB
    return distilled


def curve(
    method: str,
    points: Sequence[tuple[float, float | Sequence[float]]],
    prepare: float = 0.0,
    evaluation: Mapping[str, Any] | None = None,
    at: Sequence[int] = (),
    **changes: Any,
) -> Distilled:
    """A distillation with a snapshot at every point (seconds, accuracies), evaluated by the common protocol.

    ``at``: after how many the points are; by default 1, 2, …
    """
    steps = at or range(1, len(points) + 1)
    distilled = made((), method=method, protocol="common", **{"steps": steps[-1], **changes})
    written = distilled.record
    written["steps"] = steps[-1]
    written["cost"]["prepare_seconds"], written["cost"]["distill_seconds"] = prepare, points[-1][0]
    written["snapshots"] = [
        {"name": f"step-{step}.safetensors", "sha256": f"of step {step}", "step": step, "seconds": seconds}
        for step, (seconds, _) in zip(steps[:-1], points[:-1], strict=True)
    ]
    for step, (_, accuracies) in zip([*steps[:-1], None], points, strict=True):
        values = [accuracies] if isinstance(accuracies, float) else accuracies
        settings = {"protocol": "common", **(evaluation or {})}
        status = "ok" if values else "diverged"
        distilled = evaluated(distilled, {"accuracy": values}, step=step, status=status, **settings)
    return distilled


def saved(root: Path, *distilled: Distilled) -> str:
    """Write a folder for each of ``distilled`` into ``root``. Returns its path."""
    for place, each in enumerate(distilled):
        folder = root / f"{place}-{each.folder}"
        (folder / record.EVALUATIONS).mkdir(parents=True)
        record.write(each.record, folder / record.RECORD)
        for number, evaluation in enumerate(each.evaluations):
            record.write(evaluation, folder / record.EVALUATIONS / f"{evaluation['evaluation']}-{number}.json")
    root.mkdir(exist_ok=True)
    return str(root)


@dataclass(frozen=True)
class TurnedConfig:
    """How the test images are turned."""

    quarter_turns: int = 1
    networks: int = 3


class Turned(Evaluation):
    """An evaluation of another package."""

    Config = TurnedConfig
    quantities: ClassVar[Mapping[str, Quantity]] = {
        "turned": Quantity("accuracy on turned images (%)"),
        "loss": Quantity("loss", percent=False),
        "kept": Quantity("kept (%)", against="class"),
    }
    grows = "networks"

    def run(self, *arguments: Any, **options: Any) -> Mapping[str, list[float]]:
        raise NotImplementedError


@pytest.fixture
def turned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ``turned`` an evaluation that the registry knows."""
    get = evaluations.get
    monkeypatch.setattr(evaluations, "get", lambda name: Turned if name == "turned" else get(name))


@dataclass(frozen=True)
class ProbeConfig:
    """What the probe answers."""

    rate: float = 0.5
    """A factor."""
    name: str = "rate"


class Probe(Evaluation):
    """Remember the set and the data, and answer what was asked for."""

    Config = ProbeConfig
    quantities: ClassVar[Mapping[str, Quantity]] = {
        "rate": Quantity("rate", percent=False),
        "accuracy_of_it": Quantity("accuracy of it (%)"),
    }
    seen: ClassVar[list[tuple[Synthetic, Benchmark]]] = []

    def run(
        self, sets: Sequence[Synthetic], benchmarks: Sequence[Benchmark], seed: int, progress: Progress, begin: int = 0
    ) -> Mapping[str, list[float]]:
        self.seen.append((sets[0], benchmarks[0]))
        return {self.config.name: [self.config.rate]}


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Synthetic, Benchmark]]:
    """Makes ``probe`` an evaluation that the registry knows; it fills this list."""
    names, get = evaluations.names(), evaluations.get
    monkeypatch.setattr(evaluations, "names", lambda: [*names, "probe"])
    monkeypatch.setattr(evaluations, "get", lambda name: Probe if name == "probe" else get(name))
    monkeypatch.setattr(Probe, "seen", [])
    return Probe.seen


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells in this process need not give memory back, which takes half a second for each."""
    monkeypatch.setattr(memory, "release", lambda: None)


def in_process(jobs: Iterable[Job]) -> Generator[Job, None, None]:
    """A launcher that runs the jobs in this process."""
    for job in jobs:
        cell.run(job)
        yield job


def all_in(root: Path) -> list[Distilled]:
    """The distillations in ``root``, where nothing is damaged."""
    distilled, damaged = record.read_all(root)
    assert damaged == []
    return distilled


TURNED = {"protocol": "frepo", "quarter_turns": 2, "networks": 2}
