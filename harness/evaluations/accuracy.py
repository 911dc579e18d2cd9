"""Test accuracy of networks trained on the set; and that of kernel regression, where the recipe reports it.

Kernel regression on the trained network's features is how FRePo (Zhou, Nezhadarya and Ba, NeurIPS 2022) reports a
second accuracy.
"""

from __future__ import annotations

import functools
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
from benchmarks.training import accuracy, centred, features
from harness.evaluations.base import Quantity
from harness.evaluations.training import NetworkEvaluation, Training
from methods.base import Synthetic

KRR_RIDGE = 1e-6
"""In units of the mean eigenvalue of the Gram matrix, as FRePo reports it."""


@dataclass(frozen=True)
class AccuracyConfig(Training):
    """How networks are trained on the set before they are tested."""


class Accuracy(NetworkEvaluation):
    """Top-1 accuracy on the test images after the last step of the recipe."""

    Config = AccuracyConfig
    quantities: ClassVar[Mapping[str, Quantity]] = {
        "accuracy": Quantity("accuracy (%)", drawn=False),  # the figures of accuracy against time show it
        "krr_accuracy": Quantity("KRR accuracy (%)", drawn=False),
    }

    def test(self, network: Network, synthetic: Synthetic, benchmark: Benchmark) -> Mapping[str, float]:
        """``accuracy``, and ``krr_accuracy`` where the protocol reports it."""
        heads: dict[str, Callable[[Tensor], Tensor]] = {"accuracy": network.head}
        if PROTOCOLS[self.config.protocol].krr:
            heads["krr_accuracy"] = krr_head(network, synthetic, flip=_krr_flip(benchmark))
        return dict(zip(heads, accuracies(network, list(heads.values()), benchmark), strict=True))


def accuracies(network: Network, heads: Sequence[Callable[[Tensor], Tensor]], benchmark: Benchmark) -> list[float]:
    """Test accuracy of each of ``heads`` (features (B, D) → (B, num_classes)), whose features are computed once."""

    def together(own: Tensor) -> Tensor:
        return torch.stack([head(own) for head in heads], 1)

    outputs = features(network.eval(), benchmark.test_images, together)
    return [accuracy(logits, benchmark.test_labels) for logits in outputs.unbind(1)]


def krr_head(network: Network, synthetic: Synthetic, *, flip: bool) -> Callable[[Tensor], Tensor]:
    """Kernel ridge regression on the features of ``network``, which is left in evaluation mode, as a linear layer.

    ``flip``: the mirrored synthetic images count as well.
    """
    images, targets = synthetic.images, regression_targets(synthetic)
    if flip:
        images, targets = torch.cat([images, images.flip(-1)]), torch.cat([targets, targets])
    weights = krr_weights(features(network.eval(), images), targets, KRR_RIDGE)
    return functools.partial(F.linear, weight=weights.to(images.dtype))


def regression_targets(synthetic: Synthetic) -> Tensor:
    """The labels, (n, C), with probabilities centred: the mean label 1/C taken off."""
    return centred(synthetic.labels, synthetic.label_space)


def _krr_flip(benchmark: Benchmark) -> bool:
    """FRePo mirrors here for every set except MNIST and Fashion-MNIST, also where distilling did not."""
    return benchmark.flip and base_name(benchmark.name) != "fashion_mnist"
