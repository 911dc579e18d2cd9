"""Membership inference: who are members, what is trained on what, and that real images leak and random ones do not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.data.views import half_mask
from benchmarks.datasets import Benchmark, load_raw
from benchmarks.errors import UserError
from benchmarks.networks import Network
from benchmarks.protocols import FREPO_ATTACK_RECIPE
from benchmarks.task import generator_for
from harness.evaluations import _attacked, _attacks, lira, membership_inference, training
from harness.evaluations._attacked import Attacked, attacked_spec
from harness.evaluations.base import Quantity, Untrainable, check_class
from harness.evaluations.lira import Lira, LiraConfig
from harness.evaluations.membership_inference import MembershipInference, MembershipInferenceConfig
from harness.reports.groups import RECIPE
from methods.base import Synthetic
from tests.builders import small

CHUNK = "digits@images:0-120"


def data(source: str = CHUNK) -> Benchmark:
    return small(source)


@pytest.fixture(scope="module")
def digits() -> Benchmark:
    return data()


def real(benchmark: Benchmark, images: int | None = None) -> Synthetic:
    """The first real images of the task as a set; None: all."""
    labels = F.one_hot(benchmark.task.labels[:images], 10).float()
    return Synthetic(benchmark.task.images[:images], labels, "probability")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the attacker that takes milliseconds is trained, and intervals are rough."""
    monkeypatch.setattr(_attacks, "RESAMPLES", 20)
    monkeypatch.setattr(membership_inference, "TRAINED", ("knn",))


def run(synthetic: Synthetic, benchmark: Benchmark, seed: int = 0, **config: Any) -> dict[str, list[float]]:
    settings = {"members": 120, "lengths": (5, 20), "augment": "none", **config}
    evaluation = MembershipInference(MembershipInferenceConfig(**settings))
    return dict(evaluation.run([synthetic], [benchmark], seed, lambda done, total: None))


@pytest.mark.parametrize("evaluation", [MembershipInference, Lira])
def test_the_evaluations_keep_to_the_interface(evaluation: Any) -> None:
    check_class(evaluation, evaluation.__name__)
    shown = [quantity for quantity in evaluation.quantities.values() if quantity.tabled]
    assert 4 <= len(shown) <= 7, "columns of a table"
    for changes in evaluation.BUDGETS.values():
        evaluation.Config(**changes)
    assert not {*RECIPE} & {field.name for field in dataclasses.fields(evaluation.Config)}, "answers join every row"


def test_real_images_leak_the_more_the_longer_a_network_is_trained_and_a_few_of_them_hide_the_rest(
    digits: Benchmark, quick: None
) -> None:
    values = run(real(digits), digits, lengths=(5, 300), batch_size=60)
    assert values["threshold_auc"][1] > max(0.62, values["threshold_auc"][0] + 0.1)
    assert values["accuracy"][1] > values["accuracy"][0] and values["threshold_advantage"][1] > 0.2
    few = run(real(digits, 12), digits, lengths=(5, 300))
    assert few["threshold_auc"][1] < values["threshold_auc"][1] - 0.08


def test_each_quantity_has_a_series_for_each_network(digits: Benchmark, quick: None) -> None:
    values = run(real(digits, 20), digits, repeats=2)
    assert {len(numbers) for numbers in values.values()} == {4}
    assert values.keys() <= MembershipInference.quantities.keys()
    assert "threshold_tpr_at_0.01_upper" in values and "threshold_tpr_at_0.001" not in values, "120 non-members"
    first = run(real(digits, 20), digits)
    assert {name: numbers[:2] for name, numbers in values.items()} == first
    assert run(real(digits, 20), digits, seed=1) != first
    last = run(real(digits, 20), digits, repeats=2, attacked="last")
    assert last == {name: numbers if name == "accuracy" else numbers[2:] for name, numbers in values.items()}


def test_a_network_on_its_way_is_the_one_trained_anew_for_that_length(digits: Benchmark, quick: None) -> None:
    both = run(real(digits, 20), digits, augment="frepo", batch_size=8)
    for place, length in enumerate((5, 20)):
        alone = run(real(digits, 20), digits, augment="frepo", batch_size=8, lengths=(length,))
        assert alone == {name: [numbers[place]] for name, numbers in both.items()}


