"""BPTT: synthetic data learned by back-propagation through the whole training of a network on them.

Wang, Zhu, Torralba, Efros, "Dataset Distillation", 2018 (arXiv:1811.10959), algorithm 1; the inner training is
differentiated by ``higher`` (Grefenstette et al., 2019, arXiv:1910.01727).

Differences from the authors' code (github.com/SsnL/dataset-distillation), and why:
- Every inner step sees all synthetic images. There each of 10 steps has images of its own, which are gone over 3 times;
  a set that a network is evaluated on has no such order.
- One network is drawn for a step, where algorithm 1 sums the loss over a batch of initial weights.
- Images start from real ones, as in every other method here; ``pix_init`` "noise" is theirs.
- The outer step size is constant: they halve it on a schedule of epochs.
- Soft labels (Sucholutsky and Schonlau, 2019; here a softmax, so that they stay probabilities), momentum of the inner
  training (Deng and Russakovsky, 2022) and truncation (Feng et al., 2024) came later: options, off by default.
- The inner optimiser is SGD: higher 0.2.1 differentiates it exactly, but Adam not.
- Evaluated under ``vico``, which trains for longer with a step size of its own; theirs takes the T learned steps.
There is no ``PAPER``: what they publish is for LeNet and AlexNet, and for images that differ from step to step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.errors import UserError
from benchmarks.networks import Network
from benchmarks.task import Task
from benchmarks.training import chunks
from methods._matching import batch_norms
from methods._unroll import flatten, unflatten, unroll_rematerialised
from methods.base import Method, Synthetic

BETAS = (0.5, 0.999)
"""Of the outer Adam."""
SMOOTHING = 0.1
"""What learned labels give to the other classes at the start: a softmax that is one-hot has no gradient."""


@dataclass(frozen=True)
class BPTTConfig:
    """Hyper-parameters; unroll, batch size and outer optimiser are the paper's."""

    unroll: int = 30
    """T: steps of the inner training, each on all synthetic images."""
    window: int | None = None
    """Back-propagate through the last so many steps only; None: through all of them."""
    inner_optimiser: Literal["sgd", "adam"] = "sgd"
    """Of the inner training. ``adam`` is refused: its derivative in ``higher`` is wrong."""
    momentum: float = 0.0
    """Of the inner training."""
    lr_init: float = 0.02
    """Where the learned step size of the inner training starts."""
    lr_per_step: bool = True
    """Learn a step size for every inner step; else one for all."""
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
    all T: the same gradient, more time, and memory that does not grow with T but for the parameters of every step (and
    their momentum), which wait on the host. Does without ``higher``."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range and for Adam as the inner optimiser."""
        if self.inner_optimiser == "adam":
            raise UserError("bptt: higher 0.2.1 differentiates Adam wrongly; take inner_optimiser sgd, with momentum")
        for name, value in asdict(self).items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise UserError(f"bptt: {name} is {value}; it must be at least 1")
            if isinstance(value, float) and not value >= 0:
                raise UserError(f"bptt: {name} is {value}; it must be at least 0")
        if not self.lr_init > 0:
            raise UserError(f"bptt: lr_init is {self.lr_init}; it must be above 0")


