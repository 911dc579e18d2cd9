"""Slots: how many cells run at a time, on which device each, and with how many threads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.measure import nvml
from harness.measure.load import available_cores
from harness.plan.jobs import Job

VISIBLE, THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"


@dataclass
class Device:
    """A device, and the cells on it."""

    slots: int
    """Cells that may be there at a time."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of every cell there."""
    sharing: Mapping[str, str] = field(default_factory=dict)
    """Variables in addition, of cells that share it."""
    used: int = 0
    """Slots that are taken; a cell that runs alone takes all of them."""

    def takes(self, job: Job) -> int:
        """How many slots ``job`` takes."""
        return self.slots if alone(job) else 1

    def variables(self, job: Job) -> dict[str, str]:
        """Variables of ``job`` that differ from ours."""
        return {**self.environment, **({} if alone(job) else self.sharing)}


def alone(job: Job) -> bool:
    """Whether the seconds of ``job`` are its result, so that it must have its device for itself."""
    return job.distillation.cost_only or bool(job.beside)


def devices(device: str, at_once: int | None) -> list[Device]:
    """The devices for ``at_once`` cells of jobs on ``device``; None: one for each GPU that is visible, or one."""
    gpus: Sequence[str] = []
    if device == "cuda" and at_once != 1:
        import torch

        gpus = visible(os.environ.get(VISIBLE), nvml.uuids(), torch.cuda.device_count())
    return divided(device, at_once, gpus, None if THREADS in os.environ else available_cores())


def divided(device: str, at_once: int | None, gpus: Sequence[str], cores: int | None) -> list[Device]:
    """``at_once`` slots: on ``gpus``, as evenly as can be, where no single GPU is named, else all on ``device``.

    ``cores``: of the processor, for the threads of all slots together; None: the user has set the threads.
    """
    if device == "cuda" and len(gpus) > 1 and at_once != 1:
        count = at_once or len(gpus)
        used = gpus[:count]
        return [Device(count // len(used) + (i < count % len(used)), {VISIBLE: gpu}) for i, gpu in enumerate(used)]
    count = at_once or 1
    if device != "cpu" or cores is None or count == 1:
        return [Device(count)]
    return [Device(count, sharing={THREADS: str(max(1, cores // count))})]


def visible(asked: str | None, uuids: Sequence[str], count: int) -> list[str]:
    """The names by which ``CUDA_VISIBLE_DEVICES`` makes each GPU visible alone.

    ``asked``: the present value; None: it is not set. ``uuids``: of all GPUs and instances, as NVML has them; without
    them GPUs have numbers. ``count``: how many GPUs CUDA sees.
    """
    if asked is None:
        return list(uuids) or [str(number) for number in range(count)]
    named = [name.strip() for name in asked.split(",")]
    # CUDA uses one instance of a split GPU at a time, and names after one that does not exist mean nothing to it.
    return named if all(name.startswith("MIG-") for name in named) else named[:count]
