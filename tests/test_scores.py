"""Robust scores and selection gaps: their formulas, the evaluations behind them, and their columns."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from benchmarks.datasets import Benchmark
from benchmarks.errors import UserError
from benchmarks.networks import Network
from benchmarks.task import generator_for
from benchmarks.training import accuracy, predict, train_together
from harness import report
from harness.evaluations import training
from harness.evaluations.accuracy import Accuracy, AccuracyConfig
from harness.evaluations.hard_labels import HardLabels, HardLabelsConfig
from harness.evaluations.robust_scores import RobustScores, RobustScoresConfig
from harness.evaluations.selection_gap import SelectionGap, SelectionGapConfig, gaps
from harness.evaluations.training import hardened
from harness.records.record import Distilled
from harness.reports.groups import grouped
from harness.reports.scores import Scores, augmentation_robust_score, label_robust_score, scores
from methods.base import Synthetic
from tests.builders import curve, evaluated, made, saved, small


@pytest.fixture(scope="module")
def digits() -> Benchmark:
    return small(ipc=3)


@pytest.fixture(scope="module")
def soft(digits: Benchmark) -> Synthetic:
    """Real images with labels that are largest at the class, and far from one-hot."""
    images, classes = dataclasses.replace(digits.task, generator=generator_for("images")).draw_per_class()
    labels = torch.nn.functional.one_hot(classes, 10).float() + torch.rand(
        len(classes), 10, generator=generator_for("labels")
    ).mul(0.9)
    return Synthetic(images, labels - labels.mean(1, keepdim=True), "centred")


def nothing(done: int, total: int) -> None:
    """Takes progress."""


# --- formulas


@pytest.mark.parametrize(
    ("own", "random", "real", "hard", "expected"),
    [
        (0.5, 0.5, 0.5, 0.5, (1 - math.exp(-1)) / (math.e - math.exp(-1))),
        (1.0, 0.0, 0.0, 1.0, 1.0),  # the best that could be: IOR 1, HLR −1
        (0.0, 1.0, 1.0, 0.0, 0.0),
        (0.6, 0.2, 0.9, 0.5, (1 - math.exp(-1)) / (math.e - math.exp(-1))),  # IOR 0.4 = HLR 0.4
    ],
)
def test_the_label_robust_score(own: float, random: float, real: float, hard: float, expected: float) -> None:
    assert label_robust_score(own, random, real, hard) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_the_scores_weigh_their_parts() -> None:
    one = (math.exp(0.4) - math.exp(-1)) / (math.e - math.exp(-1))
    assert label_robust_score(0.6, 0.2, 0.9, 0.5, weight=1.0) == pytest.approx(one)
    assert augmentation_robust_score(0.6, 0.2, 0.3, 0.3, weight=1.0) == pytest.approx(one)
    assert augmentation_robust_score(0.3, 0.3, 0.6, 0.2, weight=0.0) == pytest.approx(one)
    assert augmentation_robust_score(0.8, 0.2, 0.5, 0.3) == pytest.approx(one)  # the mean of 0.6 and 0.2


def robust(distilled: Distilled, hard: float, bare: float) -> Distilled:
    values = {"hard_label_accuracy": [hard - 0.01, hard + 0.01], "unaugmented_accuracy": [bare, bare]}
    return evaluated(distilled, values, "robust_scores", protocol="common")


def test_scores_are_of_rows_that_were_evaluated_alike(tmp_path: Path) -> None:
    ours = robust(made((0.62, 0.58), protocol="common"), 0.5, 0.3)
    drawn = robust(made((0.2, 0.2), method="random_real", protocol="common"), 0.2, 0.3)
    whole = made((0.9, 0.9), method="whole_data", ipc=0, protocol="common")
    other = robust(made((0.6,), method="dm", protocol="common", width=64), 0.5, 0.3)
    assert report.main([saved(tmp_path, ours, drawn, whole, other)]) == 0
    table = pd.read_csv(tmp_path / "table.csv").set_index("method")
    assert table.loc["frepo", "label_robust_score"] == pytest.approx(label_robust_score(0.6, 0.2, 0.9, 0.5))
    assert table.loc["frepo", "augmentation_robust_score"] == pytest.approx(
        augmentation_robust_score(0.6, 0.2, 0.3, 0.3)
    )
    assert table.loc[["dm", "whole_data"], ["label_robust_score", "augmentation_robust_score"]].isna().all(axis=None)
    assert table.loc["random_real", "augmentation_robust_score"] == pytest.approx(augmentation_robust_score(0, 0, 0, 0))
    text = (tmp_path / "table.md").read_text()
    assert " LRS |" in text and "of accuracies as fractions" in text


def test_without_all_parts_there_is_no_score() -> None:
    ours = robust(made((0.6,), protocol="common"), 0.5, 0.3)
    drawn = made((0.2,), method="random_real", protocol="common")
    assert scores(grouped([ours, drawn])) == [Scores(), Scores()]
    assert scores(grouped([ours])) == [Scores()]


def test_rows_of_another_device_give_no_score() -> None:
    ours = robust(made((0.6,), protocol="common"), 0.5, 0.3)
    drawn = robust(made((0.2,), method="random_real", protocol="common", device="Another CPU"), 0.2, 0.3)
    assert scores(grouped([ours, drawn]))[0] == Scores()


# --- the evaluation robust_scores


def test_hard_labels_are_the_classes_of_the_images(soft: Synthetic, digits: Benchmark) -> None:
    """Whatever their soft labels say; where some classes have no images, those of the others."""
    expected = torch.arange(10).repeat_interleave(3)
    for labels in (soft.labels, soft.labels.roll(1, 0)):
        hard = hardened(dataclasses.replace(soft, labels=labels), digits.task)
        assert hard.label_space == "probability" and hard.labels.dtype == soft.labels.dtype
        assert torch.equal(hard.labels, torch.eye(10)[expected])
    few = torch.isin(digits.task.labels, torch.tensor([4, 7]))
    task = dataclasses.replace(digits.task, images=digits.task.images[few], labels=digits.task.labels[few])
    some = dataclasses.replace(soft, images=soft.images[:6], labels=soft.labels[:6])
    assert hardened(some, task).labels.argmax(1).tolist() == [4, 4, 4, 7, 7, 7]


def test_networks_are_those_of_the_accuracy_with_a_part_of_the_recipe_left_out(
    soft: Synthetic, digits: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hard labels a set has the accuracy that it would have if these were its own; no augmentation is none."""
    soft = dataclasses.replace(soft, labels=soft.labels.softmax(1), label_space="probability")
    config: dict[str, Any] = {"protocol": "vico", "networks": 2, "steps": 15}
    recipes = []

    def spy(*arguments: Any, **options: Any) -> None:
        recipes.append((arguments[4].augment, bool((arguments[2] == 1).any())))
        train_together(*arguments, **options)

    monkeypatch.setattr(training, "train_together", spy)
    seen: list[tuple[int, int]] = []
    values = RobustScores(RobustScoresConfig(**config)).run(
        [soft], [digits], 3, lambda done, total: seen.append((done, total))
    )
    assert recipes == [("dsa", True), ("none", False)] * 2
    assert seen[-1] == (60, 60) and [done for done, _ in seen] == sorted(done for done, _ in seen)
    hard = Accuracy(AccuracyConfig(**config)).run([hardened(soft, digits.task)], [digits], 3, nothing)
    assert values["hard_label_accuracy"] == hard["accuracy"]
    assert HardLabels(HardLabelsConfig(**config)).run([soft], [digits], 3, nothing) == {
        "hard_label_accuracy": hard["accuracy"]
    }
    own = Accuracy(AccuracyConfig(**config)).run([soft], [digits], 3, nothing)
    assert len({tuple(values[name]) for name in values} | {tuple(own["accuracy"])}) == 3
    later = RobustScores(RobustScoresConfig(**config)).run([soft], [digits], 3, nothing, 1)
    assert later == {name: numbers[1:] for name, numbers in values.items()}


