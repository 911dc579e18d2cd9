"""Networks: names, sizes, initialisation, and that they can be differentiated in every way the methods do."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from benchmarks import NETWORKS, NORMS
from benchmarks.errors import UserError
from benchmarks.networks import NetworkSpec, usual_norm
from benchmarks.networks.layers import AveragePool, BatchNorm

CONVNET = NetworkSpec("convnet", 3, (32, 32), 10)
DOUBLING = NetworkSpec("convnet_doubling", 3, (32, 32), 10, norm="batch")
EVERY = [(name, norm) for name in NETWORKS for norm in NORMS if usual_norm(name, norm) == norm]  # type: ignore[arg-type]
HALVING = ("convnet", "convnet_doubling", "frepo_dcconv", "frepo_kipconv")
"""Networks whose depth can be chosen."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(name: str, norm: str) -> NetworkSpec:
    size = (8, 12) if name in (*HALVING, "mlp") else (32, 40)
    return NetworkSpec(name, 2, size, 3, width=4, norm=norm)  # type: ignore[arg-type]


def batch(spec: NetworkSpec, count: int, **options: object) -> torch.Tensor:
    shape = (count, spec.in_channels, *spec.image_size)
    return torch.randn(*shape, generator=generator(1), **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("spec", "parameters"),
    [
        # As counted by the authors' programs: the ConvNet of DC, and FRePo's with and without batch norm.
        (CONVNET, 320_010),
        (replace(CONVNET, num_classes=100), 504_420),
        (DOUBLING, 1_561_610),
        (replace(DOUBLING, norm="none"), 1_560_842),
        (replace(CONVNET, in_channels=1, image_size=(28, 28)), 317_706),
        *[
            (replace(CONVNET, name=name, norm=norm), parameters)
            for name, norm, parameters in (
                ("alexnet", "none", 1_872_202),
                ("alexnet", "batch", 1_874_122),
                ("vgg11", "instance", 9_231_114),
                ("vgg11", "batch", 9_231_114),
                ("resnet18", "instance", 11_173_962),
                ("resnet18", "batch", 11_173_962),
                ("resnet18_ap", "batch", 11_250_762),
                ("lenet", "none", 62_006),
                ("mlp", "none", 411_146),
                ("frepo_dcconv", "none", 318_858),
                ("frepo_dcconv", "instance", 319_626),
                ("frepo_kipconv", "none", 466_826),
                ("frepo_alexnet", "none", 1_872_202),
                ("frepo_vgg11", "none", 1_037_962),
                ("frepo_vgg11_max", "batch", 1_040_010),
                ("frepo_resnet18", "none", 11_241_162),
                ("frepo_resnet18", "batch", 11_241_290),
                ("frepo_resnet18_ap", "instance", 11_241_290),
            )
        ],
    ],
)
def test_published_parameter_counts(spec: NetworkSpec, parameters: int) -> None:
    assert spec.parameters() == parameters


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
@pytest.mark.parametrize("name", ["convnet", "convnet_doubling"])
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
        ({"depth": 6}, "a network of depth 6 leaves nothing of 32×32 images; lower it"),
        ({"name": "resnet18", "norm": "none"}, "resnet18 has no form with norm 'none'; it has instance, batch"),
        (
            {"name": "resnet18", "image_size": (8, 8)},
            "maps of 1 pixel of 8×8 images, of which norm 'instance' leaves nothing",
        ),
        ({"name": "alexnet"}, "alexnet has no form with norm 'instance'; it has none, batch"),
        ({"name": "mlp", "norm": "batch"}, "mlp has no form with norm 'batch'; it has none"),
        ({"name": "frepo_alexnet", "norm": "batch"}, "frepo_alexnet has no form with norm 'batch'"),
        ({"name": "resnet18", "depth": 3}, "resnet18 has a depth of its own: leave out depth 3"),
        ({"name": "vgg11", "image_size": (8, 32)}, "vgg11 of depth 8 leaves nothing of 8×32 images; enlarge them"),
        ({"name": "lenet", "norm": "none", "image_size": (8, 8)}, "lenet of depth 4 leaves nothing of 8×8 images"),
    ],
)
def test_bad_requests(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(CONVNET, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in HALVING])
def test_a_fixed_depth_is_known_and_may_be_said(name: str) -> None:
    spec = NetworkSpec(name, 3, (32, 32), 10, norm=usual_norm(name, "none"))
    assert spec.blocks >= 2 and replace(spec, depth=spec.blocks).parameters() == spec.parameters()


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (3, 33), (3, 64), (3, 128)])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_images_of_every_published_size(name: str, channels: int, side: int) -> None:
    spec = NetworkSpec(name, channels, (side, side), 5, width=4, norm=usual_norm(name, "instance"))
    network = spec.build(generator()).eval()
    images = batch(spec, 2)
    with torch.no_grad():
        features = network.features(images)
        assert features.shape == (2, network.head.in_features)
        assert torch.equal(network(images), network.head(features))
    if name in ("resnet18", "vgg11"):  # means over the last map, whose size is that of the image
        assert network.head.in_features == spec.scaled(512)


def test_a_norm_that_a_network_does_not_have_gives_way_to_its_usual_one() -> None:
    assert usual_norm("convnet", "none") == "none"
    assert usual_norm("resnet18", "none") == "instance" and usual_norm("resnet18", "batch") == "batch"
    assert usual_norm("alexnet", "instance") == "none" and usual_norm("mlp", "batch") == "none"
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        usual_norm("resnet19", "none")


