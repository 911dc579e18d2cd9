"""The one evaluator: train fresh networks on a synthetic set by a protocol's recipe, test them on held-out images.

Which networks, and the order and augmentation of what they see, depend on the cell's seed and the network's index and
never on the method, so that comparisons are paired. The network of the last step is tested, never the best on the test
set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.datasets import Benchmark
from benchmarks.networks import Network, NetworkSpec
from benchmarks.protocols import Protocol
from benchmarks.task import generator_for
from benchmarks.training import accuracy, train
from methods._krr import krr_weights
from methods.base import Synthetic

KRR_RIDGE = 1e-6
"""In units of the mean eigenvalue of the Gram matrix, as FRePo reports it."""
CHUNK = 256
"""Test images whose features are computed at a time."""


def network_spec(benchmark: Benchmark, protocol: Protocol) -> NetworkSpec:
    """The network that is evaluated: the one that distilled, with the norm that the protocol tests with."""
    return dataclasses.replace(benchmark.spec, norm=protocol.test_norm)


def evaluate(
    synthetic: Synthetic,
    benchmark: Benchmark,
    protocol: Protocol,
    *,
    seed: int,
    networks: int,
    max_steps: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[float], list[float]]:
    """Test accuracies as fractions, one per network; and those of kernel regression where the protocol reports them.

    ``max_steps`` shortens the recipe. ``progress(done, total)`` counts training steps over all networks.
    """
    spec = network_spec(benchmark, protocol)
    values, krr_values = [], []
    for index in range(networks):
        network = spec.build(
            generator_for("evaluated network", seed, index),
            device=synthetic.images.device,
            dtype=synthetic.images.dtype,
        )
        train(
            network,
            synthetic.images,
            synthetic.labels,
            synthetic.label_space,
            protocol.recipe,
            flip=protocol.recipe.flip(benchmark.flip, benchmark.name),
            generator=generator_for("evaluation", seed, index),
            lr=synthetic.lr,
            max_steps=max_steps,
            progress=None if progress is None else _shifted(progress, index, networks),
        )
        values.append(accuracy(network, benchmark.test_images, benchmark.test_labels))
        if protocol.krr:
            krr_values.append(krr_accuracy(network, synthetic, benchmark, flip=_krr_flip(benchmark)))
    return values, krr_values


@torch.no_grad()
def krr_accuracy(network: Network, synthetic: Synthetic, benchmark: Benchmark, *, flip: bool) -> float:
    """Test accuracy of kernel ridge regression on the features of ``network``, which is left in evaluation mode.

    ``flip``: the mirrored synthetic images count as well.
    """
    network.eval()
    images, targets = synthetic.images, regression_targets(synthetic)
    if flip:
        images, targets = torch.cat([images, images.flip(-1)]), torch.cat([targets, targets])
    weights = krr_weights(_features(network, images), targets, KRR_RIDGE).to(images.dtype)
    correct = torch.zeros((), dtype=torch.int64, device=images.device)
    for batch, labels in zip(
        torch.split(benchmark.test_images, CHUNK), torch.split(benchmark.test_labels, CHUNK), strict=True
    ):
        correct += (F.linear(network.features(batch), weights).argmax(1) == labels).sum()
    return int(correct) / len(benchmark.test_labels)


def regression_targets(synthetic: Synthetic) -> Tensor:
    """The labels, (n, C), with probabilities centred: the mean label 1/C taken off."""
    if synthetic.label_space == "centred":
        return synthetic.labels
    return synthetic.labels - 1 / synthetic.labels.shape[1]


def _krr_flip(benchmark: Benchmark) -> bool:
    """FRePo mirrors here for every set but MNIST and Fashion-MNIST, also where distilling did not."""
    return benchmark.flip and benchmark.name != "fashion_mnist"


def _features(network: Network, images: Tensor) -> Tensor:
    return torch.cat([network.features(batch) for batch in torch.split(images, CHUNK)])


def _shifted(progress: Callable[[int, int], None], index: int, networks: int) -> Callable[[int, int], None]:
    """``progress`` of one network as progress over all of them."""
    return lambda done, steps: progress(index * steps + done, networks * steps)
