"""Unrolled back-propagation: inner training through ``higher`` and rematerialised, outer loss, meta-gradients."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

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
            if rematerialize:
                learned = [images, labels] if soft else [images]
                final, losses = _unroll.unroll_rematerialised(
                    network,
                    _unroll.flatten(network),
                    lambda step, images, labels=hard: (images, labels),
                    steps,
                    learned,
                    lr,
                    momentum=momentum,
                    window=window,
                )
            else:
                final, losses = bptt.inner_training(
                    network, images, labels, lr, steps=steps, momentum=momentum, window=window
                )
            outer = bptt.outer_loss(network, final, case["in.x_real"], case["in.y_real"])
            gradients = torch.autograd.grad(outer, list(leaves.values()), materialize_grads=True)
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

_right = bptt.inner_training
_constant_steps = _unroll._constant_steps
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


def window_too_wide(steps: int, window: int | None) -> int:
    return max(_constant_steps(steps, window) - 1, 0)


def summed_outer_loss(network: Network, parameters: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    logits = torch.func.functional_call(network, _unroll.unflatten(network, parameters), (images,))
    return F.cross_entropy(logits, labels, reduction="sum")


def outer_loss_before_training(network: Network, parameters: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(network(images), labels) + 0 * parameters.sum()


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
    mistake(_unroll, "_constant_steps", window_too_wide),
    mistake(_unroll, "_initial", lambda start, momentum: (start.detach(),), "momentum_lost_in_recomputation"),
    mistake(bptt, "outer_loss", summed_outer_loss),
    mistake(bptt, "outer_loss", outer_loss_before_training),
]
