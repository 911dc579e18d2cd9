"""Soft labels: the expert and its epoch, the labels, and hard labels beside them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

import methods
from benchmarks.errors import UserError
from benchmarks.networks import NetworkSpec
from benchmarks.training import accuracy, predict
from harness import report, run
from methods._unroll import unflatten
from methods.base import Store
from methods.checks import CLASSES, tiny_task
from methods.soft_labels import SoftLabels, SoftLabelsConfig, labels_of, stopped
from tests.builders import all_in, evaluated, in_process, made, quick, saved

__all__ = ["quick"]  # a fixture
SETTINGS: dict[str, Any] = {
    "train_steps": 5,
    "train_epochs": 4,
    "steps_per_epoch": 3,
    "batch_train": 20,
    "lr_expert": 0.1,
    "student_steps": 5,
}


def method(store: Store | None = None, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> SoftLabels:
    running = SoftLabels(tiny_task(seed, dtype), SoftLabelsConfig(**{**SETTINGS, **changes}), 0)
    running.prepare({} if store is None else store)
    return running


def by_hand(running: SoftLabels, store: Store, epoch: int, images: Tensor, experts: int = 1) -> Tensor:
    """Mean logits of the experts after ``epoch``."""
    logits = []
    for index in range(experts):
        flat = store[running.experts.name(index)]["parameters"][epoch]
        named = unflatten(running.network, flat)
        logits.append(torch.func.functional_call(running.network, named, (images,)))
    return torch.stack(logits).mean(0).detach()


@pytest.mark.parametrize("images", ["random", "herding", "k_means", "k_centre"])
def test_images_are_those_of_the_selection_with_hard_labels(images: str) -> None:
    other = methods.get("random_real" if images == "random" else images)
    settings = {} if images == "random" else {"train_steps": SETTINGS["train_steps"]}
    twin = other(tiny_task(3), other.Config(**settings), 0)
    twin.prepare({})
    ours = method(seed=3, images=images).synthetic()
    assert torch.equal(ours.images, twin.synthetic().images)
    assert not torch.equal(ours.labels, twin.synthetic().labels)
    assert ours.label_space == "probability" and ours.lr == torch.tensor(0.01)


def test_labels_are_of_the_first_epoch_that_is_good_enough_on_held_out_images() -> None:
    store: Store = {}
    running = method(store, dtype=torch.float64, target_accuracy=1.0, held_out=0.3, temp=2.0)
    rows = running.experts.held_out
    held, classes = running.task.images[rows], running.task.labels[rows]
    scores = [accuracy(by_hand(running, store, epoch, held), classes) for epoch in range(5)]
    for target in sorted({*scores, 1.0}):
        again = method(store, dtype=torch.float64, target_accuracy=target, held_out=0.3, temp=2.0)
        reached = [epoch for epoch, score in enumerate(scores) if score >= target]
        epoch = reached[0] if reached else scores.index(max(scores))
        expected = (2 * by_hand(again, store, epoch, again.images)).softmax(1)
        torch.testing.assert_close(again.labels, expected, rtol=0, atol=1e-12)
    assert len(set(scores)) > 1, "a task on which the epoch matters"


def test_without_a_target_labels_are_those_of_the_best_student(monkeypatch: pytest.MonkeyPatch) -> None:
    store: Store = {}
    trained: list[tuple[Tensor, float]] = []
    student = SoftLabels._student

    def watched(self: SoftLabels, labels: Tensor) -> Any:
        network = student(self, labels)
        rows = self.experts.held_out
        trained.append((labels, accuracy(predict(network, self.task.images[rows]), self.task.labels[rows])))
        return network

    monkeypatch.setattr(SoftLabels, "_student", watched)
    running = method(store, held_out=0.5, student_steps=30, lr_student=0.1, train_epochs=5)
    assert len(trained) == 4  # epochs 1, 2, 4 and 5
    for (labels, _), epoch in zip(trained, (1, 2, 4, 5), strict=True):
        torch.testing.assert_close(labels, by_hand(running, store, epoch, running.images).softmax(1))
    scores = [score for _, score in trained]
    assert torch.equal(running.labels, trained[scores.index(max(scores))][0])
    assert len(set(scores)) > 1, "a task on which the epoch matters"


def test_several_experts_label_by_the_mean_of_their_logits() -> None:
    store: Store = {}
    running = method(store, dtype=torch.float64, num_experts=3, target_accuracy=1.0)
    assert len(store) == 3
    found = [by_hand(running, store, epoch, running.images, 3).softmax(1) for epoch in range(5)]
    assert min(float((labels - running.labels).abs().max()) for labels in found) < 1e-12


def test_an_expert_sees_no_held_out_image(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def train(networks: Any, images: Tensor, labels: Tensor, *rest: Any, progress: Any, **options: Any) -> None:
        seen.append(images)
        for step in range(12):
            progress(step + 1, 12)

    monkeypatch.setattr("methods._experts.train_together", train)
    running = method(held_out=0.25, target_accuracy=0.5)
    experts, task = running.experts, running.task
    assert len(experts.held_out) == 15 and len(seen) == 1
    assert torch.equal(seen[0], task.images[experts.seen])
    assert sorted([*experts.held_out.tolist(), *experts.seen.tolist()]) == list(range(60))
    assert torch.equal(method(seed=1, held_out=0.25, target_accuracy=0.5).experts.held_out, experts.held_out)


def test_the_share_that_is_held_out_is_part_of_an_experts_name() -> None:
    store: Store = {}
    method(store, held_out=0.2)
    method(store, held_out=0.3)
    method(store, held_out=0.3, temp=2.0, images="herding", seed=1)
    assert len(store) == 2


def test_stopping() -> None:
    scores = [0.1, 0.5, 0.4, 0.6, 0.6]
    asked: list[int] = []

    def after(epoch: int) -> float:
        asked.append(epoch)
        return scores[epoch]

    assert stopped(after, 4, 0.5) == 1 and asked == [0, 1], "later epochs are not looked at"
    assert stopped(after, 4, 0.55) == 3
    assert stopped(after, 4, 0.9) == 3


def test_the_temperature_is_a_factor() -> None:
    logits = [torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[2.0, 1.0]], dtype=torch.float64)]
    expected = torch.tensor([[3.0, 0.0]], dtype=torch.float64).softmax(1)
    torch.testing.assert_close(labels_of(logits, 3.0), expected, rtol=0, atol=1e-15)


def test_a_label_may_name_another_class_than_that_of_its_image() -> None:
    """An expert errs, and its labels are not corrected: the images are class-major, not their labels."""
    running = method(target_accuracy=1.0, train_epochs=1, steps_per_epoch=1, lr_expert=1e-6)
    assert (running.labels.argmax(1) != torch.arange(CLASSES).repeat_interleave(2)).any()


def test_a_network_with_batch_norm_is_refused() -> None:
    spec = NetworkSpec("convnet", 1, (8, 8), CLASSES, width=8, depth=1, norm="batch")
    with pytest.raises(UserError, match="take --norm instance"):
        SoftLabels(dataclasses.replace(tiny_task(), network=spec.build), SoftLabelsConfig(), 0)


@pytest.mark.parametrize(
    "changes", [{"temp": 0.0}, {"held_out": 0.0}, {"held_out": 0.6}, {"target_accuracy": 1.5}, {"num_experts": 0}]
)
def test_a_value_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        SoftLabelsConfig(**changes)


def test_the_state_holds_images_and_labels() -> None:
    store: Store = {}
    running, other = method(store), method(store, seed=1)
    kept = running.synthetic()
    other.load_state_dict(running.state_dict())
    assert torch.equal(other.synthetic().images, kept.images) and torch.equal(other.synthetic().labels, kept.labels)


# --- hard labels beside


@pytest.mark.usefixtures("quick")
def test_hard_labels_are_asked_with_soft_ones_and_are_those_of_the_selection(tmp_path: Path) -> None:
    """By one recipe random images of a seed are as good with their classes as random_real: they are the same images."""
    words = "--methods soft_labels --dataset digits --budget smoke --protocol common --norm instance --width 4"
    arguments = [*words.split(), "--output", str(tmp_path), "--networks-evaluated", "2"]
    assert run.main(arguments, launcher=in_process) == 0
    values = {
        (each.record["distillation"]["method"], evaluation["evaluation"]): evaluation["values"]
        for each in all_in(tmp_path)
        for evaluation in each.evaluations
    }
    assert values.keys() == {
        ("soft_labels", "accuracy"),
        ("soft_labels", "hard_labels"),
        ("random_real", "accuracy"),
    }
    hard = values["soft_labels", "hard_labels"]["hard_label_accuracy"]
    assert hard == values["random_real", "accuracy"]["accuracy"] and len(hard) == 2
    assert hard != values["soft_labels", "accuracy"]["accuracy"]
    table = pd.read_csv(tmp_path / "table.csv").set_index("method")
    assert table.loc["soft_labels", "hard_labels.hard_label_accuracy_mean"] == pytest.approx(sum(hard) / 2)
    assert "same images, hard labels (%)" in (tmp_path / "table.md").read_text()


def test_a_table_shows_hard_labels_in_the_row_of_their_recipe(tmp_path: Path) -> None:
    distilled = made((0.62, 0.58), method="soft_labels", protocol="common")
    distilled = evaluated(distilled, {"hard_label_accuracy": [0.3, 0.2]}, "hard_labels", protocol="common")
    distilled = evaluated(distilled, {"accuracy": [0.5]}, protocol="vico")
    assert report.main([saved(tmp_path, distilled)]) == 0
    table = pd.read_csv(tmp_path / "table.csv").set_index("evaluation.protocol")
    assert table.loc["common", "hard_labels.hard_label_accuracy_mean"] == pytest.approx(0.25)
    assert table.loc[["vico"], "hard_labels.hard_label_accuracy_mean"].isna().all()
