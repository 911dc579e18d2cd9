"""Instance norm, ReLU and pooling as one function, against torch's own layers and against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import layers
from benchmarks.layers import instance_norm_relu_pool
from benchmarks.networks import AveragePool, Blocks

EPS = 1e-5


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return instance_norm_relu_pool(x, weight, bias, EPS)


def torchs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.avg_pool2d(F.relu(F.group_norm(x, len(weight), weight, bias, EPS)), 2)


def inputs(*shape: int) -> list[Tensor]:
    """x, and a weight and a bias, both random: neither may be taken for 1 or 0."""
    generator = torch.Generator().manual_seed(0)
    sizes = shape, shape[1:2], shape[1:2]
    return [torch.randn(size, dtype=torch.float64, generator=generator).requires_grad_() for size in sizes]


def everything(function: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Values, derivatives, and derivatives of something made of all derivatives."""
    y = function(*leaves)
    first = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(torch.stack([one.sin().sum() for one in first]).sum(), leaves)
    return [y, *first, *second]


@pytest.mark.parametrize("shape", [(2, 2, 4, 2), (1, 2, 3, 5)])
def test_both_derivatives_agree_with_finite_differences(shape: tuple[int, ...]) -> None:
    assert torch.autograd.gradcheck(ours, inputs(*shape))
    assert torch.autograd.gradgradcheck(ours, inputs(*shape))


@pytest.mark.parametrize("shape", [(5, 3, 6, 4), (5, 3, 7, 4), (1, 2, 2, 2)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("images", [1, 2, 100])
def test_torchs_values_and_derivatives(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], memory_format: torch.memory_format, images: int
) -> None:
    """However many images pass at a time."""
    leaves = inputs(*shape)
    monkeypatch.setattr(layers, "CACHED_BYTES", images * leaves[0][0].nbytes)
    leaves[0] = leaves[0].detach().to(memory_format=memory_format).requires_grad_()
    for found, expected in zip(everything(ours, leaves), everything(torchs, leaves), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_third_derivative_is_refused() -> None:
    x, weight, bias = inputs(1, 1, 4, 4)
    (first,) = torch.autograd.grad(ours(x, weight, bias).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no third derivative"):
        torch.autograd.grad(first.pow(3).sum(), x, create_graph=True)


@pytest.mark.parametrize(
    ("images", "parameters", "groups", "one"),
    [(True, True, 2, True), (False, True, 2, False), (True, False, 2, False), (True, True, 1, False)],
)
def test_layers_are_one_function_where_a_second_derivative_is_in_view(
    images: bool, parameters: bool, groups: int, one: bool
) -> None:
    blocks = Blocks(nn.GroupNorm(groups, 2), nn.ReLU(), AveragePool()).double().requires_grad_(parameters)
    x = inputs(1, 2, 4, 4)[0].detach().requires_grad_(images)
    y = blocks(x)
    assert (y.grad_fn is not None and y.grad_fn.name() == "_ForwardBackward") is one
    torch.testing.assert_close(y, nn.Sequential(*blocks)(x), rtol=0, atol=1e-14)


def test_the_input_alone_is_kept() -> None:
    """And of the gradient what arrives, a quarter of its size."""
    x, weight, bias = inputs(3, 2, 8, 8)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.numel() > 12:  # but for numbers of every map
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = ours(x, weight, bias)
        torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
    assert sorted(kept.values()) == [y.numel(), x.numel()]
