"""Evaluations that train networks: paired networks, values per network, and kernel regression where it is reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.datasets import Benchmark
from benchmarks.errors import UserError
from benchmarks.networks import Network
from benchmarks.task import generator_for
from benchmarks.training import accuracy, features, train_together
from harness.evaluations import training
from harness.evaluations.accuracy import Accuracy, AccuracyConfig, accuracies, krr_head, regression_targets
from harness.evaluations.base import Untrainable
from harness.evaluations.training import resolved
from methods.base import Synthetic
from tests.builders import small


@pytest.fixture(scope="module")
def digits() -> Benchmark:
    return small(ipc=5, network="convnet_doubling", norm="batch")


@pytest.fixture(scope="module")
def synthetic(digits: Benchmark) -> Synthetic:
    task = dataclasses.replace(digits.task, generator=generator_for("images"))
    images, classes = task.draw_per_class()
    return Synthetic(images, torch.nn.functional.one_hot(classes, 10).float(), "probability")


def run(
    synthetic: Synthetic, digits: Benchmark, protocol: str = "frepo", seed: int = 0, begin: int = 0, **config: Any
) -> dict[str, list[float]]:
    """Values of two networks, trained for 30 steps; ``config`` changes that."""
    evaluation = Accuracy(AccuracyConfig(**{"protocol": protocol, "networks": 2, "steps": 30, **config}))
    return dict(evaluation.run([synthetic], [digits], seed, lambda done, total: None, begin))


def test_there_is_a_value_for_each_network_and_the_same_again(synthetic: Synthetic, digits: Benchmark) -> None:
    before = torch.get_rng_state()
    values = run(synthetic, digits)
    assert values.keys() == {"accuracy", "krr_accuracy"}
    assert all(len(numbers) == 2 and all(0 <= number <= 1 for number in numbers) for numbers in values.values())
    assert run(synthetic, digits) == values
    assert run(synthetic, digits, seed=1) != values
    assert torch.equal(torch.get_rng_state(), before), "global random numbers were drawn"


def test_more_networks_later_are_those_that_would_have_come_at_once(synthetic: Synthetic, digits: Benchmark) -> None:
    first, later = run(synthetic, digits, networks=3), run(synthetic, digits, networks=5, begin=3)
    assert {name: first[name] + later[name] for name in first} == run(synthetic, digits, networks=5)
    assert run(synthetic, digits, networks=3, begin=3) == {}


def test_kernel_regression_is_reported_where_the_protocol_says(synthetic: Synthetic, digits: Benchmark) -> None:
    assert run(synthetic, digits, "common").keys() == {"accuracy"}


def test_a_learned_step_size_below_0_trains_nothing_where_the_recipe_uses_it(
    synthetic: Synthetic, digits: Benchmark
) -> None:
    learned = dataclasses.replace(synthetic, lr=torch.tensor([0.1, -0.3]))
    with pytest.raises(Untrainable, match=r"the learned step size is -0\.1"):
        run(learned, digits, "mtt")
    assert run(learned, digits, "common") == run(synthetic, digits, "common")
    assert run(dataclasses.replace(synthetic, lr=torch.tensor(0.02)), digits, "mtt") != run(synthetic, digits, "mtt")


def test_the_network_has_the_norm_that_the_protocol_tests_with(digits: Benchmark) -> None:
    spec = AccuracyConfig(protocol="frepo").spec(digits.spec)
    assert spec.norm == "none" and dataclasses.replace(spec, norm="batch") == digits.spec
    wide = AccuracyConfig(protocol="vico", network="convnet", width=8, depth=2).spec(digits.spec)
    assert (wide.name, wide.width, wide.blocks) == ("convnet", 8, 2)


def test_what_was_not_asked_for_follows_from_the_protocol_and_the_set() -> None:
    distillation = {"network": "convnet_doubling", "width": 16, "depth": 3}

    def named(native: str = "frepo", **config: Any) -> tuple[Any, ...]:
        made = resolved(AccuracyConfig(**config), distillation, native)
        return made.protocol, made.network, made.width, made.depth

    assert named() == ("frepo", "convnet_doubling", 16, 3)
    assert named("mtt") == ("mtt", "convnet_doubling", 16, 3), "the network that distilled"
    assert named(protocol="common") == ("common", "convnet_doubling", 16, 3)
    assert named(protocol="common", network="convnet", width=8)[1:] == ("convnet", 8, None), "by the image size"
    assert named(protocol="common", network="convnet", depth=2)[1:] == ("convnet", 16, 2)
    for wrong in ({"protocol": "comon"}, {"network": "convent"}):
        with pytest.raises(UserError, match="did you mean"):
            named(**wrong)
    with pytest.raises(UserError, match="networks is 0; it must be at least 1"):
        named(networks=0)


def test_comparisons_are_paired(synthetic: Synthetic, digits: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sets meet the same networks and the same order and augmentation."""
    starts = []

    def spy(networks, *data, generators, **options):  # type: ignore[no-untyped-def]
        for network, generator in zip(networks, generators, strict=True):
            starts.append((next(network.parameters()).detach().clone(), generator.get_state()))
        train_together(networks, *data, generators=generators, **options)

    monkeypatch.setattr(training, "train_together", spy)
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
    evaluation = Accuracy(AccuracyConfig(protocol="common", networks=4, networks_at_once=at_once, steps=3))
    evaluation.run([synthetic], [digits], 0, lambda done, total: seen.append((done, total)), 1)
    assert seen == [(done, 9) for done in expected]
    assert evaluation.cost["networks_at_once"] == at_once
    assert evaluation.cost["parameters"] == evaluation.config.spec(digits.spec).parameters()


