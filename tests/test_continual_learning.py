"""Continual learning: what networks are trained and tested on after every step, and how it is recorded."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Sequence
from typing import Any, overload

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.data import published
from benchmarks.datasets import Benchmark
from benchmarks.errors import UserError
from benchmarks.networks import Network
from benchmarks.protocols import PROTOCOLS
from benchmarks.task import generator_for
from harness.evaluations import training
from harness.evaluations.base import Quantity, Untrainable
from harness.evaluations.continual_learning import ContinualLearning, ContinualLearningConfig
from harness.reports.groups import grouped
from harness.reports.measures import measures
from methods.base import Synthetic
from tests.builders import evaluated, made, small

IPC, NETWORKS, STEPS = 3, 2, 5


@pytest.fixture(autouse=True)
def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To parse the file of the digits takes longer than all else."""
    monkeypatch.setattr(published, "_digits", digits)


digits = functools.cache(published._digits)


def loaded(view: str) -> Benchmark:
    return small(f"digits{view}", ipc=IPC, network="convnet_doubling", depth=2, norm="batch")


class Lazy(Sequence[Benchmark]):
    """The benchmarks of ``views``, each loaded when it is asked for."""

    def __init__(self, views: Sequence[str]) -> None:
        self.views = views
        self.alive: list[weakref.ref[Benchmark]] = []
        self.most = 0
        """The largest number of benchmarks that were alive at once."""

    def __len__(self) -> int:
        return len(self.views)

    @overload
    def __getitem__(self, at: int) -> Benchmark: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Benchmark]: ...
    def __getitem__(self, at: int | slice) -> Benchmark | Sequence[Benchmark]:
        assert isinstance(at, int)
        benchmark = loaded(self.views[at])
        self.alive.append(weakref.ref(benchmark))
        self.most = max(self.most, sum(reference() is not None for reference in self.alive))
        return benchmark


def asked(**config: Any) -> ContinualLearning:
    return ContinualLearning(
        ContinualLearningConfig(**{"protocol": "frepo", "networks": NETWORKS, "steps": 4, **config})
    )


def given(evaluation: ContinualLearning, ipc: int = IPC) -> tuple[list[Synthetic], list[Benchmark]]:
    """The first real images of each class in every step, with one-hot labels, and the data."""
    sets, benchmarks = [], [loaded(view) for view in evaluation.views()]
    for benchmark in benchmarks:
        rows = torch.cat([rows[:ipc] for rows in benchmark.task.rows_of_classes()])
        labels = F.one_hot(benchmark.task.labels[rows], 10).float()
        sets.append(Synthetic(benchmark.task.images[rows], labels, "probability"))
    return sets, benchmarks


