"""DM: the distance of mean embeddings, its gradient, the step, the settings."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.augment import apply_dsa
from benchmarks.errors import UserError
from benchmarks.networks import Network, NetworkSpec
from benchmarks.task import Task
from methods import _matching, dm
from methods._matching import sum_over_chunks
from methods.checks import CLASSES, IPC, tiny_task
from methods.dm import DM, DMConfig, mean_embedding_loss, mean_embeddings
from tests.test_matching import images, limit_chunks, network


def method(seed: int = 0, dtype: torch.dtype = torch.float32, task: Task | None = None, **changes: Any) -> DM:
    made = DM(task or tiny_task(seed, dtype), DMConfig(**{"batch_real": 7, **changes}), 5)
    made.prepare({})
    return made


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_matching, "apply_dsa", lambda op, batch, draws: batch)


@pytest.mark.parametrize("name", ["convnet", "convnet_doubling"])
@pytest.mark.parametrize("norm", ["none", "batch", "instance"])
def test_the_gradient_is_that_of_finite_differences(name: str, norm: str) -> None:
    net, real, synthetic = network(norm, name), torch.split(images(15), 5), images(6, seed=3)

    def distance(_: int, own: Tensor) -> Tensor:
        return mean_embedding_loss(net, zip(real, torch.split(own, 2), strict=True))

    _, gradient = sum_over_chunks(distance, synthetic, 6)
    direction, h = images(6, seed=4), 1e-7
    above, below = (sum_over_chunks(distance, synthetic + sign * h * direction, 6)[0] for sign in (1, -1))
    torch.testing.assert_close((above - below) / (2 * h), (gradient * direction).sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_step_follows_the_gradient_of_its_loss(seed: int) -> None:
    """Augmentation included; the first velocity is the gradient."""
    made = method(seed, torch.float64, lr_img=0.0)
    start, direction, h = made.state_dict(), images(CLASSES * IPC, seed=4), 1e-6
    losses = []
    for sign in (1, -1, 0):
        made.load_state_dict({**start, "learned": [start["learned"][0] + sign * h * direction]})
        losses.append(made.step()["distance"])
    expected = (losses[0] - losses[1]) / (2 * h)
    gradient = made.optimiser.state[made.images]["momentum_buffer"]
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-6)


def test_zero_where_synthetic_images_are_the_real_ones() -> None:
    real = torch.split(images(15), 5)
    own = [batch.clone().requires_grad_() for batch in real]
    loss = mean_embedding_loss(network(), zip(real, own, strict=True))
    # Not exactly: the real batches pass one by one, the synthetic ones together.
    assert float(loss.detach()) < 1e-24
    assert all(gradient.abs().max() < 1e-12 for gradient in torch.autograd.grad(loss, own))
    others = torch.split(images(6, seed=3), 2)
    assert mean_embedding_loss(network(), zip(real, others, strict=True)) > 0.01


def test_zero_in_a_step_where_synthetic_images_are_the_real_ones() -> None:
    """Augmented with all their parameters shared, the two batches stay the same; else they would not."""
    task = tiny_task(dtype=torch.float64)
    made = method(task=dataclasses.replace(task, ipc=20), batch_real=20)
    for _ in range(10):
        assert float(made.step()["distance"]) < 1e-20


def test_sums_over_classes_of_means_over_images() -> None:
    """By hand: two classes, a network that passes pixels on."""

    class Pixels(Network):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
            yield nn.Parameter(torch.empty(1))

        def features(self, batch: Tensor) -> Tensor:
            return batch.flatten(1)

    real = [torch.zeros(3, 1, 1, 2), torch.full((4, 1, 1, 2), 2.0)]
    synthetic = [torch.tensor([[1.0, 0.0], [3.0, 2.0]]).view(2, 1, 1, 2), torch.tensor([[2.0, 5.0]]).view(1, 1, 1, 2)]
    assert float(mean_embedding_loss(Pixels(), zip(real, synthetic, strict=True))) == (2**2 + 1**2) + (0 + 3**2)


@pytest.mark.parametrize(("size", "classes"), [(1, 1), (5, 2), (6, 3), (100, 3)])
def test_images_that_pass_together_change_nothing(size: int, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real images, and the synthetic ones of as many classes as fit; at least those of one."""
    passed: list[int] = []

    def embeddings(net: Network, batches: Any) -> Tensor:
        passed.append(len(batches))
        return mean_embeddings(net, batches)

    monkeypatch.setattr(dm, "mean_embeddings", embeddings)
    found = []
    for chunk in (1000, size):
        limit_chunks(monkeypatch, chunk)
        passed.clear()
        made = method(dtype=torch.float64)
        found.append([*(made.step()["distance"] for _ in range(3)), made.synthetic().images])
    assert passed == 3 * [min(classes, left) for left in range(CLASSES, 0, -classes)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-12)


