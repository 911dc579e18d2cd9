"""Soft labels: those of one expert and of several, and the student's step sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import protocols, training
from methods import soft_labels
from tests.adapters import FORWARD32, Adapter, Case, Mistake
from tests.adapters.networks import build, vico_name


def labels(case: Case) -> None:
    case.cfg["H"] = case.cfg["size"]
    network = build(case, "convnet", norm="instance" if "in.expert0.features.1.weight" in case else "none")
    experts = sorted({int(name.partition(".")[0]) for name in case.names("in.expert")})
    names = [vico_name(name) for name, _ in network.named_parameters()]
    logits = []
    for expert in experts:
        parameters = torch.cat([case[f"in.expert{expert}.{name}"].flatten() for name in names])
        logits.append(soft_labels.logits_of(network, parameters, case["in.images"]))
    temp = case.cfg["temp"]
    for name in case.names("out.labels_expert"):
        own = soft_labels.labels_of([logits[int(name)]], temp)
        case.check(f"out.labels_expert{name}", own, f64=1e-12, f32=FORWARD32)
    case.check("out.labels_ensemble", soft_labels.labels_of(logits, temp), f64=1e-12, f32=FORWARD32)
    for name in case.names("out.student_lr_E"):
        recipe, expected = protocols.soft_labels_recipe(int(name)), case[f"out.student_lr_E{name}"]
        epochs = case["in.student_epochs"].tolist()
        # An epoch is a step; the file says with which step size epoch 0 begins.
        rates = [training.dropped(epoch, float(expected[0]), recipe.drop_after, recipe.drop_factor) for epoch in epochs]
        case.check(f"out.student_lr_E{name}", torch.tensor(rates, dtype=case.dtype), f64=1e-12, f32=1e-5)


ADAPTERS: dict[str, Adapter] = {"soft_labels": labels}


# --- mistakes, planted

FILE = "soft_labels.npz"
_recipe = protocols.soft_labels_recipe


def mean_of_probabilities(logits: Sequence[Tensor], temp: float) -> Tensor:
    return torch.stack([(temp * own).softmax(1) for own in logits]).mean(0)


def sum_of_logits(logits: Sequence[Tensor], temp: float) -> Tensor:
    return (temp * torch.stack(list(logits)).sum(0)).softmax(1)


def first_expert_alone(logits: Sequence[Tensor], temp: float) -> Tensor:
    return (temp * logits[0]).softmax(1)


def softmax_over_images(logits: Sequence[Tensor], temp: float) -> Tensor:
    return (temp * torch.stack(list(logits)).mean(0)).softmax(0)


def an_epoch_late(step: int, lr: float, every: int, factor: float) -> float:
    return lr * factor ** (max(step - 1, 0) // every)


def a_single_drop(step: int, lr: float, every: int, factor: float) -> float:
    return lr * factor ** (step >= every)


def by_ten(epochs: int) -> protocols.Recipe:
    return replace(_recipe(epochs), drop_factor=0.1)


def every_third(epochs: int) -> protocols.Recipe:
    return replace(_recipe(epochs), drop_after=epochs // 3)


def mistake(module: object, attribute: str, wrong: Callable[..., Any]) -> Mistake:
    return Mistake(wrong.__name__, FILE, lambda monkeypatch: monkeypatch.setattr(module, attribute, wrong))


MISTAKES = [
    mistake(soft_labels, "labels_of", mean_of_probabilities),
    mistake(soft_labels, "labels_of", sum_of_logits),
    mistake(soft_labels, "labels_of", first_expert_alone),
    mistake(soft_labels, "labels_of", softmax_over_images),
    mistake(training, "dropped", an_epoch_late),
    mistake(training, "dropped", a_single_drop),
    mistake(protocols, "soft_labels_recipe", by_ten),
    mistake(protocols, "soft_labels_recipe", every_third),
]