class Seen:
    """What networks were trained on: one entry for every call of the training loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.recipes: list[Any] = []
        self.starts: list[Tensor] = []
        train = training.train_together

        def spy(networks, images, labels, label_space, recipe, **options):  # type: ignore[no-untyped-def]
            self.images.append(images)
            self.labels.append(labels)
            self.recipes.append(recipe)
            self.starts.append(next(networks[0].parameters()).detach().clone())
            train(networks, images, labels, label_space, recipe, **options)

        monkeypatch.setattr(training, "train_together", spy)


def silent(done: int, total: int) -> None:
    pass


def test_the_views_are_those_of_the_steps() -> None:
    assert asked(class_steps=2, order=3).views() == ("@step:0-of-2-order-3", "@step:1-of-2-order-3")
    assert asked(leak=True).views()[4] == "@step:4-of-5-order-0-leak"


def test_after_every_step_networks_are_trained_on_all_sets_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = asked()
    (sets, benchmarks), seen = given(evaluation), Seen(monkeypatch)
    evaluation.run(sets, benchmarks, 0, silent)
    assert [len(images) for images in seen.images] == [2 * IPC * (step + 1) for step in range(STEPS) for _ in "ab"]
    for step in range(STEPS):
        benchmark, images = benchmarks[step], seen.images[NETWORKS * step]
        assert torch.equal(seen.labels[NETWORKS * step], torch.cat([own.labels for own in sets[: step + 1]]))
        assert torch.equal(images[-2 * IPC :], sets[step].images), "this step's own set is as it was distilled"
        # The pixels of every set are those that were distilled, in the space of this step's preprocessing.
        pixels = [benchmarks[at].preprocess.inverse(sets[at].images) for at in range(step + 1)]
        torch.testing.assert_close(benchmark.preprocess.inverse(images), torch.cat(pixels), rtol=0, atol=1e-5)
    spaces = [benchmarks[step].preprocess.mean for step in range(STEPS)]
    assert not torch.allclose(spaces[0], spaces[1]), "each step's preprocessing knows only the classes seen"
    assert evaluation.cost["buffer_bytes"] == 10 * IPC * (64 + 10) * 4


def test_with_the_leak_the_sets_stay_as_they_were_distilled(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = asked(leak=True, networks=1)
    (sets, benchmarks), seen = given(evaluation), Seen(monkeypatch)
    evaluation.run(sets, benchmarks, 0, silent)
    torch.testing.assert_close(seen.images[-1], torch.cat([own.images for own in sets]), rtol=0, atol=1e-5)


def test_one_benchmark_is_held_at_a_time() -> None:
    evaluation = asked(networks=1)
    (sets, _), benchmarks = given(evaluation), Lazy(evaluation.views())
    evaluation.run(sets, benchmarks, 0, silent)
    assert len(benchmarks.alive) == STEPS and benchmarks.most == 1


def test_values_are_network_after_network_with_their_means() -> None:
    evaluation = asked()
    (sets, benchmarks), steps = given(evaluation), list[tuple[int, int]]()
    values = evaluation.run(sets, benchmarks, 0, lambda done, total: steps.append((done, total)))
    series = values["continual_accuracy"]
    assert len(series) == NETWORKS * STEPS
    means = [sum(series[:STEPS]) / STEPS, sum(series[STEPS:]) / STEPS]
    assert values["average_incremental_accuracy"] == pytest.approx(means, abs=1e-12)
    assert [total for _, total in steps] == [4 * NETWORKS * STEPS] * len(steps)
    assert [done for done, _ in steps] == list(range(1, 4 * NETWORKS * STEPS + 1))
    assert evaluation.run(sets, benchmarks, 0, silent) == values
    assert evaluation.run(sets, benchmarks, 1, silent) != values
    # The first network of two is the only one of one.
    assert asked(networks=1).run(sets, benchmarks, 0, silent)["continual_accuracy"] == series[:STEPS]


def test_every_step_has_fresh_networks_which_depend_on_no_method(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = asked()
    (sets, benchmarks), seen = given(evaluation), Seen(monkeypatch)
    evaluation.run(sets, benchmarks, 0, silent)
    count = len(seen.starts)
    assert len({tuple(start.flatten().tolist()) for start in seen.starts}) == count == NETWORKS * STEPS
    evaluation.run([dataclasses.replace(own, images=own.images * 0.5) for own in sets], benchmarks, 0, silent)
    for first, second in zip(seen.starts[:count], seen.starts[count:], strict=True):
        assert torch.equal(first, second)


def test_predictions_go_over_all_classes_and_tests_over_those_seen() -> None:
    evaluation = asked()
    sets, benchmarks = given(evaluation)
    benchmark = benchmarks[1]
    seen = sorted(set(benchmark.test_labels.tolist()))
    assert len(seen) == 4 and benchmark.spec.num_classes == 10
    network = benchmark.spec.build(generator_for("network"))

    def says(label: int) -> Network:
        with torch.no_grad():
            network.head.weight.zero_()
            network.head.bias.copy_(F.one_hot(torch.tensor(label), 10))
        return network

    unseen = next(label for label in range(10) if label not in seen)
    assert evaluation.test(says(unseen), sets[1], benchmark) == {"continual_accuracy": 0.0}
    shares = [evaluation.test(says(label), sets[1], benchmark)["continual_accuracy"] for label in seen]
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize(("protocol", "steps"), [("frepo", [10_000] * 4), ("vico", [1001, 1001, 2002, 8008])])
def test_the_length_of_the_recipe(protocol: str, steps: list[int]) -> None:
    """FRePo takes 10 000 steps whatever the buffer; DM 1001 epochs with batches of 256. The rest is the protocol's."""
    evaluation = asked(protocol=protocol)
    recipe = evaluation.config.recipe(given(evaluation)[0][0])
    assert [recipe.steps(images) for images in (20, 256, 400, 2000)] == steps
    own = PROTOCOLS[protocol].recipe
    assert dataclasses.replace(recipe, steps_by_images=own.steps_by_images) == own


