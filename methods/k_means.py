"""k-means: the real images nearest to the centres of the clusters of their class, in the features of a network.

Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 1982, from centres that are drawn as
by Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007.

As a baseline of dataset distillation it has no official code, so its details are ours: a set is of real images, not of
centres, and features are those of herding.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods._coresets import Coreset, CoresetConfig


@dataclass(frozen=True)
class KMeansConfig(CoresetConfig):
    """The features that are clustered."""


class KMeans(Coreset):
    """``ipc`` real images of every class, by `methods._coresets.k_means`."""

    Config = KMeansConfig
    RULE = "k_means"