def inner_training(
    network: Network,
    images: Tensor,
    labels: Tensor,
    lr: Tensor,
    *,
    steps: int,
    momentum: float = 0.0,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``steps`` of SGD on the synthetic set (n, C, H, W) from the parameters of ``network``, differentiated by higher.

    ``labels`` are class indices (n,) or probabilities (n, C); ``lr`` is 0-d or (steps,). Returns the final parameters
    (P,), differentiable in images, labels and ``lr`` through the last ``window`` steps (None: all), and the losses of
    the inner steps (steps,), detached. Steps before the window, through which nothing is differentiated, move
    ``network`` itself.
    """
    higher = _import_higher()
    losses = []
    # The step size is overridden in every step.
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0, momentum=momentum)
    constant = 0 if window is None else max(steps - window, 0)
    for span, differentiable in ((range(constant), False), (range(constant, steps), True)):
        if not span:
            continue
        with higher.innerloop_ctx(network, optimiser, track_higher_grads=differentiable) as (student, descent):
            for step in span:
                loss = F.cross_entropy(student(images), labels)
                rate = lr[step] if lr.ndim else lr
                descent.step(loss, override={"lr": [rate if differentiable else rate.detach()]})
                losses.append(loss.detach())
            parameters = list(student.parameters())
        if not differentiable:
            with torch.no_grad():
                for i, (ours, moved) in enumerate(zip(network.parameters(), parameters, strict=True)):
                    ours.copy_(moved)
                    optimiser.state[ours] = descent.state[0][i]
    return torch.cat([parameter.reshape(-1) for parameter in parameters]), torch.stack(losses)


def outer_loss(network: Network, parameters: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy on real data at the parameters (P,) that the inner training ended with, 0-d."""
    return F.cross_entropy(functional_call(network, unflatten(network, parameters), (images,)), labels)


def outer_gradient(network: Network, parameters: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """``outer_loss`` (0-d) and its gradient (P,) at the parameters (P,), both constants.

    In chunks of the batch, which is the same sum, in the memory of one chunk; with batch norm in one piece.
    """
    leaf = parameters.detach().requires_grad_()
    parts = (images,) if batch_norms(network) else chunks(network, images)
    loss, gradient = torch.zeros((), dtype=leaf.dtype, device=leaf.device), torch.zeros_like(leaf)
    for own_images, own_labels in zip(parts, torch.split(labels, len(parts[0])), strict=True):
        share = outer_loss(network, leaf, own_images, own_labels) * (len(own_labels) / len(labels))
        gradient += torch.autograd.grad(share, leaf)[0]
        loss += share.detach()
    return loss, gradient


def inverse_softplus(value: float) -> float:
    """The number whose softplus is ``value``, which is positive."""
    return value + math.log(-math.expm1(-value))


class BPTT(Method):
    """Algorithm 1."""

    Config = BPTTConfig
    PROTOCOL = "vico"
    BUDGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 3, "unroll": 3},
        "quick": {"steps": 150, "unroll": 20},
    }

    config: BPTTConfig

    def __init__(self, task: Task, config: BPTTConfig, total_steps: int) -> None:
        """Raises UserError where the package ``higher`` is needed and missing."""
        super().__init__(task, config, total_steps)
        if not config.rematerialize:
            _import_higher()
        self.images, self.classes = task.draw_per_class()
        if config.pix_init == "noise":
            self.images = torch.randn(self.images.shape, generator=task.generator, dtype=task.dtype).to(task.device)
        smooth = torch.full((len(self.classes), task.num_classes), SMOOTHING / max(task.num_classes - 1, 1))
        self.label_logits = smooth.to(self.images).scatter(1, self.classes[:, None], 1 - SMOOTHING).log()
        rates = [config.unroll] if config.lr_per_step else []
        self.raw_lr = torch.full(rates, inverse_softplus(config.lr_init), dtype=task.dtype, device=task.device)
        self.learned = [self.images, self.raw_lr, *([self.label_logits] if config.learn_label else [])]
        self.optimiser: torch.optim.Optimizer
        if config.outer_optimiser == "adam":
            self.optimiser = torch.optim.Adam(self.learned, lr=config.lr_outer, betas=BETAS)
        else:
            self.optimiser = torch.optim.SGD(self.learned, lr=config.lr_outer, momentum=config.outer_momentum)

    def step(self) -> dict[str, Tensor]:
        """Lines 4 to 9."""
        config, task = self.config, self.task
        leaves = [tensor.detach().requires_grad_() for tensor in self.learned]
        images, lr = leaves[0], F.softplus(leaves[1])
        learned = [images, leaves[2].softmax(1)] if config.learn_label else [images]
        # 4, 5: a real batch, and initial weights
        real_images, real_labels = task.sample(config.batch_size)
        network = task.network(task.generator)
        # 7: train on the synthetic images with the learned step sizes
        if config.rematerialize:
            trained, losses = unroll_rematerialised(
                network,
                flatten(network),
                lambda step, images, labels=self.classes: (images, labels),
                config.unroll,
                learned,
                lr,
                momentum=config.momentum,
                window=config.window,
            )
        else:
            trained, losses = inner_training(
                network,
                images,
                learned[1] if config.learn_label else self.classes,
                lr,
                steps=config.unroll,
                momentum=config.momentum,
                window=config.window,
            )
        # 8: the loss on real data
        loss, arriving = outer_gradient(network, trained, real_images, real_labels)
        # 9: update images and step sizes
        gradients = torch.autograd.grad(trained, leaves, arriving)
        for tensor, gradient in zip(self.learned, gradients, strict=True):
            tensor.grad = gradient
        self.optimiser.step()
        self.optimiser.zero_grad()
        return {"loss": loss, "inner_loss": losses[-1]}

    def synthetic(self) -> Synthetic:
        labels = F.one_hot(self.classes, self.task.num_classes).to(self.task.dtype)
        if self.config.learn_label:
            labels = self.label_logits.softmax(1)
        return Synthetic(self.images.clone(), labels, "probability", F.softplus(self.raw_lr))

    def state_dict(self) -> dict[str, Any]:
        state = {
            "learned": self.learned,
            "classes": self.classes,
            "optimiser": self.optimiser.state_dict(),
            "generator": self.task.generator.get_state(),
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for tensor, saved in zip(self.learned, state["learned"], strict=True):
            tensor.copy_(saved)
        self.classes.copy_(state["classes"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.task.generator.set_state(state["generator"])


def _import_higher() -> Any:
    """Raises UserError where it is not installed."""
    try:
        import higher
    except ImportError:
        raise UserError(
            "bptt needs the package higher: pip install higher==0.2.1, or set --bptt.rematerialize True"
        ) from None
    return higher
