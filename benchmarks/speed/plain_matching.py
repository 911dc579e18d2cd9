"""DSA and DM as one would port them from the papers: the yardstick that ours are measured against.

One class after the other, every real batch in one piece, torch's own pooling, the sum over the classes differentiated
in the end. The draws are those of ``methods``, in the same order, so that from the same start a step gives the same
images within rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.augment import apply_dsa, draw_dsa
from benchmarks.networks import AveragePool, Network
from benchmarks.task import Task


class Plain:
    """Synthetic images (num_classes * ipc, C, H, W) from random real ones; a fresh network for every step."""

    steps_per_cycle = 1

    def __init__(self, task: Task, lr: float, momentum: float = 0.5, batch_real: int = 256) -> None:
        self.task, self.batch_real = task, batch_real
        self.rows = task.rows_of_classes()
        images, _ = task.draw_per_class()
        self.images = images.requires_grad_()
        self.optimiser = torch.optim.SGD([self.images], lr=lr, momentum=momentum)

    def step(self) -> Tensor:
        """One update of the images. Returns the loss, 0-d."""
        task = self.task
        network = task.network(task.generator)
        for i, layer in enumerate(network.body):
            if isinstance(layer, AveragePool):
                network.body[i] = nn.AvgPool2d(2)
        loss = torch.zeros((), dtype=task.dtype, device=task.device)
        for c, rows in enumerate(self.rows):
            real, synthetic = task.draw(rows, self.batch_real), self.images[c * task.ipc : (c + 1) * task.ipc]
            op, draws = draw_dsa((real.shape[-2], real.shape[-1]), 1, task.generator, flip=task.flip)
            loss = loss + self.distance(network, apply_dsa(op, real, draws), apply_dsa(op, synthetic, draws), c)
        self.optimiser.zero_grad()
        (self.images.grad,) = torch.autograd.grad(loss, self.images)
        self.optimiser.step()
        return loss.detach()

    def distance(self, network: Network, real: Tensor, synthetic: Tensor, c: int) -> Tensor:
        """What the two batches of class ``c`` add to the loss, 0-d."""
        raise NotImplementedError


class PlainDSA(Plain):
    """One update of DSA at outer_loop 1, where no network is trained."""

    def __init__(self, task: Task, lr: float = 0.1, batch_real: int = 256) -> None:
        super().__init__(task, lr, batch_real=batch_real)

    def distance(self, network: Network, real: Tensor, synthetic: Tensor, c: int) -> Tensor:
        parameters = list(network.parameters())

        def gradient(images: Tensor, create_graph: bool) -> tuple[Tensor, ...]:
            labels = torch.full((len(images),), c, device=images.device)
            loss = F.cross_entropy(network(images), labels)
            return torch.autograd.grad(loss, parameters, create_graph=create_graph)

        wanted, found = gradient(real, False), gradient(synthetic, True)
        total = torch.zeros((), dtype=real.dtype, device=real.device)
        for a, b in zip(found, wanted, strict=True):
            if a.ndim > 1:
                a, b = a.flatten(1), b.flatten(1)
                total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
        return total


class PlainDM(Plain):
    """One update of DM."""

    def __init__(self, task: Task, lr: float = 1.0, batch_real: int = 256) -> None:
        super().__init__(task, lr, batch_real=batch_real)

    def distance(self, network: Network, real: Tensor, synthetic: Tensor, c: int) -> Tensor:
        network.requires_grad_(False)
        target = network.features(real).mean(0)
        return (target - network.features(synthetic).mean(0)).square().sum()
