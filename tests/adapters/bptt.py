"""Unrolled back-propagation: inner training through ``higher`` and rematerialised, outer loss, meta-gradients."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.networks import Network
from methods import _unroll, bptt
from tests.adapters import KINK32, Adapter, Case, Mistake
from tests.adapters.networks import build, load_vico


def bptt_unrolled(case: Case) -> None:
    for variant in dict.fromkeys(name.rpartition(".")[0] for name in case.names("out.")):
        steps, momentum, soft, window = _settings(variant)
        hard = case["in.y_syn"]
        for rematerialize in (False, True):
            network = build(case, "convnet")
            load_vico(network, case)
            images, lr = case["in.x_syn"].requires_grad_(), case["in.lr"].requires_grad_()
            leaves = {"grad_x_syn": images, "grad_lr": lr}
            if soft:
                leaves["grad_y_syn_soft"] = case["in.y_syn_soft"].requires_grad_()
            labels = leaves.get("grad_y_syn_soft", hard)
            final, losses = bptt.inner_training(
                network,
                images,
                labels,
                lr,
                steps=steps,
                momentum=momentum,
                window=window,
                rematerialize=rematerialize,
            )
            outer, arriving = bptt.outer_gradient(network, final, case["in.x_real"], case["in.y_real"])
            gradients = torch.autograd.grad(final, list(leaves.values()), arriving, materialize_grads=True)
            found = {"outer_loss": outer, "inner_losses": losses, "final_flat": final}
            for name, actual in (found | dict(zip(leaves, gradients, strict=True))).items():
                case.check(f"out.{variant}.{name}", actual, f64=1e-11, f32=KINK32)


def _settings(variant: str) -> tuple[int, float, bool, int | None]:
    """Steps, momentum, soft labels, window."""

    def number(key: str) -> str | None:
        match = re.search(rf"(?:^|_){key}([\d.]+)", variant)
        return match[1] if match else None

    steps, momentum, window = number("T"), number("momentum"), number("window")
    assert steps, f"{variant} does not say its number of steps"
    return int(steps), float(momentum or 0), "soft" in variant, int(window) if window else None


ADAPTERS: dict[str, Adapter] = {"bptt_unrolled": bptt_unrolled}


# --- mistakes, planted

_right, _outer, _loss, _unrolled = bptt.inner_training, bptt.outer_gradient, _unroll.loss_gradient, bptt.unroll
Found = tuple[Tensor, Tensor]


def step_size_detached(network: Network, images: Tensor, labels: Tensor, lr: Tensor, **settings: Any) -> Found:
    return _right(network, images, labels, lr.detach(), **settings)


def images_detached(network: Network, images: Tensor, labels: Tensor, lr: Tensor, **settings: Any) -> Found:
    return _right(network, images.detach(), labels, lr, **settings)


def hard_for_soft_labels(network: Network, images: Tensor, labels: Tensor, lr: Tensor, **settings: Any) -> Found:
    return _right(network, images, labels.argmax(1) if labels.ndim == 2 else labels, lr, **settings)


def labels_detached(network: Network, images: Tensor, labels: Tensor, lr: Tensor, **settings: Any) -> Found:
    return _right(network, images, labels.detach(), lr, **settings)


def window_ignored(network: Network, images: Tensor, labels: Tensor, lr: Tensor, **settings: Any) -> Found:
    return _right(network, images, labels, lr, **{**settings, "window": None})


def only_the_last_step(network: Network, images: Tensor, labels: Tensor, lr: Tensor, **settings: Any) -> Found:
    return _right(network, images, labels, lr, **{**settings, "window": 1})


def one_step_too_many(network: Network, images: Tensor, labels: Tensor, lr: Tensor, **settings: Any) -> Found:
    return _right(network, images, labels, lr, **{**settings, "steps": settings["steps"] + 1})


def momentum_lost(network: Network, images: Tensor, labels: Tensor, lr: Tensor, **settings: Any) -> Found:
    return _right(network, images, labels, lr, **{**settings, "momentum": 0.0})


def sgd_with(**changes: Any) -> Callable[..., torch.optim.Optimizer]:
    right = torch.optim.SGD
    return lambda parameters, lr, momentum: right(parameters, lr, momentum, **(changes if momentum else {}))


def window_too_wide(*arguments: Any, window: int | None, **settings: Any) -> Found:
    return _unrolled(*arguments, window=window and window + 1, **settings)


def momentum_lost_in_recomputation(*arguments: Any, momentum: float, **settings: Any) -> Found:
    return _unrolled(*arguments, **settings)


def summed_outer_loss(network: Network, images: Tensor, labels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    loss, gradients = _loss(network, images, labels)
    return loss * len(labels), tuple(gradient * len(labels) for gradient in gradients)


def outer_loss_before_training(network: Network, parameters: Tensor, images: Tensor, labels: Tensor) -> Found:
    return _outer(network, bptt.flatten(network.parameters()).detach(), images, labels)


def mistake(module: object, attribute: str, wrong: Callable[..., Any], name: str | None = None) -> Mistake:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, attribute, wrong)

    return Mistake(f"bptt_{name or wrong.__name__}", "bptt_unrolled.npz", patch)


MISTAKES = [
    *(
        mistake(bptt, "inner_training", wrong)
        for wrong in (
            step_size_detached,
            images_detached,
            hard_for_soft_labels,
            labels_detached,
            window_ignored,
            only_the_last_step,
            one_step_too_many,
            momentum_lost,
        )
    ),
    mistake(torch.optim, "SGD", sgd_with(nesterov=True), "momentum_applied_twice"),
    mistake(torch.optim, "SGD", sgd_with(dampening=0.1), "momentum_dampened"),
    mistake(bptt, "unroll", window_too_wide),
    mistake(bptt, "unroll", momentum_lost_in_recomputation),
    mistake(_unroll, "loss_gradient", summed_outer_loss),
    mistake(bptt, "outer_gradient", outer_loss_before_training),
]
