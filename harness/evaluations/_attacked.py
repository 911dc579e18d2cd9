"""Networks that are trained on a set to be attacked: who was in the data behind it?

The recipe is that of FRePo's membership inference (Zhou et al., 2022), the same for every set, so that rows differ in
the set alone. The network is FRePo's, without norm, as wide as the one that distilled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.datasets import Benchmark
from benchmarks.errors import UserError
from benchmarks.networks import Network, NetworkSpec
from benchmarks.protocols import FREPO_ATTACK_RECIPE, Recipe
from harness.evaluations.training import ONE_AT_A_TIME, train_new
from methods.base import Synthetic

NETWORK: Literal["convnet_doubling"] = "convnet_doubling"
REAL_BATCH, REAL_IMAGES = 1024, 10_000
"""Images in a batch of the paper's training on real images, and how many images there are."""


@dataclass(frozen=True)
class Attacked:
    """The data behind the sets, and how networks are trained on them."""

    members: int = 2000
    """Training images in a chunk, of which the sets are made. The paper: 10000."""
    chunk: int = 0
    """Which chunk of the training images, in their own order. The paper averages over chunks 0 to 4."""
    augment: Literal["frepo", "none"] = "frepo"
    """Augmentation of the training; it hides members. The paper's code has FRePo's, on real images as well."""
    batch_size: int | None = None
    """Images in a batch. None: at most 256, and of sets as large as the real data the paper's share, 1024 of 10000."""
    repeats: int = 1
    """Networks of each kind, each from its own initial weights. The paper: 5."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range."""
        for name, least in {"members": 1, "chunk": 0, "batch_size": 1, "repeats": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} is {value}; it must be at least {least}")

    @property
    def view(self) -> str:
        """The view of the data set that holds the chunk."""
        return f"@images:{self.chunk * self.members}-{(self.chunk + 1) * self.members}"

    def recipe(self, images: int, real: int, steps: int) -> Recipe:
        """How to train on a set of ``images`` that was made from ``real`` images."""
        batch = max(1, round(real * REAL_BATCH / REAL_IMAGES)) if images >= real else min(images, 256)
        return dataclasses.replace(
            FREPO_ATTACK_RECIPE,
            augment=self.augment,
            batch_size=self.batch_size or batch,
            steps_by_images=((1, steps),),
        )


def attacked_spec(benchmark: Benchmark) -> NetworkSpec:
    """The network under attack."""
    own = benchmark.spec
    return dataclasses.replace(own, name=NETWORK, norm="none", depth=own.depth if own.name == NETWORK else None)


def train_attacked(
    config: Attacked,
    synthetic: Synthetic,
    benchmark: Benchmark,
    seed: int,
    indices: Sequence[int],
    lengths: Sequence[int],
    test: Callable[[int, int, Network], None],
    progress: Callable[[int, int], None],
) -> None:
    """Train the networks ``indices`` of ``seed`` on a set made from the training images of ``benchmark``.

    ``test(index, length, network)`` is called for each network, in evaluation mode, after each of the ``lengths``,
    which ascend. The rate is constant, so a network on its way is the one that would have been trained anew for that
    length. ``progress(done, total)`` counts training steps of all networks.
    """
    recipe = config.recipe(len(synthetic.images), len(benchmark.task.images), lengths[-1])
    at_once = 1 if synthetic.images.device.type in ONE_AT_A_TIME else len(indices)
    for first in range(0, len(indices), at_once):
        own = indices[first : first + at_once]

        def look(
            networks: Sequence[Network], done: int, steps: int, first: int = first, own: Sequence[int] = own
        ) -> None:
            if done in lengths:
                for index, network in zip(own, networks, strict=True):
                    test(index, done, network.eval())
                    network.train()
            progress(first * steps + len(own) * done, len(indices) * steps)

        train_new(attacked_spec(benchmark), recipe, synthetic, benchmark, seed, own, look)
