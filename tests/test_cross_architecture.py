"""Networks of other architectures: names, step sizes searched on held-out training images, columns of the report."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.datasets import Benchmark
from benchmarks.errors import UserError
from benchmarks.protocols import PROTOCOLS
from benchmarks.task import generator_for
from harness.evaluations import cross_architecture
from harness.evaluations.accuracy import Accuracy, AccuracyConfig
from harness.evaluations.base import Untrainable
from harness.evaluations.cross_architecture import (
    TABLE2,
    Architecture,
    CrossArchitecture,
    CrossArchitectureConfig,
    held_out,
)
from harness.evaluations.training import trained_networks
from harness.reports.groups import grouped
from harness.reports.measures import measures
from methods.base import Synthetic
from tests.builders import RECIPE, evaluated, made, small


@pytest.fixture(scope="module")
def digits() -> Benchmark:
    return small(ipc=3, network="convnet_doubling", norm="batch")


@pytest.fixture(scope="module")
def synthetic(digits: Benchmark) -> Synthetic:
    """Noise near real images, so that no real image is in the set."""
    task = dataclasses.replace(digits.task, generator=generator_for("images"))
    images, classes = task.draw_per_class()
    return Synthetic(images * 0.99, torch.nn.functional.one_hot(classes, 10).float(), "probability")


def config(architecture: str = "own", **changes: Any) -> CrossArchitectureConfig:
    """Two networks of ``convnet``, trained for 20 steps by the recipe of vico; ``changes`` to that."""
    usual = {"protocol": "vico", "network": "convnet", "networks": 2, "steps": 20, "lr_search": (0.3, 1.0, 3.0)}
    return CrossArchitectureConfig(architectures=(architecture,), **{**usual, **changes})


def run(
    synthetic: Synthetic, digits: Benchmark, asked: CrossArchitectureConfig, seed: int = 0, begin: int = 0
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """The values, and the cost."""
    evaluation = CrossArchitecture(asked)
    values = evaluation.run([synthetic], [digits], seed, lambda done, total: None, begin)
    return dict(values), evaluation.cost


# --- names


def test_an_architecture_is_a_network_with_a_norm_and_a_protocol() -> None:
    assert Architecture.parsed("convnet") == ("convnet", None, None)
    assert Architecture.parsed("own:none") == ("own", "none", None)
    assert Architecture.parsed("convnet:batch@frepo") == ("convnet", "batch", "frepo")
    assert Architecture.parsed("own@common") == ("own", None, "common")
    assert len({Architecture.parsed(name) for name in TABLE2}) == 6


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ("convent",)}, "unknown network 'convent': did you mean 'convnet'"),
        ({"architectures": ("convnet:bach",)}, "unknown norm 'bach': did you mean 'batch'"),
        ({"architectures": ("alexnet:instance",)}, "alexnet has no form with norm 'instance'; it has none, batch"),
        ({"architectures": ("convnet:",)}, "unknown norm ''"),
        ({"architectures": ("convnet@frep",)}, "unknown protocol 'frep': did you mean 'frepo'"),
        ({"architectures": ()}, "architectures is empty"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr_search": (1.0, -1.0)}, "lr_search must be above 0"),
        ({"lr_search": ()}, "lr_search is empty"),
        ({"search_steps": 0}, "search_steps is 0"),
        ({"held_out": 0}, "held_out is 0"),
        ({"networks": 0}, "networks is 0"),
    ],
)
def test_a_configuration_is_refused_before_anything_is_distilled(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        CrossArchitectureConfig(**changes)


def test_the_network_norm_and_depth_that_are_trained(digits: Benchmark) -> None:
    large = dataclasses.replace(digits.spec, image_size=(16, 16))

    def spec(architecture: str, **changes: Any) -> tuple[Any, ...]:
        made = config(architecture, **{"width": 8, "depth": 1, **changes}).spec(large)
        return made.name, made.norm, made.width, made.depth

    assert spec("own") == ("convnet", "instance", 8, 1)
    assert spec("own:none") == spec("convnet:none") == ("convnet", "none", 8, 1)
    assert spec("convnet_doubling") == ("convnet_doubling", "instance", 8, None), (
        "its depth follows from the image size"
    )
    assert spec("convnet_doubling@frepo")[1] == "none", "the norm with which that protocol tests"
    assert spec("convnet_doubling:batch@frepo")[1] == "batch"
    assert spec("resnet18@frepo") == ("resnet18", "instance", 8, None), "its usual norm: it has no form without"
    assert spec("resnet18:batch")[1] == "batch"
    with pytest.raises(UserError, match="a question of its own"):
        CrossArchitectureConfig("vico", architectures=("convnet", "convnet_doubling")).spec(digits.spec)


# --- the step size


def test_with_the_recipes_step_size_the_own_network_is_that_of_the_accuracy(
    synthetic: Synthetic, digits: Benchmark
) -> None:
    values, cost = run(synthetic, digits, config(lr=PROTOCOLS["vico"].recipe.lr))
    plain = Accuracy(AccuracyConfig(protocol="vico", network="convnet", networks=2, steps=20))
    assert values["accuracy"] == plain.run([synthetic], [digits], 0, lambda done, total: None)["accuracy"]
    assert values["step_size"] == [0.01, 0.01] and len(values["held_out_accuracy"]) == 2
    assert not [name for name in cost if name.startswith("held_out")], "nothing was searched"


def test_the_step_size_is_the_best_on_held_out_training_images(
    synthetic: Synthetic, digits: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[Any, float, int | None]] = []

    def spy(config: Any, synthetic: Synthetic, benchmark: Benchmark, seed: Any, *others: Any) -> Any:
        trained.append((seed, config.recipe(synthetic).lr, config.steps))
        return trained_networks(config, synthetic, benchmark, seed, *others)

    monkeypatch.setattr(cross_architecture, "trained_networks", spy)
    values, cost = run(synthetic, digits, config(search_steps=10))
    assert trained == [("step size 0", pytest.approx(0.01 * factor), 10) for factor in (0.3, 1.0, 3.0)]
    tried = {f: cost[f"held_out_accuracy_with_{f:g}_times_the_step_size"] for f in (0.3, 1.0, 3.0)}
    best = max(tried, key=lambda factor: tried[factor])
    assert len(set(tried.values())) == 3, "a tie would make this test empty"
    assert values["step_size"] == [pytest.approx(0.01 * best)] * 2
    assert run(synthetic, digits, config(search_steps=10)) == (values, cost)


def test_the_search_does_not_look_at_the_test_images(synthetic: Synthetic, digits: Benchmark) -> None:
    values, cost = run(synthetic, digits, config())
    other = dataclasses.replace(
        digits, test_images=torch.zeros_like(digits.test_images), test_labels=(digits.test_labels + 1) % 10
    )
    others, other_cost = run(synthetic, other, config())
    assert (others["step_size"], other_cost) == (values["step_size"], cost)
    assert others["held_out_accuracy"] == values["held_out_accuracy"] and others["accuracy"] != values["accuracy"]


def test_of_equal_step_sizes_the_nearest_to_the_recipes_is_taken(
    synthetic: Synthetic, digits: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_architecture, "accuracy", lambda logits, labels: 0.5)
    values, _ = run(synthetic, digits, config(lr_search=(10.0, 0.5, 4.0), networks=1, steps=1))
    assert values["step_size"] == [0.005]


def test_networks_that_diverge_are_not_chosen(synthetic: Synthetic, digits: Benchmark) -> None:
    changes: dict[str, Any] = {"network": "convnet_doubling", "steps": 5, "networks": 1}
    values, cost = run(synthetic, digits, config("own:none", lr_search=(1e12, 1.0), **changes))
    assert values["step_size"] == [0.01] and cost["held_out_accuracy_with_1e+12_times_the_step_size"] == 0
    with pytest.raises(Untrainable, match="diverge with every step size"):
        run(synthetic, digits, config("own:none", lr_search=(1e12, 1e13), **changes))


def test_a_single_step_size_is_taken_without_a_trial(synthetic: Synthetic, digits: Benchmark) -> None:
    values, cost = run(synthetic, digits, config(lr_search=(0.5,), steps=1))
    assert values["step_size"] == [0.005] * 2 and not [name for name in cost if name.startswith("held_out")]
    assert values == run(synthetic, digits, config(lr=0.005, steps=1))[0]


def test_factors_are_of_the_learned_step_size_where_the_recipe_uses_it(synthetic: Synthetic, digits: Benchmark) -> None:
    learned = dataclasses.replace(synthetic, lr=torch.tensor([0.01, 0.03]))
    changes = {"networks": 1, "steps": 2, "lr_search": (2.0,)}
    assert run(learned, digits, config(protocol="mtt", **changes))[0]["step_size"] == [pytest.approx(0.04)]
    assert run(learned, digits, config("own@mtt", **changes))[0]["step_size"] == [pytest.approx(0.04)]
    assert run(learned, digits, config(**changes))[0]["step_size"] == [0.02]
    with pytest.raises(Untrainable, match="the learned step size is -1"):
        run(dataclasses.replace(synthetic, lr=torch.tensor(-1.0)), digits, config(protocol="mtt", **changes))


def test_the_recipe_of_another_protocol_is_used_where_it_is_named(synthetic: Synthetic, digits: Benchmark) -> None:
    changes = {"lr": 0.01, "networks": 1}
    named, other = (run(synthetic, digits, config("own:instance" + at, **changes))[0] for at in ("", "@frepo"))
    assert named != other
    assert other == run(synthetic, digits, config("own:instance", protocol="frepo", **changes))[0]


def test_more_networks_later_are_those_that_would_have_come_at_once(synthetic: Synthetic, digits: Benchmark) -> None:
    at_once, _ = run(synthetic, digits, config(networks=3, steps=5))
    first, _ = run(synthetic, digits, config(networks=1, steps=5))
    later, _ = run(synthetic, digits, config(networks=3, steps=5), begin=1)
    assert {name: first[name] + later[name] for name in first} == at_once


# --- held-out images


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_held_out_images_are_training_images_that_are_not_in_the_set(synthetic: Synthetic, digits: Benchmark) -> None:
    images, labels = held_out(synthetic, digits, 100)
    assert len(images) == len(labels) == 100 and rows(images) <= rows(digits.task.images)
    place = next(i for i, image in enumerate(digits.task.images) if torch.equal(image, images[0]))
    assert digits.task.labels[place] == labels[0]
    own = dataclasses.replace(synthetic, images=images[:30].clone())
    others, _ = held_out(own, digits, 100)
    assert torch.equal(others[:70], images[30:]) and len(others) == 100 and not rows(others) & rows(own.images)
    assert len(held_out(synthetic, digits, 10**6)[0]) == len(digits.task.labels) // 2


def test_nothing_is_held_out_from_all_real_images(synthetic: Synthetic, digits: Benchmark) -> None:
    whole = dataclasses.replace(
        synthetic, images=digits.task.images, labels=torch.nn.functional.one_hot(digits.task.labels, 10).float()
    )
    assert len(held_out(whole, digits, 100)[0]) == 0
    with pytest.raises(UserError, match="every training image is in the set"):
        run(whole, digits, config(steps=1, networks=1))
    assert run(whole, digits, config(steps=1, networks=1, lr=0.01))[0].keys() == {"accuracy", "step_size"}


# --- the report


def test_an_architecture_is_a_column_beside_the_accuracy_of_the_same_recipe() -> None:
    distilled = made((0.5, 0.7))
    for architecture, lr in (("own:none", 0.2), ("convnet:batch", 0.1)):
        asked = {**RECIPE, "network": "convnet_doubling", "width": 32, "depth": 3, "architectures": [architecture]}
        distilled = evaluated(
            distilled,
            {"accuracy": [lr, 3 * lr], "step_size": [lr, lr]},
            name="cross_architecture",
            config={**asked, "lr": None},
        )
    (group,) = grouped([distilled])
    columns = {measure.title: measure.text(group) for measure in measures([group])}
    assert columns["accuracy (%), own:none"] == "40.0 ± 28.3"
    assert columns["accuracy (%), convnet:batch"] == "20.0 ± 14.1"
    assert columns["accuracy (%)"] == "60.0 ± 14.1"
    assert columns["step size, own:none"].startswith("0.2")
    labels = [measure.label for measure in measures([group])]
    assert "cross_architecture[convnet:batch].accuracy" in labels
