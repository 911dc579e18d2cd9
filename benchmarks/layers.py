"""Layers in one piece where torch's own, one after the other, wait for memory.

Instance norm, ReLU and pooling: differentiated twice by torch, as in the inner steps of MTT and BPTT and the matched
gradients of DC and DSA, a norm and what follows it take more time and memory than the convolutions: some dozen tensors
as large as the input, half of them kept. Here both derivatives are written by hand. The input alone is kept; the rest
is computed again, on a CPU for a few images at a time, in memory that stays in the cache.

Convolution, ReLU and pooling: the maps between, larger than what goes in and comes out, and their gradient are made for
a few images at a time, as a tensor of many megabytes in fresh memory takes a CPU longer to come by than to fill.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

CACHED_BYTES = 2**22
"""Of the maps that pass together on a CPU."""
MAPS_BYTES = 2**23
"""Of the maps that a CPU makes in one piece, and keeps."""

aten = torch.ops.aten


def average_pool(x: Tensor) -> Tensor:
    """Average pool 2×2 of (B, C, H, W); an odd last row or column is left out."""
    return _pool(x, _quarters(x) if x.is_contiguous() else None)


def _quarters(x: Tensor) -> Tensor | None:
    """What pools contiguous ``x`` (B, C, H, W) on a CPU, a matrix (2W, W/2); None where torch had better do it.

    Two rows of a map, one after the other, times a matrix that averages four entries: the same numbers to the bit.
    torch's own loop over contiguous maps on a CPU takes three times as long, and keeps them for backward.
    """
    height, width = x.shape[2:]
    if x.device.type != "cpu" or height % 2 or width % 2:
        return None
    quarters = torch.zeros(2, width // 2, 2, width // 2, dtype=x.dtype)
    quarters.diagonal(dim1=1, dim2=3).fill_(0.25)
    return quarters.view(2 * width, width // 2)


def _pool(x: Tensor, quarters: Tensor | None) -> Tensor:
    if quarters is None:
        return F.avg_pool2d(x, 2)
    return x.view(*x.shape[:2], x.shape[2] // 2, len(quarters)) @ quarters


def _unpool(gradient: Tensor, x: Tensor, quarters: Tensor | None) -> Tensor:
    """The gradient of ``_pool`` (B, C, H/2, W/2) spread over contiguous maps like ``x`` (B, C, H, W)."""
    if quarters is None:
        spread: Tensor = aten.avg_pool2d_backward(gradient, x, [2, 2], [2, 2], [0, 0], False, True, None)
        return spread
    return (gradient @ quarters.T).view_as(x)


def instance_norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(B, C, H, W) → (B, C, H/2, W/2): every map normalised, scaled and shifted; ReLU; average pool 2×2.

    The values of ``F.group_norm`` with a group for each channel, ``F.relu`` and ``average_pool``. Differentiable twice;
    its second derivative raises RuntimeError where a graph of it is asked for.
    """
    pooled: Tensor = _Forward.apply(x, weight, bias, eps)  # type: ignore[no-untyped-call]
    return pooled


def conv_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    """(B, C, H, W) → (B, C', H'/2, W'/2): convolution 3×3; ReLU; average pool 2×2. On a CPU, channels last.

    The values of ``F.conv2d``, ``F.relu`` and ``F.avg_pool2d``; differentiable as often as they are. Gradients are
    computed of whatever requires one when the function is called, wanted or not: freeze what is constant.
    """
    pooled: Tensor = _ConvReluPool.apply(x, weight, bias, padding)  # type: ignore[no-untyped-call]
    return pooled


