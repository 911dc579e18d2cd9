"""Accuracy that is gained by choosing the step of a network's training on the test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from benchmarks.datasets import Benchmark
from benchmarks.errors import UserError
from benchmarks.networks import Network
from benchmarks.task import generator_for
from benchmarks.training import accuracy, predict
from harness.evaluations.base import Progress, Quantity
from harness.evaluations.training import NetworkEvaluation, Training, trained_networks
from methods.base import Synthetic


@dataclass(frozen=True)
class SelectionGapConfig(Training):
    """How networks are trained on the set, and how often they are looked at meanwhile."""

    looks: int = 20
    """Steps, evenly spaced and the last one among them, from which the best is chosen."""
    held_out: int = 5000
    """Real training images, drawn by seed, on which the other choice is made; all where there are fewer."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range."""
        super().__post_init__()
        for name in ("looks", "held_out"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")


class SelectionGap(NetworkEvaluation):
    """Test accuracy of the best of several steps, less that of the last step, and less that of an honest choice.

    The best step is chosen on the test images, which most published code does in some form. The honest choice is the
    step that is best on real *training* images. No network was trained on these, but the set was distilled from them:
    they choose without the test images, and are no unseen data.
    """

    Config = SelectionGapConfig
    config: SelectionGapConfig
    quantities: ClassVar[Mapping[str, Quantity]] = {
        "best_minus_last": Quantity("best step on test images − last (points)", drawn=False),
        "best_minus_held_out": Quantity("best step on test images − chosen on training images (points)", drawn=False),
    }

    def train(
        self, synthetic: Synthetic, benchmark: Benchmark, seed: int | str, indices: Sequence[int], progress: Progress
    ) -> list[Network]:
        task = benchmark.task
        drawn = torch.randperm(len(task.labels), generator=generator_for("held out", seed))[: self.config.held_out]
        drawn = drawn.to(task.device)
        self.held_out = task.images[drawn], task.labels[drawn]
        self.seen: dict[Network, list[tuple[float, float]]] = {}

        def look(networks: Sequence[Network], done: int, steps: int) -> None:
            if done in {round(steps * k / self.config.looks) for k in range(1, self.config.looks)} - {steps}:
                for network in networks:
                    self.seen.setdefault(network, []).append(self._both(network, benchmark))
                    network.train()

        return trained_networks(self.config, synthetic, benchmark, seed, indices, progress, look=look)

    def test(self, network: Network, synthetic: Synthetic, benchmark: Benchmark) -> Mapping[str, float]:
        return gaps([*self.seen.get(network, ()), self._both(network, benchmark)])

    def _both(self, network: Network, benchmark: Benchmark) -> tuple[float, float]:
        """Accuracies of ``network`` on the test images and on the held-out ones."""
        images, labels = self.held_out
        return (
            accuracy(predict(network, benchmark.test_images), benchmark.test_labels),
            accuracy(predict(network, images), labels),
        )


def gaps(looks: Sequence[tuple[float, float]]) -> dict[str, float]:
    """The gaps of ``looks``, accuracies on test and on held-out images in the order of the steps.

    Of several steps that are best on the held-out images the last is chosen.
    """
    tested = [test for test, _ in looks]
    *_, (_, chosen) = sorted((held_out, place) for place, (_, held_out) in enumerate(looks))
    return {"best_minus_last": max(tested) - tested[-1], "best_minus_held_out": max(tested) - tested[chosen]}
