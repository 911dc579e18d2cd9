"""A multi-layer perceptron, as in Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021."""

from __future__ import annotations

import math

from torch import nn

from benchmarks.networks.base import Network, NetworkSpec


class MLP(Network):
    """Two hidden layers of ``width`` units with ReLU."""

    depth = 2

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        self.body = nn.Sequential(
            nn.Flatten(),
            nn.Linear(spec.in_channels * math.prod(spec.image_size), spec.width),
            nn.ReLU(inplace=True),
            nn.Linear(spec.width, spec.width),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(spec.width, spec.num_classes)

    def map_size(self, height: int, width: int) -> int:
        """Numbers of the image or of a hidden layer, whichever is larger."""
        return max(next(self.parameters()).shape)
