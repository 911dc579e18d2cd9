"""Matching real and synthetic images class by class, for DC, DSA and DM.

The gradient distance, the loop and its lengths come from Zhao, Mopuri, Bilen, "Dataset Condensation with Gradient
Matching", ICLR 2021.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.augment import apply_dsa, draw_dsa
from benchmarks.networks import Network, batch_norms
from benchmarks.protocols import Recipe
from benchmarks.task import Task, generator_for
from benchmarks.training import chunk_size, loss_gradient, train
from methods._optim import Optimised, initial_images
from methods.base import Synthetic, check_ranges

EPS = 1e-6
"""Added to the product of the norms in a cosine; rows of a gradient can be that small."""
STATISTICS_IMAGES = 16
"""Real images per class from which batch norm takes its statistics before a gradient is matched."""
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""ipc → (outer_loop, inner_loop), as published."""
PUBLISHED: Mapping[tuple[str, int], Mapping[str, Any]] = {
    (dataset, ipc): {"steps": 1000 * LOOPS[ipc][0], "outer_loop": LOOPS[ipc][0], "inner_loop": LOOPS[ipc][1]}
    for dataset, ipcs in (
        ("mnist", (1, 10, 50)),
        ("fashion_mnist", (1, 10, 50)),
        ("svhn", (1, 10, 50)),
        ("cifar10", (1, 10, 50)),
        ("cifar100", (1, 10)),
    )
    for ipc in ipcs
}
"""``PAPER`` of DC and DSA: 1000 iterations everywhere."""


class Matching(Optimised):
    """Synthetic images with hard labels, moved by SGD with momentum, and the rows of every class of real images."""

    PROTOCOL = "vico"

    def __init__(self, task: Task, config: Any, total_steps: int) -> None:
        super().__init__(task, config, total_steps)
        self.rows = task.rows_of_classes()
        self.images, classes = initial_images(task, config.init)
        self.labels = F.one_hot(classes, task.num_classes).to(task.dtype)
        self.learned = [self.images]
        self.optimiser = torch.optim.SGD(self.learned, lr=config.lr_img, momentum=config.momentum)

    def synthetic(self) -> Synthetic:
        return Synthetic(self.images.clone(), self.labels.clone(), "probability")


# --- gradient matching


@dataclass(frozen=True)
class GradientMatchingConfig:
    """Hyper-parameters that DC and DSA have in common."""

    outer_loop: int | None = None
    """T: updates of the images before the network is replaced by a fresh one; None: the published number for the ipc,
    or else for the next larger ipc."""
    inner_loop: int | None = None
    """ς_θ: epochs that the network is trained for on the synthetic images between two updates of them; None: the
    published number, as for ``outer_loop``."""
    lr_img: float = 0.1
    """η_S: step size of the synthetic images."""
    momentum: float = 0.5
    """Momentum of their updates."""
    lr_net: float = 0.01
    """η_θ: step size of the network's SGD, which has neither momentum nor weight decay."""
    batch_real: int = 256
    """Real images per class and update."""
    batch_train: int = 256
    """Synthetic images per step of the network."""
    init: Literal["noise", "real"] = "noise"
    """Synthetic images start from standard normal noise or from random real images."""
    dis_metric: Literal["ours", "mse", "cos"] = "ours"
    """D: one minus cosine for every output of a layer, squared differences, or one cosine for the whole gradient."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range."""
        check_ranges(self)


