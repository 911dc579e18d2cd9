"""The one loop that trains a network by a recipe, and what a trained network predicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.augment import dsa, frepo_augment
from benchmarks.networks import Network
from benchmarks.protocols import Recipe


def train(
    network: Network,
    images: Tensor,
    labels: Tensor,
    label_space: Literal["probability", "centred"],
    recipe: Recipe,
    *,
    flip: bool,
    generator: torch.Generator,
    lr: Tensor | None = None,
    max_steps: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train ``network`` in place on images (n, C, H, W) and labels (n, num_classes), or (n,) class indices.

    ``flip``: whether the augmentation may mirror images. ``generator``: a CPU generator, from which order and
    augmentation are drawn. ``lr``: the step size learned with the set (its mean, where there is one per step), for
    recipes that use it. ``max_steps`` shortens the recipe with its schedule: warm-up and drop shrink in proportion.
    ``progress(done, steps)`` is called after every step. Does not synchronise the device between steps.
    """
    network.train()
    targets = _targets(labels, label_space, recipe.loss, network.head.out_features)
    full = recipe.steps(len(images))
    steps = full if max_steps is None else min(max_steps, full)
    per_epoch = recipe.steps_per_epoch(len(images))
    warmup = recipe.warmup_steps * steps // full
    drop = round(recipe.drop_after * per_epoch * steps / full)

    rate = float(lr.detach().mean()) if recipe.learned_lr and lr is not None else recipe.lr
    parameters = list(network.parameters())
    optimiser = _optimiser(recipe, parameters, rate)
    average = None if recipe.ema is None else Average(parameters, recipe.ema)
    batches = _batches(len(images), recipe, generator)
    for step in range(steps):
        if recipe.schedule == "drop_once" and step == drop:
            optimiser = _optimiser(recipe, parameters, rate / 10)
        elif recipe.schedule == "warmup_cosine":
            optimiser.param_groups[0]["lr"] = warmup_cosine(step, steps, rate, warmup, recipe.final_lr)
        index = next(batches).to(images.device, non_blocking=True)
        batch = images[index]
        if recipe.augment == "dsa":
            batch = dsa(batch, generator, flip=flip)
        elif recipe.augment == "frepo":
            batch = frepo_augment(batch, generator, flip=flip)
        loss = LOSSES[recipe.loss](network(batch), targets[index])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if average is not None:
            average.update(parameters)
        if progress is not None:
            progress(step + 1, steps)
    if average is not None:
        with torch.no_grad():
            for parameter, value in zip(parameters, average.values(), strict=True):
                parameter.copy_(value)


@torch.no_grad()
def predict(network: Network, images: Tensor, batch_size: int = 256) -> Tensor:
    """Logits (n, num_classes) of ``network`` in evaluation mode, in which it is left."""
    network.eval()
    return torch.cat([network(batch) for batch in torch.split(images, batch_size)])


def accuracy(network: Network, images: Tensor, labels: Tensor) -> float:
    """Fraction of ``images`` whose largest logit is at the class index in ``labels`` (n,)."""
    return float((predict(network, images).argmax(1) == labels).double().mean())


def warmup_cosine(step: int, steps: int, lr: float, warmup: int, final: float) -> float:
    """The rate of update ``step`` of ``steps``, counted from 0: linear from 0, then a cosine from ``lr`` to final·lr.

    FRePo's evaluation has 500 steps of warm-up and ends at 1 %.
    """
    if step < warmup:
        return lr * step / warmup
    done = min((step - warmup) / (steps - warmup), 1.0)
    return lr * ((1 - final) * (1 + math.cos(math.pi * done)) / 2 + final)


def half_squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the batch of ½ Σ_c (logit − label)²."""
    return (logits - labels).square().sum(1).mean() / 2


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": F.cross_entropy, "mse": half_squared_error}


class Average:
    """Exponential moving average of tensors, started at 0 and corrected for it."""

    def __init__(self, tensors: Iterable[Tensor], decay: float) -> None:
        self.decay = decay
        self.count = 0
        self.hidden = [torch.zeros_like(tensor, requires_grad=False) for tensor in tensors]

    @torch.no_grad()
    def update(self, tensors: Iterable[Tensor]) -> None:
        self.count += 1
        for hidden, tensor in zip(self.hidden, tensors, strict=True):
            hidden.lerp_(tensor, 1 - self.decay)

    def values(self) -> list[Tensor]:
        return [hidden / (1 - self.decay**self.count) for hidden in self.hidden]


def _targets(labels: Tensor, label_space: str, loss: str, num_classes: int) -> Tensor:
    """Labels as ``loss`` takes them: centred ones lose their margins under cross entropy, which wants probabilities."""
    if loss == "cross_entropy":
        return labels.argmax(1) if labels.ndim == 2 and label_space == "centred" else labels
    if labels.ndim == 1:
        labels, label_space = F.one_hot(labels, num_classes), "probability"
    return labels - 1 / num_classes if label_space == "probability" else labels


def _batches(images: int, recipe: Recipe, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of batch after batch, without end; the last batch of an epoch may be short."""
    while True:
        order = torch.randperm(images, generator=generator) if recipe.shuffle else torch.arange(images)
        yield from torch.split(order, recipe.batch_size)


def _optimiser(recipe: Recipe, parameters: list[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
    if recipe.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, lr=lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
