"""Herding: the greedy choice, what it is good for, and the network whose features it takes."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import training
from benchmarks.errors import UserError
from methods import _coresets
from methods._coresets import herd
from methods.checks import CLASSES, IPC, prepared, tiny_task
from methods.herding import Herding, HerdingConfig


def features(count: int = 40, size: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1


def error(rows: Tensor, points: Tensor) -> float:
    """How far the mean of the chosen is from that of all."""
    return float((points[rows].mean(0) - points.mean(0)).norm())


@pytest.mark.parametrize("seed", range(5))
def test_every_choice_is_the_best_of_all_that_are_left(seed: int) -> None:
    points = features(9, 4, seed)
    chosen: list[int] = []
    for _ in range(9):
        left = [row for row in range(9) if row not in chosen]
        chosen.append(min(left, key=lambda row: error(torch.tensor([*chosen, row]), points)))
    assert herd(points, 9).tolist() == chosen


def test_the_first_is_nearest_to_the_mean_and_the_second_makes_up_for_it() -> None:
    points = torch.tensor([[0.0, 9.0], [1.0, 0.0], [-2.0, 0.0], [-5.0, 0.0], [6.0, -9.0]])  # their mean is (0, 0)
    assert herd(points, 2).tolist() == [1, 2]
    assert sorted(herd(points, 5).tolist()) == [0, 1, 2, 3, 4]


def test_the_mean_comes_closer_as_more_are_chosen() -> None:
    """On average over sets, and closer than that of as many random ones."""
    counts = (1, 2, 5, 10, 20, 40)
    sets = [features(40, 6, seed) for seed in range(20)]
    mean = [sum(error(herd(points, count), points) for points in sets) / 20 for count in counts]
    assert all(later < 0.8 * earlier for earlier, later in itertools.pairwise(mean[:-1]))
    assert mean[-1] < 1e-12
    random = [sum(error(torch.arange(count), points) for points in sets) / 20 for count in counts]
    assert all(ours < 0.7 * theirs for ours, theirs in zip(mean[:-1], random[:-1], strict=True))


def test_a_far_origin_does_not_confuse_it_in_single_precision() -> None:
    """Such are features after ReLU: all positive, their mean much longer than their spread."""
    points = features(200, 64) + 10
    assert herd(points.float(), 50).tolist() == herd(points, 50).tolist()


def method(seed: int = 0, ipc: int = IPC, **changes: Any) -> Herding:
    task = dataclasses.replace(tiny_task(seed), ipc=ipc)
    made = Herding(task, HerdingConfig(**{"train_steps": 3, **changes}), 0)
    made.prepare({})
    return made


def test_different_real_images_of_every_class_with_their_labels() -> None:
    made = method(ipc=5)
    found, task = made.synthetic(), made.task
    rows = [int((image == task.images).flatten(1).all(1).nonzero()) for image in found.images]
    assert len(set(rows)) == 15
    assert task.labels[rows].tolist() == [c for c in range(CLASSES) for _ in range(5)]
    assert torch.equal(found.labels, torch.eye(CLASSES).repeat_interleave(5, dim=0))
    assert found.label_space == "probability" and found.lr is None


def test_fewer_images_are_a_prefix_of_more() -> None:
    few, many = method(ipc=2).synthetic().images, method(ipc=5).synthetic().images
    assert torch.equal(few.view(CLASSES, 2, 1, 8, 8), many.view(CLASSES, 5, 1, 8, 8)[:, :2])


def test_the_features_are_those_of_the_trained_network(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    trained: list[int] = []

    def watched(*args: Any, **kwargs: Any) -> None:
        training.train(*args, progress=lambda done, steps: trained.append(done), **kwargs)

    def herd_watched(points: Tensor, count: int) -> Tensor:
        seen.append(points)
        return herd(points, count)

    monkeypatch.setattr(_coresets, "train", watched)
    monkeypatch.setattr(_coresets, "herd", herd_watched)
    results = {}
    for steps in (0, 3):
        trained.clear()
        seen.clear()
        made = method(train_steps=steps)
        assert trained == list(range(1, steps + 1))
        assert [len(points) for points in seen] == [20] * CLASSES
        results[steps] = torch.cat(seen)
    task = made.task
    untrained = task.network(torch.Generator().manual_seed(0))
    expected = training.features(untrained, torch.cat([task.images[rows] for rows in task.rows_of_classes()]))
    torch.testing.assert_close(results[0], expected)
    assert not torch.allclose(results[3], expected)


def test_there_is_nothing_to_iterate() -> None:
    made = prepared(Herding)
    assert not made.iterative
    with pytest.raises(NotImplementedError, match="no steps"):
        made.step()


def test_the_state_holds_the_choice() -> None:
    made, other = method(0), method(1)
    kept = made.synthetic().images
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.synthetic().images, kept)
    made.synthetic().images.zero_()
    assert torch.equal(made.synthetic().images, kept)


def test_a_value_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match="train_steps"):
        HerdingConfig(train_steps=-1)
