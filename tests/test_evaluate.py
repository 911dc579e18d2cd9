"""The evaluator: paired networks, values per network, kernel regression where the protocol asks for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.datasets import Benchmark, load
from benchmarks.protocols import PROTOCOLS
from benchmarks.task import generator_for
from benchmarks.training import train
from harness import evaluate as module
from harness.evaluate import evaluate, krr_accuracy, network_spec, regression_targets
from methods.base import Synthetic


@pytest.fixture(scope="module")
def digits() -> Benchmark:
    return load(
        "digits",
        ipc=5,
        network="convnet_doubling",
        width=4,
        depth=None,
        norm="batch",
        preprocess="standardise",
        generator=generator_for("test"),
        root=Path("nowhere"),
    )


@pytest.fixture(scope="module")
def synthetic(digits: Benchmark) -> Synthetic:
    task = dataclasses.replace(digits.task, generator=generator_for("images"))
    images, classes = task.draw_per_class()
    return Synthetic(images, torch.nn.functional.one_hot(classes, 10).float(), "probability")


def run(synthetic: Synthetic, digits: Benchmark, protocol: str = "frepo", seed: int = 0) -> tuple[list[float], ...]:
    return evaluate(synthetic, digits, PROTOCOLS[protocol], seed=seed, networks=2, max_steps=30)


def test_one_value_per_network_and_the_same_again(synthetic: Synthetic, digits: Benchmark) -> None:
    before = torch.get_rng_state()
    values, krr_values = run(synthetic, digits)
    assert len(values) == len(krr_values) == 2 and all(0 <= value <= 1 for value in values + krr_values)
    assert run(synthetic, digits) == (values, krr_values)
    assert run(synthetic, digits, seed=1) != (values, krr_values)
    assert torch.equal(torch.get_rng_state(), before), "global random numbers were drawn"


def test_kernel_regression_is_reported_where_the_protocol_says(synthetic: Synthetic, digits: Benchmark) -> None:
    values, krr_values = run(synthetic, digits, "common")
    assert len(values) == 2 and krr_values == []


def test_the_network_has_the_norm_that_the_protocol_tests_with(digits: Benchmark) -> None:
    spec = network_spec(digits, PROTOCOLS["frepo"])
    assert spec.norm == "none" and dataclasses.replace(spec, norm="batch") == digits.spec


def test_comparisons_are_paired(synthetic: Synthetic, digits: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sets meet the same networks and the same order and augmentation."""
    starts = []

    def spy(network, images, labels, space, recipe, *, generator, **rest):  # type: ignore[no-untyped-def]
        starts.append((next(network.parameters()).detach().clone(), generator.get_state()))
        train(network, images, labels, space, recipe, generator=generator, **rest)

    monkeypatch.setattr(module, "train", spy)
    run(synthetic, digits)
    run(dataclasses.replace(synthetic, images=synthetic.images * 0.5), digits)
    for index in range(2):
        for ours, theirs in zip(starts[index], starts[2 + index], strict=True):
            assert torch.equal(ours, theirs)
    assert not torch.equal(starts[0][0], starts[1][0]) and not torch.equal(starts[0][1], starts[1][1])


def test_progress_counts_over_all_networks(synthetic: Synthetic, digits: Benchmark) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        synthetic,
        digits,
        PROTOCOLS["common"],
        seed=0,
        networks=2,
        max_steps=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 6) for done in range(1, 7)]


def test_kernel_regression_classifies_its_own_training_images(synthetic: Synthetic, digits: Benchmark) -> None:
    network = digits.spec.build(generator_for("network"))
    own = dataclasses.replace(digits, test_images=synthetic.images, test_labels=synthetic.labels.argmax(1))
    assert krr_accuracy(network, synthetic, own, flip=False) == 1.0
    wrong = dataclasses.replace(own, test_labels=(own.test_labels + 1) % 10)
    assert krr_accuracy(network, synthetic, wrong, flip=False) == 0.0


def test_kernel_regression_knows_mirrored_images_when_flipped(synthetic: Synthetic, digits: Benchmark) -> None:
    network = digits.spec.build(generator_for("network"))
    mirrored = dataclasses.replace(
        digits, test_images=synthetic.images.flip(-1), test_labels=synthetic.labels.argmax(1)
    )
    assert krr_accuracy(network, synthetic, mirrored, flip=True) == 1.0
    assert krr_accuracy(network, synthetic, mirrored, flip=False) < 1.0


@pytest.mark.parametrize(
    ("name", "flip", "expected"),
    [("cifar10", True, True), ("fashion_mnist", True, False), ("mnist", False, False), ("digits", False, False)],
)
def test_who_is_mirrored_for_kernel_regression(digits: Benchmark, name: str, flip: bool, expected: bool) -> None:
    assert module._krr_flip(dataclasses.replace(digits, name=name, flip=flip)) is expected


def test_probabilities_are_centred_and_regression_targets_left_alone(synthetic: Synthetic) -> None:
    targets = regression_targets(synthetic)
    assert torch.allclose(targets.sum(1), torch.zeros(50), atol=1e-6) and float(targets.max()) == pytest.approx(0.9)
    centred = dataclasses.replace(synthetic, label_space="centred")
    assert regression_targets(centred) is centred.labels
