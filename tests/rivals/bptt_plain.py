"""BPTT with nothing but ``torch.autograd.grad(..., create_graph=True)``, to compare ``methods/bptt.py`` with.

The real batch passes in one piece, and its loss is differentiated in one piece with the training before it. The draws
are those of ours, in the same order, so a step gives the same images within rounding.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from _rival import Rival, convnet, logits
from torch import Tensor
from torch.nn import functional as F

from benchmarks.task import Task
from methods.base import Synthetic
from methods.bptt import BPTT


class BPTTPlain(Rival):
    """Algorithm 1 of Wang et al., 2018, with a learned step size for every inner step; no momentum, no truncation."""

    Config = BPTT.Config
    PAPER = BPTT.PAPER
    BUDGETS = BPTT.BUDGETS
    PROTOCOL = BPTT.PROTOCOL
    KNOWN = ("unroll", "lr_init", "batch_size", "lr_outer")

    def __init__(self, task: Task, config: Any, total_steps: int) -> None:
        super().__init__(task, config, total_steps)
        raw = math.log(math.expm1(config.lr_init))
        self.raw_lr = torch.full((config.unroll,), raw, dtype=task.dtype, device=task.device, requires_grad=True)
        self.optimiser = torch.optim.Adam([self.images, self.raw_lr], lr=config.lr_outer, betas=(0.5, 0.999))

    def step(self) -> dict[str, Tensor]:
        real_images, real_labels = self.task.sample(self.config.batch_size)
        parameters = [parameter.requires_grad_() for parameter in convnet(self.task)]
        for lr in F.softplus(self.raw_lr):
            inner = F.cross_entropy(logits(parameters, self.images), self.classes)
            gradients = torch.autograd.grad(inner, parameters, create_graph=True)
            parameters = [p - lr * gradient for p, gradient in zip(parameters, gradients, strict=True)]
        loss = F.cross_entropy(logits(parameters, real_images), real_labels)
        self.optimiser.zero_grad()
        self.images.grad, self.raw_lr.grad = torch.autograd.grad(loss, [self.images, self.raw_lr])
        self.optimiser.step()
        return {"loss": loss.detach()}

    def synthetic(self) -> Synthetic:
        return dataclasses.replace(super().synthetic(), lr=F.softplus(self.raw_lr.detach()))
