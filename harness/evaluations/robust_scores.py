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

    def run(
        self, sets: Sequence[Synthetic], benchmarks: Sequence[Benchmark], seed: int, progress: Progress, begin: int = 0
    ) -> Mapping[str, list[float]]:
        """Values of every network, as `NetworkEvaluation.run`; each is trained twice."""
        values: dict[str, list[float]] = {}
        for place, name in enumerate((HARD, BARE)):
            self.left_out = name

            def shown(done: int, total: int, place: int = place) -> None:
                progress(place * total + done, 2 * total)

            values |= super().run(sets, benchmarks, seed, shown, begin)
        return values

    def train(
        self, synthetic: Synthetic, benchmark: Benchmark, seed: int | str, indices: Sequence[int], progress: Progress
    ) -> list[Network]:
        recipe = self.config.recipe(synthetic)
        if self.left_out == HARD:
            synthetic = hardened(synthetic, benchmark.task)
        else:
            recipe = dataclasses.replace(recipe, augment="none")
        return trained_networks(self.config, synthetic, benchmark, seed, indices, progress, recipe=recipe)

    def test(self, network: Network, synthetic: Synthetic, benchmark: Benchmark) -> Mapping[str, float]:
        return {self.left_out: accuracies(network, [network.head], benchmark)[0]}
