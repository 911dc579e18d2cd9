"""LeNet, after LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998.

With ReLU and maximum pools, as in Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021.
"""

from __future__ import annotations

import math

from torch import nn

from benchmarks.networks.base import Network, NetworkSpec


class LeNet(Network):
    """Two layers [conv 5×5 → ReLU → maximum pool 2×2] of 6 and 16 channels, then 120 and 84 hidden units."""

    depth = 4

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        first, second, third, fourth = map(spec.scaled, (6, 16, 120, 84))
        self.body = nn.Sequential(
            nn.Conv2d(spec.in_channels, first, kernel_size=5, padding=spec.border),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, kernel_size=5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * math.prod(spec.feature_map), third),
            nn.ReLU(inplace=True),
            nn.Linear(third, fourth),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(fourth, spec.num_classes)

    @classmethod
    def last_map(cls, spec: NetworkSpec) -> tuple[int, int]:
        height, width = (((side + 2 * spec.border - 4) // 2 - 4) // 2 for side in spec.image_size)
        return height, width
