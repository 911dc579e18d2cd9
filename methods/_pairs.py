"""Pairs of networks, before and after training on the real images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.protocols import Recipe
from benchmarks.task import Task, generator_for
from benchmarks.training import train_together
from methods._experts import CPU_TOGETHER, GPU_TOGETHER
from methods._unroll import flatten
from methods.base import Store, missing

RECIPE = Recipe(
    loss="cross_entropy",
    optimiser="sgd",
    lr=0.01,
    batch_size=128,
    shuffle=True,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="drops",
    drop_factor=0.2,
    augment="dsa",
)
"""How they are trained; after 4 and 5 sixths of the epochs the step size drops."""


class Pairs:
    """Pairs of a task. One depends on the data, the network, the settings in its name and its index."""

    def __init__(self, task: Task, *, count: int, epochs: int, steps: int | None) -> None:
        """``steps``: at most so many of the training, the schedule shortened; None: all epochs."""
        self.task, self.steps = task, steps
        self.recipe = replace(RECIPE, epochs=epochs, drop_after=math.ceil(epochs / 6), drop_wait=epochs // 2)
        settings = f"epochs{epochs}" + ("" if steps is None else f"-steps{steps}")
        kind = f"{str(task.dtype).removeprefix('torch.')}-{task.device.type}"
        self.names = [f"pair-{settings}-{kind}-{index}" for index in range(count)]

    def prepare(self, store: Store) -> None:
        """Train the pairs that ``store`` does not hold: entries of two vectors (P,), ``initial`` and ``trained``."""
        self.store = store
        together = CPU_TOGETHER if self.task.device.type == "cpu" else GPU_TOGETHER
        while names := missing(store, self.names, together):
            self._train(names)

    def _train(self, names: Sequence[str]) -> None:
        task = self.task
        generators = [generator_for("pair of networks", self.names.index(name)) for name in names]
        networks = [task.network(generator) for generator in generators]
        initial = [flatten(network.parameters()).detach().cpu() for network in networks]
        train_together(
            networks,
            task.images,
            task.labels,
            "probability",
            self.recipe,
            flip=task.flip,
            generators=generators,
            max_steps=self.steps,
        )
        for name, before, network in zip(names, initial, networks, strict=True):
            self.store[name] = {"initial": before, "trained": flatten(network.parameters()).detach().cpu()}

    def draw(self) -> tuple[Tensor, Tensor]:
        """The parameters of a random pair, before and after training, on the device of the task."""
        pair = self.store[self.names[int(torch.randint(len(self.names), (), generator=self.task.generator))]]
        initial, trained = (pair[part].to(self.task.device, non_blocking=True) for part in ("initial", "trained"))
        return initial, trained
