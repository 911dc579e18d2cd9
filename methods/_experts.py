"""Expert trajectories: networks trained on the real images, with a snapshot of their parameters after every epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from benchmarks.networks import Network
from benchmarks.protocols import Recipe
from benchmarks.task import Task, generator_for
from benchmarks.training import features, train_together
from methods._gsam import GSAM
from methods._unroll import flatten
from methods.base import Store, missing

CPU_TOGETHER, GPU_TOGETHER = 1, 5
"""Experts trained at a time: one fills a CPU, but not a GPU. Moves experts by rounding alone."""


def logits_of(network: Network, parameters: Tensor, images: Tensor) -> Tensor:
    """Logits (n, C) of ``network`` with ``parameters`` (P,), which it keeps.

    Snapshots have no statistics of batch norm: where ``network`` has it, they are those of ``images``.
    """
    vector_to_parameters(parameters.to(images.device), network.parameters())
    return features(network.train(), images, network.head)


class Experts:
    """Experts of a task: SGD without momentum or weight decay, on images augmented by DSA.

    An expert depends on the data, the network, the settings in its name and its index: it draws nothing from the task's
    generator.
    """

    def __init__(
        self,
        task: Task,
        *,
        epochs: int,
        lr: float,
        batch_size: int,
        steps_per_epoch: int | None,
        held_out: float = 0.0,
        flat: GSAM | None = None,
        kept: range | None = None,
    ) -> None:
        """``steps_per_epoch``: steps that count as an epoch; None: one pass over the images that an expert sees.

        ``held_out``: share of the real images that no expert sees, at least one of them; 0: they see all. ``flat``:
        what leads experts to flat minima. ``kept``: epochs whose snapshots are stored, beside the last; None: all.
        """
        self.task, self.flat = task, flat
        self.kept = sorted({*(range(epochs + 1) if kept is None else kept), epochs})
        self._count = max(1, round(held_out * len(task.images))) if held_out else 0
        seen = len(task.images) - self._count
        self.steps_per_epoch = steps_per_epoch or math.ceil(seen / batch_size)
        self.recipe = Recipe(
            loss="cross_entropy",
            optimiser="sgd",
            lr=lr,
            batch_size=batch_size,
            shuffle=True,
            steps_by_images=((seen, epochs * self.steps_per_epoch),),
            augment="dsa",
        )
        length = "" if steps_per_epoch is None else f"x{steps_per_epoch}"
        apart = f"-heldout{held_out}" if held_out else ""
        flatly = "" if flat is None else f"-{flat.name}"
        some = "" if kept is None else f"-kept{kept.start}to{kept.stop - 1}"
        self._settings = f"epochs{epochs}{length}-lr{lr}-batch{batch_size}{apart}{flatly}{some}"

    @property
    def held_out(self) -> Tensor:
        """Rows of the real images that no expert sees, ascending, on the CPU: the same for every seed."""
        return self._order()[: self._count].sort().values

    @property
    def seen(self) -> Tensor:
        """Rows of all others, likewise."""
        return self._order()[self._count :].sort().values

    def _order(self) -> Tensor:
        return torch.randperm(len(self.task.images), generator=generator_for("held out of experts"))

    def name(self, index: int) -> str:
        """Everything that determines an expert, except for the data and the network."""
        dtype = str(self.task.dtype).removeprefix("torch.")
        return f"mtt-expert-{self._settings}-{dtype}-{self.task.device.type}-{index}"

    def prepare(self, store: Store, count: int) -> None:
        """Train those of the first ``count`` experts that ``store`` does not hold.

        An expert is one entry on the CPU, ``parameters`` (K, P): after each of the K epochs that are ``kept``, where
        epoch 0 is the start. `snapshot` reads one row, so a store that maps files into memory keeps the host's free.
        """
        together = CPU_TOGETHER if self.task.device.type == "cpu" else GPU_TOGETHER
        indices = {self.name(index): index for index in range(count)}
        while names := missing(store, list(indices), together):
            for name, trajectory in zip(names, self._train([indices[name] for name in names]), strict=True):
                store[name] = {"parameters": trajectory}

    def snapshot(self, store: Store, index: int, epoch: int) -> Tensor:
        """Parameters (P,) of an expert in ``store`` after ``epoch``, which is one of those ``kept``."""
        return store[self.name(index)]["parameters"][self.kept.index(epoch)]

    def _train(self, indices: Sequence[int]) -> list[Tensor]:
        task = self.task
        generators = [generator_for("mtt expert", index) for index in indices]
        networks = [task.network(generator) for generator in generators]
        size = sum(parameter.numel() for parameter in networks[0].parameters())
        trajectories = [torch.empty(len(self.kept), size, dtype=task.dtype) for _ in networks]

        def keep(done: int, steps: int) -> None:
            epoch, more = divmod(done, self.steps_per_epoch)
            if not more and epoch in self.kept:
                for network, trajectory in zip(networks, trajectories, strict=True):
                    trajectory[self.kept.index(epoch)] = flatten(network.parameters()).detach()

        keep(0, 0)
        images, labels = task.images, task.labels
        if self._count:
            rows = self.seen.to(task.device)
            images, labels = images[rows], labels[rows]
        train_together(
            networks,
            images,
            labels,
            "probability",
            self.recipe,
            flip=task.flip,
            generators=generators,
            descent=self.flat,
            progress=keep,
        )
        return trajectories
