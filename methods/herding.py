"""Herding: real images whose mean features come closest to the mean of their class, chosen one after another.

Welling, "Herding Dynamical Weights to Learn", ICML 2009. The greedy rule is that of Rebuffi, Kolesnikov, Sperl and
Lampert, "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017, algorithm 4.

Differences from iCaRL: features are not brought to length one, and no image is chosen twice. As a baseline of dataset
distillation it has no official code. The training of its network is not published; the training here is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods._coresets import Coreset, CoresetConfig


@dataclass(frozen=True)
class HerdingConfig(CoresetConfig):
    """The features to herd."""


class Herding(Coreset):
    """``ipc`` real images of every class, by `methods._coresets.herd`."""

    Config = HerdingConfig
    RULE = "herding"
