"""The parts that plain ports share: the standard network as a function of its parameters, and a base class."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.errors import UserError
from benchmarks.task import Task
from methods.base import Method, Synthetic


def convnet(task: Task) -> list[Tensor]:
    """The parameters of a fresh ``convnet``: weight and bias of convolution and instance norm of every block, and head.

    Raises UserError where the task has another network or norm.
    """
    network = task.network(task.generator)
    parameters = [p.detach().clone(memory_format=torch.contiguous_format) for p in network.parameters()]
    blocks = len(parameters) // 4
    batch_norm = any(True for _ in network.buffers())
    if batch_norm or [p.ndim for p in parameters] != [4, 1, 1, 1] * blocks + [2, 1]:
        raise UserError("this plain port has one network: convnet with instance norm")
    return parameters


def features(parameters: Sequence[Tensor], images: Tensor) -> Tensor:
    """Features (B, D) of images (B, C, H, W) in the network that has these ``parameters``."""
    x = images
    for i in range(0, len(parameters) - 2, 4):
        weight, bias, scale, shift = parameters[i : i + 4]
        x = F.conv2d(x, weight, bias, padding=3 if x.shape[1] == 1 else 1)
        x = F.group_norm(x, len(scale), scale, shift)
        x = F.avg_pool2d(F.relu(x), 2)
    return x.flatten(1)


def logits(parameters: Sequence[Tensor], images: Tensor) -> Tensor:
    """Logits (B, num_classes) of images (B, C, H, W)."""
    return F.linear(features(parameters, images), *parameters[-2:])


class Rival(Method):
    """A port that is timed beside the method it is a port of, whose ``Config``, ``PAPER`` and ``BUDGETS`` it takes.

    Synthetic images start from random real ones, with hard labels. It is never interrupted, so nothing is saved.
    """

    KNOWN: ClassVar[tuple[str, ...]]
    """Fields of ``Config`` that the port heeds. Others must have their defaults."""

    def __init__(self, task: Task, config: Any, total_steps: int) -> None:
        """Raises UserError for a hyper-parameter that the port does not heed and that is not at its default."""
        super().__init__(task, config, total_steps)
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if field.name not in self.KNOWN and value != field.default:
                raise UserError(
                    f"{type(self).__name__} knows {field.name} {field.default} alone, not {value}: leave it out"
                )
        images, self.classes = task.draw_per_class()
        self.images = images.requires_grad_()

    def synthetic(self) -> Synthetic:
        labels = F.one_hot(self.classes, self.task.num_classes).to(self.task.dtype)
        return Synthetic(self.images.detach().clone(), labels, "probability")

    def state_dict(self) -> dict[str, Any]:
        """Raises NotImplementedError."""
        raise NotImplementedError(f"{type(self).__name__} is timed, and cannot be saved")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises NotImplementedError."""
        raise NotImplementedError(f"{type(self).__name__} is timed, and cannot be restored")
