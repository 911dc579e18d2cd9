"""Training a network by gradient descent as a differentiable function of its data and its step size.

The student of trajectory matching, and the inner training of unrolled back-propagation. Reverse mode over reverse mode
(``autograd.grad`` with ``create_graph``): nested ``torch.func.grad`` needs more than twice the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.networks import Network
from benchmarks.training import loss_gradient

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""Adam's constants, as torch has them."""

AdamForm = Literal["exact", "faithful"]
"""Forms of a differentiated step of Adam, which differ in what EPS is added to. ``exact``: torch's, to the root of the
bias-corrected second moment. ``faithful``: that of ``higher`` 0.2.1, with which published sets were made, to the root
of the second moment as it is. Steps before the window are torch's in both."""
State = tuple[Tensor, ...]
"""State of the descent: parameters (P,); with momentum the velocity (P,), with Adam both moments (P,)."""
Step = Callable[[int, State, Tensor, Sequence[Tensor], bool], tuple[State, Tensor]]
"""(step, state before it, lr, learned tensors, whether to build a graph) → state after it, loss before it."""


def flatten(parameters: Iterable[Tensor]) -> Tensor:
    """The tensors ``parameters`` as one vector (P,), a copy, through which gradients flow."""
    return torch.cat([parameter.reshape(-1) for parameter in parameters])


def unflatten(network: nn.Module, flat: Tensor) -> dict[str, Tensor]:
    """The vector ``flat`` (P,) as named parameters of ``network``: views, through which gradients flow."""
    named = dict(network.named_parameters())
    parts = torch.split(flat, [parameter.numel() for parameter in named.values()])
    return {name: part.view_as(named[name]) for name, part in zip(named, parts, strict=True)}


