"""The one evaluator: train fresh networks on a synthetic set by a protocol's recipe, test them on held-out images.

Which networks, and the order and augmentation of what they see, depend on the cell's seed and the network's index and
never on the method, so that comparisons are paired. The network of the last step is tested, never the best on the test
set.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.datasets import Benchmark
from benchmarks.networks import Network, NetworkSpec
from benchmarks.protocols import Protocol
from benchmarks.task import generator_for
from benchmarks.training import accuracy, predict, train_together
from methods._krr import krr_weights
from methods.base import Synthetic

KRR_RIDGE = 1e-6
"""In units of the mean eigenvalue of the Gram matrix, as FRePo reports it."""
TRIAL_WARMUP, TRIAL_STEPS = 2, 5
"""Steps before the clock is read, and steps that are timed, to choose how many networks train at a time."""
ONE_AT_A_TIME = ("cpu",)
"""Devices that one network fills: on two cores three networks together took longer than one after the other, except
with ten images (``benchmarks/speed`` compares)."""
TRIED_FROM = 200
"""Steps of a network from which the trial is a small part of the work."""


def network_spec(benchmark: Benchmark, protocol: Protocol) -> NetworkSpec:
    """The network that is evaluated: the one that distilled, with the norm that the protocol tests with."""
    return dataclasses.replace(benchmark.spec, norm=protocol.test_norm)


def networks_at_once(
    synthetic: Synthetic,
    benchmark: Benchmark,
    protocol: Protocol,
    *,
    networks: int,
    max_steps: int | None = None,
    read: Callable[[], float],
) -> int:
    """How many of ``networks`` are best trained at a time: 1 or all, whichever takes less time on this device.

    On a GPU both ways are tried, with networks and generators that are thrown away. Nothing is tried on a CPU, which
    would lose the same bits from run to run for little, nor where there is little to gain: for one network, or few
    steps. ``read``: a clock that waits for the device.
    """
    steps = protocol.recipe.steps(len(synthetic.images))
    few = networks == 1 or min(steps, max_steps or steps) < TRIED_FROM
    if few or synthetic.images.device.type in ONE_AT_A_TIME:
        return 1

    def seconds(count: int) -> float:
        """What the timed steps take with ``count`` networks at a time."""
        readings = []

        def progress(done: int, steps: int) -> None:
            if done in (TRIAL_WARMUP, steps):
                readings.append(read())

        _train(synthetic, benchmark, protocol, "trial", range(count), TRIAL_WARMUP + TRIAL_STEPS, progress)
        return readings[1] - readings[0]

    try:
        return networks if seconds(networks) < networks * seconds(1) else 1
    except torch.OutOfMemoryError:  # of all together: one alone is what every evaluation needs
        return 1


def evaluate(
    synthetic: Synthetic,
    benchmark: Benchmark,
    protocol: Protocol,
    *,
    seed: int,
    networks: int,
    at_once: int = 1,
    max_steps: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[float], list[float]]:
    """Test accuracies as fractions, one per network; and those of kernel regression where the protocol reports them.

    ``at_once``: how many networks are trained at a time, which changes them by rounding alone. ``max_steps`` shortens
    the recipe. ``progress(done, total)`` counts training steps over all networks.
    """
    values: list[float] = []
    krr_values: list[float] = []
    for first in range(0, networks, at_once):
        indices = range(first, min(first + at_once, networks))
        shown = None if progress is None else _shifted(progress, indices, networks)
        for network in _train(synthetic, benchmark, protocol, seed, indices, max_steps, shown):
            heads: list[Callable[[Tensor], Tensor]] = [network.head]
            if protocol.krr:
                heads.append(krr_head(network, synthetic, flip=_krr_flip(benchmark)))
            found = accuracies(network, heads, benchmark)
            values.append(found[0])
            krr_values += found[1:]
    return values, krr_values


def accuracies(network: Network, heads: Sequence[Callable[[Tensor], Tensor]], benchmark: Benchmark) -> list[float]:
    """Test accuracy of each of ``heads`` (features (B, D) → (B, num_classes)), whose features are computed once."""

    def together(features: Tensor) -> Tensor:
        return torch.stack([head(features) for head in heads], 1)

    outputs = predict(network, benchmark.test_images, together)
    return [accuracy(logits, benchmark.test_labels) for logits in outputs.unbind(1)]


def krr_head(network: Network, synthetic: Synthetic, *, flip: bool) -> Callable[[Tensor], Tensor]:
    """Kernel ridge regression on the features of ``network``, which is left in evaluation mode, as a linear layer.

    ``flip``: the mirrored synthetic images count as well.
    """
    images, targets = synthetic.images, regression_targets(synthetic)
    if flip:
        images, targets = torch.cat([images, images.flip(-1)]), torch.cat([targets, targets])
    weights = krr_weights(predict(network, images, lambda features: features), targets, KRR_RIDGE)
    return functools.partial(F.linear, weight=weights.to(images.dtype))


def regression_targets(synthetic: Synthetic) -> Tensor:
    """The labels, (n, C), with probabilities centred: the mean label 1/C taken off."""
    if synthetic.label_space == "centred":
        return synthetic.labels
    return synthetic.labels - 1 / synthetic.labels.shape[1]


def _krr_flip(benchmark: Benchmark) -> bool:
    """FRePo mirrors here for every set but MNIST and Fashion-MNIST, also where distilling did not."""
    return benchmark.flip and benchmark.name != "fashion_mnist"


def _train(
    synthetic: Synthetic,
    benchmark: Benchmark,
    protocol: Protocol,
    seed: int | str,
    indices: Iterable[int],
    max_steps: int | None,
    progress: Callable[[int, int], None] | None,
) -> list[Network]:
    """The networks ``indices`` of ``seed``, trained together on the synthetic set."""
    spec = network_spec(benchmark, protocol)
    device, dtype = synthetic.images.device, synthetic.images.dtype
    networks = [
        spec.build(generator_for("evaluated network", seed, index), device=device, dtype=dtype) for index in indices
    ]
    train_together(
        networks,
        synthetic.images,
        synthetic.labels,
        synthetic.label_space,
        protocol.recipe,
        flip=protocol.recipe.flip(benchmark.flip, benchmark.name),
        generators=[generator_for("evaluation", seed, index) for index in indices],
        lr=synthetic.lr,
        max_steps=max_steps,
        progress=progress,
    )
    return networks


def _shifted(progress: Callable[[int, int], None], indices: range, networks: int) -> Callable[[int, int], None]:
    """``progress`` of the networks ``indices`` as progress over all of them."""
    return lambda done, steps: progress(indices.start * steps + len(indices) * done, networks * steps)
