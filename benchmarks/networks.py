"""The convolutional networks of the field, features and logits apart.

``convnet``: Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021; the standard network of DC, DSA, DM
and MTT. ``convnet_doubling``: Zhou et al., "Dataset Distillation using Neural Feature Regression", NeurIPS 2022.
The same ``width`` names two different networks: report the parameter count beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import NETWORKS, NORMS
from benchmarks.errors import UserError, choose


class Network(nn.Module):
    """A feature extractor ``body`` and a linear ``head``.

    Images (B, C, H, W) → ``features`` (B, D) → ``head`` → logits (B, num_classes).
    """

    body: nn.Sequential
    head: nn.Linear

    def features(self, images: Tensor) -> Tensor:
        """The flattened last feature map, (B, D)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, num_classes)."""
        return cast(Tensor, self.head(self.features(images)))


class AveragePool(nn.Module):
    """Average pool 2×2 of (B, C, H, W); an odd last row or column is left out."""

    def forward(self, x: Tensor) -> Tensor:
        odd = x.shape[2] % 2 or x.shape[3] % 2
        if odd or x.device.type != "cpu" or x.is_contiguous(memory_format=torch.channels_last):
            return F.avg_pool2d(x, 2)
        # For contiguous maps on a CPU torch's pooling takes twice as long as two sums of halves, both ways.
        upper, lower = torch.unflatten(x, 2, (-1, 2)).unbind(3)
        left, right = torch.unflatten(upper + lower, 3, (-1, 2)).unbind(4)
        return (left + right) / 4


class ConvNet(Network):
    """Blocks of [conv 3×3 → norm → ReLU → average pool 2×2] with ``width`` channels each; flattened as C, H, W."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = spec.in_channels
        for i in range(spec.blocks):
            layers.append(nn.Conv2d(channels, spec.width, kernel_size=3, padding=spec.padding(i)))
            channels = spec.width
            if spec.norm == "batch":
                layers.append(nn.BatchNorm2d(channels))
            elif spec.norm == "instance":
                layers.append(nn.GroupNorm(channels, channels, eps=1e-5))
            # In place: neither convolution nor norm needs its output for backward, and fresh memory is slow on a CPU.
            layers += [nn.ReLU(inplace=True), AveragePool()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels * math.prod(spec.feature_map), spec.num_classes)

    def features(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.body(images)).flatten(1)


class ConvNetDoubling(Network):
    """Blocks of [norm, except in the first → conv 3×3 → ReLU → average pool 2×2]; block i has ``width``·2^i channels.

    Flattened in order H, W, C, as the JAX original does (and without a copy where memory is channels-last).
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = spec.in_channels
        for i in range(spec.blocks):
            if i > 0 and spec.norm == "batch":
                layers.append(BatchNorm(channels))
            elif i > 0 and spec.norm == "instance":
                layers.append(nn.GroupNorm(channels, channels, eps=1e-5))
            layers.append(nn.Conv2d(channels, spec.width * 2**i, kernel_size=3, padding=spec.padding(i)))
            channels = spec.width * 2**i
            layers += [nn.ReLU(inplace=True), AveragePool()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels * math.prod(spec.feature_map), spec.num_classes)

    def features(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.body(images)).permute(0, 2, 3, 1).flatten(1)


class BatchNorm(nn.Module):
    """Batch normalisation over (B, H, W) with the running statistics of flax.

    In training mode running ← decay·running + (1 − decay)·batch, with the *biased* variance of the batch; torch's own
    layer keeps the unbiased one. ``decay`` is flax's ``momentum``, one minus torch's.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, decay: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.decay, self.eps = decay, eps
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.register_buffer("running_mean", torch.empty(channels))
        self.register_buffer("running_var", torch.empty(channels))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.running_mean)
        nn.init.ones_(self.running_var)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        # With momentum 1 torch leaves the statistics of this very batch in the buffers that it is given.
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        y = F.batch_norm(x, mean, var, self.weight, self.bias, True, 1.0, self.eps)
        count = x.numel() / x.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, 1 - self.decay)
            self.running_var.lerp_(var * ((count - 1) / count), 1 - self.decay)
        return y


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """The layers of ``network`` in which, in training mode, the images of a batch see each other."""
    return [module for module in network.modules() if isinstance(module, BatchNorm | nn.BatchNorm2d)]