def channels_of(spec: NetworkSpec) -> list[int]:
    """Outputs of the layers, the head's apart."""
    with torch.device("meta"):
        network = spec.family(spec)
    layers = [module for module in network.body.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return [len(layer.weight) for layer in layers]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in HALVING])
def test_width_scales_all_channels(name: str) -> None:
    spec = NetworkSpec(name, 3, (32, 32), 10, norm=usual_norm(name, "none"))
    published = channels_of(spec)
    assert channels_of(replace(spec, width=64)) == [max(1, count // 2) for count in published]
    assert channels_of(replace(spec, width=1)) == [max(1, round(count / 128)) for count in published]


@pytest.mark.parametrize("name", HALVING)
def test_width_is_that_of_the_first_block(name: str) -> None:
    spec = NetworkSpec(name, 3, (32, 32), 10, width=5, norm="none")
    assert channels_of(spec) == ([5, 10, 20] if name == "convnet_doubling" else [5] * (4 if "kip" in name else 3))


@pytest.mark.parametrize(("name", "norm"), EVERY)
def test_the_largest_map_is_about_as_large_as_is_said(name: str, norm: str) -> None:
    """Within the border of one-channel images: the rule for chunks needs no more."""
    for channels, side in ((1, 28), (3, 32)):
        spec = NetworkSpec(name, channels, (side, side), 5, width=4, norm=norm)  # type: ignore[arg-type]
        network, sizes = spec.build(generator()).eval(), [channels * side**2 if name == "mlp" else 0]

        def note(layer: nn.Module, given: object, made: torch.Tensor, sizes: list[int] = sizes) -> None:
            sizes.append(made[0].numel())

        for layer in network.modules():
            layer.register_forward_hook(note)
        network(batch(spec, 1))
        assert 0.75 * max(sizes) <= network.map_size(side, side) <= 1.4 * max(sizes)


@pytest.mark.parametrize(("name", "norm"), EVERY)
def test_the_generator_decides_everything(name: str, norm: str) -> None:
    before, others = torch.get_rng_state(), random.getstate()
    state = small(name, norm).build(generator()).state_dict()
    again = small(name, norm).build(generator()).state_dict()
    other = small(name, norm).build(generator(1)).state_dict()
    double = small(name, norm).build(generator(), dtype=torch.float64).state_dict()
    assert torch.equal(before, torch.get_rng_state()) and others == random.getstate()
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert not torch.equal(state["head.weight"], other["head.weight"])
    assert all(torch.equal(state[key].double(), double[key].double()) for key in state)
    assert all(value.dtype in (torch.float64, torch.int64) for value in double.values())


@pytest.mark.parametrize("spec", [CONVNET, replace(CONVNET, name="resnet18", width=32)], ids=lambda spec: spec.name)
def test_initialisation_by_torchs_default(spec: NetworkSpec) -> None:
    for module in spec.build(generator()).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            assert module.weight.abs().max() <= bound
            assert float(module.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.1)
            assert module.bias is None or 0 < module.bias.abs().max() <= bound
        if isinstance(module, nn.GroupNorm):
            assert bool((module.weight == 1).all()) and bool((module.bias == 0).all())


@pytest.mark.parametrize(
    ("spec", "gain"),
    [
        (DOUBLING, 1),
        (replace(DOUBLING, name="frepo_vgg11"), 1),
        (replace(DOUBLING, name="frepo_dcconv"), 2),
        (replace(DOUBLING, name="frepo_kipconv"), 1),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_initialisation_of_frepos_networks(spec: NetworkSpec, gain: float) -> None:
    """Their smallest layer has 1280 weights, whose deviation has a standard error of two in a hundred."""
    network = spec.build(generator())
    biases = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            scaled = module.weight.detach() * (module.weight[0].numel() / gain) ** 0.5
            assert float(scaled.std()) == pytest.approx(1, rel=0.06)
            assert 2.2 < float(scaled.abs().max()) < 2.2738
            biases += [] if module.bias is None else [module.bias]
        if isinstance(module, BatchNorm):
            assert bool((module.weight == 1).all()) and bool((module.bias == 0).all())
            assert bool((module.running_mean == 0).all()) and bool((module.running_var == 1).all())
    drawn = 0.1 if spec.name == "frepo_kipconv" else 0.0
    assert float(torch.cat(biases).detach().std()) == pytest.approx(drawn, rel=0.15)
    assert len(biases) == (1 if spec.name == "frepo_dcconv" else len(channels_of(spec)) + 1), "the head's is one"


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
    images = batch(small(name, norm), 4, dtype=torch.float64).requires_grad_()
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
    images = batch(small(name, norm), 3, dtype=torch.float64)
    expected = network.features(images)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(network.features(images.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("shape", [(3, 2, 8, 6), (2, 3, 7, 5), (2, 3, 7, 6), (0, 2, 4, 4)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_average_pooling_is_torchs(shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    """Values, and both derivatives of a function of them; sums are in another order, so to rounding."""
    found = []
    for pool in (AveragePool(), torch.nn.AvgPool2d(2)):
        x = torch.randn(*shape, generator=generator(), dtype=torch.float64).to(memory_format=memory_format)
        x.requires_grad_()
        y = pool(x)
        (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        found.append((y, first, second))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
