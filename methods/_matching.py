"""Matching real and synthetic images class by class: what DC, DSA and DM share.

The gradient distance and the loop lengths are those of Zhao, Mopuri, Bilen, "Dataset Condensation with Gradient
Matching", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.augment import apply_dsa, draw_dsa
from benchmarks.networks import BatchNorm, Network
from benchmarks.task import Task

EPS = 1e-6
"""Added to the product of the norms in a cosine; rows of a gradient can be that small."""
STATISTICS_IMAGES = 16
"""Real images per class from which batch norm takes its statistics before a gradient is matched."""
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""ipc → (outer_loop, inner_loop), as published."""


def loops(ipc: int) -> tuple[int, int]:
    """(outer_loop, inner_loop) for ``ipc``: those of the next larger published ipc, above 50 those of 50."""
    return LOOPS[min((published for published in LOOPS if published >= ipc), default=max(LOOPS))]


def gradient_distance(
    gw_syn: Sequence[Tensor], gw_real: Sequence[Tensor], metric: Literal["ours", "mse", "cos"] = "ours"
) -> Tensor:
    """D between the gradients of all weights of a network, 0-d, differentiable in both.

    ``ours``: the sum over weight tensors of ``row_distance``; biases and the scales of norms,
    which have one dimension, contribute nothing. ``mse``: the sum of squared differences of all entries. ``cos``: one
    minus one cosine of all entries.
    """
    if metric == "ours":
        pairs = zip(gw_syn, gw_real, strict=True)
        return torch.stack([row_distance(syn, real) for syn, real in pairs if syn.ndim > 1]).sum()
    syn, real = (torch.cat([gradient.flatten() for gradient in gw]) for gw in (gw_syn, gw_real))
    if metric == "mse":
        return F.mse_loss(syn, real, reduction="sum")
    return row_distance(syn[None], real[None])


def row_distance(syn: Tensor, real: Tensor) -> Tensor:
    """Σ over rows of 1 − cosine, 0-d. A row is all that leads to one output: (out, in, h, w) → (out, in·h·w)."""
    syn, real = syn.flatten(1), real.flatten(1)
    norms = torch.linalg.vector_norm(syn, dim=1) * torch.linalg.vector_norm(real, dim=1)
    return torch.sum(1 - (syn * real).sum(1) / (norms + EPS))


def matching_loss(
    network: Network, real: Tensor, synthetic: Tensor, c: int, metric: Literal["ours", "mse", "cos"] = "ours"
) -> Tensor:
    """D(∇θ of the mean cross entropy on synthetic images, the same on real ones), all of class ``c``; 0-d.

    Differentiable in the synthetic images (a second derivative); the real gradient is a constant.
    """
    parameters = list(network.parameters())

    def gradient(images: Tensor, create_graph: bool) -> tuple[Tensor, ...]:
        labels = torch.full((len(images),), c, device=images.device)
        loss = F.cross_entropy(network(images), labels)
        return torch.autograd.grad(loss, parameters, create_graph=create_graph)

    gw_real = gradient(real, create_graph=False)
    return gradient_distance(gradient(synthetic, create_graph=True), gw_real, metric)


def sum_over_chunks(loss: Callable[[int, Tensor], Tensor], images: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Σ_i loss(i, the i-th ``size`` of the images), detached and 0-d, and its gradient, shaped like ``images`` (n, …).

    Every chunk is differentiated before the next one is looked at: memory is that of one.
    """
    losses: list[Tensor] = []
    gradients: list[Tensor] = []
    for i, chunk in enumerate(torch.split(images.detach(), size)):
        value = loss(i, chunk.requires_grad_())
        gradients += torch.autograd.grad(value, chunk)
        losses.append(value.detach())
    return torch.stack(losses).sum(), torch.cat(gradients)


def augment_alike(task: Task, real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
    """Siamese augmentation: one new operation of DSA with one draw of its parameters for all images of both batches."""
    op, draws = draw_dsa((real.shape[-2], real.shape[-1]), 1, task.generator, flip=task.flip)
    return apply_dsa(op, real, draws), apply_dsa(op, synthetic, draws)


def batch_norms(network: Network) -> list[nn.Module]:
    """The layers of ``network`` in which the images of a batch see each other."""
    return [module for module in network.modules() if isinstance(module, BatchNorm | nn.BatchNorm2d)]


def freeze_batch_norm(network: Network, task: Task, rows: Sequence[Tensor]) -> None:
    """Batch norm takes the statistics of real images of all classes, and keeps them until the network is trained.

    Images of one class alone would lose what tells classes apart. ``rows``: those of every class in ``task.images``.
    Without batch norm nothing happens and nothing is drawn.
    """
    if layers := batch_norms(network):
        network.train()
        with torch.no_grad():
            network(torch.cat([task.draw(own, STATISTICS_IMAGES) for own in rows]))
        for layer in layers:
            layer.eval()