def test_one_batch_of_real_images_at_a_time() -> None:
    """Classes whose synthetic images pass together do not hold their real images together."""
    alive: list[weakref.ref[Tensor]] = []

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for seed in range(5):
            assert sum(ref() is not None for ref in alive) <= 1
            real = images(3, seed=seed)
            alive.append(weakref.ref(real))
            yield real, images(2, seed=seed)

    mean_embedding_loss(network(), pairs())
    assert len(alive) == 5


def test_with_batch_norm_all_classes_pass_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def embeddings(net: Network, batches: Any) -> Tensor:
        sizes.append([len(batch) for batch in batches])
        return mean_embeddings(net, batches)

    monkeypatch.setattr(dm, "mean_embeddings", embeddings)
    limit_chunks(monkeypatch, 1)
    spec = NetworkSpec("convnet", 1, (8, 8), CLASSES, width=4, norm="batch")
    method(task=dataclasses.replace(tiny_task(), network=spec.build)).step()
    assert sizes == [[7] * CLASSES, [IPC] * CLASSES]


def test_a_step_is_sgd_with_momentum_in_a_fresh_network(monkeypatch: pytest.MonkeyPatch) -> None:
    plain(monkeypatch)
    task = tiny_task(dtype=torch.float64)
    built = []

    def build(generator: torch.Generator) -> Network:
        built.append(task.network(generator))
        return built[-1]

    made = method(task=dataclasses.replace(task, network=build), batch_real=20)
    real = [task.images[rows] for rows in task.rows_of_classes()]
    pixels = made.synthetic().images.requires_grad_()
    optimiser = torch.optim.SGD([pixels], lr=1.0, momentum=0.5)
    for _ in range(3):
        found = made.step()["distance"]
        loss = mean_embedding_loss(built[-1], zip(real, torch.split(pixels, IPC), strict=True))
        (pixels.grad,) = torch.autograd.grad(loss, pixels)
        optimiser.step()
        torch.testing.assert_close(found, loss.detach(), rtol=1e-11, atol=0)
        torch.testing.assert_close(made.synthetic().images, pixels.detach(), rtol=0, atol=1e-12)
    assert len(built) == 3
    assert not torch.equal(built[0].head.weight, built[1].head.weight)
    assert all(parameter.grad is None for net in built for parameter in net.parameters())


def test_real_and_synthetic_images_of_a_class_are_augmented_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int, Tensor]] = []

    def applied(op: str, batch: Tensor, draws: Tensor) -> Tensor:
        calls.append((op, len(batch), draws))
        return apply_dsa(op, batch, draws)

    monkeypatch.setattr(_matching, "apply_dsa", applied)
    method().step()
    assert [count for _, count, _ in calls] == [7, IPC] * CLASSES
    for real, synthetic in zip(calls[::2], calls[1::2], strict=True):
        assert real[0] == synthetic[0] and torch.equal(real[2], synthetic[2])
        assert real[2].shape[1] == 1
    assert len({float(draws[0, 0]) for _, _, draws in calls}) == CLASSES, "a new draw for every class"


def test_matching_becomes_better() -> None:
    made = method(batch_real=20, init="noise")
    losses = [float(made.step()["distance"]) for _ in range(60)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_where_the_images_start() -> None:
    real, noise = method(), method(init="noise")
    assert (real.images[:, None] == real.task.images).flatten(2).all(2).any(1).all()
    assert not (noise.images[:, None] == noise.task.images).flatten(2).all(2).any()


@pytest.mark.parametrize("change", [{"batch_real": 0}, {"lr_img": -1.0}])
def test_a_value_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"dm: {next(iter(change))}"):
        DMConfig(**change)


def test_the_published_settings() -> None:
    assert len(DM.PAPER) == 14
    assert all(changes == {"steps": 20_000} for changes in DM.PAPER.values())
    config = DMConfig()
    assert (config.lr_img, config.momentum, config.batch_real, config.init) == (1.0, 0.5, 256, "real")
