"""Accuracy with hard labels on the same images: what the images are good for, without what soft labels add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.datasets import Benchmark
from benchmarks.networks import Network
from harness.evaluations.accuracy import accuracies
from harness.evaluations.base import Progress, Quantity
from harness.evaluations.training import NetworkEvaluation, Training, hardened
from methods.base import Synthetic


@dataclass(frozen=True)
class HardLabelsConfig(Training):
    """How networks are trained on the images of the set."""


class HardLabels(NetworkEvaluation):
    """Top-1 accuracy on the test images with the class of every image in place of its label; else as ``accuracy``.

    The networks are those of ``accuracy``: the same initial weights, the same order of the images.
    """

    Config = HardLabelsConfig
    quantities: ClassVar[Mapping[str, Quantity]] = {
        "hard_label_accuracy": Quantity("same images, hard labels (%)", drawn=False)
    }

    def train(
        self, synthetic: Synthetic, benchmark: Benchmark, seed: int | str, indices: Sequence[int], progress: Progress
    ) -> list[Network]:
        return super().train(hardened(synthetic, benchmark.task), benchmark, seed, indices, progress)

    def test(self, network: Network, synthetic: Synthetic, benchmark: Benchmark) -> Mapping[str, float]:
        return {"hard_label_accuracy": accuracies(network, [network.head], benchmark)[0]}
