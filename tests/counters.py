"""The counters that every method had when they were last looked at: ``counters.json``, and how it is made.

``python -m tests.counters`` writes it anew; what changed in it belongs into the message of the commit.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

import methods
from benchmarks.datasets import RawData, Shape, blank
from benchmarks.networks import NetworkSpec
from benchmarks.task import Task, generator_for
from harness.measure.counters import Counters, Uncounted, count
from harness.plan.jobs import Job, from_json
from harness.plan.planning import plan
from harness.plan.request import Request
from methods.base import Method

COMMITTED = Path(__file__).with_suffix(".json")
CPU = torch.device("cpu")
SHAPES = ((Shape(1, 8, 2, 300, 60), 1, 16), (Shape(3, 32, 2, 1000, 200), 10, 32))
"""Shape of the data, ipc, width."""
SHORTER = {
    "frepo": ("--frepo.pool-size", "2"),
    "bptt": ("--bptt.batch-size", "64", "--bptt.unroll", "2"),
    "rat_bptt": ("--rat_bptt.batch-size", "64"),
    "rcig": ("--rcig.pool-size", "2", "--rcig.online-updates", "2"),
}


def version() -> str:
    """Of torch: operators differ from one to the next, so counters are compared under that of the committed ones."""
    return torch.__version__.partition("+")[0]


@functools.cache
def cells() -> dict[str, tuple[Job, RawData]]:
    """Name → a cell of every method here that has steps, on every shape, with a short schedule."""
    names = [name for name in methods.names() if methods.get(name).__module__ == f"methods.{name}"]
    iterative = tuple(name for name in names if methods.get(name).iterative)
    made = {}
    for shape, ipc, width in SHAPES:
        fields: dict[str, Any] = {"budget": "smoke", "device": "cpu", "options": SHORTER, "forecast": True}
        for job in plan(Request(methods=iterative, datasets=("mnist",), ipcs=(ipc,), widths=(width,), **fields)):
            asked, size = job.distillation, (shape.size, shape.size)
            depth = NetworkSpec(cast(Any, asked.network), shape.channels, size, shape.classes).blocks
            name = f"{asked.method} {shape.channels}x{shape.size}x{shape.size} ipc {ipc} width {asked.width}"
            job = dataclasses.replace(job, distillation=dataclasses.replace(asked, depth=depth))
            made[name] = job, blank("blank", shape)
    return made


def count_real(job: Job, raw: RawData) -> Counters:
    """The counters of ``job`` on images that are real tensors of the shape of ``raw``; one short epoch of experts."""
    channels, height, width = raw.train_images.shape[1:]
    asked, classes = job.distillation, len(raw.class_names)
    name, norm = cast(Any, asked.network), cast(Any, asked.norm)
    task = Task(
        images=torch.randn(raw.train_images.shape, generator=generator_for("images")),
        labels=raw.train_labels,
        num_classes=classes,
        ipc=asked.ipc,
        network=NetworkSpec(name, channels, (height, width), classes, asked.width, asked.depth, norm).build,
        generator=generator_for("count"),
        flip=raw.flip,
    )
    method_class, store = methods.get(asked.method), Uncounted({})
    values: Mapping[str, Any] = {**job.config, **method_class.BUDGETS.get("forecast", {})}
    config = from_json(method_class.Config, values)

    def make() -> Method:
        method = method_class(task, config, asked.steps or 1)
        method.prepare(store)
        return method

    make()  # fills the store
    return count(make, CPU)


def changes(committed: Mapping[str, Mapping[str, Any]], now: Mapping[str, Counters]) -> list[str]:
    """A line for every counter that is not as committed, with the old, the new and their ratio."""
    lines = [f"{name}: committed, but no longer there" for name in committed if name not in now]
    for name, counters in now.items():
        for counter, new in dataclasses.asdict(counters).items():
            old = committed.get(name, {}).get(counter)
            if old is None or abs(new - old) > 1e-9 * abs(old):
                ratio = f"{new / old:.4g}" if old else "–"
                lines.append(f"{name:32} {counter:16} {'–' if old is None else old:>16} {new:>16} {ratio:>8}")
    return lines


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = {name: dataclasses.asdict(count_real(*cell)) for name, cell in cells().items()}
    COMMITTED.write_text(json.dumps({"torch": version(), "counters": made}, indent=1) + "\n", encoding="utf-8")
    print(f"{len(made)} cells in {COMMITTED}")
