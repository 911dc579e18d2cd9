"""KIP: synthetic data that kernel ridge regression with the kernel of an infinitely wide network learns from best.

Nguyen, Chen, Lee, "Dataset Meta-Learning from Kernel Ridge-Regression", ICLR 2021, algorithm 1 (Kernel Inducing
Points); Nguyen, Novak, Xiao, Lee, "Dataset Distillation with Infinitely Wide Convolutional Networks", NeurIPS 2021.

Differences from the authors' code (github.com/google-research/google-research/tree/master/kip), and why:
- The kernels are those of fully connected ReLU networks, in closed form. The convolutional kernel with which the
  published numbers were made took thousands of GPU hours: they are reported, not run, and there is no ``PAPER``.
- No augmentation of the real images, and none of the ZCA whitening that goes with the convolutional kernel.
- Labels are solved for on the real batch of the step, right after the images have moved; theirs are solved for once, on
  all real images.
- The native evaluation trains networks with squared error on the labels, in the way of FRePo's but on standardised
  images. Theirs (nn_training.ipynb) is not that: SGD with momentum on a network of width 1024, its step size a factor
  of the largest stable one, which like the weight decay is searched for every set.
- The default depth is ours: their notebook has one hidden layer.
The kernel needs no network, so the network of the task is not used.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.errors import UserError
from benchmarks.krr import regularised, solve
from benchmarks.task import Task
from methods._ntk import kernels
from methods.base import Method, Synthetic


@dataclass(frozen=True)
class KIPConfig:
    """Hyper-parameters; ridge, standard deviations, batch size and step size are the authors'."""

    kernel: Literal["ntk", "nngp"] = "ntk"
    """Of a network trained by gradient descent on all its layers (``ntk``), or on its last one only (``nngp``)."""
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
    """Labels by least squares: those with which the images predict the real batch best."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range, and for labels that are both learned and solved for."""
        for name, value in asdict(self).items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise UserError(f"kip: {name} is {value}; it must be at least 1")
            zero_allowed = name in ("b_std", "lr")
            if isinstance(value, float) and not (value >= 0 if zero_allowed else value > 0):
                raise UserError(f"kip: {name} is {value}; it must be {'at least' if zero_allowed else 'above'} 0")
        if self.learn_label and self.solve_label:
            raise UserError("kip: labels are either learned (learn_label) or solved for (solve_label); set one of them")


def predictor(k_ts: Tensor, k_ss: Tensor, ridge: float) -> Tensor:
    """K_ts (K_ss + λ·(tr K_ss / n)·I)⁻¹, (B, n): what turns labels into predictions."""
    return solve(regularised(k_ss, ridge), k_ts.T).T


def kip_loss(k_ts: Tensor, k_ss: Tensor, y_syn: Tensor, y_real: Tensor, ridge: float) -> Tensor:
    """½ mean over images and classes of (K_ts (K_ss + λ·(tr K_ss / n)·I)⁻¹ Y_s − Y_t)², 0-d."""
    return (k_ts @ solve(regularised(k_ss, ridge), y_syn) - y_real).square().mean() / 2


def solved_labels(k_ts: Tensor, k_ss: Tensor, y_real: Tensor, ridge: float) -> Tensor:
    """The labels (n, C) with the smallest ``kip_loss``, by normal equations with the same relative ridge."""
    weights = predictor(k_ts, k_ss, ridge)
    return solve(regularised(weights.T @ weights, ridge), weights.T @ y_real)


class KIP(Method):
    """Algorithm 1. Images and labels are float64 from one step to the next, whatever the dtype of the task."""

    Config = KIPConfig
    PROTOCOL = "kip"
    BUDGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 20, "batch_size": 500},
        "quick": {"steps": 500},
    }

    config: KIPConfig

    def __init__(self, task: Task, config: KIPConfig, total_steps: int) -> None:
        super().__init__(task, config, total_steps)
        images, classes = task.draw_per_class()
        self.images, self.labels = images.double(), self._centred(classes)
        self.learned = [self.images, self.labels] if config.learn_label else [self.images]
        self.optimiser = torch.optim.Adam(self.learned, lr=config.lr)
        self.members = task.rows_of_classes()

    def step(self) -> dict[str, Tensor]:
        """One iteration of algorithm 1."""
        config = self.config
        # A batch of target data, balanced
        real_images, real_targets = self._batch()
        # The loss of kernel regression on the synthetic data, and one update of them
        leaves = [tensor.detach().requires_grad_() for tensor in self.learned]
        images, labels = leaves[0], leaves[1] if config.learn_label else self.labels
        k_ts, k_ss = self._kernel(real_images, images), self._kernel(images, images)
        loss = kip_loss(k_ts, k_ss, labels, real_targets, config.ridge)
        for tensor, gradient in zip(self.learned, torch.autograd.grad(loss, leaves), strict=True):
            tensor.grad = gradient
        self.optimiser.step()
        self.optimiser.zero_grad()
        if config.solve_label:
            k_ts, k_ss = self._kernel(real_images, self.images), self._kernel(self.images, self.images)
            self.labels.copy_(solved_labels(k_ts, k_ss, real_targets, config.ridge))
        return {"loss": loss.detach()}

    def synthetic(self) -> Synthetic:
        # Copies also where the task is float64 already.
        images, labels = (tensor.to(self.task.dtype, copy=True) for tensor in (self.images, self.labels))
        return Synthetic(images, labels, "centred")

    def state_dict(self) -> dict[str, Any]:
        state = {
            "images": self.images,
            "labels": self.labels,
            "optimiser": self.optimiser.state_dict(),
            "generator": self.task.generator.get_state(),
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.images.copy_(state["images"])
        self.labels.copy_(state["labels"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.task.generator.set_state(state["generator"])

    def _centred(self, classes: Tensor) -> Tensor:
        """onehot − 1/C, (B, C), float64."""
        return F.one_hot(classes, self.task.num_classes).double() - 1 / self.task.num_classes

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Real images (B, C, H, W) and their targets (B, num_classes), float64."""
        task = self.task
        count = max(self.config.batch_size // task.num_classes, 1)
        drawn = [members[torch.randperm(len(members), generator=task.generator)[:count]] for members in self.members]
        index = torch.cat(drawn).to(task.device, non_blocking=True)
        return task.images[index].double(), self._centred(task.labels[index])

    def _kernel(self, left: Tensor, right: Tensor) -> Tensor:
        config = self.config
        nngp, ntk = kernels(
            left.flatten(1), right.flatten(1), depth=config.depth, w_std=config.w_std, b_std=config.b_std
        )
        return ntk if config.kernel == "ntk" else nngp
