"""The selection baseline: real images, one-hot labels, a new draw for every seed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.networks import Network
from benchmarks.task import Task
from methods.base import Synthetic
from methods.random_real import RandomReal


def no_network(_: torch.Generator) -> Network:
    raise AssertionError("a selection baseline builds no network")


IMAGES = torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 3


def draw(seed: int) -> tuple[RandomReal, Synthetic]:
    task = Task(IMAGES, LABELS, 3, 5, no_network, torch.Generator().manual_seed(seed), flip=False)
    method = RandomReal(task, RandomReal.Config(), 0)
    method.prepare({})
    return method, method.synthetic()


def rows_of(images: Tensor) -> list[int]:
    """Where each image stands in the real set."""
    return [int((image == IMAGES).flatten(1).all(1).nonzero()) for image in images]


def test_different_real_images_of_every_class() -> None:
    _, synthetic = draw(0)
    rows = rows_of(synthetic.images)
    assert len(set(rows)) == 15
    assert [row % 3 for row in rows] == [0] * 5 + [1] * 5 + [2] * 5
    assert torch.equal(synthetic.labels, torch.eye(3).repeat_interleave(5, dim=0))
    assert synthetic.label_space == "probability" and synthetic.lr is None


def test_every_seed_is_a_new_draw() -> None:
    first, again, other = (rows_of(draw(seed)[1].images) for seed in (0, 0, 1))
    assert first == again != other


def test_there_is_nothing_to_iterate() -> None:
    method, _ = draw(0)
    assert not method.iterative
    with pytest.raises(NotImplementedError, match="no steps"):
        method.step()


def test_the_state_holds_the_draw() -> None:
    method, synthetic = draw(0)
    other, _ = draw(1)
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.synthetic().images, synthetic.images)
    method.synthetic().images.zero_()
    assert torch.equal(method.synthetic().images, synthetic.images)
