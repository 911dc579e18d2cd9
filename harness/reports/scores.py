"""Scores of what labels and augmentation contribute, computed from several accuracies of the same recipe.

Li et al., DD-Ranking: Rethinking the Evaluation of Dataset Distillation (2025), https://arxiv.org/abs/2505.13300. Both
scores lie in [0, 1] for accuracies as fractions. The package ``ddranking`` 0.2 puts percent into the exponential, and
takes the best epoch on the test images, so its scores are others.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.plan.jobs import ACCURACY
from harness.plan.request import FLOOR
from harness.reports.groups import Group

WEIGHT = 0.5
"""w of either score."""
ROBUST_SCORES = "robust_scores"
"""The evaluation that gives the accuracies with hard labels and without augmentation."""


@dataclass(frozen=True)
class Scores:
    """The scores of a row; None where an accuracy is missing."""

    label_robust_score: float | None = None
    augmentation_robust_score: float | None = None


def label_robust_score(own: float, random: float, real: float, hard: float, weight: float = WEIGHT) -> float:
    """LRS of accuracies: of the set with its ``own`` labels, of ``random`` real images by the same recipe, of all
    ``real`` images, and of the set with ``hard`` labels.

    The weighted improvement over random images less the distance to real data with hard labels.
    """
    return _squashed(weight * (own - random) - (1 - weight) * (real - hard))


def augmentation_robust_score(
    own: float, random: float, own_bare: float, random_bare: float, weight: float = WEIGHT
) -> float:
    """ARS of accuracies: of the set and of ``random`` real images by the recipe, and of both without augmentation.

    The weighted improvements over random images with and without augmentation.
    """
    return _squashed(weight * (own - random) + (1 - weight) * (own_bare - random_bare))


def _squashed(alpha: float) -> float:
    """From [−1, 1] to [0, 1]."""
    return (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


def scores(groups: Sequence[Group]) -> list[Scores]:
    """The scores of each of ``groups``, against the rows of random and of all real images in the same table that were
    evaluated alike.

    There are none where such a row is missing, or is there several times.
    """
    made = []
    for group in groups:
        beside = [other for other in groups if other.table == group.table]
        drawn = [other for other in beside if other.method == FLOOR and other.test[:2] == group.test[:2]]
        # Networks that are trained on all real images are the same at every ipc.
        whole = [
            other
            for other in beside
            if other.ceiling and (other.contest[:2], other.test[1]) == (group.contest[:2], group.test[1])
        ]
        if group.ceiling or len(drawn) != 1:
            made.append(Scores())
            continue
        own, random, real = (_mean(g, ACCURACY) for g in (group, drawn[0], whole[0] if len(whole) == 1 else None))
        hard, bare = (_mean(group, f"{kind}_accuracy") for kind in ("hard_label", "unaugmented"))
        random_bare = _mean(drawn[0], "unaugmented_accuracy")
        made.append(
            Scores(
                _where_known(label_robust_score, own, random, real, hard),
                _where_known(augmentation_robust_score, own, random, bare, random_bare),
            )
        )
    return made


def _where_known(score: Callable[..., float], *accuracies: float | None) -> float | None:
    return None if None in accuracies else score(*accuracies)


def _mean(group: Group | None, quantity: str) -> float | None:
    if group is None:
        return None
    evaluation = ACCURACY if quantity == ACCURACY else ROBUST_SCORES
    results = [result for member in group.members for result in member.last(evaluation)]
    values = [value for result in results for value in result.values(quantity)]
    return statistics.fmean(values) if values else None
