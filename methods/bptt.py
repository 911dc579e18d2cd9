"""BPTT: synthetic data learned by back-propagation through the whole training of a network on them.

Wang, Zhu, Torralba, Efros, "Dataset Distillation", 2018 (arXiv:1811.10959), algorithm 1; the inner training is
differentiated by ``higher`` (Grefenstette et al., 2019, arXiv:1910.01727).

Differences from the authors' code (github.com/SsnL/dataset-distillation), and why:
- Every inner step sees all synthetic images, because a set that a network is evaluated on has no order. Theirs has 10
  steps with images of their own, and goes over them 3 times.
- One network is drawn for a step, where algorithm 1 sums the loss over a batch of initial weights.
- Images start from real ones, as in every other method here; ``pix_init`` "noise" is theirs.
- The outer step size is constant; theirs is halved on a schedule of epochs.
- Soft labels (Sucholutsky and Schonlau, 2019; here a softmax, so that they stay probabilities), momentum of the inner
  training (Deng and Russakovsky, 2022) and truncation (Feng et al., 2024) came later: options, off by default.
- The inner optimiser is SGD: higher 0.2.1 differentiates it exactly, but not Adam.
- The native evaluation is ``vico``, which trains for longer with a step size of its own; theirs takes the T learned
  steps.
There is no ``PAPER``: their settings are for LeNet and AlexNet, and for images that differ from step to step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.errors import UserError
from benchmarks.networks import Network
from benchmarks.task import Task
from methods._optim import Optimised, initial_images
from methods._unroll import flatten, outer_gradient, unroll
from methods.base import Range, Synthetic, check_ranges

BETAS = (0.5, 0.999)
"""Decay rates of the outer Adam."""
SMOOTHING = 0.1
"""Share of the other classes in learned labels at the start: a softmax that is one-hot has no gradient."""


@dataclass(frozen=True)
class BPTTConfig:
    """Hyper-parameters; unroll, batch size and outer optimiser are the paper's."""

    unroll: int = 30
    """T: steps of the inner training, each on all synthetic images."""
    window: int | None = None
    """Back-propagate through the last so many steps only; None: through all of them."""
    inner_optimiser: Literal["sgd", "adam"] = "sgd"
    """Optimiser of the inner training. ``adam`` is refused: its derivative in ``higher`` is wrong."""
    momentum: float = 0.0
    """Momentum of the inner training."""
    lr_init: float = 0.02
    """Initial step size of the inner training, which is learned."""
    lr_per_step: bool = True
    """Learn a step size for every inner step; else one step size for all steps."""
    learn_label: bool = False
    """Learn soft labels as well as the images."""
    pix_init: Literal["real", "noise"] = "real"
    """Synthetic images start from random real images or from standard normal noise."""
    batch_size: int = 1024
    """Real images of the outer loss."""
    outer_optimiser: Literal["adam", "sgd"] = "adam"
    """Updates images, step sizes and labels."""
    lr_outer: float = 0.01
    """Step size of the outer optimiser."""
    outer_momentum: float = 0.5
    """Momentum of the outer ``sgd``; Adam has 0.5 and 0.999."""
    rematerialize: bool = False
    """Compute the activations of an inner step again when the gradient comes back to it, instead of keeping those of
    all T. The gradient is the same, and takes more time. Only the parameters of every step (and their momentum) are
    kept, on the host. ``higher`` cannot do this and is not used."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range and for Adam as the inner optimiser."""
        if self.inner_optimiser == "adam":
            raise UserError("bptt: higher 0.2.1 differentiates Adam wrongly; take inner_optimiser sgd, with momentum")
        check_ranges(self, above_zero=("lr_init",))


