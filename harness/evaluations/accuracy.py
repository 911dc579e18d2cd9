"""Test accuracy of networks trained on the set; and that of kernel regression, where the recipe reports it.

Where the classes of the test images differ much in size, balanced accuracy stands beside it: the mean over the classes.
Kernel regression on the trained network's features is how FRePo (Zhou, Nezhadarya and Ba, NeurIPS 2022) reports a
second accuracy.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.data.views import base_name
from benchmarks.datasets import Benchmark
from benchmarks.krr import krr_weights
from benchmarks.networks import Network
from benchmarks.protocols import PROTOCOLS
from benchmarks.task import class_sizes
from benchmarks.training import accuracy, centred, class_accuracies, double, features
from harness.evaluations.base import Quantity
from harness.evaluations.training import NetworkEvaluation, Training
from methods.base import Synthetic

KRR_RIDGE = 1e-6
"""In units of the mean eigenvalue of the Gram matrix, as FRePo reports it."""
UNBALANCED = 1.5
"""Test images of the largest class over those of the smallest from which balanced accuracy is reported. Below, the two
accuracies say the same: it is 1.3 for MNIST."""


@dataclass(frozen=True)
class AccuracyConfig(Training):
    """How networks are trained on the set before they are tested."""


class Accuracy(NetworkEvaluation):
    """Top-1 accuracy on the test images after the last step of the recipe."""

    Config = AccuracyConfig
    quantities: ClassVar[Mapping[str, Quantity]] = {
        "accuracy": Quantity("accuracy (%)", drawn=False),  # the figures of accuracy against time show it
        "krr_accuracy": Quantity("KRR accuracy (%)", drawn=False),
        "balanced_accuracy": Quantity("balanced accuracy (%)", drawn=False),
    }

    def test(self, network: Network, synthetic: Synthetic, benchmark: Benchmark) -> Mapping[str, float]:
        """``accuracy``, ``krr_accuracy`` where the protocol reports it, ``balanced_accuracy`` where classes differ."""
        heads: dict[str, Callable[[Tensor], Tensor]] = {"accuracy": network.head}
        if PROTOCOLS[self.config.protocol].krr:
            heads["krr_accuracy"] = krr_head(network, synthetic, flip=_krr_flip(benchmark))
        logits, labels = _logits(network, list(heads.values()), benchmark), benchmark.test_labels
        values = {name: accuracy(own, labels) for name, own in zip(heads, logits, strict=True)}
        by_class = class_accuracies(logits[0], labels)
        self.class_accuracies.append(by_class)
        sizes = class_sizes(labels).values()
        if max(sizes) > UNBALANCED * min(sizes):
            values["balanced_accuracy"] = statistics.fmean(value for value in by_class if value is not None)
        return values


def accuracies(network: Network, heads: Sequence[Callable[[Tensor], Tensor]], benchmark: Benchmark) -> list[float]:
    """Test accuracy of each of ``heads`` (features (B, D) → (B, num_classes)), whose features are computed once."""
    return [accuracy(logits, benchmark.test_labels) for logits in _logits(network, heads, benchmark)]


def _logits(network: Network, heads: Sequence[Callable[[Tensor], Tensor]], benchmark: Benchmark) -> Sequence[Tensor]:
    """Outputs (M, num_classes) of each of ``heads`` for the test images."""

    def together(own: Tensor) -> Tensor:
        return torch.stack([head(own) for head in heads], 1)

    return features(network.eval(), benchmark.test_images, together).unbind(1)


def krr_head(network: Network, synthetic: Synthetic, *, flip: bool) -> Callable[[Tensor], Tensor]:
    """Kernel ridge regression on the features of ``network``, which is left in evaluation mode, as a linear layer.

    ``flip``: the mirrored synthetic images count as well.
    """
    images, targets = synthetic.images, regression_targets(synthetic)
    if flip:
        images, targets = torch.cat([images, images.flip(-1)]), torch.cat([targets, targets])
    weights = krr_weights(double(features(network.eval(), images)), double(targets), KRR_RIDGE)
    return functools.partial(F.linear, weight=weights.to(images))


def regression_targets(synthetic: Synthetic) -> Tensor:
    """The labels, (n, C), with probabilities centred: the mean label 1/C taken off."""
    return centred(synthetic.labels, synthetic.label_space)


def _krr_flip(benchmark: Benchmark) -> bool:
    """FRePo mirrors here for every set except MNIST and Fashion-MNIST, also where distilling did not."""
    return benchmark.flip and base_name(benchmark.name) != "fashion_mnist"