def test_kernel_regression_classifies_its_own_training_images(synthetic: Synthetic, digits: Benchmark) -> None:
    network = digits.spec.build(generator_for("network"))
    own = dataclasses.replace(digits, test_images=synthetic.images, test_labels=synthetic.labels.argmax(1))
    head = krr_head(network, synthetic, flip=False)
    assert accuracies(network, [head], own) == [1.0]
    wrong = dataclasses.replace(own, test_labels=(own.test_labels + 1) % 10)
    assert accuracies(network, [head], wrong) == [0.0]


def test_kernel_regression_knows_mirrored_images_when_flipped(synthetic: Synthetic, digits: Benchmark) -> None:
    network = digits.spec.build(generator_for("network"))
    mirrored = dataclasses.replace(
        digits, test_images=synthetic.images.flip(-1), test_labels=synthetic.labels.argmax(1)
    )
    heads = [krr_head(network, synthetic, flip=flip) for flip in (True, False)]
    flipped, plain = accuracies(network, heads, mirrored)
    assert flipped == 1.0 and plain < 1.0


def test_fashion_mnist_is_not_mirrored_for_kernel_regression(synthetic: Synthetic, digits: Benchmark) -> None:
    """Neither is a set that was not mirrored when it was distilled; all others are."""

    def krr(name: str, *, flip: bool) -> list[float]:
        named = dataclasses.replace(digits, name=name, flip=flip)
        return run(synthetic, named, networks=1, steps=1)["krr_accuracy"]

    plain = krr("digits", flip=False)
    assert krr("fashion_mnist", flip=True) == krr("fashion_mnist", flip=False)
    assert krr("cifar10", flip=True) != plain


def test_probabilities_are_centred_and_regression_targets_left_alone(synthetic: Synthetic) -> None:
    targets = regression_targets(synthetic)
    assert torch.allclose(targets.sum(1), torch.zeros(50), atol=1e-5) and float(targets.max()) == pytest.approx(0.9)
    centred = dataclasses.replace(synthetic, label_space="centred")
    assert regression_targets(centred) is centred.labels


# --- several networks at a time


def test_accuracies_do_not_depend_on_how_many_networks_are_trained_at_a_time(
    synthetic: Synthetic, digits: Benchmark
) -> None:
    """In float64, where no rounding turns an image."""
    wide = dataclasses.replace(synthetic, images=synthetic.images.double(), labels=synthetic.labels.double())
    tested = dataclasses.replace(digits, test_images=digits.test_images.double())
    first, second, third = (run(wide, tested, networks=3, networks_at_once=at_once) for at_once in (1, 2, 3))
    assert first == second == third and len(set(first["accuracy"])) > 1


