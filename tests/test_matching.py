"""DC and DSA: the gradient they follow, their loops, their augmentation, their settings."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import training
from benchmarks.augment import DSA_STRATEGY, apply_dsa, draw_dsa
from benchmarks.errors import UserError
from benchmarks.networks import Network, NetworkSpec
from benchmarks.task import Task
from methods import _matching
from methods._matching import (
    augment_alike,
    freeze_batch_norm,
    gradient_distance,
    loops,
    matching_loss,
    sum_over_chunks,
)
from methods.checks import CLASSES, IPC, tiny_task
from methods.dc import DC, DCConfig
from methods.dsa import DSA, DSAConfig

SETTINGS: dict[str, Any] = {"outer_loop": 3, "inner_loop": 4, "batch_real": 7, "batch_train": 4}
BOTH = pytest.mark.parametrize("cls", [DC, DSA])


def method(
    cls: Any, seed: int = 0, dtype: torch.dtype = torch.float32, task: Task | None = None, **changes: Any
) -> Any:
    made = cls(task or tiny_task(seed, dtype), cls.Config(**{**SETTINGS, **changes}), 9)
    made.prepare({})
    return made


def network(norm: str = "instance", name: str = "convnet") -> Network:
    spec = NetworkSpec(name, 1, (8, 8), num_classes=3, width=4, norm=norm)  # type: ignore[arg-type]
    return spec.build(torch.Generator().manual_seed(1), dtype=torch.float64)


def images(count: int, seed: int = 2) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def limit_chunks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """At most ``size`` images like these pass through ``network`` together."""
    monkeypatch.setattr(training, "CPU_CHUNK_BYTES", size * 4 * 8 * 8 * 8)


# --- the distance and its gradient


@pytest.mark.parametrize("metric", ["ours", "mse", "cos"])
@pytest.mark.parametrize("name", ["convnet", "convnet_doubling"])
@pytest.mark.parametrize("norm", ["none", "instance"])
def test_the_gradient_of_the_images_is_that_of_finite_differences(metric: Any, name: str, norm: str) -> None:
    """A second derivative: of the distance between gradients of the weights."""
    net, real, synthetic = network(norm, name), images(5), images(6, seed=3)

    def distance(c: int, own: Tensor) -> Tensor:
        return matching_loss(net, real, own, c, metric)

    _, gradient = sum_over_chunks(distance, synthetic, 2)
    direction, h = images(6, seed=4), 1e-7
    above, below = (sum_over_chunks(distance, synthetic + sign * h * direction, 2)[0] for sign in (1, -1))
    torch.testing.assert_close((above - below) / (2 * h), (gradient * direction).sum(), rtol=1e-5, atol=1e-6)
    assert gradient.flatten(1).any(1).all(), "every image has a gradient"


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_a_step_follows_the_gradient_of_its_loss(cls: Any, seed: int) -> None:
    """Augmentation included; the first velocity is the gradient."""
    made = method(cls, seed, torch.float64, outer_loop=1, lr_img=0.0)
    start, direction, h = made.state_dict(), images(CLASSES * IPC, seed=4), 1e-6
    losses = []
    for sign in (1, -1, 0):
        made.load_state_dict({**start, "learned": [start["learned"][0] + sign * h * direction]})
        losses.append(made.step()["matching"])
    expected = (losses[0] - losses[1]) / (2 * h)
    gradient = made.optimiser.state[made.images]["momentum_buffer"]
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-6)


def test_the_sum_over_chunks_is_that_over_all_at_once() -> None:
    net, real, synthetic = network(), images(5), images(6, seed=3).requires_grad_()
    total = torch.stack([matching_loss(net, real, synthetic[2 * c : 2 * c + 2], c) for c in range(3)]).sum()
    (expected,) = torch.autograd.grad(total, synthetic)
    found, gradient = sum_over_chunks(lambda c, own: matching_loss(net, real, own, c), synthetic, 2)
    torch.testing.assert_close(found, total.detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    assert not found.requires_grad and not gradient.requires_grad


@pytest.mark.parametrize("metric", ["ours", "mse", "cos"])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_real_images_that_pass_in_chunks_change_nothing(
    size: int, metric: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, real, synthetic = network(), images(5), images(2, seed=3).requires_grad_()
    whole = matching_loss(net, real, synthetic, 1, metric)
    limit_chunks(monkeypatch, size)
    found = matching_loss(net, real, synthetic, 1, metric)
    torch.testing.assert_close(found, whole, rtol=1e-11, atol=0)
    gradients = [torch.autograd.grad(loss, synthetic)[0] for loss in (found, whole)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("metric", ["ours", "mse", "cos"])
def test_nothing_is_left_to_match_where_the_images_are_the_real_ones(metric: Any) -> None:
    loss = matching_loss(network(), images(5), images(5), 1, metric)
    bound = 1e-3 if metric == "ours" else 1e-5  # what is added to the norms keeps the cosine of small rows below one
    assert 0 <= float(loss.detach()) < bound
    assert matching_loss(network(), images(5), images(5, seed=3), 1, metric) > 10 * bound


def test_an_angle_for_every_output() -> None:
    """Rows of a matrix and kernels of one output channel are compared for themselves; vectors not at all."""
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 5.0])
    rows = torch.stack([one, other, one])
    assert float(gradient_distance([rows], [torch.stack([3 * one, one, -one])])) == pytest.approx(0 + 1 + 2, abs=1e-5)
    kernels = rows.view(3, 1, 2, 1)
    assert float(gradient_distance([kernels, rows], [kernels, rows.flip(0)])) == pytest.approx(0, abs=1e-5)
    assert float(gradient_distance([one, rows], [other, rows])) == pytest.approx(0, abs=1e-5)


def test_rows_of_zeros_have_a_finite_gradient() -> None:
    syn, real = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 3)
    loss = gradient_distance([syn], [real])
    assert float(loss.detach()) == 2
    assert torch.autograd.grad(loss, syn)[0].isfinite().all()


# --- the loops


@pytest.mark.parametrize(
    ("ipc", "expected"), [(1, (1, 1)), (2, (10, 50)), (10, (10, 50)), (11, (20, 25)), (50, (50, 10)), (51, (50, 10))]
)
def test_an_ipc_that_was_not_published_has_the_loops_of_the_next_larger(ipc: int, expected: tuple[int, int]) -> None:
    assert loops(ipc) == expected
    for cls in (DC, DSA):
        made = method(cls, task=dataclasses.replace(tiny_task(), ipc=ipc), outer_loop=None, inner_loop=None)
        assert (made.config.outer_loop, made.config.inner_loop) == expected
        assert made.steps_per_cycle == expected[0]
        assert made.recipe.steps_per_epoch(256) == 64 and made.recipe.epochs == expected[1]


class Counts:
    """What a method did, in order: ``fresh`` networks, steps of network training, and updates of the images."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        train, task = training.train, tiny_task()

        def build(generator: torch.Generator) -> Network:
            self.events.append("fresh")
            return task.network(generator)

        def counted(*args: Any, **kwargs: Any) -> None:
            train(*args, progress=lambda done, steps: self.events.append("inner"), **kwargs)

        monkeypatch.setattr(_matching, "train", counted)
        self.task = dataclasses.replace(task, network=build)


