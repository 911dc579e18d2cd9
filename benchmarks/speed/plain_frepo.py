"""FRePo in plain PyTorch, as one would write it down: what ours is compared with. No option, no trick.

Memory is laid out as PyTorch does by default, the real batch passes the network at once, the regression is solved in
float32 by ``torch.linalg.solve``, Adam is the ``foreach`` one, nothing but optimisers works in place. The mathematics
and the random draws are those of ``methods/frepo.py``; a test holds the two against each other.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.networks import BatchNorm, Network
from benchmarks.task import Task
from methods.frepo import FRePoConfig


class ConvNet:
    """``convnet_doubling`` with batch norm, its values taken from ``like``.

    Blocks of [norm, except in the first → conv 3×3 → ReLU → average pool 2×2], then a linear layer.
    """

    def __init__(self, like: Network) -> None:
        self.convolutions = [
            (_leaf(m.weight), _leaf(cast(Tensor, m.bias)), m.padding) for m in like.body if isinstance(m, nn.Conv2d)
        ]
        norms = [m for m in like.body if isinstance(m, BatchNorm)]
        self.norms = [(_leaf(m.weight), _leaf(m.bias)) for m in norms]
        self.running = [(m.running_mean.clone(), m.running_var.clone()) for m in norms]
        self.head = (_leaf(like.head.weight), _leaf(like.head.bias))
        self.training = False

    def parameters(self) -> list[Tensor]:
        return [w for layer in (*self.convolutions, *self.norms, self.head) for w in layer if isinstance(w, Tensor)]

    def features(self, x: Tensor) -> Tensor:
        for i, (weight, bias, padding) in enumerate(self.convolutions):
            if i > 0:
                x = self.normalise(i - 1, x)
            x = F.conv2d(x, weight, bias, padding=padding)
            x = F.avg_pool2d(F.relu(x), 2)
        return x.permute(0, 2, 3, 1).flatten(1)

    def normalise(self, i: int, x: Tensor) -> Tensor:
        weight, bias = self.norms[i]
        mean, var = self.running[i]
        if not self.training:
            return F.batch_norm(x, mean, var, weight, bias)
        with torch.no_grad():  # as flax: a tenth of the old value, and the biased variance
            mean.copy_(0.1 * mean + 0.9 * x.mean((0, 2, 3)))
            var.copy_(0.1 * var + 0.9 * x.var((0, 2, 3), correction=0))
        return F.batch_norm(x, None, None, weight, bias, training=True)


class PlainFRePo:
    """Algorithm 1 of the paper; ``step`` is one iteration, and returns the loss."""

    steps_per_cycle = 1

    def __init__(self, task: Task, config: FRePoConfig, total_steps: int) -> None:
        """Raises ValueError for another network than FRePo's own: batch norm after the first block."""
        self.task, self.config, self.total_steps = task, config, total_steps
        images, classes = task.draw_per_class()
        labels = self._targets(classes) / (math.sqrt(task.num_classes / 10) if config.scale_label else 1)
        self.learned = [images.requires_grad_(), labels.requires_grad_(config.learn_label)]
        self.first = [torch.zeros_like(w) for w in self.learned]
        self.second = [torch.zeros_like(w) for w in self.learned]
        self.updates = 0
        self.pool = [self._member() for _ in range(config.pool_size)]
        self.counters = [config.max_online_updates // config.pool_size * i for i in range(config.pool_size)]

    def step(self) -> Tensor:
        config, task = self.config, self.task
        index = int(torch.randint(len(self.pool), (), generator=task.generator))
        network, optimiser = self.pool[index]
        real_images, real_labels = task.sample(config.batch_size)
        loss = self.loss(network, real_images, self._targets(real_labels))
        self._lamb([w for w in self.learned if w.requires_grad], loss)
        if self.counters[index] > config.max_online_updates:
            self.pool[index], self.counters[index] = self._member(), 0
        else:
            self._train(network, optimiser)
            self.counters[index] += 1
        return loss.detach()

    def loss(self, network: ConvNet, real_images: Tensor, real_targets: Tensor) -> Tensor:
        """Equation 2 and the loss of the labels."""
        images, labels = self.learned
        network.training = False
        with torch.no_grad():
            feat_real = network.features(real_images)
        if self.config.use_flip and self.task.flip:
            feat_syn, y = network.features(torch.cat([images, images.flip(3)])), torch.cat([labels, labels])
        else:
            feat_syn, y = network.features(images), labels
        gram = feat_syn @ feat_syn.T
        ridge = self.config.ridge * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype)
        predicted = feat_real @ feat_syn.T @ torch.linalg.solve(gram + ridge, y)
        kernel: Tensor = 0.5 * (predicted - real_targets).square().sum(1).mean()
        top = labels.topk(2, dim=1).values
        return kernel - (top[:, 0] - top[:, 1]).clamp(max=1 / self.task.num_classes).mean()

    def _lamb(self, learned: list[Tensor], loss: Tensor) -> None:
        """You et al., ICLR 2020, without weight decay; the step size falls to a tenth along a cosine."""
        done = min(self.updates, self.total_steps) / self.total_steps
        lr = self.config.lr * (0.9 * (1 + math.cos(math.pi * done)) / 2 + 0.1)
        self.updates += 1
        for i, (w, gradient) in enumerate(zip(learned, torch.autograd.grad(loss, learned), strict=True)):
            self.first[i] = 0.9 * self.first[i] + 0.1 * gradient
            self.second[i] = 0.999 * self.second[i] + 0.001 * gradient**2
            mean, square = self.first[i] / (1 - 0.9**self.updates), self.second[i] / (1 - 0.999**self.updates)
            direction = mean / (square.sqrt() + 1e-6)
            size, length = w.detach().norm(), direction.norm()
            ratio = torch.where((size > 0) & (length > 0), size / length, 1.0)
            with torch.no_grad():
                w -= lr * ratio * direction

    def _train(self, network: ConvNet, optimiser: torch.optim.Optimizer) -> None:
        """One step of the whole network on the synthetic set."""
        images, labels = (w.detach() for w in self.learned)
        if len(images) >= self.config.online_batch_size:
            chosen = torch.randperm(len(images), generator=self.task.generator)[: self.config.online_batch_size]
            images, labels = images[chosen], labels[chosen]
        network.training = True
        logits = F.linear(network.features(images), *network.head)
        loss = 0.5 * (logits - labels).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    def _member(self) -> tuple[ConvNet, torch.optim.Optimizer]:
        like = self.task.network(self.task.generator)
        norms = sum(isinstance(module, BatchNorm) for module in like.body)
        if norms != sum(isinstance(module, nn.Conv2d) for module in like.body) - 1:
            raise ValueError("plain FRePo has one network: convnet_doubling with batch norm")
        network = ConvNet(like)
        return network, torch.optim.Adam(network.parameters(), lr=self.config.lr_online, foreach=True)

    def _targets(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels, self.task.num_classes).to(self.task.dtype) - 1 / self.task.num_classes


def _leaf(value: Tensor) -> Tensor:
    return value.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
