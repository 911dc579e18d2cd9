"""k-centre: real images from which no other image of their class is far, in the features of a network.

The greedy rule is that of Gonzalez, "Clustering to minimize the maximum intercluster distance", Theoretical Computer
Science 1985: the largest distance is at most twice the least possible. Sener and Savarese, "Active Learning for
Convolutional Neural Networks: A Core-Set Approach", ICLR 2018, chose images so.

As a baseline of dataset distillation it has no official code, so its details are ours: the first image is the nearest
to the mean of its class, and features are those of herding.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods._coresets import Coreset, CoresetConfig


@dataclass(frozen=True)
class KCentreConfig(CoresetConfig):
    """The features in which distances are taken."""


class KCentre(Coreset):
    """``ipc`` real images of every class, by `methods._coresets.k_centre`."""

    Config = KCentreConfig
    RULE = "k_centre"