def inner_training(
    network: Network,
    images: Tensor,
    labels: Tensor,
    lr: Tensor,
    *,
    steps: int,
    momentum: float = 0.0,
    window: int | None = None,
    rematerialize: bool = False,
) -> tuple[Tensor, Tensor]:
    """``steps`` of SGD on the synthetic set (n, C, H, W) from the parameters of ``network``, which does not change.

    ``labels`` are class indices (n,) or probabilities (n, C); ``lr`` is 0-d or (steps,). Returns the final parameters
    (P,), differentiable in images, labels and ``lr`` through the last ``window`` steps (None: all), and the losses of
    the inner steps (steps,), detached. Raises UserError where ``higher`` is needed and missing.
    """
    if rematerialize:
        start, learned = flatten(network.parameters()), (images, labels)
        settings: dict[str, Any] = {"momentum": momentum, "window": window, "rematerialize": True}
        return unroll(network, start, lambda step, *batch: batch, steps, learned, lr, **settings)
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0, momentum=momentum)
    losses = []
    with _import_higher().innerloop_ctx(network, optimiser) as (student, descent):
        for step in range(steps):
            # Nothing is differentiated before the window.
            student.track_higher_grads = descent._track_higher_grads = window is None or step >= steps - window
            loss = F.cross_entropy(student(images), labels)
            descent.step(loss, override={"lr": [lr[step] if lr.ndim else lr]})
            losses.append(loss.detach())
        return flatten(student.parameters()), torch.stack(losses)


class BPTT(Optimised):
    """Algorithm 1."""

    Config = BPTTConfig
    PROTOCOL = "vico"
    BUDGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 3, "unroll": 3},
        "quick": {"steps": 150, "unroll": 20},
    }
    TUNE: ClassVar[Mapping[str, Range]] = {
        "lr_outer": Range(1e-3, 1e-1),
        "lr_init": Range(5e-3, 2e-1),
        "unroll": Range(5, 30),
        "batch_size": Range(128, 1024),
    }

    config: BPTTConfig

    def __init__(self, task: Task, config: BPTTConfig, total_steps: int) -> None:
        """Raises UserError where the package ``higher`` is needed and missing."""
        super().__init__(task, config, total_steps)
        if not config.rematerialize:
            _import_higher()
        self.images, self.classes = initial_images(task, config.pix_init)
        smooth = torch.full((len(self.classes), task.num_classes), SMOOTHING / max(task.num_classes - 1, 1))
        self.label_logits = smooth.to(self.images).scatter(1, self.classes[:, None], 1 - SMOOTHING).log()
        raw_lr = config.lr_init + math.log(-math.expm1(-config.lr_init))  # its softplus is lr_init
        rates = [config.unroll] if config.lr_per_step else []
        self.raw_lr = torch.full(rates, raw_lr, dtype=task.dtype, device=task.device)
        self.learned = [self.images, self.raw_lr, self.label_logits]
        if config.outer_optimiser == "adam":
            self.optimiser = torch.optim.Adam(self.learned, lr=config.lr_outer, betas=BETAS)
        else:
            self.optimiser = torch.optim.SGD(self.learned, lr=config.lr_outer, momentum=config.outer_momentum)

    def step(self) -> dict[str, Tensor]:
        """Lines 4 to 9."""
        config, task = self.config, self.task
        leaves = self.leaves() if config.learn_label else self.leaves()[:2]
        images, lr = leaves[0], F.softplus(leaves[1])
        labels = leaves[2].softmax(1) if config.learn_label else self.classes
        # 4, 5: a real batch, and initial weights
        real_images, real_labels = task.sample(config.batch_size)
        network = task.network(task.generator)
        # 7: train on the synthetic images with the learned step sizes
        trained, losses = inner_training(
            network,
            images,
            labels,
            lr,
            steps=config.unroll,
            momentum=config.momentum,
            window=config.window,
            rematerialize=config.rematerialize,
        )
        # 8: the loss on real data
        loss, arriving = outer_gradient(network, trained, real_images, real_labels)
        # 9: update images and step sizes
        self.update(torch.autograd.grad(trained, leaves, arriving))
        return {"loss": loss, "inner_loss": losses[-1]}

    def synthetic(self) -> Synthetic:
        labels = F.one_hot(self.classes, self.task.num_classes).to(self.task.dtype)
        if self.config.learn_label:
            labels = self.label_logits.softmax(1)
        return Synthetic(self.images.clone(), labels, "probability", F.softplus(self.raw_lr))


def _import_higher() -> Any:
    """Raises UserError where it is not installed."""
    try:
        import higher
    except ImportError:
        raise UserError(
            "bptt needs the package higher: pip install higher==0.2.1, or set --bptt.rematerialize True"
        ) from None
    return higher