def test_networks_that_are_trained_together_are_those_that_are_trained_alone(
    digits: Benchmark, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = dataclasses.replace(real(digits, 20), images=digits.task.images[:20].double())
    task = dataclasses.replace(digits.task, images=digits.task.images.double())
    benchmark = dataclasses.replace(digits, task=task, test_images=digits.test_images.double())
    alone = run(wide, benchmark, repeats=2)
    monkeypatch.setattr(_attacked, "ONE_AT_A_TIME", ())
    together = run(wide, benchmark, repeats=2)
    for name, numbers in alone.items():
        assert together[name] == pytest.approx(numbers, abs=1e-9), name


def test_non_members_are_as_many_and_drawn_from_the_test_images(
    digits: Benchmark, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(logits: torch.Tensor, labels: torch.Tensor) -> Any:
        seen.append(labels)
        return own(logits, labels)

    own = membership_inference.observed
    monkeypatch.setattr(membership_inference, "observed", spy)
    run(real(digits, 20), digits, lengths=(1,))
    run(real(digits, 30), digits, lengths=(1,), seed=5)
    members, others, *again = seen
    assert torch.equal(members, digits.task.labels)
    assert len(others) == 120 and not torch.equal(others, digits.test_labels[:120])
    assert torch.equal(again[0], members) and torch.equal(again[1], others), "the same for every set and seed"
    short = dataclasses.replace(digits, test_images=digits.test_images[:50], test_labels=digits.test_labels[:50])
    seen.clear()
    run(real(digits, 20), short, lengths=(1,))
    assert [len(labels) for labels in seen] == [50, 50] and torch.equal(seen[1], short.test_labels)


def test_networks_are_trained_on_the_set_by_the_papers_recipe(
    digits: Benchmark, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def spy(networks: list[Network], images: torch.Tensor, labels: torch.Tensor, *rest: Any, **options: Any) -> None:
        trained.append((images, rest[1]))
        own(networks, images, labels, *rest, **options)

    own = training.train_together
    monkeypatch.setattr(training, "train_together", spy)
    distilled = real(digits, 20)
    run(distilled, digits, augment="frepo")
    ((images, recipe),) = trained
    assert images is distilled.images
    expected = dataclasses.replace(FREPO_ATTACK_RECIPE, batch_size=20, steps_by_images=((1, 20),))
    assert recipe == expected and recipe.schedule == "constant" and recipe.steps(20) == 20


def test_the_batch_is_the_papers_share() -> None:
    paper, small = Attacked(members=10_000), Attacked(members=2000)
    assert [paper.recipe(n, 10_000, 1).batch_size for n in (10_000, 500, 100)] == [1024, 256, 100]
    assert [small.recipe(n, 2000, 1).batch_size for n in (2000, 100)] == [205, 100]
    assert Attacked(batch_size=7).recipe(2000, 2000, 1).batch_size == 7


def test_the_network_is_frepos_without_norm_as_wide_as_the_one_that_distilled(digits: Benchmark) -> None:
    spec = attacked_spec(digits)
    assert (spec.name, spec.norm, spec.width) == ("convnet_doubling", "none", 4)


def test_the_members_are_a_view_of_the_data(digits: Benchmark) -> None:
    assert MembershipInference(MembershipInferenceConfig()).views() == ("@images:0-2000",)
    assert MembershipInference(MembershipInferenceConfig(members=10_000, chunk=4)).views() == ("@images:40000-50000",)
    names = Lira(LiraConfig(members=120, shadows=5)).views()
    assert names[0] == "@images:0-120@half:0" and len(names) == 5


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (MembershipInferenceConfig, {"members": 0}, "members is 0; it must be at least 1"),
        (MembershipInferenceConfig, {"chunk": -1}, "chunk is -1; it must be at least 0"),
        (MembershipInferenceConfig, {"lengths": (100, 50)}, "lengths are 100 50; they must ascend from at least 1"),
        (MembershipInferenceConfig, {"lengths": ()}, "they must ascend"),
        (LiraConfig, {"training_steps": 0}, "training_steps is 0"),
        (LiraConfig, {"targets": 0}, "targets is 0"),
        (LiraConfig, {"shadows": 10**12}, "shadows is 1000000000000; it must be at most 10000"),
        (LiraConfig, {"shadows": 4}, "shadows are 3 beside the targets; there must be at least 4"),
        (LiraConfig, {"shadows": 8, "targets": 5}, "shadows are 3 beside the targets"),
    ],
)
def test_values_out_of_range_are_refused(config: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**fields)


def test_a_network_that_diverges_is_no_attack(digits: Benchmark, quick: None) -> None:
    broken = dataclasses.replace(real(digits, 20), images=1e38 * digits.task.images[:20])
    with pytest.raises(Untrainable, match="after 5 steps"):
        run(broken, digits)


# --- LiRA


@pytest.fixture(scope="module")
def halves() -> list[Benchmark]:
    return [data(f"{CHUNK}@half:{place}") for place in range(8)]


def test_the_images_of_all_halves_are_the_bytes_of_the_chunk(halves: list[Benchmark]) -> None:
    members = torch.stack([half_mask(120, place) for place in range(8)])
    pixels, labels = lira._whole(halves, members)
    raw = load_raw(CHUNK, Path("nowhere"))
    seen = members.any(0)
    assert seen.sum() > 115
    assert torch.equal(pixels[seen], raw.train_images[seen]) and torch.equal(labels[seen], raw.train_labels[seen])


def test_likelihood_ratios_find_the_members_of_networks_that_remember(
    halves: list[Benchmark], quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks that answer the better the nearer an image is to one of the set: members are met again, to the bit."""

    def remember(config: Any, synthetic: Synthetic, *_: Any) -> None:
        (index,), lengths, test, _ = _[2:]
        test(index, lengths[0], (synthetic, generator_for(index)))

    def answers(network: Any, images: torch.Tensor) -> torch.Tensor:
        synthetic, noise = network
        distance, nearest = torch.cdist(images.flatten(1), synthetic.images.flatten(1)).min(1)
        logits = synthetic.labels[nearest] / (1 + distance[:, None])
        return logits + 0.05 * torch.randn(logits.shape, generator=noise)

    monkeypatch.setattr(lira, "train_attacked", remember)
    monkeypatch.setattr(lira, "predict", answers)

    def aucs(images: int | None, **config: Any) -> tuple[dict[str, float], Lira]:
        evaluation = Lira(LiraConfig(members=120, shadows=8, **config))
        values = dict(evaluation.run([real(each, images) for each in halves], halves, 0, lambda done, total: None))
        assert len(values.pop("accuracy")) == 8 and all(len(numbers) == 1 for numbers in values.values())
        return {name: value for name, (value,) in values.items()}, evaluation

    values, evaluation = aucs(None)
    for attack in ("online", "online_fixed_variance", "offline_fixed_variance"):
        assert values[f"{attack}_auc"] > 0.9, attack
    assert values["online_fixed_variance_tpr_at_0.01_lower"] <= values["online_fixed_variance_tpr_at_0.01"]
    assert values.keys() <= Lira.quantities.keys() and 80 < evaluation.cost["examples_of_a_target"] <= 120
    assert "online_tpr_at_0.001" not in values, "8 targets with half of 120 examples"
    assert aucs(None, targets=2)[0]["online_fixed_variance_auc"] > 0.9
    few = aucs(6)[0]
    assert 0.4 < few["online_fixed_variance_auc"] < 0.7, "most members are in no set"


def test_networks_are_trained_on_the_sets_of_all_halves(halves: list[Benchmark], quick: None) -> None:
    config = LiraConfig(members=120, shadows=8, training_steps=3, repeats=2, queries="shifted")
    done = []
    sets = [real(each, 10) for each in halves]
    values = dict(Lira(config).run(sets, halves, 0, lambda *progress: done.append(progress)))
    assert len(values["accuracy"]) == 16 and len(set(values["accuracy"])) > 8
    assert done[-1] == (48, 48) and done == sorted(done)
    assert dict(Lira(config).run(sets, halves, 0, lambda done, total: None)) == values


def test_how_many_shadows_an_example_has_tells_nothing(quick: None) -> None:
    """Scores without information: an attack that is worse or better than chance would know it from elsewhere."""
    members = torch.stack([half_mask(400, place) for place in range(7)]).numpy()
    aucs = []
    for seed in range(8):
        scores = np.random.RandomState(seed).normal(size=(7, 400, 1))
        aucs.append(Lira(LiraConfig(members=400, shadows=7))._attacked(scores, members, 0)["online_auc"][0])
    assert 0.485 < np.mean(aucs) < 0.515


def test_queries_are_shifted_and_mirrored_where_that_leaves_the_class() -> None:
    pixels = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    (clean,) = lira._queries(pixels, "clean", flip=True)
    assert torch.equal(clean, pixels)
    asked = list(lira._queries(pixels, "shifted", flip=False))
    assert len(asked) == 5 and torch.equal(asked[0], pixels) and len({str(each) for each in asked}) == 5
    assert asked[2][0, 0].tolist() == [[3, 4, 5], [6, 7, 8], [6, 7, 8]]
    mirrored = list(lira._queries(pixels, "shifted", flip=True))
    assert len(mirrored) == 10 and torch.equal(mirrored[1], pixels.flip(-1))


def test_too_few_shadows_of_a_kind_are_a_line() -> None:
    scores, members = np.zeros((6, 4, 1)), np.ones((6, 4), dtype=bool)
    with pytest.raises(UserError, match=r"ask for more --lira\.shadows"):
        Lira(LiraConfig(members=4, shadows=6))._attacked(scores, members, 0)


# --- series of several networks


def test_values_are_cut_into_series_by_their_places() -> None:
    series = Quantity("x", against="steps", at="lengths")
    config = {"lengths": [10, 20, 30]}
    assert series.series([1, 2, 3, 4, 5, 6], config) == [[1, 2, 3], [4, 5, 6]]
    assert series.repeated([1, 2, 3, 4, 5, 6], config) == [3, 6] and series.repeated([], config) == []
    plain = Quantity("x", against="steps")
    assert plain.series([1, 2, 3], config) == [[1, 2, 3]] and plain.repeated([1, 2, 3], config) == [3]
    assert Quantity("x").repeated([1, 2, 3], config) == [1, 2, 3]
