"""AlexNet for small images: Krizhevsky, Sutskever and Hinton, "ImageNet Classification …", NeurIPS 2012.

``alexnet`` is that of Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021; ``frepo_alexnet`` and
``frepo_alexnet_max`` are those of FRePo's released program (Zhou et al., NeurIPS 2022).
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import nn

from benchmarks.networks.base import FlaxNetwork, Network, NetworkSpec
from benchmarks.networks.layers import AveragePool, Norm

LAYERS = ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))
"""Channels of each layer, at the published width, side of its kernel, and whether a pool follows."""


class AlexNet(Network):
    """5 layers [conv → norm → ReLU], three pools 2×2, and a linear head."""

    depth = 5
    norms: ClassVar[tuple[Norm, ...]] = ("none", "batch")

    @staticmethod
    def pool() -> nn.Module:
        return nn.MaxPool2d(2)

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        layers: list[nn.Module] = []
        channels, border = spec.in_channels, spec.border
        for published, kernel, pooled in LAYERS:
            out = spec.scaled(published)
            layers.append(nn.Conv2d(channels, out, kernel_size=kernel, padding=kernel // 2 + border))
            layers += [*self.norm_layers(spec.norm, out), nn.ReLU(inplace=True)]
            layers += [self.pool()] if pooled else []
            channels, border = out, 0
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels * math.prod(spec.feature_map), spec.num_classes)

    @classmethod
    def last_map(cls, spec: NetworkSpec) -> tuple[int, int]:
        height, width = ((side + 2 * spec.border) >> 3 for side in spec.image_size)
        return height, width


class FRePoAlexNet(FlaxNetwork, AlexNet):
    """``alexnet`` in FRePo's program: average pools, and no norm."""

    norms = ("none",)

    @staticmethod
    def pool() -> nn.Module:
        return AveragePool()


class FRePoAlexNetMax(FRePoAlexNet):
    """``frepo_alexnet`` with maximum pools, an option of that program."""

    @staticmethod
    def pool() -> nn.Module:
        return nn.MaxPool2d(2)