def minibatches(count: int, batch_size: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    """Indices (on the CPU) of the images, out of ``count``, that each of ``steps`` inner steps sees.

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
    batch: Callable[..., tuple[Tensor, Tensor]],
    steps: int,
    learned: Sequence[Tensor],
    lr: Tensor,
    *,
    momentum: float = 0.0,
    adam: AdamForm | None = None,
    window: int | None = None,
    rematerialize: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradient descent from the parameters ``start`` (P,): v ← momentum·v + ∇loss(w), w ← w − lr·v; or Adam.

    The loss is the mean cross entropy on ``batch(step, *learned)``, the images and labels of a step as made out of the
    tensors ``learned``. ``lr`` is 0-d, or (steps,) for a step size per step.
    Returns the final parameters (P,), differentiable in ``learned`` and ``lr`` through the last ``window`` steps
    (None: through every step), and the inner losses (steps,), detached. ``start`` is a constant, and so is the state
    where the window begins, moments included; neither ``network`` nor its running statistics change.

    ``rematerialize``: the same values and the same gradient (once differentiable) in the activations of one step. The
    way there builds no graph, and keeps the state before every step of the window on the host: 4 bytes per parameter
    and step in float32, with momentum 8, with Adam 12. The way back runs every step once more, and takes the product of
    its Jacobian with the gradient that has arrived: about one more forward and backward pass for each step. ``batch``
    is called twice for every step and must give the same both times, so its random numbers are drawn before.
    """
    constant = 0 if window is None else max(steps - window, 0)  # steps before the window
    moments = 2 if adam else 1 if momentum else 0
    state: State = (start.detach(), *(torch.zeros_like(start) for _ in range(moments)))

    def descend(
        index: int, state: State, lr: Tensor, learned: Sequence[Tensor], create_graph: bool
    ) -> tuple[State, Tensor]:
        (images, labels), (parameters, *moments) = batch(index, *learned), state
        with torch.enable_grad():
            if not parameters.requires_grad:
                parameters = parameters.detach().requires_grad_()
            # Batch normalisation writes its running statistics in place, and the graph of every step keeps its own.
            statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
            logits = functional_call(network, unflatten(network, parameters) | statistics, (images,))
            loss = F.cross_entropy(logits, labels)
        (gradient,) = torch.autograd.grad(loss, parameters, create_graph=create_graph)
        with torch.set_grad_enabled(create_graph):
            rate = lr[index] if lr.ndim else lr
            if adam:
                form = adam if index >= constant else "exact"
                change, *moments = adam_step(index + 1, gradient, *moments, form=form)
            else:
                change = momentum * moments[0] + gradient if moments else gradient
                moments = [change for _ in moments]
            parameters = parameters - rate * change
        return (parameters, *moments), loss.detach()

    if rematerialize:
        final, losses = _Rematerialised.apply(descend, state, constant, steps, lr, *learned)  # type: ignore[no-untyped-call]
        return final, losses
    losses = []
    for index in range(steps):
        state, loss = descend(index, state, lr, learned, index >= constant)
        losses.append(loss)
    return state[0], torch.stack(losses)


def adam_step(count: int, gradient: Tensor, mean: Tensor, square: Tensor, *, form: AdamForm) -> State:
    """Direction of Adam's update number ``count``, from 1, and both moments after it; (P,) each, differentiable.

    Where the second moment is exactly 0, as in a unit that is dead, nothing passes through its root.
    """
    mean = BETA1 * mean + (1 - BETA1) * gradient
    square = BETA2 * square + (1 - BETA2) * gradient.square()
    alive = square > 0
    root = torch.where(alive, square, 1).sqrt() * alive
    first, second = 1 - BETA1**count, math.sqrt(1 - BETA2**count)
    if form == "faithful":
        return second / first * mean / (root + EPS), mean, square
    return mean / first / (root / second + EPS), mean, square


def outer_gradient(network: Network, parameters: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy on real data, 0-d, and its gradient (P,) at the final ``parameters`` (P,); both are constants.

    ``network`` takes on the parameters: with views of a vector in their place it is slower.
    """
    with torch.no_grad():
        for own, trained in zip(network.parameters(), unflatten(network, parameters).values(), strict=True):
            own.copy_(trained)
    loss, gradients = loss_gradient(network, images, labels)
    return loss, flatten(gradients)


class _Rematerialised(torch.autograd.Function):
    """From learned tensors to final parameters; keeps states instead of a graph."""

    @staticmethod
    def forward(ctx: Any, descend: Step, state: State, constant: int, steps: int, *leaves: Tensor) -> State:
        lr, *learned = (leaf.detach() for leaf in leaves)
        kept, losses = [], []
        for index in range(steps):
            if index >= constant:
                # Pinned where there is a device, so that neither way waits for it; on a CPU this copies nothing.
                kept.append([tensor.to("cpu", non_blocking=True) for tensor in state])
            state, loss = descend(index, state, lr, learned, False)
            losses.append(loss)
        ctx.descend, ctx.kept, ctx.constant = descend, kept, constant
        ctx.save_for_backward(*leaves)
        stacked = torch.stack(losses)
        ctx.mark_non_differentiable(stacked)
        return state[0], stacked

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[4:]
        leaves = [leaf.detach().requires_grad_(need) for leaf, need in zip(ctx.saved_tensors, needed, strict=True)]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        totals = [torch.zeros_like(leaf) for leaf in wanted]
        adjoints = [gradient, *(torch.zeros_like(gradient) for _ in ctx.kept[-1][1:])]  # of parameters and moments
        for index in reversed(range(len(ctx.kept))):
            before = [t.to(gradient.device, non_blocking=True).detach().requires_grad_() for t in ctx.kept[index]]
            with torch.enable_grad():
                after, _ = ctx.descend(ctx.constant + index, tuple(before), leaves[0], leaves[1:], True)
            gradients = torch.autograd.grad(after, [*before, *wanted], adjoints, materialize_grads=True)
            adjoints = list(gradients[: len(before)])
            for total, part in zip(totals, gradients[len(before) :], strict=True):
                total += part
        remaining = iter(totals)
        return (None, None, None, None, *(next(remaining) if need else None for need in needed))
