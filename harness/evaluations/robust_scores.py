"""Accuracies of networks that lack a part of the recipe: the learned labels, or the augmentation.

With the accuracy by the whole recipe, that of random real images and that of all real images, reports compute the
label-robust and the augmentation-robust score of them (Li et al., DD-Ranking, 2025; `harness.reports.scores`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.datasets import Benchmark
from benchmarks.networks import Network
from harness.evaluations.accuracy import accuracies
from harness.evaluations.base import Progress, Quantity
from harness.evaluations.training import NetworkEvaluation, Training, hardened, trained_networks
from methods.base import Synthetic

HARD, BARE = "hard_label_accuracy", "unaugmented_accuracy"


@dataclass(frozen=True)
class RobustScoresConfig(Training):
    """How networks are trained on the set, the labels or the augmentation apart."""


class RobustScores(NetworkEvaluation):
    """Accuracy with hard labels, and accuracy without augmentation; all else as the recipe says.

    The networks are those of the evaluation ``accuracy``: the same initial weights, the same order of the images.
    """

    Config = RobustScoresConfig
    quantities: ClassVar[Mapping[str, Quantity]] = {
        HARD: Quantity("accuracy, hard labels (%)", drawn=False),
        BARE: Quantity("accuracy, no augmentation (%)", drawn=False),
    }

    def train(
        self, synthetic: Synthetic, benchmark: Benchmark, seed: int | str, indices: Sequence[int], progress: Progress
    ) -> list[Network]:
        """The networks that lack the learned labels; each has a twin that lacks the augmentation."""
        whole = self.config.recipe(synthetic)
        bare = dataclasses.replace(whole, augment="none")
        trained = [
            trained_networks(
                self.config,
                images,
                benchmark,
                seed,
                indices,
                lambda done, steps, place=place: progress(place * steps + done, 2 * steps),  # type: ignore[misc]
                recipe=recipe,
            )
            for place, (images, recipe) in enumerate(((hardened(synthetic, benchmark.task), whole), (synthetic, bare)))
        ]
        self.twins = dict(zip(*trained, strict=True))
        return trained[0]

    def test(self, network: Network, synthetic: Synthetic, benchmark: Benchmark) -> Mapping[str, float]:
        """The accuracies of ``network`` and of its twin."""
        both = {HARD: network, BARE: self.twins[network].eval()}
        return {name: accuracies(own, [own.head], benchmark)[0] for name, own in both.items()}
