"""Networks: names, sizes, initialisation, and that they can be differentiated in every way the methods do."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from benchmarks import NETWORKS, NORMS, networks
from benchmarks.errors import UserError
from benchmarks.networks import BatchNorm, NetworkSpec

CONVNET = NetworkSpec("convnet", 3, (32, 32), 10)
DOUBLING = NetworkSpec("convnet_doubling", 3, (32, 32), 10, norm="batch")
EVERY = [(name, norm) for name in NETWORKS for norm in NORMS]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(name: str, norm: str) -> NetworkSpec:
    return NetworkSpec(name, 2, (8, 12), 3, width=4, norm=norm)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "parameters"),
    [
        # As counted by the authors' programs: the ConvNet of DC, and FRePo's with and without batch norm.
        (CONVNET, 320_010),
        (replace(CONVNET, num_classes=100), 504_420),
        (DOUBLING, 1_561_610),
        (replace(DOUBLING, norm="none"), 1_560_842),
        (replace(CONVNET, in_channels=1, image_size=(28, 28)), 317_706),
    ],
)
def test_published_parameter_counts(spec: NetworkSpec, parameters: int) -> None:
    assert sum(p.numel() for p in spec.build(generator()).parameters()) == parameters


@pytest.mark.parametrize(
    ("channels", "size", "blocks", "feature_map"),
    [
        (3, (32, 32), 3, (4, 4)),
        (1, (28, 28), 3, (4, 4)),
        (3, (28, 28), 3, (3, 3)),
        (3, (64, 64), 4, (4, 4)),
        (3, (128, 128), 5, (4, 4)),
        (1, (8, 8), 2, (3, 3)),
        (3, (8, 8), 1, (4, 4)),
        (3, (96, 48), 4, (6, 3)),
        (3, (4, 4), 1, (2, 2)),
    ],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_depth_by_image_size(
    name: str, channels: int, size: tuple[int, int], blocks: int, feature_map: tuple[int, int]
) -> None:
    spec = NetworkSpec(name, channels, size, 5, width=2)  # type: ignore[arg-type]
    assert (spec.blocks, spec.feature_map) == (blocks, feature_map)
    network = spec.build(generator()).eval()
    images = torch.randn(2, channels, *size, generator=generator(1))
    features = network.features(images)
    assert features.shape == (2, network.head.in_features)
    assert network.head.in_features == math.prod(feature_map) * (2 if name == "convnet" else 2 * 2 ** (blocks - 1))
    assert torch.equal(network(images), network.head(features))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "convnett"}, "did you mean 'convnet'"),
        ({"norm": "layer"}, "unknown norm 'layer'"),
        ({"width": 0}, "width is 0"),
        ({"width": -3}, "width is -3"),
        ({"depth": 0}, "depth is 0"),
        ({"depth": 6}, "depth 6 leaves nothing of 32×32 images"),
    ],
)
def test_bad_requests(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(CONVNET, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "norm"), EVERY)
def test_the_generator_decides_everything(name: str, norm: str) -> None:
    before = torch.get_rng_state()
    state = small(name, norm).build(generator()).state_dict()
    again = small(name, norm).build(generator()).state_dict()
    other = small(name, norm).build(generator(1)).state_dict()
    double = small(name, norm).build(generator(), dtype=torch.float64).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert not torch.equal(state["head.weight"], other["head.weight"])
    assert all(torch.equal(state[key].double(), double[key].double()) for key in state)
    assert all(value.dtype in (torch.float64, torch.int64) for value in double.values())


def test_initialisation_of_convnet() -> None:
    network = CONVNET.build(generator())
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            assert module.weight.abs().max() <= bound and float(module.weight.detach().std()) == pytest.approx(
                bound / 3**0.5, rel=0.05
            )
            assert module.bias is not None and 0 < module.bias.abs().max() <= bound
        if isinstance(module, nn.GroupNorm):
            assert bool((module.weight == 1).all()) and bool((module.bias == 0).all())


def test_initialisation_of_convnet_doubling() -> None:
    network = DOUBLING.build(generator())
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            scaled = module.weight.detach() * module.weight[0].numel() ** 0.5
            assert float(scaled.std()) == pytest.approx(1, rel=0.02)
            assert 2.2 < float(scaled.abs().max()) < 2.2738
            assert module.bias is not None and bool((module.bias == 0).all())
        if isinstance(module, BatchNorm):
            assert bool((module.weight == 1).all()) and bool((module.bias == 0).all())
            assert bool((module.running_mean == 0).all()) and bool((module.running_var == 1).all())


def test_running_statistics_move_in_training_only() -> None:
    network = replace(DOUBLING, width=4).build(generator())
    images = torch.randn(5, 3, 32, 32, generator=generator(1))
    norm = next(module for module in network.modules() if isinstance(module, BatchNorm))
    network.eval()(images)
    assert bool((norm.running_mean == 0).all()) and bool((norm.running_var == 1).all())
    network.train()(images)
    batch = network.body[:3](images)
    assert isinstance(network.body[3], BatchNorm)
    torch.testing.assert_close(norm.running_mean, 0.9 * batch.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, 0.1 + 0.9 * batch.var((0, 2, 3), correction=0))
    assert not norm.running_mean.requires_grad


@pytest.mark.parametrize(("name", "norm"), EVERY)
def test_second_order_and_functional_call(name: str, norm: str) -> None:
    network = small(name, norm).build(generator(), dtype=torch.float64)
    images = torch.randn(4, 2, 8, 12, dtype=torch.float64, generator=generator(1)).requires_grad_()
    parameters = {key: value.detach().clone().requires_grad_() for key, value in network.named_parameters()}
    assert torch.equal(functional_call(network, parameters, (images,)), network(images))

    def gradients(images: torch.Tensor) -> torch.Tensor:
        loss = functional_call(network, parameters, (images,)).square().sum()
        slopes = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        return torch.stack([slope.square().sum() for slope in slopes]).sum()

    (slope,) = torch.autograd.grad(gradients(images), images)
    direction = torch.randn(images.shape, dtype=torch.float64, generator=generator(2))
    step = 1e-7  # small: ReLU has kinks
    difference = (gradients(images + step * direction) - gradients(images - step * direction)) / (2 * step)
    assert float((slope * direction).sum()) == pytest.approx(float(difference.detach()), rel=1e-5)


@pytest.mark.parametrize(("name", "norm"), EVERY)
def test_memory_format_changes_nothing(name: str, norm: str) -> None:
    network = small(name, norm).build(generator(), dtype=torch.float64).eval()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    images = torch.randn(3, 2, 8, 12, dtype=torch.float64, generator=generator(1))
    expected = network.features(images)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(network.features(images.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("shape", [(3, 2, 8, 6), (2, 3, 7, 5), (2, 3, 7, 6), (0, 2, 4, 4)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_average_pooling_is_torchs(shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    """Values, and both derivatives of a function of them; sums are in another order, so to rounding."""
    found = []
    for pool in (networks.AveragePool(), torch.nn.AvgPool2d(2)):
        x = torch.randn(*shape, generator=generator(), dtype=torch.float64).to(memory_format=memory_format)
        x.requires_grad_()
        y = pool(x)
        (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        found.append((y, first, second))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