class GradientMatching(Matching):
    """Algorithm 1 of DC and of DSA, which differ in ``pair`` and ``AUGMENT``."""

    AUGMENT: ClassVar[Literal["none", "dsa"]]
    """Augmentation of the synthetic images, each for itself, when the network is trained on them."""

    network: Network

    def __init__(self, task: Task, config: GradientMatchingConfig, total_steps: int) -> None:
        outer, inner = loops(task.ipc)
        config = replace(config, outer_loop=config.outer_loop or outer, inner_loop=config.inner_loop or inner)
        super().__init__(task, config, total_steps)
        assert config.outer_loop and config.inner_loop
        self.steps_per_cycle = config.outer_loop
        self.outer = 0  # updates of the images since the network was fresh
        self.recipe = Recipe(
            loss="cross_entropy",
            optimiser="sgd",
            lr=config.lr_net,
            batch_size=config.batch_train,
            shuffle=True,
            epochs=config.inner_loop,
            augment=self.AUGMENT,
        )

    @abstractmethod
    def pair(self, real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
        """The two batches of one class as their gradients are to be matched; differentiable in ``synthetic``."""

    def step(self) -> dict[str, Tensor]:
        """One update of the images, and the training of the network that comes after it."""
        config, task = self.config, self.task
        # A fresh network for T updates
        if self.outer == 0:
            self.network = task.network(task.generator)
        freeze_batch_norm(self.network, task, self.rows)

        # The distance of the gradients, summed over the classes, and one update of the images
        def distance(i: int, synthetic: Tensor) -> Tensor:
            real, synthetic = self.pair(task.draw(self.rows[i], config.batch_real), synthetic)
            return matching_loss(self.network, real, synthetic, task.classes[i], config.dis_metric)

        loss, gradient = sum_over_chunks(distance, self.images, task.ipc)
        self.update([gradient])
        # Train the network on them, unless it is to be replaced
        self.outer = (self.outer + 1) % self.steps_per_cycle
        if self.outer:
            train(
                self.network,
                self.images,
                self.labels,
                "probability",
                self.recipe,
                flip=task.flip,
                generator=task.generator,
            )
        return {"matching": loss}

    def state_dict(self) -> dict[str, Any]:
        network = copy.deepcopy(self.network.state_dict()) if self.outer else None
        return {**super().state_dict(), "outer": self.outer, "network": network}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.outer = state["outer"]
        if self.outer:
            self.network = self.task.network(generator_for("matching"))  # its structure
            self.network.load_state_dict(state["network"])


def loops(ipc: int) -> tuple[int, int]:
    """(outer_loop, inner_loop) for ``ipc``: those of the next larger published ipc, above 50 those of 50."""
    return LOOPS[min((published for published in LOOPS if published >= ipc), default=max(LOOPS))]


def gradient_distance(
    gw_syn: Sequence[Tensor], gw_real: Sequence[Tensor], metric: Literal["ours", "mse", "cos"] = "ours"
) -> Tensor:
    """D between the gradients of all weights of a network, 0-d, differentiable in both.

    ``ours``: the sum over weight tensors of ``row_distance``; biases and the scales of norms, which have one dimension,
    contribute nothing. ``mse``: the sum of squared differences of all entries. ``cos``: one minus the cosine of all
    entries together.
    """
    if metric == "ours":
        pairs = zip(gw_syn, gw_real, strict=True)
        return torch.stack([row_distance(syn, real) for syn, real in pairs if syn.ndim > 1]).sum()
    syn, real = (torch.cat([gradient.flatten() for gradient in gw]) for gw in (gw_syn, gw_real))
    if metric == "mse":
        return F.mse_loss(syn, real, reduction="sum")
    return row_distance(syn[None], real[None])


def row_distance(syn: Tensor, real: Tensor) -> Tensor:
    """Σ over rows of 1 − cosine, 0-d. A row holds all weights of one output: (out, in, h, w) → (out, in·h·w)."""
    syn, real = syn.flatten(1), real.flatten(1)
    norms = torch.linalg.vector_norm(syn, dim=1) * torch.linalg.vector_norm(real, dim=1)
    return torch.sum(1 - (syn * real).sum(1) / (norms + EPS))


def matching_loss(
    network: Network, real: Tensor, synthetic: Tensor, c: int, metric: Literal["ours", "mse", "cos"] = "ours"
) -> Tensor:
    """D(∇θ of the mean cross entropy on synthetic images, the same on real ones), all of class ``c``; 0-d.

    Differentiable in the synthetic images (a second derivative); the real gradient is a constant.
    """
    labels = torch.full((len(real),), c, device=real.device)
    _, gw_real = loss_gradient(network, real, labels)
    labels = torch.full((len(synthetic),), c, device=synthetic.device)
    loss = F.cross_entropy(network(synthetic), labels)
    gw_syn = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    return gradient_distance(gw_syn, gw_real, metric)


def sum_over_chunks(loss: Callable[[int, Tensor], Tensor], images: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Σ_i loss(i, the i-th ``size`` of the images), detached and 0-d, and its gradient, shaped like ``images`` (n, …).

    Every chunk is differentiated before the next one is computed, so memory is that of one chunk.
    """
    losses: list[Tensor] = []
    gradients: list[Tensor] = []
    for i, chunk in enumerate(torch.split(images.detach(), size)):
        value = loss(i, chunk.requires_grad_())
        gradients += torch.autograd.grad(value, chunk)
        losses.append(value.detach())
    return torch.stack(losses).sum(), torch.cat(gradients)


def classes_together(network: Network, images: Tensor, ipc: int) -> int:
    """Number of classes whose synthetic ``images`` (n, C, H, W) pass through ``network`` together."""
    return max(1, chunk_size(network, images) // ipc)


def augment_alike(task: Task, real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
    """Siamese augmentation: one new operation of DSA with one draw of its parameters for all images of both batches."""
    op, draws = draw_dsa((real.shape[-2], real.shape[-1]), 1, task.generator, flip=task.flip)
    return apply_dsa(op, real, draws), apply_dsa(op, synthetic, draws)


def freeze_batch_norm(network: Network, task: Task, rows: Sequence[Tensor]) -> None:
    """Batch norm takes the statistics of real images of all classes, and keeps them until the network is trained.

    The statistics of one class alone would take away the differences between classes. ``rows``: the rows of every class
    in ``task.images``.
    Without batch norm nothing happens and nothing is drawn.
    """
    if layers := batch_norms(network):
        network.train()
        with torch.no_grad():
            network(torch.cat([task.draw(own, STATISTICS_IMAGES) for own in rows]))
        for layer in layers:
            layer.eval()
