"""Training a network by gradient descent as a differentiable function of its data and its step size.

The inner loop of trajectory matching and of unrolled back-propagation. Reverse mode over reverse mode
(``autograd.grad`` with ``create_graph``): nested ``torch.func.grad`` needs more than twice the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


def flatten(network: nn.Module) -> Tensor:
    """The parameters of ``network`` as one vector (P,), a copy, in the order of ``network.parameters()``."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])


def unflatten(network: nn.Module, flat: Tensor) -> dict[str, Tensor]:
    """The vector ``flat`` (P,) as named parameters of ``network``: views, through which gradients flow."""
    named = dict(network.named_parameters())
    parts = torch.split(flat, [parameter.numel() for parameter in named.values()])
    return {name: part.view_as(named[name]) for name, part in zip(named, parts, strict=True)}


def minibatches(count: int, batch_size: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    """Which of ``count`` images each of ``steps`` inner steps sees: index tensors on the CPU.

    A permutation is cut into chunks of ``batch_size``, which are consumed from the last (the short one) to the first;
    then a new one is drawn.
    """
    batches: list[Tensor] = []
    while len(batches) < steps:
        batches += reversed(torch.split(torch.randperm(count, generator=generator), batch_size))
    return batches[:steps]


def unroll(
    network: nn.Module,
    start: Tensor,
    batches: Iterable[tuple[Tensor, Tensor]],
    lr: Tensor,
    *,
    momentum: float = 0.0,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> tuple[Tensor, Tensor]:
    """Gradient descent from the parameters ``start`` (P,), one step for each of ``batches`` (images, labels).

    v ← momentum·v + ∇loss(network(images; w), labels), w ← w − lr·v. ``lr`` is 0-d, or (steps,) for one step size each.
    Returns the final parameters (P,), differentiable in images, labels and ``lr`` through every step, and the inner
    losses (steps,), detached. ``start`` is a constant; neither ``network`` nor its running statistics change.
    """
    parameters = start.detach().requires_grad_()
    velocity: Tensor | None = None
    losses = []
    for step, (images, labels) in enumerate(batches):
        # Batch normalisation writes its running statistics in place, and the graph of every step keeps its own.
        statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
        logits = functional_call(network, unflatten(network, parameters) | statistics, (images,))
        inner = loss(logits, labels)
        (gradient,) = torch.autograd.grad(inner, parameters, create_graph=True)
        velocity = gradient if velocity is None else momentum * velocity + gradient
        parameters = parameters - (lr[step] if lr.ndim else lr) * velocity
        losses.append(inner.detach())
    return parameters, torch.stack(losses)
