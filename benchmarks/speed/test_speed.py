"""How long things take: a step of each method, evaluation, loading, preprocessing, augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import methods
from benchmarks import PREPROCESSINGS
from benchmarks.augment import DSA_STRATEGY, FREPO_OPERATIONS, apply_dsa, apply_frepo, draw_dsa
from benchmarks.datasets import Benchmark, load
from benchmarks.networks import NetworkSpec
from benchmarks.preprocess import fit
from benchmarks.protocols import PROTOCOLS
from benchmarks.speed import workload
from benchmarks.speed.conftest import Settings, Timed
from benchmarks.task import generator_for
from benchmarks.training import train, train_together
from harness.evaluate import accuracies, krr_head, network_spec
from methods.base import Synthetic

CLASSES = 10
PREPARED: dict[str, dict[str, Any]] = {"mtt": {"num_experts": 1}}
"""What may be less than a budget says, as the cost of a step does not depend on it."""
TRAINING_STEPS = 20
EVALUATED_IPC = 10
NETWORKS = 3
"""Trained one after the other, or together."""
AUGMENTED = 256
"""Images per batch."""


@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("name", [name for name in methods.names() if methods.get(name).iterative])
def test_step(name: str, settings: Settings, timed: Timed) -> None:
    """A whole cycle of steps at one image per class, with the method's own network."""
    cls = methods.get(name)
    protocol = PROTOCOLS[cls.PROTOCOL]
    channels, *size = settings.shape
    spec = NetworkSpec(
        protocol.network, channels, (size[0], size[1]), CLASSES, width=settings.width, norm=protocol.distill_norm
    )
    budget = {key: value for key, value in cls.BUDGETS.get(settings.budget, {}).items() if key != "steps"}
    config = cls.Config(**{**budget, **PREPARED.get(name, {})})
    method = cls(workload.task(spec, ipc=1), config, total_steps=1000)
    method.prepare({})

    def cycle() -> None:
        for _ in range(method.steps_per_cycle):
            method.step()

    cycle()  # what is done once in a process is not the cost of a step
    timed(cycle, method.steps_per_cycle, "steps")


@pytest.mark.benchmark(group="evaluation: training")
@pytest.mark.parametrize("name", ["vico", "frepo", "common"])
def test_training(name: str, settings: Settings, timed: Timed) -> None:
    """The first steps of a fresh network on a distilled set."""
    protocol = PROTOCOLS[name]
    benchmark = workload.benchmark(protocol, settings.shape, width=settings.width, ipc=EVALUATED_IPC)
    synthetic = _synthetic(benchmark.task)

    def call() -> None:
        train(
            network_spec(benchmark, protocol).build(generator_for("evaluated network")),
            synthetic.images,
            synthetic.labels,
            synthetic.label_space,
            protocol.recipe,
            flip=True,
            generator=generator_for("evaluation"),
            max_steps=TRAINING_STEPS,
        )

    timed(call, TRAINING_STEPS * min(len(synthetic.images), protocol.recipe.batch_size), "images")


@pytest.mark.benchmark(group="evaluation: several networks")
@pytest.mark.parametrize("at_once", [1, NETWORKS])
@pytest.mark.parametrize("ipc", [1, 10])
@pytest.mark.parametrize("name", ["frepo", "common"])
def test_several_networks(name: str, ipc: int, at_once: int, settings: Settings, timed: Timed) -> None:
    """The first steps of three networks, one after the other or together: either is what evaluation may choose.

    torch counts too many operations for the gradients of convolutions in groups, so compare times and not rates.
    """
    protocol = PROTOCOLS[name]
    benchmark = workload.benchmark(protocol, settings.shape, width=settings.width, ipc=ipc)
    synthetic = _synthetic(benchmark.task)
    spec = network_spec(benchmark, protocol)

    def call() -> None:
        for first in range(0, NETWORKS, at_once):
            indices = range(first, first + at_once)
            train_together(
                [spec.build(generator_for("evaluated network", index)) for index in indices],
                synthetic.images,
                synthetic.labels,
                synthetic.label_space,
                protocol.recipe,
                flip=True,
                generators=[generator_for("evaluation", index) for index in indices],
                max_steps=TRAINING_STEPS,
            )

    timed(call, NETWORKS * TRAINING_STEPS * len(synthetic.images), "images")


@pytest.mark.benchmark(group="evaluation: testing")
@pytest.mark.parametrize("name", ["network", "kernel regression"])
def test_testing(name: str, settings: Settings, timed: Timed) -> None:
    protocol = PROTOCOLS["frepo"]
    benchmark = workload.benchmark(protocol, settings.shape, width=settings.width, ipc=EVALUATED_IPC)
    synthetic = _synthetic(benchmark.task)
    network = network_spec(benchmark, protocol).build(generator_for("evaluated network"))

    def call() -> None:
        head = network.head if name == "network" else krr_head(network, synthetic, flip=True)
        accuracies(network, [head], benchmark)

    timed(call, len(benchmark.test_labels), "images")


@pytest.mark.benchmark(group="preprocessing: fit")
@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_fit(name: str, settings: Settings, timed: Timed) -> None:
    """The eigendecomposition, which takes most of the time of ZCA, is not in the FLOPs."""
    images = workload.pixels(*settings.zca)
    timed(lambda: fit(name, images), len(images), "images")


@pytest.mark.benchmark(group="preprocessing: forward")
@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_forward(name: str, settings: Settings, timed: Timed) -> None:
    images = workload.pixels(*settings.zca)[:1000]
    fitted = fit(name, images).to(dtype=torch.float32)
    timed(lambda: fitted.forward(images), len(images), "images")


@pytest.mark.benchmark(group="loading")
@pytest.mark.parametrize("cached", [False, True])
def test_load(cached: bool, timed: Timed, tmp_path: Path) -> None:
    """scikit-learn's digits, whitened."""

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


def _synthetic(task: Any) -> Synthetic:
    images, classes = task.draw_per_class()
    return Synthetic(images, F.one_hot(classes, task.num_classes).to(images.dtype), "probability")