@dataclass(frozen=True)
class NetworkSpec:
    """Which network for which images.

    Raises UserError for an unknown name or norm, a width or depth below 1, and a depth that leaves no feature map.
    """

    name: Literal["convnet", "convnet_doubling"]
    in_channels: int
    image_size: tuple[int, int]
    """(height, width) in pixels."""
    num_classes: int
    width: int = 128
    """Channels of every block of ``convnet``, of the first block of ``convnet_doubling``."""
    depth: int | None = None
    """Number of blocks. None: as many as leave a last feature map of at least 3×3, which are the published 3 for 28²
    and 32², 4 for 64² and 5 for 128²."""
    norm: Literal["none", "batch", "instance"] = "instance"

    def __post_init__(self) -> None:
        choose("network", self.name, NETWORKS)
        choose("norm", self.norm, NORMS)
        if self.width < 1:
            raise UserError(f"network width is {self.width}; it must be at least 1")
        if self.blocks < 1:
            raise UserError(f"network depth is {self.blocks}; it must be at least 1")
        if min(self.feature_map) < 1:
            height, width = self.image_size
            raise UserError(f"a network of depth {self.blocks} leaves nothing of {height}×{width} images; lower it")

    def padding(self, block: int) -> int:
        """Padding of the convolution of ``block``: 1, but 3 before the first block of one-channel images (28 → 32)."""
        return 3 if block == 0 and self.in_channels == 1 else 1

    @property
    def blocks(self) -> int:
        """The number of blocks, resolved."""
        if self.depth is not None:
            return self.depth
        return max(1, (self._first_map(min(self.image_size)) // 3).bit_length() - 1)

    @property
    def feature_map(self) -> tuple[int, int]:
        """(height, width) of the last feature map, pooled."""
        height, width = (self._first_map(size) >> self.blocks for size in self.image_size)
        return height, width

    def _first_map(self, size: int) -> int:
        return size + 2 * (self.padding(0) - 1)

    def parameters(self) -> int:
        """The number of parameters of the network that `build` makes; nothing is allocated.

        Raises UserError for one that is too large to be counted.
        """
        try:
            with torch.device("meta"):
                network = _FAMILIES[self.name](self)
        except (RuntimeError, OverflowError, TypeError) as error:
            raise UserError(f"a network of width {self.width} is larger than any memory; lower it") from error
        return sum(parameter.numel() for parameter in network.parameters())

    def build(
        self,
        generator: torch.Generator,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Network:
        """A freshly initialised network in training mode.

        The initial values are drawn from the CPU ``generator`` in float32, so they are the same on every device and in
        every dtype. No global random state is read or moved.
        """
        with torch.device("meta"):
            network = _FAMILIES[self.name](self)
        network = network.to(dtype).to_empty(device=device or "cpu")
        draw = _torch_default if self.name == "convnet" else _lecun_normal
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    draw(module, generator)
                elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d | BatchNorm):
                    module.reset_parameters()
        if self.name == "convnet_doubling" and network.head.weight.device.type == "cpu":
            # Convolutions follow their weights. At width 32 training is 1.3 to 1.6 times faster so; `convnet`, with
            # instance norm, is slower.
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network


_FAMILIES: dict[str, Callable[[NetworkSpec], Network]] = {"convnet": ConvNet, "convnet_doubling": ConvNetDoubling}


def _torch_default(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    """Weights and biases U(±1/sqrt(fan_in))."""
    bound = layer.weight[0].numel() ** -0.5
    for parameter in layer.parameters():
        drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
        parameter.copy_(drawn, non_blocking=True)


def _lecun_normal(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    """Weights normal with standard deviation 1/sqrt(fan_in) *after* truncation at two sigma; biases 0."""
    # By the inverse distribution function: torch's trunc_normal_ differs from one version to the next, and is slower.
    bound = math.erf(_CUT / math.sqrt(2))
    weight = torch.empty(layer.weight.shape).uniform_(-bound, bound, generator=generator)
    weight = (weight.erfinv_() * math.sqrt(2)).clamp_(-_CUT, _CUT)
    weight /= _TRUNCATED_STD * math.sqrt(layer.weight[0].numel())
    layer.weight.copy_(weight, non_blocking=True)
    assert layer.bias is not None
    layer.bias.zero_()


_CUT = 2.0
"""Point of truncation, in standard deviations of the normal distribution before it."""
_TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of the standard normal distribution truncated at ±2."""
