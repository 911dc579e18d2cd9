"""DSA as one would port it from the paper, to compare ``methods/dsa.py`` with.

Every real batch passes in one piece, and the sum over the classes is differentiated in the end. The draws are those of
ours, in the same order, so a step gives the same images within rounding.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from _rival import Rival, convnet, logits
from torch import Tensor
from torch.nn import functional as F

from benchmarks.augment import apply_dsa, draw_dsa
from benchmarks.task import Task
from methods.dsa import DSA

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""ipc → (outer_loop, inner_loop), as published."""


class DSAPlain(Rival):
    """Algorithm 1 of Zhao and Bilen, ICML 2021."""

    Config = DSA.Config
    PAPER = DSA.PAPER
    BUDGETS = DSA.BUDGETS
    PROTOCOL = DSA.PROTOCOL
    KNOWN = ("outer_loop", "inner_loop", "lr_img", "momentum", "lr_net", "batch_real", "batch_train")

    def __init__(self, task: Task, config: Any, total_steps: int) -> None:
        outer, inner = LOOPS[min((ipc for ipc in LOOPS if ipc >= task.ipc), default=max(LOOPS))]
        outer, inner = config.outer_loop or outer, config.inner_loop or inner
        super().__init__(task, dataclasses.replace(config, outer_loop=outer, inner_loop=inner), total_steps)
        self.steps_per_cycle = outer
        self.done = 0
        self.rows = task.rows_of_classes()
        self.optimiser = torch.optim.SGD([self.images], lr=config.lr_img, momentum=config.momentum)

    def step(self) -> dict[str, Tensor]:
        task = self.task
        if self.done % self.steps_per_cycle == 0:
            self.network = [parameter.requires_grad_() for parameter in convnet(task)]
        loss = torch.zeros((), dtype=task.dtype, device=task.device)
        for c, rows, synthetic in zip(task.classes, self.rows, torch.split(self.images, task.ipc), strict=True):
            real = task.draw(rows, self.config.batch_real)
            op, draws = draw_dsa((real.shape[2], real.shape[3]), 1, task.generator, flip=task.flip)
            wanted = self.gradient(apply_dsa(op, real, draws), c)
            loss = loss + distance(self.gradient(apply_dsa(op, synthetic, draws), c, create_graph=True), wanted)
        self.optimiser.zero_grad()
        (self.images.grad,) = torch.autograd.grad(loss, self.images)
        self.optimiser.step()
        self.done += 1
        if self.done % self.steps_per_cycle:
            self.train()
        return {"matching": loss.detach()}

    def gradient(self, images: Tensor, c: int, *, create_graph: bool = False) -> tuple[Tensor, ...]:
        """Of the loss on ``images``, all of class ``c``, with respect to the network."""
        labels = torch.full((len(images),), c, device=images.device)
        loss = F.cross_entropy(logits(self.network, images), labels)
        return torch.autograd.grad(loss, self.network, create_graph=create_graph)

    def train(self) -> None:
        """The network on the synthetic images, for ``inner_loop`` epochs."""
        task, images = self.task, self.images.detach()
        optimiser = torch.optim.SGD(self.network, lr=self.config.lr_net)
        for _ in range(self.config.inner_loop):
            order = torch.randperm(len(images), generator=task.generator)
            for batch in torch.split(order, self.config.batch_train):
                op, draws = draw_dsa((images.shape[2], images.shape[3]), len(batch), task.generator, flip=task.flip)
                outputs = logits(self.network, apply_dsa(op, images[batch], draws))
                loss = F.cross_entropy(outputs, self.classes[batch])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()


def distance(gradients: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> Tensor:
    """Σ over the outputs of all layers of 1 − cosine, 0-d."""
    total = torch.zeros((), dtype=gradients[0].dtype, device=gradients[0].device)
    for a, b in zip(gradients, others, strict=True):
        if a.ndim > 1:
            a, b = a.flatten(1), b.flatten(1)
            total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return total