@BOTH
def test_the_network_is_trained_between_updates_and_fresh_after_the_last(
    cls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Counts(monkeypatch)
    made = method(cls, task=counts.task)
    cycles = []
    for _ in range(2):
        for _ in range(3):
            counts.events.append("step")
            before = made.synthetic().images
            made.step()
            assert not torch.equal(made.synthetic().images, before)
        cycles.append(counts.events[:])
        counts.events.clear()
    inner = ["inner"] * (4 * 2)  # 4 epochs over 6 images in batches of 4
    assert cycles[0] == cycles[1] == ["step", "fresh", *inner, "step", *inner, "step"]


@BOTH
def test_one_step_per_cycle_trains_nothing(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts(monkeypatch)
    made = method(cls, task=counts.task, outer_loop=1)
    for _ in range(3):
        made.step()
    assert counts.events == ["fresh"] * 3


@BOTH
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_cycle_goes_on_where_it_was_saved(cls: Any, at: int) -> None:
    straight, resumed = method(cls), method(cls, seed=1)
    for _ in range(at):
        straight.step()
    resumed.load_state_dict(straight.state_dict())
    for _ in range(4):
        straight.step()
        resumed.step()
    assert torch.equal(straight.synthetic().images, resumed.synthetic().images)


def test_an_update_is_sgd_with_momentum_and_the_network_is_trained_by_sgd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of DC once more, with torch's optimisers, on all real images in place of random ones."""
    task = tiny_task(dtype=torch.float64)
    made = method(DC, task=task, batch_real=20, batch_train=6, init="real", lr_net=0.1)
    by_class = [task.images[rows] for rows in task.rows_of_classes()]
    generator = torch.Generator()
    generator.set_state(task.generator.get_state())

    pixels = made.synthetic().images.requires_grad_()
    labels = torch.arange(CLASSES).repeat_interleave(IPC)
    optimiser = torch.optim.SGD([pixels], lr=0.1, momentum=0.5)
    net = task.network(generator)
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        losses = [
            matching_loss(net, real, own, c)
            for c, (real, own) in enumerate(zip(by_class, torch.split(pixels, IPC), strict=True))
        ]
        total = torch.stack(losses).sum()
        (pixels.grad,) = torch.autograd.grad(total, pixels)
        optimiser.step()
        torch.testing.assert_close(made.step()["matching"], total.detach(), rtol=1e-9, atol=0)
        torch.testing.assert_close(made.synthetic().images, pixels.detach(), rtol=0, atol=1e-10)
        for _ in range(4):
            inner.zero_grad()
            F.cross_entropy(net(pixels.detach()), labels).backward()  # type: ignore[no-untyped-call]
            inner.step()


# --- augmentation


def test_dc_augments_nothing_and_dsa_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs: list[tuple[str, Tensor]] = []
    trained: list[int] = []

    def applied(op: str, batch: Tensor, draws: Tensor) -> Tensor:
        pairs.append((op, draws))
        return apply_dsa(op, batch, draws)

    def drawn(size: tuple[int, int], count: int, generator: torch.Generator, **options: Any) -> tuple[str, Tensor]:
        assert options == {"flip": False, "strategy": DSA_STRATEGY}
        return draw_dsa(size, count, generator, **options)

    def inner(op: str, batch: Tensor, draws: Tensor) -> Tensor:
        assert draws.shape[1] == len(batch), "parameters for each image"
        trained.append(len(batch))
        return batch

    monkeypatch.setattr(_matching, "apply_dsa", applied)
    monkeypatch.setattr(training, "draw_dsa", drawn)
    monkeypatch.setattr(training, "apply_dsa", inner)
    method(DC).step()
    assert not pairs and not trained

    method(DSA).step()
    assert len(pairs) == 2 * CLASSES
    for real, synthetic in zip(pairs[::2], pairs[1::2], strict=True):
        assert real[0] == synthetic[0] and torch.equal(real[1], synthetic[1]), "one draw for both batches"
        assert real[1].shape[1] == 1, "one draw for all images"
    assert len({(op, float(draws[0, 0])) for op, draws in pairs}) == CLASSES, "a new draw for every class"
    assert trained == [4, 2] * 4


def test_images_that_are_augmented_alike_stay_alike() -> None:
    task = tiny_task()
    same = task.images[:3]
    for _ in range(20):
        real, synthetic = augment_alike(task, same, same.clone())
        assert torch.equal(real, synthetic)


def test_only_images_that_may_be_mirrored_are(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()

    def applied(op: str, batch: Tensor, draws: Tensor) -> Tensor:
        seen.add(op)
        return batch

    monkeypatch.setattr(_matching, "apply_dsa", applied)
    for flip in (False, True):
        seen.clear()
        task = dataclasses.replace(tiny_task(), flip=flip)
        for _ in range(100):
            augment_alike(task, task.images[:1], task.images[:1])
        assert seen == {"color", "crop", "cutout", "scale", "rotate"} | ({"flip"} if flip else set())


@BOTH
def test_the_real_images_are_of_the_class(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = method(cls)
    task, classes = made.task, []
    monkeypatch.setattr(_matching, "apply_dsa", lambda op, batch, draws: batch)

    def loss(net: Network, real: Tensor, synthetic: Tensor, c: int, metric: str) -> Tensor:
        at = [int((image == task.images).flatten(1).all(1).nonzero()) for image in real]
        assert len(set(at)) == 7, "without repetition"
        assert all(task.labels[row] == c for row in at)
        assert torch.equal(synthetic, made.images[c * IPC : (c + 1) * IPC])
        classes.append(c)
        return matching_loss(net, real, synthetic, c)

    monkeypatch.setattr(_matching, "matching_loss", loss)
    made.step()
    assert classes == [0, 1, 2]


# --- batch norm


def test_batch_norm_keeps_the_statistics_of_all_classes_while_gradients_are_matched() -> None:
    task = tiny_task(dtype=torch.float64)
    before = task.generator.get_state()
    plain = network("instance")
    freeze_batch_norm(plain, task, task.rows_of_classes())
    assert torch.equal(task.generator.get_state(), before), "without batch norm nothing is drawn"

    net = network("batch")
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    fresh = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    freeze_batch_norm(net, task, task.rows_of_classes())
    kept = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    assert not any(torch.equal(a, b) for a, b in zip(fresh, kept, strict=True))
    net(task.images)
    now = [norm.running_mean for norm in norms if norm.running_mean is not None]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    assert net.training and not any(norm.training for norm in norms)


@BOTH
@pytest.mark.parametrize("name", ["convnet", "convnet_doubling"])
def test_networks_with_batch_norm_can_be_matched_and_resumed(cls: Any, name: Any) -> None:
    spec = NetworkSpec(name, 1, (8, 8), CLASSES, width=4, norm="batch")
    straight, resumed = (method(cls, task=dataclasses.replace(tiny_task(), network=spec.build)) for _ in range(2))
    for _ in range(2):
        straight.step()
    resumed.load_state_dict(straight.state_dict())
    assert straight.step()["matching"].isfinite()
    resumed.step()
    assert torch.equal(straight.synthetic().images, resumed.synthetic().images)


# --- what comes out, and settings


@BOTH
def test_matching_becomes_better(cls: Any) -> None:
    made = method(cls, outer_loop=1, batch_real=20, lr_img=1.0)
    losses = [float(made.step()["matching"]) for _ in range(60)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


@BOTH
def test_where_the_images_start(cls: Any) -> None:
    assert (DCConfig().init, DSAConfig().init) == ("noise", "real")
    for init in ("noise", "real"):
        made = method(cls, init=init)
        found = (made.images[:, None] == made.task.images).flatten(2).all(2).any(1)
        assert found.all() if init == "real" else not found.any()


@BOTH
@pytest.mark.parametrize(
    "change", [{"outer_loop": 0}, {"inner_loop": -1}, {"batch_real": 0}, {"lr_img": -1.0}, {"lr_net": float("nan")}]
)
def test_a_value_out_of_range_is_refused(cls: Any, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{cls.__name__.lower()}: {next(iter(change))}"):
        cls.Config(**change)


@BOTH
def test_the_published_settings(cls: Any) -> None:
    assert len(cls.PAPER) == 14
    assert cls.PAPER["mnist", 1] == {"steps": 1000, "outer_loop": 1, "inner_loop": 1}
    assert cls.PAPER["cifar100", 10] == {"steps": 10_000, "outer_loop": 10, "inner_loop": 50}
    assert cls.PAPER["svhn", 50] == {"steps": 50_000, "outer_loop": 50, "inner_loop": 10}
    assert dataclasses.asdict(cls.Config()) == {
        "outer_loop": None,
        "inner_loop": None,
        "lr_img": 0.1,
        "momentum": 0.5,
        "lr_net": 0.01,
        "batch_real": 256,
        "batch_train": 256,
        "init": "noise" if cls is DC else "real",
        "dis_metric": "ours",
    }
