"""Convolutional networks of blocks that halve the map.

``convnet``: Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021; the standard network of DC, DSA, DM
and MTT. ``convnet_doubling``: Zhou et al., "Dataset Distillation using Neural Feature Regression", NeurIPS 2022, from
whose released program ``frepo_dcconv`` and ``frepo_kipconv`` come as well.
The same ``width`` names different networks: report the parameter count beside it.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import nn

from benchmarks.networks.base import FlaxNetwork, Network, NetworkSpec
from benchmarks.networks.layers import AveragePool, Drawn, Norm, WideConv2d, flax_norm, truncated_normal


class _Halving(Network):
    """Blocks, each of which halves the map; by default as many as leave a last map of at least 3×3.

    These are the published 3 for 28² and 32², 4 for 64² and 5 for 128².
    """

    depth = None
    norms = ("none", "batch", "instance")
    bordered: ClassVar[bool] = True
    """Whether the first convolution widens one-channel images."""

    @classmethod
    def _border(cls, spec: NetworkSpec) -> int:
        return spec.border if cls.bordered else 0

    @classmethod
    def blocks(cls, spec: NetworkSpec) -> int:
        first_map = min(spec.image_size) + 2 * cls._border(spec)
        return max(1, (first_map // 3).bit_length() - 1)

    @classmethod
    def last_map(cls, spec: NetworkSpec) -> tuple[int, int]:
        height, width = ((side + 2 * cls._border(spec)) >> spec.blocks for side in spec.image_size)
        return height, width


class ConvNet(_Halving):
    """Blocks of [conv 3×3 → norm → ReLU → average pool 2×2] with ``width`` channels each."""

    biases: ClassVar[bool] = True

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        layers: list[nn.Module] = []
        channels, padding = spec.in_channels, 1 + self._border(spec)
        for _ in range(spec.blocks):
            layers.append(nn.Conv2d(channels, spec.width, kernel_size=3, padding=padding, bias=self.biases))
            channels, padding = spec.width, 1
            # In place: neither convolution nor norm needs its output for backward, and fresh memory is slow on a CPU.
            layers += [*self.norm_layers(spec.norm, channels), nn.ReLU(inplace=True), AveragePool()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels * math.prod(spec.feature_map), spec.num_classes)


class ConvNetDoubling(FlaxNetwork, _Halving):
    """Blocks of [norm, except in the first → conv 3×3 → ReLU → average pool 2×2].

    Block i, counted from 0, has ``width``·2^i channels.
    """

    # Convolutions follow their weights. At width 32 training is 1.3 to 1.6 times faster so; `convnet`, with instance
    # norm, is slower.
    channels_last = True

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        layers: list[nn.Module] = []
        channels, padding = spec.in_channels, 1 + self._border(spec)
        for i in range(spec.blocks):
            if i > 0:
                layers += self.norm_layers(spec.norm, channels)
            # Channels last a wide one trains twice as fast; as `convnet` lies in memory, it would be slower.
            convolution = WideConv2d if padding > 1 else nn.Conv2d
            layers.append(convolution(channels, spec.width * 2**i, kernel_size=3, padding=padding))
            channels, padding = spec.width * 2**i, 1
            layers += [nn.ReLU(inplace=True), AveragePool()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels * math.prod(spec.feature_map), spec.num_classes)

    @staticmethod
    def norm_layers(norm: Norm, channels: int) -> list[nn.Module]:
        return flax_norm(norm, channels, decay=0.1)


class FRePoDCConv(FlaxNetwork, ConvNet):
    """``convnet`` in FRePo's program: convolutions without biases, He normal weights, no wider one-channel images."""

    bordered = False
    biases = False

    @staticmethod
    def draw(layer: Drawn, generator: torch.Generator) -> None:
        truncated_normal(layer, generator, gain=2.0)


class FRePoKIPConv(FlaxNetwork, _Halving):
    """KIP's network in FRePo's program: conv 3×3 → ReLU, then blocks of [norm → conv 3×3 → ReLU → average pool 2×2].

    All layers have ``width`` channels. Biases are drawn, with standard deviation 0.1.
    """

    bordered = False

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        channels = spec.width
        layers = [nn.Conv2d(spec.in_channels, channels, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(spec.blocks):
            layers += self.norm_layers(spec.norm, channels)
            layers += [nn.Conv2d(channels, channels, kernel_size=3, padding=1), nn.ReLU(inplace=True), AveragePool()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels * math.prod(spec.feature_map), spec.num_classes)

    @staticmethod
    def norm_layers(norm: Norm, channels: int) -> list[nn.Module]:
        return flax_norm(norm, channels, decay=0.1)

    @staticmethod
    def draw(layer: Drawn, generator: torch.Generator) -> None:
        truncated_normal(layer, generator)
        assert layer.bias is not None
        layer.bias.copy_(torch.empty(layer.bias.shape).normal_(0, 0.1, generator=generator), non_blocking=True)