# --- the evaluation selection_gap


@pytest.mark.parametrize(
    ("looks", "last", "held_out"),
    [
        ([(0.5, 0.4)], 0.0, 0.0),
        ([(0.5, 0.9), (0.7, 0.8), (0.6, 0.7)], 0.1, 0.2),
        ([(0.5, 0.9), (0.7, 0.9), (0.6, 0.7)], 0.1, 0.0),  # of equals the last
    ],
)
def test_the_gaps_of_looks(looks: list[tuple[float, float]], last: float, held_out: float) -> None:
    expected = {"best_minus_last": pytest.approx(last), "best_minus_held_out": pytest.approx(held_out)}
    assert gaps(looks) == expected


def test_the_looks_are_those_of_networks_on_their_way(
    soft: Synthetic, digits: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And looking moves nothing: the last network is that of the accuracy."""
    config: dict[str, Any] = {"protocol": "common", "networks": 2, "steps": 20}
    evaluation = SelectionGap(SelectionGapConfig(**config, looks=4, held_out=100))
    told: list[list[tuple[float, float]]] = []

    def spy(looks: list[tuple[float, float]]) -> dict[str, float]:
        told.append(looks)
        return gaps(looks)

    monkeypatch.setattr("harness.evaluations.selection_gap.gaps", spy)
    values = evaluation.run([soft], [digits], 0, nothing)
    assert [len(looks) for looks in told] == [4, 4] and len(values["best_minus_last"]) == 2
    final = Accuracy(AccuracyConfig(**config)).run([soft], [digits], 0, nothing)
    assert [looks[-1][0] for looks in told] == final["accuracy"]
    images, labels = evaluation.held_out
    assert len(images) == 100 and len({image.numpy().tobytes() for image in images}) > 90

    halfway: list[tuple[float, float]] = []

    def look(networks: list[Network], done: int, steps: int) -> None:
        if done == 10:
            for network in networks:
                tests = ((digits.test_images, digits.test_labels), (images, labels))
                test, held_out = (accuracy(predict(network, x), y) for x, y in tests)
                halfway.append((test, held_out))
                network.train()

    training.trained_networks(evaluation.config, soft, digits, 0, range(2), look=look)  # type: ignore[arg-type]
    assert [looks[1] for looks in told] == halfway


def test_more_looks_than_steps_are_one_a_step(soft: Synthetic, digits: Benchmark) -> None:
    evaluation = SelectionGap(SelectionGapConfig("common", networks=1, steps=2, looks=50, held_out=10**6))
    evaluation.run([soft], [digits], 0, nothing)
    assert [len(looks) for looks in evaluation.seen.values()] == [1]
    assert len(evaluation.held_out[1]) == len(digits.task.labels)


@pytest.mark.parametrize("name", ["looks", "held_out"])
def test_a_gap_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is 0; it must be at least 1"):
        SelectionGapConfig(**{name: 0})


# --- the gap of a choice among the sets of a curve


def test_the_gap_is_that_of_the_best_set_on_the_way_for_every_seed(tmp_path: Path) -> None:
    records = [
        curve("frepo", [(1.0, (0.3, 0.4)), (2.0, (0.8, 0.7)), (3.0, (0.7, 0.6))]),
        curve("frepo", [(1.0, (0.3, 0.4)), (2.0, (0.5, 0.5)), (3.0, (0.7, 0.6))], seed=1),
        curve("dm", [(1.0, (0.3,)), (2.0, ()), (3.0, (0.2,))]),
    ]
    gap = {group.method: group.selection_gaps for group in grouped(records)}
    assert gap == {"frepo": [pytest.approx(0.1), 0.0], "dm": [pytest.approx(0.1)]}
    assert report.main([saved(tmp_path, *records)]) == 0
    text = (tmp_path / "table.md").read_text()
    assert "selection gap (points)" in text and " 5.0 ± 7.1 |" in text and "of 3 sets on the way" in text
    table = pd.read_csv(tmp_path / "table.csv").set_index("method")
    assert table.loc["frepo", "selection_gap_mean"] == pytest.approx(0.05)


def test_without_a_curve_there_is_no_gap(tmp_path: Path) -> None:
    assert report.main([saved(tmp_path, made())]) == 0
    assert "selection gap" not in (tmp_path / "table.md").read_text().lower()
