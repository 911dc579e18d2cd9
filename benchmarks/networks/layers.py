"""Layers that several networks have, and the laws from which initial values are drawn."""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["none", "batch", "instance"]
Drawn = nn.Conv2d | nn.Linear
"""Layers whose initial values are random."""


class WideConv2d(nn.Conv2d):
    """A convolution 3×3 with a padding as wide as its kernel, or wider.

    oneDNN's fast kernels take no such padding. So all but one pixel of it is put around the images first.
    """

    def forward(self, x: Tensor) -> Tensor:
        border = int(self.padding[0]) - 1
        return F.conv2d(F.pad(x, [border] * 4), self.weight, self.bias, padding=1, groups=self.groups)


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


class Residual(nn.Module):
    """ReLU of the sum of what ``residual`` and ``shortcut`` make of (B, C, H, W)."""

    def __init__(self, residual: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.residual, self.shortcut = residual, shortcut
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.activation(self.residual(x) + self.shortcut(x)))


class BatchNorm(nn.Module):
    """Batch normalisation over (B, H, W) with the running statistics of flax.

    In training mode running ← decay·running + (1 − decay)·batch, with the *biased* variance of the batch; torch's own
    layer keeps the unbiased one. ``decay`` is flax's ``momentum``, one minus torch's.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, decay: float = 0.9, eps: float = 1e-5) -> None:
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


def torch_norm(norm: Norm, channels: int) -> list[nn.Module]:
    """The layer that normalises ``channels`` maps as in the PyTorch programs of the field; none for ``none``."""
    if norm == "none":
        return []
    return [nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(channels, channels, eps=1e-5)]


def flax_norm(norm: Norm, channels: int, decay: float = 0.9) -> list[nn.Module]:
    """The layer that normalises ``channels`` maps as in FRePo's JAX program; none for ``none``."""
    if norm == "none":
        return []
    return [BatchNorm(channels, decay) if norm == "batch" else nn.GroupNorm(channels, channels, eps=1e-6)]


def torch_default(layer: Drawn, generator: torch.Generator) -> None:
    """Weights and biases U(±1/sqrt(fan_in))."""
    bound = layer.weight[0].numel() ** -0.5
    for parameter in layer.parameters():
        drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
        parameter.copy_(drawn, non_blocking=True)


def truncated_normal(layer: Drawn, generator: torch.Generator, gain: float = 1.0) -> None:
    """Weights normal with variance gain/fan_in *after* truncation at two sigma; biases 0.

    Gain 1 is LeCun's, 2 is He's.
    """
    # By the inverse distribution function: torch's trunc_normal_ differs from one version to the next, and is slower.
    bound = math.erf(_CUT / math.sqrt(2))
    weight = torch.empty(layer.weight.shape).uniform_(-bound, bound, generator=generator)
    weight = (weight.erfinv_() * math.sqrt(2)).clamp_(-_CUT, _CUT)
    weight /= _TRUNCATED_STD * math.sqrt(layer.weight[0].numel() / gain)
    layer.weight.copy_(weight, non_blocking=True)
    if layer.bias is not None:
        layer.bias.zero_()


_CUT = 2.0
"""Point of truncation, in standard deviations of the normal distribution before it."""
_TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of the standard normal distribution truncated at ±2."""
