"""Trajectory matching: minibatches, the student's steps, the matching loss and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods import _unroll, mtt
from tests.adapters import KINK32, Adapter, Case, Mistake
from tests.adapters.networks import build


def mtt_loss(case: Case) -> None:
    cfg: dict[str, Any] = case.cfg
    network = build(case, "convnet")
    assert [list(parameter.shape) for parameter in network.parameters()] == [shape for _, shape in cfg["param_order"]]
    images, lr = case["in.x_syn"].requires_grad_(), case["in.syn_lr"].requires_grad_()
    labels, start, target = case["in.y_syn"], case["in.start_flat"], case["in.target_flat"]

    generator = torch.Generator().manual_seed(cfg["perm_seed"])
    indices = _unroll.minibatches(len(images), cfg["batch_syn"], cfg["syn_steps"], generator)
    for step, index in enumerate(indices):
        case.check(f"out.indices.step{step}", index, f64=0, f32=0)

    def batch(step: int, images: Tensor) -> tuple[Tensor, Tensor]:
        return images[indices[step]], labels[indices[step]]

    first, _ = _unroll.unroll(network, start, batch, 1, [images], lr)
    final, _ = _unroll.unroll(network, start, batch, len(indices), [images], lr)
    loss = mtt.matching_loss(final, start, target)
    gradients = torch.autograd.grad(loss, [images, lr], materialize_grads=True)
    found = {"step1_flat": first, "final_flat": final, "loss": loss}
    for name, actual in (found | dict(zip(["grad_x_syn", "grad_syn_lr"], gradients, strict=True))).items():
        case.check(f"out.{name}", actual, f64=1e-11, f32=KINK32)


ADAPTERS: dict[str, Adapter] = {"mtt_loss": mtt_loss}


# --- mistakes, planted

Batch = Callable[..., tuple[Tensor, Tensor]]
Learned = Sequence[Tensor]
Found = tuple[Tensor, Tensor]
_right = _unroll.unroll


def inner_momentum(network: nn.Module, start: Tensor, batch: Batch, steps: int, learned: Learned, lr: Tensor) -> Found:
    return _right(network, start, batch, steps, learned, lr, momentum=0.5)


def step_size_detached(
    network: nn.Module, start: Tensor, batch: Batch, steps: int, learned: Learned, lr: Tensor
) -> Found:
    return _right(network, start, batch, steps, learned, lr.detach())


def images_detached(network: nn.Module, start: Tensor, batch: Batch, steps: int, learned: Learned, lr: Tensor) -> Found:
    return _right(network, start, batch, steps, [tensor.detach() for tensor in learned], lr)


def graph_cut_between_steps(
    network: nn.Module, start: Tensor, batch: Batch, steps: int, learned: Learned, lr: Tensor
) -> Found:
    """Right in its values, but the gradient sees the last step only."""
    return _right(network, start, batch, steps, learned, lr, window=1)


def sorted_by_name(network: nn.Module, flat: Tensor) -> dict[str, Tensor]:
    shapes = {name: parameter.shape for name, parameter in sorted(network.named_parameters())}
    parts = torch.split(flat, [shape.numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def short_chunk_last(count: int, batch_size: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    return list(torch.split(torch.randperm(count, generator=generator), batch_size))[:steps]


def new_permutation_each_step(count: int, batch_size: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    return [torch.randperm(count, generator=generator)[:batch_size] for _ in range(steps)]


def not_normalised(student: Tensor, start: Tensor, target: Tensor) -> Tensor:
    return (student - target).square().sum()


def normalised_by_the_students_way(student: Tensor, start: Tensor, target: Tensor) -> Tensor:
    return (student - target).square().sum() / (start - student).square().sum()


def mean_over_sum(student: Tensor, start: Tensor, target: Tensor) -> Tensor:
    return (student - target).square().mean() / (start - target).square().sum()


def not_squared(student: Tensor, start: Tensor, target: Tensor) -> Tensor:
    return not_normalised(student, start, target).sqrt() / not_normalised(start, start, target).sqrt()


def mistake(module: object, attribute: str, wrong: Callable[..., Any], file: str = "mtt_loss_in_d2.npz") -> Mistake:
    return Mistake(wrong.__name__, file, lambda monkeypatch: monkeypatch.setattr(module, attribute, wrong))


MISTAKES = [
    Mistake(
        "summed_cross_entropy",
        "mtt_loss_in_d2.npz",
        lambda monkeypatch: monkeypatch.setattr(F, "cross_entropy", partial(F.cross_entropy, reduction="sum")),
    ),
    mistake(_unroll, "unroll", inner_momentum),
    mistake(_unroll, "unroll", step_size_detached),
    mistake(_unroll, "unroll", images_detached),
    mistake(_unroll, "unroll", graph_cut_between_steps),
    mistake(_unroll, "unflatten", sorted_by_name),
    mistake(_unroll, "minibatches", short_chunk_last, "mtt_loss_in_d2_mb.npz"),
    mistake(_unroll, "minibatches", new_permutation_each_step, "mtt_loss_in_d2_mb.npz"),
    mistake(mtt, "matching_loss", not_normalised),
    mistake(mtt, "matching_loss", normalised_by_the_students_way),
    mistake(mtt, "matching_loss", mean_over_sum),
    mistake(mtt, "matching_loss", not_squared),
]
