"""The evaluator: paired networks, values per network, kernel regression where the protocol asks for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import training
from benchmarks.datasets import Benchmark, load
from benchmarks.networks import Network
from benchmarks.protocols import PROTOCOLS
from benchmarks.task import generator_for
from benchmarks.training import accuracy, train_together
from harness import evaluate as module
from harness.evaluate import evaluate, krr_head, network_spec, networks_at_once, regression_targets
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

    def spy(networks, *given, generators, **rest):  # type: ignore[no-untyped-def]
        for network, generator in zip(networks, generators, strict=True):
            starts.append((next(network.parameters()).detach().clone(), generator.get_state()))
        train_together(networks, *given, generators=generators, **rest)

    monkeypatch.setattr(module, "train_together", spy)
    run(synthetic, digits)
    run(dataclasses.replace(synthetic, images=synthetic.images * 0.5), digits)
    for index in range(2):
        for ours, theirs in zip(starts[index], starts[2 + index], strict=True):
            assert torch.equal(ours, theirs)
    assert not torch.equal(starts[0][0], starts[1][0]) and not torch.equal(starts[0][1], starts[1][1])


@pytest.mark.parametrize(("at_once", "expected"), [(1, range(1, 10)), (2, [2, 4, 6, 7, 8, 9]), (3, [3, 6, 9])])
def test_progress_counts_over_all_networks(
    synthetic: Synthetic, digits: Benchmark, at_once: int, expected: list[int]
) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        synthetic,
        digits,
        PROTOCOLS["common"],
        seed=0,
        networks=3,
        at_once=at_once,
        max_steps=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 9) for done in expected]


def test_kernel_regression_classifies_its_own_training_images(synthetic: Synthetic, digits: Benchmark) -> None:
    network = digits.spec.build(generator_for("network"))
    own = dataclasses.replace(digits, test_images=synthetic.images, test_labels=synthetic.labels.argmax(1))
    head = krr_head(network, synthetic, flip=False)
    assert module.accuracies(network, [head], own) == [1.0]
    wrong = dataclasses.replace(own, test_labels=(own.test_labels + 1) % 10)
    assert module.accuracies(network, [head], wrong) == [0.0]


def test_kernel_regression_knows_mirrored_images_when_flipped(synthetic: Synthetic, digits: Benchmark) -> None:
    network = digits.spec.build(generator_for("network"))
    mirrored = dataclasses.replace(
        digits, test_images=synthetic.images.flip(-1), test_labels=synthetic.labels.argmax(1)
    )
    heads = [krr_head(network, synthetic, flip=flip) for flip in (True, False)]
    found = module.accuracies(network, heads, mirrored)
    assert found[0] == 1.0 and found[1] < 1.0


@pytest.mark.parametrize(
    ("name", "flip", "expected"),
    [("cifar10", True, True), ("fashion_mnist", True, False), ("mnist", False, False), ("digits", False, False)],
)
def test_who_is_mirrored_for_kernel_regression(digits: Benchmark, name: str, flip: bool, expected: bool) -> None:
    assert module._krr_flip(dataclasses.replace(digits, name=name, flip=flip)) is expected


def test_probabilities_are_centred_and_regression_targets_left_alone(synthetic: Synthetic) -> None:
    targets = regression_targets(synthetic)
    assert torch.allclose(targets.sum(1), torch.zeros(50), atol=1e-5) and float(targets.max()) == pytest.approx(0.9)
    centred = dataclasses.replace(synthetic, label_space="centred")
    assert regression_targets(centred) is centred.labels


# Several networks at a time


def test_accuracies_do_not_depend_on_how_many_networks_are_trained_at_a_time(
    synthetic: Synthetic, digits: Benchmark
) -> None:
    """In float64, where no rounding turns an image."""
    wide = dataclasses.replace(synthetic, images=synthetic.images.double(), labels=synthetic.labels.double())
    tested = dataclasses.replace(digits, test_images=digits.test_images.double())
    found = [
        evaluate(wide, tested, PROTOCOLS["frepo"], seed=0, networks=3, at_once=at_once, max_steps=30)
        for at_once in (1, 2, 3)
    ]
    assert found[0] == found[1] == found[2] and len(set(found[0][0])) > 1


def test_the_test_images_meet_a_network_once(
    synthetic: Synthetic, digits: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And either accuracy is that of its head alone, to the bit."""
    network = digits.spec.build(generator_for("network"))
    heads = [network.head, krr_head(network, synthetic, flip=False)]
    alone = [
        accuracy(training.features(network.eval(), digits.test_images, head), digits.test_labels) for head in heads
    ]
    seen: list[int] = []
    features = type(network).features

    def spy(network: Network, images: Tensor) -> Tensor:
        seen.append(len(images))
        return features(network, images)

    monkeypatch.setattr(type(network), "features", spy)
    assert module.accuracies(network, heads, digits) == alone
    assert sum(seen) == len(digits.test_images)


