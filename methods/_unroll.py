"""Training a network by gradient descent as a differentiable function of its data and its step size.

The inner loop of trajectory matching and of unrolled back-propagation. Reverse mode over reverse mode
(``autograd.grad`` with ``create_graph``): nested ``torch.func.grad`` needs more than twice the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
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


Loss = Callable[[Tensor, Tensor], Tensor]
State = tuple[Tensor, ...]
"""Of the descent: parameters (P,), and with momentum the velocity (P,)."""


def unroll(
    network: nn.Module,
    start: Tensor,
    batches: Iterable[tuple[Tensor, Tensor]],
    lr: Tensor,
    *,
    momentum: float = 0.0,
    loss: Loss = F.cross_entropy,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient descent from the parameters ``start`` (P,), one step for each of ``batches`` (images, labels).

    v ← momentum·v + ∇loss(network(images; w), labels), w ← w − lr·v. ``lr`` is 0-d, or (steps,) for one step size each.
    Returns the final parameters (P,), differentiable in images, labels and ``lr`` through the last ``window`` steps
    (None: through every step), and the inner losses (steps,), detached. ``start`` is a constant; neither ``network``
    nor its running statistics change.
    """
    batches = list(batches)
    constant = _constant_steps(len(batches), window)
    state, losses = _initial(start, momentum), []
    for step, batch in enumerate(batches):
        state, inner = _step(network, state, batch, _rate(lr, step), momentum, loss, create_graph=step >= constant)
        losses.append(inner)
    return state[0], torch.stack(losses)


def unroll_rematerialised(
    network: nn.Module,
    start: Tensor,
    batch: Callable[..., tuple[Tensor, Tensor]],
    steps: int,
    learned: Sequence[Tensor],
    lr: Tensor,
    *,
    momentum: float = 0.0,
    loss: Loss = F.cross_entropy,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``unroll`` with the activations of one step at a time: the same values and the same gradient.

    Reverse mode with recomputation. The way there builds no graph, and keeps the state before every step on the host:
    4 bytes per parameter and step in float32, with momentum 8. The way back runs every step once more, and takes the
    product of its Jacobian with the gradient that has arrived: about one more forward and backward pass for each step.

    ``batch(step, *learned)`` makes the images and labels of a step out of the tensors ``learned``. It is called twice
    for every step and must give the same both times, so what it draws is drawn before. Returns what ``unroll`` returns,
    differentiable once in ``learned`` and ``lr``.
    """

    def step(
        index: int, state: State, lr: Tensor, learned: Sequence[Tensor], *, create_graph: bool
    ) -> tuple[State, Tensor]:
        return _step(
            network, state, batch(index, *learned), _rate(lr, index), momentum, loss, create_graph=create_graph
        )

    found: tuple[Tensor, Tensor] = _Rematerialised.apply(  # type: ignore[no-untyped-call]
        step, _initial(start, momentum), _constant_steps(steps, window), steps, lr, *learned
    )
    return found


def _initial(start: Tensor, momentum: float) -> State:
    return (start.detach(), torch.zeros_like(start)) if momentum else (start.detach(),)


def _constant_steps(steps: int, window: int | None) -> int:
    """How many steps come before the last ``window``."""
    return 0 if window is None else max(steps - window, 0)


def _rate(lr: Tensor, step: int) -> Tensor:
    return lr[step] if lr.ndim else lr


def _step(
    network: nn.Module,
    state: State,
    batch: tuple[Tensor, Tensor],
    lr: Tensor,
    momentum: float,
    loss: Loss,
    *,
    create_graph: bool,
) -> tuple[State, Tensor]:
    """One step of the descent: the new state, a constant without ``create_graph``; and the loss before it, detached."""
    (images, labels), (parameters, *velocity) = batch, state
    with torch.enable_grad():
        if not parameters.requires_grad:
            parameters = parameters.detach().requires_grad_()
        # Batch normalisation writes its running statistics in place, and the graph of every step keeps its own.
        statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
        inner = loss(functional_call(network, unflatten(network, parameters) | statistics, (images,)), labels)
    (gradient,) = torch.autograd.grad(inner, parameters, create_graph=create_graph)
    with torch.set_grad_enabled(create_graph):
        change = momentum * velocity[0] + gradient if velocity else gradient
        parameters = parameters - lr * change
    return ((parameters, change) if velocity else (parameters,)), inner.detach()


class _Rematerialised(torch.autograd.Function):
    """From learned tensors to final parameters; keeps states instead of a graph."""

    @staticmethod
    def forward(
        ctx: Any, step: Callable[..., tuple[State, Tensor]], state: State, constant: int, steps: int, *leaves: Tensor
    ) -> tuple[Tensor, Tensor]:
        lr, *learned = (leaf.detach() for leaf in leaves)
        kept, losses = [], []
        for index in range(steps):
            if index >= constant:
                # Pinned where there is a device, so that neither way waits for it; on a CPU this copies nothing.
                kept.append([tensor.to("cpu", non_blocking=True) for tensor in state])
            state, inner = step(index, state, lr, learned, create_graph=False)
            losses.append(inner)
        ctx.step, ctx.kept, ctx.constant = step, kept, constant
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
        adjoints = [gradient, torch.zeros_like(gradient)][: len(ctx.kept[-1])]  # of parameters and velocity
        for index in reversed(range(len(ctx.kept))):
            before = [t.to(gradient.device, non_blocking=True).detach().requires_grad_() for t in ctx.kept[index]]
            with torch.enable_grad():
                after, _ = ctx.step(ctx.constant + index, tuple(before), leaves[0], leaves[1:], create_graph=True)
            found = torch.autograd.grad(after, [*before, *wanted], adjoints, materialize_grads=True)
            adjoints = list(found[: len(before)])
            for total, part in zip(totals, found[len(before) :], strict=True):
                total += part
        rest = iter(totals)
        return (None, None, None, None, *(next(rest) if need else None for need in needed))