class _ConvReluPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        ctx.padding = padding
        ctx.size = max(1, MAPS_BYTES // (len(weight) * x.shape[2] * x.shape[3] * x.element_size()))
        maps = [F.conv2d(part, weight, bias, padding=padding).relu_() for part in torch.split(x, ctx.size)]
        ctx.save_for_backward(x, weight, *maps)
        return torch.cat([F.avg_pool2d(y, 2) for y in maps])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *maps = ctx.saved_tensors
        padding, wanted = [ctx.padding, ctx.padding], ctx.needs_input_grad[:3]
        found = [
            aten.convolution_backward(
                _before_pool(pooled, y), part, weight, [len(weight)], [1, 1], padding, [1, 1], False, [0, 0], 1, wanted
            )
            for part, pooled, y in zip(torch.split(x, ctx.size), torch.split(gradient, ctx.size), maps, strict=True)
        ]
        in_x, in_weight, in_bias = zip(*found, strict=True)
        return (
            torch.cat(in_x) if wanted[0] else None,
            sum(in_weight[1:], in_weight[0]) if wanted[1] else None,
            sum(in_bias[1:], in_bias[0]) if wanted[2] else None,
            None,
        )


def _before_pool(gradient: Tensor, y: Tensor) -> Tensor:
    """The gradient before ReLU and pooling, like the maps ``y`` between the two, from that after them."""
    if torch.is_grad_enabled():  # it is to be differentiated again
        return cast(Tensor, aten.threshold_backward(_unpool(gradient, y, None), y, 0))
    masked = torch.empty_like(y)
    windows, into = (torch.unflatten(torch.unflatten(maps, 3, (-1, 2)), 2, (-1, 2)) for maps in (y, masked))
    spread = (gradient / 4)[:, :, :, None, :, None].expand_as(windows)
    aten.threshold_backward.grad_input(spread, windows, 0, grad_input=into)
    return masked


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        quarters = _quarters(x)

        def part(x: Tensor) -> tuple[Tensor]:
            return (_pool(_norm(x, weight, bias, eps)[0].relu_(), quarters),)

        ctx.save_for_backward(x, weight, bias)
        ctx.eps = eps
        return _in_parts(part, x)[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *_Backward.apply(gradient, *ctx.saved_tensors, ctx.eps), None  # type: ignore[no-untyped-call]


class _Backward(torch.autograd.Function):
    """The gradient in the pooled maps → the gradients in x, weight and bias.

    Notation, for every map of L entries, r = 1/σ: x̂ = (x − μ)·r, y = w·x̂ + b, g = ∂/∂y, which is zero where y ≤ 0;
    s₀ = Σ g, s₁ = Σ g·x̂. Then ∂/∂b = Σ s₀ and ∂/∂w = Σ s₁ over the images, and ∂/∂x = w·r·(g − s₀/L − x̂·s₁/L).
    """

    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        quarters = _quarters(x)

        def part(gradient: Tensor, x: Tensor) -> tuple[Tensor, ...]:
            y, mean, rstd = _norm(x, weight, bias, eps)
            return _norm_backward(_masked(_unpool(gradient, x, quarters), y), x, mean, rstd, weight)

        found, s1, s0 = _in_parts(part, gradient, x)
        ctx.save_for_backward(gradient, x, weight, bias, s1, s0)
        ctx.eps = eps
        return found, s1.sum(0), s0.sum(0)

    @staticmethod
    def backward(ctx: Any, v: Tensor, a: Tensor, c: Tensor) -> tuple[Tensor | None, ...]:
        """v, a, c: the gradients of some φ in ∂/∂x, ∂/∂w and ∂/∂b.

        With v₀ = Σ v, v₁ = Σ v·x̂ and d = Σ v·g − (v₀·s₀ + v₁·s₁)/L for every map, φ is linear in v, a and c:
        φ = Σ w·r·d + a·s₁ + c·s₀. Its derivatives:
        in g   w·r·(v − v₀/L − x̂·v₁/L) + a·x̂ + c;
        in w   Σ r·d;
        in x̂   e = a·g − w·r·(v₁·g + s₁·v)/L, through which x has r·(e − Σ e/L − x̂·Σ e·x̂/L);
        in r   w·d, through which x has −w·d·r²·x̂/L.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("instance_norm_relu_pool has no third derivative")
        gradient, x, weight, bias, s1, s0 = ctx.saved_tensors
        size = x.shape[2] * x.shape[3]

        quarters = _quarters(x)

        def part(v: Tensor, gradient: Tensor, x: Tensor, s1: Tensor, s0: Tensor) -> tuple[Tensor, ...]:
            y, mean, rstd = _norm(x, weight, bias, ctx.eps)
            g = _masked(_unpool(gradient, x, quarters), y)
            in_g, v1, v0 = _norm_backward(v, x, mean, rstd, weight)
            d = (v * g).sum((2, 3)) - (v0 * s0 + v1 * s1) / size
            scale = weight * rstd / size
            in_g += _norm(x, a, c, ctx.eps)[0]
            of_g, of_v = a - scale * v1, -scale * s1
            e0, e1 = of_g * s0 + of_v * v0, of_g * s1 + of_v * v1
            in_x = _norm_each(x, -rstd / size * (e1 + weight * rstd * d), -rstd / size * e0, ctx.eps)
            in_x.addcmul_(g, (rstd * of_g)[..., None, None]).addcmul_(v, (rstd * of_v)[..., None, None])
            return _pool(_masked(in_g, y), quarters), in_x, rstd * d

        in_gradient, in_x, slopes = _in_parts(part, v, gradient, x, s1, s0)
        return in_gradient, in_x, slopes.sum(0), None, None


def _in_parts(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """``function`` of ``tensors`` (B, …), on a CPU of a few of their rows at a time, and its results joined."""
    largest = max(tensors, key=Tensor.numel)
    size = max(CACHED_BYTES * len(largest) // max(largest.nbytes, 1), 1)
    if largest.device.type != "cpu" or len(largest) <= size:
        return function(*(tensor.contiguous() for tensor in tensors))
    joined: tuple[Tensor, ...] = ()
    for i, parts in enumerate(zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)):
        found = function(*(part.contiguous() for part in parts))
        joined = joined or tuple(one.new_empty(len(largest), *one.shape[1:]) for one in found)
        for whole, one in zip(joined, found, strict=True):
            whole[i * size : i * size + len(one)] = one
    return joined


def _masked(gradient: Tensor, y: Tensor) -> Tensor:
    """``gradient``, set to zero where ``y`` is not positive."""
    masked: Tensor = aten.threshold_backward.grad_input(gradient, y, 0, grad_input=gradient)
    return masked


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x̂·weight + bias of contiguous maps, for parameters (C,); and of every map mean and 1/σ, (B, C)."""
    count, channels, height, width = x.shape
    return torch.native_group_norm(x, weight, bias, count, channels, height * width, channels, eps)


def _norm_each(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x̂·weight + bias of contiguous maps, for a weight and a bias of every map, (B, C)."""
    maps = x.view(1, -1, *x.shape[2:])
    return _norm(maps, weight.flatten(), bias.flatten(), eps)[0].view_as(x)


def _norm_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """∂/∂x of ``_norm`` with that mean and 1/σ, all contiguous; and of every map Σ gradient·x̂ and Σ gradient, (B, C).

    torch sums the latter two over images: to it, all maps are channels of one image.
    """
    count, channels, height, width = x.shape
    maps = count * channels
    found, with_x, alone = aten.native_group_norm_backward(
        gradient.view(1, maps, -1),
        x.view(1, maps, -1),
        mean.view(1, maps),
        rstd.view(1, maps),
        weight.repeat(count),
        1,
        maps,
        height * width,
        maps,
        [True, True, True],
    )
    return found.view_as(x), with_x.view_as(mean), alone.view_as(mean)
