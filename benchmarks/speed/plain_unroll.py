"""MTT and BPTT with nothing but ``torch.autograd.grad(..., create_graph=True)``: the yardstick that ours are held to.

The inner loop calls the network by ``functional_call`` with a list of parameters that every step replaces, the layers
are torch's own, and the outer loss is differentiated in one piece with what came before. The draws are those of
``methods``, in the same order, so that from the same start a step gives the same images within rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.augment import apply_dsa, draw_dsa
from benchmarks.networks import AveragePool, Network
from benchmarks.task import Task, generator_for
from methods.bptt import BPTTConfig
from methods.mtt import MTTConfig


def plain(network: Network) -> Network:
    """The same network of torch's own layers, none of which works in place."""
    for i, layer in enumerate(network.body):
        if isinstance(layer, AveragePool):
            network.body[i] = nn.AvgPool2d(2)
        elif isinstance(layer, nn.ReLU):
            network.body[i] = nn.ReLU()
    return network


def loss_at(network: Network, parameters: Sequence[Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy, 0-d."""
    names = (name for name, _ in network.named_parameters())
    return F.cross_entropy(functional_call(network, dict(zip(names, parameters, strict=True)), (images,)), labels)


def descend(network: Network, parameters: Sequence[Tensor], images: Tensor, labels: Tensor, lr: Tensor) -> list[Tensor]:
    """One step of gradient descent, differentiable in everything."""
    gradients = torch.autograd.grad(loss_at(network, parameters, images, labels), parameters, create_graph=True)
    return [parameter - lr * gradient for parameter, gradient in zip(parameters, gradients, strict=True)]


class PlainMTT:
    """One iteration of trajectory matching on all synthetic images, which start from real ones; no rematerialisation.

    ``experts``: of each the parameters after every epoch, (epochs + 1, P).
    """

    steps_per_cycle = 1

    def __init__(self, task: Task, config: MTTConfig, experts: Sequence[Tensor]) -> None:
        self.task, self.config, self.experts = task, config, experts
        images, self.labels = task.draw_per_class()
        self.lr = torch.tensor(config.lr_init, dtype=task.dtype, device=task.device, requires_grad=True)
        self.images = images.requires_grad_()
        self.optimiser = torch.optim.SGD(
            [{"params": [self.images], "lr": config.lr_img}, {"params": [self.lr], "lr": config.lr_lr}],
            lr=config.lr_img,
            momentum=config.momentum,
        )
        self.network = plain(task.network(generator_for("mtt student")))

    def step(self) -> Tensor:
        """One update of the images and the step size. Returns the loss, 0-d."""
        config, task = self.config, self.task
        expert = self.experts[int(torch.randint(len(self.experts), (), generator=task.generator))]
        epoch = int(torch.randint(config.max_start_epoch, (), generator=task.generator))
        start, target = (self.split(expert[at]) for at in (epoch, epoch + config.expert_epochs))
        orders = [torch.randperm(len(self.images), generator=task.generator) for _ in range(config.syn_steps)]
        size = (self.images.shape[-2], self.images.shape[-1])
        draws = [draw_dsa(size, len(order), task.generator, flip=task.flip) for order in orders]
        student = [parameter.requires_grad_() for parameter in self.split(expert[epoch])]
        for order, (op, drawn) in zip(orders, draws, strict=True):
            images = apply_dsa(op, self.images[order], drawn)
            student = descend(self.network, student, images, self.labels[order], self.lr)
        loss = squared_distance(student, target) / squared_distance(start, target)
        self.images.grad, self.lr.grad = torch.autograd.grad(loss, [self.images, self.lr])
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.detach()

    def split(self, flat: Tensor) -> list[Tensor]:
        """The vector (P,) as parameters of the network: views, and leaves."""
        like = list(self.network.parameters())
        parts = torch.split(flat, [parameter.numel() for parameter in like])
        return [part.view_as(parameter).detach() for part, parameter in zip(parts, like, strict=True)]


def squared_distance(these: Sequence[Tensor], those: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a - b).square().sum() for a, b in zip(these, those, strict=True)]).sum()


class PlainBPTT:
    """One update by the gradient through the whole training, from real images, with step sizes and Adam; hard labels,
    no momentum, no truncation."""

    steps_per_cycle = 1

    def __init__(self, task: Task, config: BPTTConfig) -> None:
        self.task, self.config = task, config
        images, self.labels = task.draw_per_class()
        raw = math.log(math.expm1(config.lr_init))
        self.images = images.requires_grad_()
        self.raw_lr = torch.full((config.unroll,), raw, dtype=task.dtype, device=task.device, requires_grad=True)
        self.optimiser = torch.optim.Adam([self.images, self.raw_lr], lr=config.lr_outer, betas=(0.5, 0.999))

    def step(self) -> Tensor:
        """One update of images and step sizes. Returns the loss, 0-d."""
        task = self.task
        real_images, real_labels = task.sample(self.config.batch_size)
        network = plain(task.network(task.generator))
        parameters: list[Tensor] = list(network.parameters())
        for lr in F.softplus(self.raw_lr):
            parameters = descend(network, parameters, self.images, self.labels, lr)
        loss = loss_at(network, parameters, real_images, real_labels)
        self.images.grad, self.raw_lr.grad = torch.autograd.grad(loss, [self.images, self.raw_lr])
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.detach()
