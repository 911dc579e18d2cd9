"""Rates outside the cells: convolutions alone, evaluation, the ridge solve, loading, preprocessing, augmentation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import PREPROCESSINGS
from benchmarks.augment import DSA_STRATEGY, FREPO_OPERATIONS, apply_dsa, apply_frepo, draw_dsa
from benchmarks.datasets import Benchmark, load
from benchmarks.krr import krr_weights
from benchmarks.networks import NetworkSpec
from benchmarks.preprocess import fit
from benchmarks.protocols import PROTOCOLS, Protocol
from benchmarks.speed.conftest import Settings, Timed
from benchmarks.task import generator_for
from benchmarks.training import predict, train_together

CLASSES = 10
NETWORKS = 3
"""Networks that are trained, in sequence or together."""
TEST_IMAGES = 1000
AUGMENTED = 256
"""Images per batch."""


@pytest.mark.benchmark(group="machine")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
@pytest.mark.parametrize(("channels", "out", "size"), [(128, 256, 16), (512, 512, 8)])
def test_convolutions(
    channels: int, out: int, size: int, memory_format: torch.memory_format, settings: Settings, timed: Timed
) -> None:
    """Large 3×3 convolutions, forward: the rate that a method's operations per second can be held against."""
    batch = 64 // settings.scale
    images = torch.randn(batch, channels, size, size).to(memory_format=memory_format)
    weight = torch.randn(out, channels, 3, 3).to(memory_format=memory_format)
    operations = 2 * batch * size**2 * out * channels * 9
    timed(lambda: F.conv2d(images, weight, padding=1), operations / 1e9, "GFLOP")


@pytest.mark.benchmark(group="evaluation: training")
@pytest.mark.parametrize("at_once", [1, NETWORKS])
@pytest.mark.parametrize("ipc", [1, 10])
@pytest.mark.parametrize("name", ["vico", "frepo", "common"])
def test_training(name: str, ipc: int, at_once: int, settings: Settings, timed: Timed) -> None:
    """The first steps of three networks, in sequence or together, as the evaluation may choose."""
    protocol = PROTOCOLS[name]
    spec = _spec(protocol, settings)
    labels = torch.eye(CLASSES).repeat_interleave(ipc, 0)
    images = torch.randn(len(labels), *settings.shape, generator=generator_for("images"))

    def call() -> None:
        for first in range(0, NETWORKS, at_once):
            indices = range(first, first + at_once)
            train_together(
                [spec.build(generator_for("evaluated network", index)) for index in indices],
                images,
                labels,
                "probability",
                protocol.recipe,
                flip=True,
                generators=[generator_for("evaluation", index) for index in indices],
                max_steps=settings.training_steps,
            )

    timed(call, NETWORKS * settings.training_steps * len(images), "images")


@pytest.mark.benchmark(group="evaluation: testing")
@pytest.mark.parametrize("name", ["vico", "frepo"])
def test_testing(name: str, settings: Settings, timed: Timed) -> None:
    network = _spec(PROTOCOLS[name], settings).build(generator_for("evaluated network"))
    images = torch.randn(TEST_IMAGES, *settings.shape, generator=generator_for("test images"))
    timed(lambda: predict(network, images), TEST_IMAGES, "images")


@pytest.mark.benchmark(group="evaluation: ridge solve")
@pytest.mark.parametrize("images", [10, 100, 1000])
def test_krr(images: int, settings: Settings, timed: Timed) -> None:
    """The last layer fitted to so many synthetic images, on the features of FRePo's network."""
    images = max(1, images // settings.scale)
    count = _spec(PROTOCOLS["frepo"], settings).build(generator_for("evaluated network")).head.in_features
    features = torch.randn(images, count, generator=generator_for("features"))
    labels = torch.randn(images, CLASSES, generator=generator_for("labels"))
    timed(lambda: krr_weights(features, labels, 1e-6), images, "images")


@pytest.mark.benchmark(group="preprocessing: fit")
@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_fit(name: str, settings: Settings, timed: Timed) -> None:
    images = _pixels(*settings.zca)
    timed(lambda: fit(name, images), len(images), "images")


@pytest.mark.benchmark(group="preprocessing: forward")
@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_forward(name: str, settings: Settings, timed: Timed) -> None:
    images = _pixels(*settings.zca)[:1000]
    fitted = fit(name, images).to(dtype=torch.float32)
    timed(lambda: fitted.forward(images), len(images), "images")


@pytest.mark.benchmark(group="loading")
@pytest.mark.parametrize("cached", [False, True])
def test_load(cached: bool, timed: Timed, tmp_path: Path) -> None:
    """Digits of scikit-learn, whitened."""

    def call() -> Benchmark:
        return load(
            "digits",
            ipc=1,
            network="convnet_doubling",
            width=8,
            depth=None,
            norm="batch",
            preprocess="zca_frepo",
            generator=generator_for("load"),
            root=tmp_path,
            cache=tmp_path / "cache" if cached else None,
        )

    timed(call, len(call().task.images), "images")


@pytest.mark.benchmark(group="augmentation")
@pytest.mark.parametrize("op", [*DSA_STRATEGY.split("_"), *(f"frepo-{op}" for op in FREPO_OPERATIONS)])
def test_augmentation(op: str, settings: Settings, timed: Timed) -> None:
    """Forward, and the gradient of the images; every image has its own parameters."""
    generator = generator_for("augmentation")
    images = torch.randn(AUGMENTED, *settings.shape, generator=generator, requires_grad=True)
    weights = torch.randn(images.shape, generator=generator)
    if op.startswith("frepo-"):
        draws = torch.rand(3, AUGMENTED, generator=generator)
    else:
        _, draws = draw_dsa(settings.shape[1:], AUGMENTED, generator, flip=True, strategy=op)

    def call() -> None:
        if op.startswith("frepo-"):
            augmented = apply_frepo(op.removeprefix("frepo-"), images, draws)
        else:
            augmented = apply_dsa(op, images, draws)
        torch.autograd.grad((augmented * weights).sum(), images)

    timed(call, AUGMENTED, "images")


def _spec(protocol: Protocol, settings: Settings) -> NetworkSpec:
    """The network that ``protocol`` evaluates."""
    channels, *size = settings.shape
    return NetworkSpec(
        protocol.network, channels, (size[0], size[1]), CLASSES, width=settings.width, norm=protocol.test_norm
    )


def _pixels(count: int, shape: tuple[int, int, int]) -> Tensor:
    """Images (count, C, H, W) uint8."""
    return torch.randint(0, 256, (count, *shape), generator=generator_for("pixels"), dtype=torch.uint8)