def test_the_test_images_meet_a_network_once(
    synthetic: Synthetic, digits: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And either accuracy is that of its head alone, to the bit."""
    network = digits.spec.build(generator_for("network"))
    heads = [network.head, krr_head(network, synthetic, flip=False)]
    alone = [accuracy(features(network.eval(), digits.test_images, head), digits.test_labels) for head in heads]
    seen: list[int] = []
    own = type(network).features

    def spy(network: Network, images: Tensor) -> Tensor:
        seen.append(len(images))
        return own(network, images)

    monkeypatch.setattr(type(network), "features", spy)
    assert accuracies(network, heads, digits) == alone
    assert sum(seen) == len(digits.test_images)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A device for which nobody knows what is best: seconds that the trials there take, one after the other."""
    seconds: list[float] = []

    class Stopwatch:
        def __init__(self, device: torch.device) -> None:
            self.started = False

        def read(self) -> float:
            self.started = not self.started
            return 100.0 if self.started else 100.0 + seconds.pop(0)

    monkeypatch.setattr(training, "ONE_AT_A_TIME", ())
    monkeypatch.setattr(training, "TRIED_FROM", 3)
    monkeypatch.setattr(training, "Clock", Stopwatch)
    yield seconds
    assert not seconds, "a trial was expected"


def at_once(synthetic: Synthetic, digits: Benchmark, **config: Any) -> float:
    """How many networks were trained at a time."""
    evaluation = Accuracy(AccuracyConfig(**{"protocol": "common", "networks": 3, "steps": 3, **config}))
    evaluation.run([synthetic], [digits], 0, lambda done, total: None)
    return evaluation.cost["networks_at_once"]


@pytest.mark.parametrize(("together", "alone", "expected"), [(2.9, 1.0, 3), (3.1, 1.0, 1), (1.0, 1.0, 3)])
def test_the_way_that_takes_less_time_is_chosen(
    synthetic: Synthetic, digits: Benchmark, trials: list[float], together: float, alone: float, expected: int
) -> None:
    trials += [together, alone]
    before = torch.get_rng_state()
    assert at_once(synthetic, digits) == expected
    assert torch.equal(torch.get_rng_state(), before), "global random numbers were drawn"


def test_a_trial_is_short_and_changes_no_result(
    synthetic: Synthetic, digits: Benchmark, trials: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(synthetic, digits, networks_at_once=1)
    steps: list[tuple[int, int]] = []

    def spy(networks: list[Network], *data: Any, max_steps: int, **options: Any) -> None:
        steps.append((len(networks), max_steps))
        train_together(networks, *data, max_steps=max_steps, **options)

    monkeypatch.setattr(training, "train_together", spy)
    trials += [2.0, 1.0]
    assert run(synthetic, digits) == expected
    assert steps == [(2, 7), (1, 7), (1, 30), (1, 30)]


@pytest.mark.parametrize("config", [{"networks": 1}, {"steps": 2}, {"networks_at_once": 1}])
def test_nothing_is_tried_where_there_is_little_to_gain(
    synthetic: Synthetic, digits: Benchmark, trials: list[float], config: dict[str, int]
) -> None:
    assert at_once(synthetic, digits, **config) == 1


def test_a_cpu_trains_one_network_at_a_time(
    synthetic: Synthetic, digits: Benchmark, trials: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "ONE_AT_A_TIME", ("cpu",))
    assert at_once(synthetic, digits) == 1


def test_networks_that_do_not_fit_together_are_trained_alone(
    synthetic: Synthetic, digits: Benchmark, trials: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spy(networks: list[Network], *data: Any, **options: Any) -> None:
        if len(networks) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried …")
        train_together(networks, *data, **options)

    monkeypatch.setattr(training, "train_together", spy)
    assert at_once(synthetic, digits) == 1
