"""Choosing real images by the features of a network, class by class: the rules, and the selections that follow one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.protocols import Recipe
from benchmarks.task import Task
from benchmarks.training import double, features, train
from methods._selection import Selection
from methods.base import check_ranges

Rule = Callable[[Tensor, int, torch.Generator], Tensor]
"""Features of a class (N, D), how many to choose, a CPU generator → their rows (count,), each once."""


@dataclass(frozen=True)
class CoresetConfig:
    """The features that images are chosen by."""

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


def k_centre(features: Tensor, count: int) -> Tensor:
    """Rows (count,) of ``features`` (N, D): the nearest to their mean, then always the farthest from those chosen.

    Of several the lowest row.
    """
    chosen = [(features - features.mean(0)).square().sum(1).argmin()]
    nearest = torch.full_like(features[:, 0], torch.inf)
    for _ in range(count - 1):
        nearest = torch.minimum(nearest, (features - features[chosen[-1]]).square().sum(1))
        nearest[torch.stack(chosen)] = -1  # of equal images, too, each is chosen once
        chosen.append(nearest.argmax())
    return torch.stack(chosen)


def k_means(features: Tensor, count: int, generator: torch.Generator, iterations: int = 100) -> Tensor:
    """Rows (count,) of ``features`` (N, D): for each centroid in turn the nearest that is left.

    Lloyd's iterations from centroids drawn by k-means++, until no row changes its cluster or ``iterations`` are over. A
    centroid without rows stays where it is.
    """
    points = features - features.mean(0)  # distances by products of vectors far from 0 would be rounding
    centroids = points[_spread(points, count, generator)]
    cluster = torch.full_like(points[:, 0], -1, dtype=torch.int64)
    for _ in range(iterations):
        before, cluster = cluster, torch.cdist(points, centroids).argmin(1)
        if torch.equal(before, cluster):
            break
        sums = torch.zeros_like(centroids).index_add_(0, cluster, points)
        sizes = cluster.bincount(minlength=count)[:, None]
        centroids = torch.where(sizes > 0, sums / sizes.clamp_min(1), centroids)
    distances, chosen = torch.cdist(double(centroids), double(points)), list[Tensor]()
    for own in distances:
        # Both rows of a cluster of two are equally near: the lower one, whatever rounding says.
        chosen.append((own <= own.min() * (1 + 1e-5)).int().argmax())
        distances[:, chosen[-1]] = torch.inf
    return torch.stack(chosen)


def _spread(points: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """k-means++: rows drawn one after another, each in proportion to the squared distance from those before."""
    rows = [int(torch.randint(len(points), (), generator=generator))]
    nearest = torch.full((len(points),), torch.inf, dtype=torch.float64)
    for _ in range(count - 1):
        nearest = torch.minimum(nearest, (points - points[rows[-1]]).square().sum(1).cpu().double())
        # Where all that is left are copies of what was drawn, each weighs the same.
        weights = nearest.clamp_min(torch.finfo(torch.float64).tiny)
        rows.append(int(torch.multinomial(weights, 1, generator=generator)))
    return rows


RULES: Mapping[str, Rule] = {
    "herding": lambda features, count, _: herd(features, count),
    "k_means": k_means,
    "k_centre": lambda features, count, _: k_centre(features, count),
}


def choose(task: Task, rule: Rule, train_steps: int) -> tuple[Tensor, Tensor]:
    """``ipc`` real images of each class by ``rule``, class-major (n, C, H, W), and their classes (n,).

    The features are those of a network from the task's generator, trained on the real images for ``train_steps``.
    """
    network = task.network(task.generator)
    if train_steps:
        recipe = Recipe(
            loss="cross_entropy",
            optimiser="sgd",
            lr=0.01,
            momentum=0.9,
            weight_decay=5e-4,
            batch_size=256,
            shuffle=True,
            steps_by_images=((len(task.images), train_steps),),
        )
        train(network, task.images, task.labels, "probability", recipe, flip=task.flip, generator=task.generator)
    network.eval()
    picked = []
    for rows in task.rows_of_classes():
        rows = rows.to(task.device)
        picked.append(rows[rule(features(network, task.images[rows]), task.ipc, task.generator)])
    index = torch.cat(picked)
    return task.images[index], task.labels[index]


class Coreset(Selection):
    """Real images of every class by the rule that has the method's name; every seed has a network of its own."""

    RULE: ClassVar[str]
    """A name of ``RULES``."""
    BUDGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"train_steps": 5}, "quick": {"train_steps": 200}}

    config: CoresetConfig

    def choose(self) -> tuple[Tensor, Tensor]:
        return choose(self.task, RULES[self.RULE], self.config.train_steps)
