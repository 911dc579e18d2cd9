"""Herding: real images whose mean features come closest to the mean of their class, chosen one after another.

Welling, "Herding Dynamical Weights to Learn", ICML 2009. The greedy rule is that of Rebuffi, Kolesnikov, Sperl and
Lampert, "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017, algorithm 4.

Differences from iCaRL: features are not brought to length one, and no image is chosen twice. As a baseline of dataset
distillation it has no official code. The training of its network is not published; the training here is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.protocols import Recipe
from benchmarks.training import features, train
from methods._selection import Selection
from methods.base import check_ranges


@dataclass(frozen=True)
class HerdingConfig:
    """The features to herd."""

    train_steps: int = 2000
    """Steps that the network is trained for on the real images before its features are taken; 0: the network is
    random."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range."""
        check_ranges(self, from_zero=("train_steps",))


def herd(features: Tensor, count: int) -> Tensor:
    """Rows (count,) of ``features`` (N, D), in the order of choice; each brings their mean closest to that of all, μ.

    The k-th choice is the x, not chosen before, with the least ‖μ − (ψ(x) + Σ of the chosen ψ)/k‖.
    """
    mean, squares = features.mean(0), features.square().sum(1)
    total = torch.zeros_like(mean)
    chosen = []
    for k in range(1, count + 1):
        # ‖kμ − total − ψ‖² without the term that is the same for every ψ
        distance = squares - 2 * features @ (k * mean - total)
        best = distance.argmin(0, keepdim=True)
        squares = squares.index_fill(0, best, torch.inf)
        total = total + features[best[0]]
        chosen.append(best)
    return torch.cat(chosen)


class Herding(Selection):
    """``ipc`` real images of every class by herding; every seed has a network of its own."""

    Config = HerdingConfig
    BUDGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"train_steps": 5}, "quick": {"train_steps": 200}}

    def choose(self) -> tuple[Tensor, Tensor]:
        """Train the network, and herd its features class by class."""
        task, steps = self.task, self.config.train_steps
        network = task.network(task.generator)
        if steps:
            recipe = Recipe(
                loss="cross_entropy",
                optimiser="sgd",
                lr=0.01,
                momentum=0.9,
                weight_decay=5e-4,
                batch_size=256,
                shuffle=True,
                steps_by_images=((len(task.images), steps),),
            )
            train(network, task.images, task.labels, "probability", recipe, flip=task.flip, generator=task.generator)
        network.eval()
        picked = []
        for rows in task.rows_of_classes():
            rows = rows.to(task.device)
            picked.append(rows[herd(features(network, task.images[rows]), task.ipc)])
        index = torch.cat(picked)
        return task.images[index], task.labels[index]
