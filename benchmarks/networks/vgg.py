"""VGG11 for small images: Simonyan and Zisserman, "Very Deep Convolutional Networks …", ICLR 2015.

``vgg11`` is that of Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021; ``frepo_vgg11`` and
``frepo_vgg11_max`` are those of FRePo's released program (Zhou et al., NeurIPS 2022).
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import nn

from benchmarks.networks.base import FlaxNetwork, Network, NetworkSpec
from benchmarks.networks.layers import AveragePool, Norm


class VGG11(Network):
    """8 layers [conv 3×3 → norm → ReLU], five pools 2×2, and a linear head.

    The last map of 32² images is a single pixel. Features of larger ones are its means over the map.
    """

    depth = 8
    norms: ClassVar[tuple[Norm, ...]] = ("instance", "batch")
    groups: ClassVar[tuple[tuple[int, ...], ...]] = ((64,), (128,), (256, 256), (512, 512), (512, 512))
    """Channels of the layers between two pools, at the published width."""
    averaged: ClassVar[bool] = True
    """Whether features are means over the last map, or else the whole map."""

    @staticmethod
    def pool() -> nn.Module:
        return nn.MaxPool2d(2)

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        layers: list[nn.Module] = []
        channels, padding = spec.in_channels, 1 + spec.border
        for group in self.groups:
            for out in map(spec.scaled, group):
                layers.append(nn.Conv2d(channels, out, kernel_size=3, padding=padding))
                layers += [*self.norm_layers(spec.norm, out), nn.ReLU(inplace=True)]
                channels, padding = out, 1
            layers.append(self.pool())
        if self.averaged:
            layers.append(nn.AdaptiveAvgPool2d(1))
        self.body = nn.Sequential(*layers)
        pixels = 1 if self.averaged else math.prod(spec.feature_map)
        self.head = nn.Linear(channels * pixels, spec.num_classes)

    @classmethod
    def last_map(cls, spec: NetworkSpec) -> tuple[int, int]:
        height, width = ((side + 2 * spec.border) >> len(cls.groups) for side in spec.image_size)
        return height, width


class FRePoVGG11(FlaxNetwork, VGG11):
    """``vgg11`` in FRePo's program: 128 channels everywhere, average pools; the features are the whole last map."""

    norms = ("none", "batch", "instance")
    groups = ((128,), (128,), (128, 128), (128, 128), (128, 128))
    averaged = False

    @staticmethod
    def pool() -> nn.Module:
        return AveragePool()


class FRePoVGG11Max(FRePoVGG11):
    """``frepo_vgg11`` with maximum pools, an option of that program."""

    @staticmethod
    def pool() -> nn.Module:
        return nn.MaxPool2d(2)
