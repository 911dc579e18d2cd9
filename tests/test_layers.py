"""Layers as one function, against torch's own one after the other and against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import layers
from benchmarks.layers import conv_relu_pool, instance_norm_relu_pool
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


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return conv_relu_pool(x, weight, bias, 1)


def torchs_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.avg_pool2d(F.relu(F.conv2d(x, weight, bias, padding=1)), 2)


def convolution_inputs(*shape: int, channels: int = 3) -> list[Tensor]:
    """x, a weight and a bias; all channels last."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(size, dtype=torch.float64, generator=generator).to(memory_format=torch.channels_last)
        for size in (shape, (channels, shape[1], 3, 3))
    )
    return [x.requires_grad_(), weight.requires_grad_(), torch.zeros(channels, dtype=torch.float64).requires_grad_()]


def test_both_derivatives_of_a_convolution_agree_with_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MAPS_BYTES", 2 * 3 * 6 * 4 * 8)
    assert torch.autograd.gradcheck(convolution, convolution_inputs(3, 2, 6, 4), eps=1e-7, atol=1e-6)
    assert torch.autograd.gradgradcheck(convolution, convolution_inputs(3, 2, 6, 4), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("images", [1, 2, 100])
@pytest.mark.parametrize("constant", [None, 0, 1, 2])
def test_a_convolution_has_torchs_values_and_derivatives(
    monkeypatch: pytest.MonkeyPatch, images: int, constant: int | None
) -> None:
    """However many images pass at a time, whatever is constant; once differentiated and twice."""
    leaves = convolution_inputs(5, 2, 6, 4)
    monkeypatch.setattr(layers, "MAPS_BYTES", images * 3 * 6 * 4 * 8)
    wanted = [leaf for i, leaf in enumerate(leaves) if i != constant]
    if constant is not None:
        leaves[constant].requires_grad_(False)
    found = []
    for function in (convolution, torchs_convolution):
        y = function(*leaves)
        once = torch.autograd.grad(y.pow(3).sum(), wanted, retain_graph=True)
        first = torch.autograd.grad(y.pow(3).sum(), wanted, create_graph=True)
        twice = torch.autograd.grad(torch.stack([one.sin().sum() for one in first]).sum(), wanted)
        found.append([y, *once, *first, *twice])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("images", "parameters", "size", "one"),
    [(True, False, 4, True), (False, True, 4, True), (True, True, 4, False), (True, False, 5, False)],
)
def test_a_convolution_is_one_function_where_it_is_differentiated_once(
    images: bool, parameters: bool, size: int, one: bool
) -> None:
    conv = nn.Conv2d(2, 3, 3, padding=1)
    blocks = Blocks(conv, nn.ReLU(), AveragePool()).double().requires_grad_(parameters)
    blocks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = convolution_inputs(1, 2, size, 4)[0].detach().requires_grad_(images)
    y = blocks(x)
    assert (y.grad_fn is not None and y.grad_fn.name() == "_ConvReluPoolBackward") is one
    torch.testing.assert_close(y, nn.Sequential(*blocks)(x), rtol=0, atol=1e-14)
    with torch.no_grad():
        torch.testing.assert_close(blocks(x), y.detach(), rtol=0, atol=1e-14)


def test_transforms_of_functions_find_torchs_own_layers() -> None:
    blocks = Blocks(nn.GroupNorm(2, 2), nn.ReLU(), AveragePool()).double()
    parameters, x = {name: w.detach() for name, w in blocks.named_parameters()}, inputs(2, 2, 4, 4)[0].detach()

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(blocks, parameters, (x,)).pow(3).sum()

    found = torch.func.grad(loss, argnums=(0, 1))(parameters, x)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(blocks(x).pow(3).sum(), x)
    torch.testing.assert_close(found[1], expected, rtol=1e-10, atol=1e-10)
