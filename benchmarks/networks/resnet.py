"""ResNet18 for small images: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.

``resnet18`` and ``resnet18_ap`` are those of Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021;
``frepo_resnet18`` and ``frepo_resnet18_ap`` those of FRePo's released program (Zhou et al., NeurIPS 2022).
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import nn

from benchmarks.errors import UserError
from benchmarks.networks.base import FlaxNetwork, Network, NetworkSpec
from benchmarks.networks.layers import AveragePool, Norm, Residual

BLOCKS = ((64, False), (64, False), (128, True), (128, False), (256, True), (256, False), (512, True), (512, False))
"""Channels of each residual block, at the published width, and whether it halves the map."""


class ResNet18(Network):
    """Stem [conv 3×3 → norm → ReLU] of 64 channels, 8 residual blocks, average of the last map, linear head.

    Convolutions have no biases.

    A block: conv 3×3 → norm → ReLU → conv 3×3 → norm, plus the shortcut, then ReLU. The first of each width halves the
    map by its stride. The published average over 4×4 pixels, the last map of 32² images, is over all pixels here.
    """

    depth = 8
    norms: ClassVar[tuple[Norm, ...]] = ("instance", "batch")
    norm_in_blocks: ClassVar[bool] = True
    strided: ClassVar[bool] = True
    """Whether a convolution's stride halves the map, or else ``pool``."""
    averaged: ClassVar[bool] = True
    """Whether features are means over the last map, or else the whole map."""

    @staticmethod
    def pool() -> nn.Module:
        return AveragePool()

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        channels = spec.scaled(64)
        layers: list[nn.Module] = [nn.Conv2d(spec.in_channels, channels, kernel_size=3, padding=1, bias=False)]
        layers += [*self.norm_layers(spec.norm, channels), nn.ReLU(inplace=True)]
        for published, halving in BLOCKS:
            layers.append(self._block(channels, spec.scaled(published), halving, spec.norm))
            channels = spec.scaled(published)
        if self.averaged:
            layers.append(nn.AdaptiveAvgPool2d(1))
        self.body = nn.Sequential(*layers)
        pixels = 1 if self.averaged else math.prod(spec.feature_map)
        self.head = nn.Linear(channels * pixels, spec.num_classes)

    def _block(self, channels: int, out: int, halving: bool, norm: Norm) -> Residual:
        norm = norm if self.norm_in_blocks else "none"
        stride = 2 if halving and self.strided else 1
        pooled = halving and not self.strided
        residual = nn.Sequential(
            nn.Conv2d(channels, out, kernel_size=3, stride=stride, padding=1, bias=False),
            *self.norm_layers(norm, out),
            nn.ReLU(inplace=True),
            *([self.pool()] if pooled else []),
            nn.Conv2d(out, out, kernel_size=3, padding=1, bias=False),
            *self.norm_layers(norm, out),
        )
        if not halving and channels == out:
            return Residual(residual, nn.Sequential())
        shortcut = nn.Sequential(
            nn.Conv2d(channels, out, kernel_size=1, stride=stride, bias=False),
            *([self.pool()] if pooled else []),
            *self.norm_layers(norm, out),
        )
        return Residual(residual, shortcut)

    @classmethod
    def last_map(cls, spec: NetworkSpec) -> tuple[int, int]:
        # A strided convolution keeps the last pixel of an odd row, a pool leaves it out.
        height, width = (-(-side // 8) if cls.strided else side // 8 for side in spec.image_size)
        if cls.norm_in_blocks and spec.norm == "instance" and (height, width) == (1, 1):
            sides = "×".join(map(str, spec.image_size))
            raise UserError(
                f"{spec.name} makes maps of 1 pixel of {sides} images, of which norm 'instance' leaves nothing: "
                "take another norm or network"
            )
        return height, width

    def map_size(self, height: int, width: int) -> int:
        """As by default with strides; pools follow a convolution that has doubled the channels."""
        return super().map_size(height, width) * (1 if self.strided else 2)


class ResNet18AP(ResNet18):
    """``resnet18`` with average pools 2×2 in place of strides, before the second convolution and in the shortcut.

    The features are the whole last map.
    """

    strided = False
    averaged = False


class FRePoResNet18(FlaxNetwork, ResNet18):
    """``resnet18`` in FRePo's program: the stem alone has a norm, and the features are the whole last map."""

    norms = ("none", "batch", "instance")
    norm_in_blocks = False
    averaged = False


class FRePoResNet18AP(FRePoResNet18):
    """``frepo_resnet18`` with maximum pools in place of strides."""

    strided = False

    @staticmethod
    def pool() -> nn.Module:
        return nn.MaxPool2d(2)
