"""MTT with nothing but ``torch.autograd.grad(..., create_graph=True)``, to compare ``methods/mtt.py`` with.

The outer loss is differentiated in one piece through all inner steps. The draws are those of ours, in the same order,
so a step gives the same images within rounding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from _rival import Rival, convnet, logits
from torch import Tensor
from torch.nn import functional as F

from benchmarks.augment import apply_dsa, draw_dsa
from benchmarks.protocols import Recipe
from benchmarks.task import Task, generator_for
from benchmarks.training import train
from methods.base import Store, Synthetic
from methods.mtt import MTT


class MTTPlain(Rival):
    """Algorithm 1 of Cazenavette et al., CVPR 2022."""

    Config = MTT.Config
    PAPER = MTT.PAPER
    BUDGETS = MTT.BUDGETS
    PROTOCOL = MTT.PROTOCOL
    KNOWN = (
        *("syn_steps", "expert_epochs", "max_start_epoch", "batch_syn", "lr_img", "lr_lr", "lr_init", "momentum"),
        *("num_experts", "train_epochs", "lr_expert", "batch_train", "steps_per_epoch"),
    )

    def __init__(self, task: Task, config: Any, total_steps: int) -> None:
        super().__init__(task, config, total_steps)
        self.shapes = [p.shape for p in convnet(dataclasses.replace(task, generator=generator_for("mtt student")))]
        self.lr = torch.tensor(config.lr_init, dtype=task.dtype, device=task.device, requires_grad=True)
        groups = [{"params": [self.images], "lr": config.lr_img}, {"params": [self.lr], "lr": config.lr_lr}]
        self.optimiser = torch.optim.SGD(groups, momentum=config.momentum)

    def prepare(self, store: Store) -> None:
        """Train the experts that ``store`` does not hold, by the same recipe as ours. Only steps are compared."""
        self.experts = []
        for index in range(self.config.num_experts):
            name = f"mtt_plain expert {index}, {self.task.dtype}, {self.config}"
            if name not in store:
                store[name] = {"parameters": self.expert(index)}
            self.experts.append(store[name]["parameters"])

    def expert(self, index: int) -> Tensor:
        """The parameters of expert ``index`` at its start and after every epoch, (train_epochs + 1, P), on the CPU."""
        config, task = self.config, self.task
        epoch = config.steps_per_epoch or math.ceil(len(task.images) / config.batch_train)
        recipe = Recipe(
            loss="cross_entropy",
            optimiser="sgd",
            lr=config.lr_expert,
            batch_size=config.batch_train,
            shuffle=True,
            steps_by_images=((len(task.images), config.train_epochs * epoch),),
            augment="dsa",
        )
        generator = generator_for("mtt expert", index)
        network = task.network(generator)
        snapshots: list[Tensor] = []

        def keep(done: int, steps: int) -> None:
            if done % epoch == 0:
                snapshots.append(torch.cat([p.detach().flatten() for p in network.parameters()]).cpu())

        keep(0, 0)
        train(
            network,
            task.images,
            task.labels,
            "probability",
            recipe,
            flip=task.flip,
            generator=generator,
            progress=keep,
        )
        return torch.stack(snapshots)

    def step(self) -> dict[str, Tensor]:
        config, task = self.config, self.task
        expert = self.experts[int(torch.randint(len(self.experts), (), generator=task.generator))]
        epoch = int(torch.randint(config.max_start_epoch, (), generator=task.generator))
        start, target = (self.split(expert[at]) for at in (epoch, epoch + config.expert_epochs))

        batches: list[Tensor] = []
        while len(batches) < config.syn_steps:
            order = torch.randperm(len(self.images), generator=task.generator)
            batches += reversed(torch.split(order, config.batch_syn or len(order)))
        batches = batches[: config.syn_steps]
        size = (self.images.shape[2], self.images.shape[3])
        augmentations = [draw_dsa(size, len(batch), task.generator, flip=task.flip) for batch in batches]

        student = [parameter.clone().requires_grad_() for parameter in start]
        for batch, (op, draws) in zip(batches, augmentations, strict=True):
            images = apply_dsa(op, self.images[batch], draws)
            loss = F.cross_entropy(logits(student, images), self.classes[batch])
            gradients = torch.autograd.grad(loss, student, create_graph=True)
            student = [p - self.lr * gradient for p, gradient in zip(student, gradients, strict=True)]

        loss = squared_distance(student, target) / squared_distance(start, target)
        self.optimiser.zero_grad()
        self.images.grad, self.lr.grad = torch.autograd.grad(loss, [self.images, self.lr])
        self.optimiser.step()
        return {"matching": loss.detach()}

    def synthetic(self) -> Synthetic:
        return dataclasses.replace(super().synthetic(), lr=self.lr.detach().clone())

    def split(self, flat: Tensor) -> list[Tensor]:
        """The vector (P,) as the parameters of a network."""
        parts = torch.split(flat.to(self.task.device), [shape.numel() for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


def squared_distance(parameters: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Σ of squared differences, 0-d."""
    return torch.stack([(p - q).square().sum() for p, q in zip(parameters, others, strict=True)]).sum()