class Stopwatch:
    """Readings whose differences are ``seconds`` in turn."""

    def __init__(self, *seconds: float) -> None:
        self.readings = [value for second in seconds for value in (100.0, 100.0 + second)]

    def __call__(self) -> float:
        return self.readings.pop(0)


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU for which nobody knows what is best."""
    monkeypatch.setattr(module, "ONE_AT_A_TIME", ())


@pytest.mark.parametrize(("together", "alone", "expected"), [(2.9, 1.0, 3), (3.1, 1.0, 1), (1.0, 1.0, 3)])
def test_what_takes_less_time_is_chosen(
    synthetic: Synthetic, digits: Benchmark, accelerated: None, together: float, alone: float, expected: int
) -> None:
    before = torch.get_rng_state()
    clock = Stopwatch(together, alone)
    found = networks_at_once(synthetic, digits, PROTOCOLS["frepo"], networks=3, read=clock)
    assert found == expected and not clock.readings
    assert torch.equal(torch.get_rng_state(), before), "global random numbers were drawn"


def test_a_trial_is_short_and_changes_no_result(
    synthetic: Synthetic, digits: Benchmark, accelerated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(synthetic, digits)
    steps: list[tuple[int, int]] = []

    def spy(networks: list[Network], *given: Any, max_steps: int, **rest: Any) -> None:
        steps.append((len(networks), max_steps))
        train_together(networks, *given, max_steps=max_steps, **rest)

    monkeypatch.setattr(module, "train_together", spy)
    networks_at_once(synthetic, digits, PROTOCOLS["frepo"], networks=2, read=Stopwatch(1, 1))
    assert steps == [(2, 7), (1, 7)]
    assert run(synthetic, digits) == expected


@pytest.mark.parametrize("change", [{"networks": 1}, {"max_steps": 199}])
def test_nothing_is_tried_where_there_is_little_to_gain(
    synthetic: Synthetic, digits: Benchmark, accelerated: None, change: dict[str, int]
) -> None:
    options: dict[str, Any] = {"networks": 3, "max_steps": 200, **change}
    assert networks_at_once(synthetic, digits, PROTOCOLS["frepo"], **options, read=Stopwatch()) == 1


def test_a_cpu_trains_one_network_at_a_time(synthetic: Synthetic, digits: Benchmark) -> None:
    assert networks_at_once(synthetic, digits, PROTOCOLS["frepo"], networks=3, read=Stopwatch()) == 1


def test_networks_that_do_not_fit_together_are_trained_alone(
    synthetic: Synthetic, digits: Benchmark, accelerated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spy(networks: list[Network], *given: Any, **rest: Any) -> None:
        if len(networks) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried …")
        train_together(networks, *given, **rest)

    monkeypatch.setattr(module, "train_together", spy)
    assert networks_at_once(synthetic, digits, PROTOCOLS["frepo"], networks=3, read=Stopwatch(1, 1)) == 1