def test_learned_step_sizes_are_averaged_where_the_recipe_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = asked(protocol="mtt", networks=1, steps=1, class_steps=2)
    sets, benchmarks = given(evaluation)
    sets = [dataclasses.replace(own, lr=torch.tensor(lr)) for own, lr in zip(sets, (0.1, 0.3), strict=True)]
    seen = Seen(monkeypatch)
    evaluation.run(sets, benchmarks, 0, silent)
    assert [recipe.lr for recipe in seen.recipes] == pytest.approx([0.1, 0.2])
    sets[1] = dataclasses.replace(sets[1], lr=torch.tensor(-0.3))
    with pytest.raises(Untrainable, match=r"the learned step size is -0\.1"):
        evaluation.run(sets, benchmarks, 0, silent)


def test_a_buffer_of_real_digits_teaches_the_digits() -> None:
    evaluation = asked(protocol="vico", network="convnet", networks=1, steps=100, width=16, class_steps=2)
    first, last = evaluation.run(*given(evaluation, 10), 0, silent)["continual_accuracy"]
    # A network that was trained on the last set alone knows half of the classes.
    assert first > 0.6 and last > 0.6


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"class_steps": 0}, "class_steps is 0; it must be from 1 to 10000"),
        ({"class_steps": 10**10}, "class_steps is 10000000000; it must be from 1 to 10000"),
        ({"order": -1}, "order is -1; it must be at least 0"),
        ({"order": 10**9}, "order is 1000000000; it must be at least 0 and below"),
        ({"networks": 0}, "networks is 0; it must be at least 1"),
    ],
)
def test_what_is_out_of_range_is_said_in_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ContinualLearningConfig(**config)


def test_tables_and_figures_see_one_series_for_each_network() -> None:
    quantity = Quantity("x", against="step", repeats="networks")
    assert quantity.series([1, 2, 3, 4, 5, 6], {"networks": 2}) == [[1, 2, 3], [4, 5, 6]]
    assert Quantity("x", against="step").series([1, 2, 3], {"networks": 3}) == [[1, 2, 3]]
    values = {"continual_accuracy": [0.9, 0.8, 0.6, 0.7, 0.5, 0.4], "average_incremental_accuracy": [0.8, 0.6]}
    config = {"protocol": "frepo", "networks": 2, "class_steps": 3, "order": 0, "leak": False}
    (row,) = grouped([evaluated(made(()), values, "continual_learning", config=config)])
    shown = {measure.name: measure for measure in measures([row]) if measure.evaluation == "continual_learning"}
    assert shown["continual_accuracy"].series(row) == [[0.9, 0.8, 0.6], [0.7, 0.5, 0.4]]
    assert shown["continual_accuracy"].values(row) == [0.6, 0.4], "the last of each"
    assert shown["continual_accuracy"].text(row).startswith("50.0 ± 14.1")
    assert shown["average_incremental_accuracy"].values(row) == [0.8, 0.6]
