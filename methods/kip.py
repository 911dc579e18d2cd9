"""KIP: synthetic data that kernel ridge regression with the kernel of an infinitely wide network learns from best.

Nguyen, Chen, Lee, "Dataset Meta-Learning from Kernel Ridge-Regression", ICLR 2021, algorithm 1 (Kernel Inducing
Points); Nguyen, Novak, Xiao, Lee, "Dataset Distillation with Infinitely Wide Convolutional Networks", NeurIPS 2021.

Differences from the authors' code (github.com/google-research/google-research/tree/master/kip), and why:
- The kernels are those of fully connected ReLU networks, in closed form. The published numbers were made with a
  convolutional kernel, in thousands of GPU hours: they are reported, not run, and there is no ``PAPER``.
- Real images are neither augmented nor whitened by the ZCA that goes with the convolutional kernel.
- Labels are solved for on the real batch of the step, right after the images have moved; theirs are solved for once,
  on all real images.
- The native evaluation trains networks with squared error on the labels, as FRePo's does, but on standardised images.
  Theirs (nn_training.ipynb) uses SGD with momentum on a network of width 1024. It searches the step size (a factor of
  the largest stable one) and the weight decay for every set.
- The default depth is ours: their notebook has one hidden layer.
The kernel needs no network, so the network of the task is not used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from benchmarks.errors import UserError
from benchmarks.krr import centred_one_hot, regularised, solve
from benchmarks.task import Task
from methods._ntk import kernels
from methods._optim import Optimised
from methods.base import Range, Synthetic, check_ranges


@dataclass(frozen=True)
class KIPConfig:
    """Hyper-parameters; ridge, standard deviations, batch size and step size are the authors'."""

    kernel: Literal["ntk", "nngp"] = "ntk"
    """Kernel of a network trained by gradient descent on all its layers (``ntk``), or on the last layer (``nngp``)."""
    depth: int = 3
    """Hidden layers of the infinitely wide network; the authors' notebook has 1."""
    w_std: float = math.sqrt(2)
    """Standard deviation of the weights, times sqrt(fan_in)."""
    b_std: float = 0.1
    """Standard deviation of the biases."""
    ridge: float = 1e-6
    """λ: ridge of the kernel regression, in units of the mean eigenvalue of the Gram matrix."""
    batch_size: int = 5000
    """Real images per step, equally many of every class (or all of a class that has fewer)."""
    lr: float = 4e-2
    """Adam's step size for the synthetic images, and for labels that are learned."""
    learn_label: bool = False
    """Learn the labels by gradient as well as the images."""
    solve_label: bool = False
    """Labels by least squares, with which the images predict the real batch best."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range, and for labels that are both learned and solved for."""
        check_ranges(self, above_zero=("w_std", "ridge"))
        if self.learn_label and self.solve_label:
            raise UserError("kip: labels are either learned (learn_label) or solved for (solve_label); set one of them")


def kip_loss(k_ts: Tensor, k_ss: Tensor, y_syn: Tensor, y_real: Tensor, ridge: float) -> Tensor:
    """½ mean over images and classes of (K_ts (K_ss + λ·(tr K_ss / n)·I)⁻¹ Y_s − Y_t)², 0-d (the loss of algorithm 1).

    ``k_ts`` (B, n), ``k_ss`` (n, n), ``y_syn`` (n, C), ``y_real`` (B, C).
    """
    return (k_ts @ solve(regularised(k_ss, ridge), y_syn) - y_real).square().mean() / 2


def solved_labels(k_ts: Tensor, k_ss: Tensor, y_real: Tensor, ridge: float) -> Tensor:
    """The labels (n, C) with the smallest ``kip_loss``, by normal equations with the same relative ridge."""
    weights = solve(regularised(k_ss, ridge), k_ts.T).T  # from labels to predictions, (B, n)
    return solve(regularised(weights.T @ weights, ridge), weights.T @ y_real)


class KIP(Optimised):
    """Algorithm 1. Images and labels are float64 from one step to the next, whatever the dtype of the task."""

    Config = KIPConfig
    PROTOCOL = "kip"
    float64 = True
    BUDGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 20, "batch_size": 500},
        "quick": {"steps": 500},
    }
    TUNE: ClassVar[Mapping[str, Range]] = {
        "lr": Range(4e-3, 0.2),
        "ridge": Range(1e-7, 1e-3),
        "batch_size": Range(500, 5000),
    }

    config: KIPConfig

    def __init__(self, task: Task, config: KIPConfig, total_steps: int) -> None:
        super().__init__(task, config, total_steps)
        images, classes = task.draw_per_class()
        self.images, self.labels = images.double(), centred_one_hot(classes, task.num_classes, torch.float64)
        self.learned = [self.images, self.labels]
        self.optimiser = torch.optim.Adam(self.learned, lr=config.lr)
        self.members = task.rows_of_classes()

    def step(self) -> dict[str, Tensor]:
        """One iteration of algorithm 1."""
        config = self.config
        # A batch of target data, balanced
        real_images, real_targets = self._batch()
        # The loss of kernel regression on the synthetic data, and one update of them
        images, labels = leaves = self.leaves()
        k_ts, k_ss = self._kernel(real_images, images), self._kernel(images, images)
        loss = kip_loss(k_ts, k_ss, labels, real_targets, config.ridge)
        self.update(torch.autograd.grad(loss, leaves if config.learn_label else leaves[:1]))
        if config.solve_label:
            k_ts, k_ss = self._kernel(real_images, self.images), self._kernel(self.images, self.images)
            self.labels.copy_(solved_labels(k_ts, k_ss, real_targets, config.ridge))
        return {"loss": loss.detach()}

    def synthetic(self) -> Synthetic:
        # Copies also where the task is float64 already.
        images, labels = (tensor.to(self.task.dtype, copy=True) for tensor in (self.images, self.labels))
        return Synthetic(images, labels, "centred")

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Real images (B, C, H, W) and their targets (B, num_classes), float64."""
        task = self.task
        count = max(self.config.batch_size // len(task.classes), 1)
        drawn = [members[torch.randperm(len(members), generator=task.generator)[:count]] for members in self.members]
        index = torch.cat(drawn).to(task.device, non_blocking=True)
        return task.images[index].double(), centred_one_hot(task.labels[index], task.num_classes, torch.float64)

    def _kernel(self, left: Tensor, right: Tensor) -> Tensor:
        config = self.config
        nngp, ntk = kernels(
            left.flatten(1), right.flatten(1), depth=config.depth, w_std=config.w_std, b_std=config.b_std
        )
        return ntk if config.kernel == "ntk" else nngp
