"""FRePo in plain PyTorch, as one would write it down, to compare ``methods/frepo.py`` with. No option, no trick.

Memory is laid out as PyTorch does by default, the real batch passes the network at once, and the regression is solved
in float32 by ``torch.linalg.solve``. The draws are those of ours, in the same order, so a step gives the same images
within rounding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from _rival import Rival
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.errors import UserError
from benchmarks.task import Task
from methods.base import Synthetic
from methods.frepo import FRePo


class ConvNet:
    """``convnet_doubling`` with batch norm, its values copied from ``like``.

    Blocks of [norm, except in the first → conv 3×3 → ReLU → average pool 2×2], then a linear layer.
    """

    def __init__(self, like: nn.Module) -> None:
        """Raises UserError where ``like`` is another network."""
        self.parameters = [
            p.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for p in like.parameters()
        ]
        statistics = [buffer.clone() for buffer in like.buffers()]
        norms = len(statistics) // 2
        if not norms or [p.ndim for p in self.parameters] != [4, 1, *[1, 1, 4, 1] * norms, 2, 1]:
            raise UserError("this port has one network: convnet_doubling with batch norm")
        self.running = list(zip(statistics[::2], statistics[1::2], strict=True))

    def features(self, x: Tensor, *, training: bool = False) -> Tensor:
        """Features (B, D) of images (B, C, H, W)."""
        first_weight, first_bias, *blocks = self.parameters[:-2]
        x = F.conv2d(x, first_weight, first_bias, padding=3 if x.shape[1] == 1 else 1)
        x = F.avg_pool2d(F.relu(x), 2)
        for i, (mean, var) in enumerate(self.running):
            scale, shift, weight, bias = blocks[4 * i : 4 * i + 4]
            if training:
                with torch.no_grad():  # as flax: a tenth of the old value, and the biased variance
                    mean.copy_(0.1 * mean + 0.9 * x.mean((0, 2, 3)))
                    var.copy_(0.1 * var + 0.9 * x.var((0, 2, 3), correction=0))
                x = F.batch_norm(x, None, None, scale, shift, training=True)
            else:
                x = F.batch_norm(x, mean, var, scale, shift)
            x = F.avg_pool2d(F.relu(F.conv2d(x, weight, bias, padding=1)), 2)
        return x.permute(0, 2, 3, 1).flatten(1)


class FRePoPlain(Rival):
    """Algorithm 1 of Zhou et al., NeurIPS 2022."""

    Config = FRePo.Config
    PAPER = FRePo.PAPER
    BUDGETS = FRePo.BUDGETS
    PROTOCOL = FRePo.PROTOCOL
    KNOWN = (
        *("lr", "batch_size", "pool_size", "max_online_updates", "lr_online", "online_batch_size", "ridge"),
        *("use_flip", "learn_label", "scale_label"),
    )

    def __init__(self, task: Task, config: Any, total_steps: int) -> None:
        super().__init__(task, config, total_steps)
        labels = self.targets(self.classes) / (math.sqrt(task.num_classes / 10) if config.scale_label else 1)
        self.labels = labels.requires_grad_(config.learn_label)
        self.learned = [w for w in (self.images, self.labels) if w.requires_grad]
        self.first = [torch.zeros_like(w) for w in self.learned]
        self.second = [torch.zeros_like(w) for w in self.learned]
        self.updates = 0
        self.pool = [self.member() for _ in range(config.pool_size)]
        self.counters = [config.max_online_updates // config.pool_size * i for i in range(config.pool_size)]

    def step(self) -> dict[str, Tensor]:
        config, task = self.config, self.task
        index = int(torch.randint(len(self.pool), (), generator=task.generator))
        network, optimiser = self.pool[index]
        real_images, real_labels = task.sample(config.batch_size)
        loss = self.loss(network, real_images, self.targets(real_labels))
        self.lamb(loss)
        if self.counters[index] > config.max_online_updates:
            self.pool[index], self.counters[index] = self.member(), 0
        else:
            self.train(network, optimiser)
            self.counters[index] += 1
        return {"loss": loss.detach()}

    def loss(self, network: ConvNet, real_images: Tensor, real_targets: Tensor) -> Tensor:
        """Equation 2 and the loss of the labels."""
        images, labels = self.images, self.labels
        with torch.no_grad():
            feat_real = network.features(real_images)
        if self.config.use_flip and self.task.flip:
            images, labels = torch.cat([images, images.flip(3)]), torch.cat([labels, labels])
        feat_syn = network.features(images)
        gram = feat_syn @ feat_syn.T
        ridge = (
            self.config.ridge * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        )
        predicted = feat_real @ feat_syn.T @ torch.linalg.solve(gram + ridge, labels)
        kernel: Tensor = 0.5 * (predicted - real_targets).square().sum(1).mean()
        top = self.labels.topk(2, dim=1).values
        return kernel - (top[:, 0] - top[:, 1]).clamp(max=1 / self.task.num_classes).mean()

    def lamb(self, loss: Tensor) -> None:
        """You et al., ICLR 2020, without weight decay; the step size falls to a tenth along a cosine."""
        done = min(self.updates, self.total_steps) / self.total_steps
        lr = self.config.lr * (0.9 * (1 + math.cos(math.pi * done)) / 2 + 0.1)
        self.updates += 1
        for i, (w, gradient) in enumerate(zip(self.learned, torch.autograd.grad(loss, self.learned), strict=True)):
            self.first[i] = 0.9 * self.first[i] + 0.1 * gradient
            self.second[i] = 0.999 * self.second[i] + 0.001 * gradient**2
            mean, square = self.first[i] / (1 - 0.9**self.updates), self.second[i] / (1 - 0.999**self.updates)
            direction = mean / (square.sqrt() + 1e-6)
            size, length = w.detach().norm(), direction.norm()
            ratio = torch.where((size > 0) & (length > 0), size / length, 1.0)
            with torch.no_grad():
                w -= lr * ratio * direction

    def train(self, network: ConvNet, optimiser: torch.optim.Optimizer) -> None:
        """One step of the whole network on the synthetic set."""
        images, labels = self.images.detach(), self.labels.detach()
        if len(images) >= self.config.online_batch_size:
            chosen = torch.randperm(len(images), generator=self.task.generator)[: self.config.online_batch_size]
            images, labels = images[chosen], labels[chosen]
        logits = F.linear(network.features(images, training=True), *network.parameters[-2:])
        loss = 0.5 * (logits - labels).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    def member(self) -> tuple[ConvNet, torch.optim.Optimizer]:
        """A fresh network of the pool and its optimiser."""
        network = ConvNet(self.task.network(self.task.generator))
        return network, torch.optim.Adam(network.parameters, lr=self.config.lr_online, foreach=True)

    def targets(self, labels: Tensor) -> Tensor:
        """Regression targets one-hot − 1/C, (B, C), of classes (B,)."""
        return F.one_hot(labels, self.task.num_classes).to(self.task.dtype) - 1 / self.task.num_classes

    def synthetic(self) -> Synthetic:
        return Synthetic(self.images.detach().clone(), self.labels.detach().clone(), "centred")
