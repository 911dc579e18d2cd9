"""MTT beyond its mathematics: experts and their cache, the update, its settings."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.errors import UserError
from benchmarks.training import train_together
from methods import _experts, _trajectories, mtt
from methods._unroll import flatten, minibatches, unroll
from methods.base import Store
from methods.checks import tiny_task
from methods.mtt import MTT, MTTConfig

SETTINGS: dict[str, Any] = {
    "syn_steps": 3,
    "expert_epochs": 1,
    "max_start_epoch": 2,
    "num_experts": 2,
    "train_epochs": 3,
    "batch_train": 25,
    "lr_expert": 0.1,
    "lr_init": 0.1,
    "lr_img": 1.0,
    "lr_lr": 1e-3,
}


def method(store: Store | None = None, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> MTT:
    made = MTT(tiny_task(seed, dtype), MTTConfig(**{**SETTINGS, **changes}), total_steps=5)
    made.prepare({} if store is None else store)
    return made


def trajectories(store: Store) -> list[Tensor]:
    return [store[name]["parameters"] for name in sorted(store)]


def test_experts_are_whole_trajectories_of_their_own() -> None:
    store: Store = {}
    made = method(store)
    first, second = trajectories(store)
    assert first.shape == second.shape == (4, len(flatten(made.student.parameters())))
    assert not torch.equal(first[0], second[0])
    assert all(not torch.equal(first[t], first[t + 1]) for t in range(3)), "snapshots must not be aliased"
    assert first.untyped_storage().nbytes() == first.nbytes


def test_an_expert_is_plain_sgd_on_the_real_images() -> None:
    store: Store = {}
    made = method(store, num_experts=1, batch_train=60, dtype=torch.float64)
    (trajectory,) = trajectories(store)
    task = made.task
    # Without augmentation one full-batch epoch is one step of size 0.1; with it, it is close to none of the others.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.training.apply_dsa", lambda op, images, draws: images)
        plain: Store = {}
        method(plain, num_experts=1, batch_train=60, dtype=torch.float64)
    (unaugmented,) = trajectories(plain)
    lr = torch.tensor(0.1, dtype=torch.float64)
    expected, _ = unroll(made.student, unaugmented[0], lambda step: (task.images, task.labels), 3, [], lr)
    torch.testing.assert_close(unaugmented[3], expected.detach(), rtol=0, atol=1e-12)
    assert torch.equal(trajectory[0], unaugmented[0])
    assert not torch.allclose(trajectory[3], unaugmented[3], rtol=0, atol=1e-4), "experts see augmented images"


def test_an_epoch_of_a_given_number_of_steps() -> None:
    whole: Store = {}
    given: Store = {}
    long: Store = {}
    method(whole, num_experts=1)  # 60 images in batches of 25: three steps
    method(given, num_experts=1, steps_per_epoch=3)
    method(long, num_experts=1, steps_per_epoch=1, train_epochs=9)
    (by_epochs,), (by_steps,), (every,) = (trajectories(store) for store in (whole, given, long))
    assert torch.equal(by_epochs, by_steps)
    assert torch.equal(by_epochs, every[::3])


def test_experts_depend_neither_on_the_seed_nor_on_what_is_stored() -> None:
    first: Store = {}
    second: Store = {}
    third: Store = {}
    method(first, seed=0)
    method(second, seed=1, syn_steps=2, lr_img=7.0)
    method(third, num_experts=1)
    assert first.keys() == second.keys()
    assert all(torch.equal(a, b) for a, b in zip(trajectories(first), trajectories(second), strict=True))
    assert third.keys() < first.keys()
    method(third)  # as after a kill: goes on with the second expert
    assert all(torch.equal(a, b) for a, b in zip(trajectories(first), trajectories(third), strict=True))


def test_experts_trained_together_are_those_trained_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    alone: Store = {}
    together: Store = {}
    method(alone, num_experts=5, dtype=torch.float64)
    groups: list[int] = []

    def spy(networks: list[Any], *arguments: Any, **options: Any) -> None:
        groups.append(len(networks))
        train_together(networks, *arguments, **options)

    monkeypatch.setattr(_experts, "train_together", spy)
    method(together, num_experts=2, dtype=torch.float64)
    monkeypatch.setattr(_experts, "CPU_TOGETHER", 2)
    made = method(together, num_experts=5, dtype=torch.float64)  # two are there already
    assert groups == [1, 1, 2, 1] and together.keys() == alone.keys()
    size = len(flatten(made.student.parameters()))
    for ours, theirs in zip(trajectories(together), trajectories(alone), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        assert ours.shape == (4, size) and ours.untyped_storage().nbytes() == ours.nbytes


def test_an_interrupt_leaves_the_experts_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()

    def interrupted(*arguments: Any, **options: Any) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt
        train_together(*arguments, **options)

    monkeypatch.setattr(_experts, "train_together", interrupted)
    monkeypatch.setattr(_experts, "CPU_TOGETHER", 2)
    store: Store = {}
    with pytest.raises(KeyboardInterrupt):
        method(store, num_experts=5)
    assert len(store) == 4


def test_a_stored_expert_is_not_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store: Store = {}
    method(store)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(_experts, "train_together", refuse)
    method(store)
    with pytest.raises(AssertionError, match="trained"):
        method(store, num_experts=3)


@pytest.mark.parametrize(
    "change",
    [{"train_epochs": 4}, {"steps_per_epoch": 3}, {"lr_expert": 0.2}, {"batch_train": 30}, {"dtype": torch.float64}],
)
def test_the_name_of_an_expert_tells_its_settings(change: dict[str, Any]) -> None:
    store: Store = {}
    method(store)
    names = set(store)
    method(store, **change)
    assert len(names) == 2
    assert len(store) == 4


def test_preparing_draws_nothing_from_the_task() -> None:
    made = MTT(tiny_task(), MTTConfig(**SETTINGS), total_steps=5)
    before = made.task.generator.get_state()
    made.prepare({})
    assert torch.equal(made.task.generator.get_state(), before)


def test_a_step_is_sgd_with_momentum_on_images_and_step_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trajectories, "draw_dsa", lambda *args, **kwargs: ("none", None))
    monkeypatch.setattr(_trajectories, "apply_dsa", lambda op, images, draws: images)
    store: Store = {}
    made = method(store, dtype=torch.float64, num_experts=1, max_start_epoch=1, batch_syn=4)
    (trajectory,) = trajectories(store)

    images, lr = made.images.clone().requires_grad_(), made.lr.clone().requires_grad_()
    optimiser = torch.optim.SGD([{"params": [images], "lr": 1.0}, {"params": [lr], "lr": 1e-3}], lr=0.0, momentum=0.5)
    generator = torch.Generator()
    generator.set_state(made.task.generator.get_state())
    for _ in range(3):
        for _ in range(2):  # the expert and its epoch
            torch.randint(1, (), generator=generator)
        batches = [(images[index], made.labels[index]) for index in minibatches(6, 4, 3, generator)]
        final, _ = unroll(made.student, trajectory[0], batches.__getitem__, 3, [], lr)
        loss = mtt.matching_loss(final, trajectory[0], trajectory[1])
        images.grad, lr.grad = torch.autograd.grad(loss, [images, lr])
        optimiser.step()
        losses = made.step()
        torch.testing.assert_close(losses["matching"], loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(made.synthetic().images, images.detach(), rtol=0, atol=1e-12)
    found = made.synthetic().lr
    assert found is not None
    torch.testing.assert_close(found, lr.detach(), rtol=0, atol=1e-12)
    assert found != SETTINGS["lr_init"]


def test_the_loss_is_one_for_a_student_that_stays_and_zero_at_the_target() -> None:
    """As a step reports it: with a step size of 0; and where the target is where the student gets to."""
    store: Store = {}
    still = method(store, dtype=torch.float64, lr_init=0.0)
    assert float(still.step()["matching"]) == 1.0

    made = method(store, dtype=torch.float64, num_experts=1, max_start_epoch=1, train_epochs=1)
    (name,) = (name for name in store if "epochs1-" in name)
    start = store[name]["parameters"][0]
    targets: list[Tensor] = []
    plain = mtt.matching_loss

    def noted(student: Tensor, start: Tensor, target: Tensor) -> Tensor:
        targets.append(student.detach())
        return plain(student, start, target)

    before = made.state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mtt, "matching_loss", noted)
        made.step()
    made.load_state_dict(before)
    made.store = {name: {"parameters": torch.stack([start, targets[0]])}}
    assert float(made.step()["matching"]) < 1e-25
    torch.testing.assert_close(made.images, before["learned"][0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("rematerialize", [False, True])
def test_the_meta_gradient_agrees_with_finite_differences(rematerialize: bool) -> None:
    """Of the loss of a whole step, augmentation included, in the images and the step size."""
    made = method(dtype=torch.float64, lr_img=1.0, lr_lr=1.0, rematerialize=rematerialize)
    start = made.state_dict()

    def loss_at(images: Tensor, lr: Tensor) -> Tensor:
        made.load_state_dict({**start, "learned": [images, lr]})
        return made.step()["matching"]

    first_images, first_lr = start["learned"]
    loss_at(first_images, first_lr)
    gradients = first_images - made.images, first_lr - made.lr  # one update of SGD at a rate of 1
    generator = torch.Generator().manual_seed(0)
    h = 1e-7  # ReLU: inner gradients jump at kinks, so the step must be tiny
    for along in range(2):
        move = [torch.zeros_like(first_images), torch.zeros_like(first_lr)]
        move[along] = torch.randn(move[along].shape, generator=generator, dtype=torch.float64)
        ahead, behind = (loss_at(first_images + sign * h * move[0], first_lr + sign * h * move[1]) for sign in (1, -1))
        expected = sum((gradient * direction).sum() for gradient, direction in zip(gradients, move, strict=True))
        assert abs(float(expected)) > 1e-4
        torch.testing.assert_close((ahead - behind) / (2 * h), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rematerialize", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_every_minibatch_is_augmented_image_by_image(
    flip: bool, rematerialize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, Any]] = []

    def draw_dsa(
        image_size: tuple[int, int], count: int, generator: torch.Generator, **options: Any
    ) -> tuple[str, int]:
        drawn.append({"image_size": image_size, "count": count, **options})
        return "black", len(drawn)

    applied: list[int] = []

    def apply_dsa(op: str, images: Tensor, draws: int) -> Tensor:
        applied.append(draws)
        return images * 0

    made = method(rematerialize=rematerialize)
    made.task = dataclasses.replace(made.task, flip=flip)
    monkeypatch.setattr(_trajectories, "draw_dsa", draw_dsa)
    monkeypatch.setattr(_trajectories, "apply_dsa", apply_dsa)
    before = made.synthetic().images
    made.step()
    assert drawn == [{"image_size": (8, 8), "count": 6, "flip": flip}] * 3, "siamese would draw for one image"
    assert applied == ([1, 2, 3, 3, 2, 1] if rematerialize else [1, 2, 3]), "the same draws there and back"
    assert torch.equal(made.synthetic().images, before), "the student sees augmented images only"


def test_start_epochs_and_experts_are_drawn_from_their_whole_range(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def matching_loss(student: Tensor, start: Tensor, target: Tensor) -> Tensor:
        seen.append((float(start.sum()), float(target.sum())))
        return student.square().sum()

    monkeypatch.setattr(mtt, "matching_loss", matching_loss)
    store: Store = {}
    made = method(store, expert_epochs=2, syn_steps=1)
    for _ in range(40):
        made.step()
    expected = {(float(path[t].sum()), float(path[t + 2].sum())) for path in trajectories(store) for t in range(2)}
    assert len(expected) == 4
    assert set(seen) == expected


def test_matching_becomes_better() -> None:
    made = method(num_experts=1, max_start_epoch=1, lr_img=10.0)
    losses = [float(made.step()["matching"]) for _ in range(20)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_noise_as_a_start() -> None:
    real, noise = method(), method(pix_init="noise")
    assert (real.images[:, None] == real.task.images).flatten(2).all(2).any(1).all()
    assert not (noise.images[:, None] == noise.task.images).flatten(2).all(2).any()


def test_experts_that_are_too_short_are_refused() -> None:
    MTTConfig(max_start_epoch=3, expert_epochs=1, train_epochs=3)
    with pytest.raises(UserError, match="train_epochs is 3") as caught:
        MTTConfig(max_start_epoch=4, expert_epochs=1, train_epochs=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"syn_steps": 0},
        {"num_experts": -1},
        {"batch_syn": 0},
        {"lr_img": -1.0},
        {"lr_lr": float("nan")},
    ],
)
def test_a_value_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        MTTConfig(**change)


@pytest.mark.parametrize("budget", ["smoke", "quick", "cost"])
@pytest.mark.parametrize("published", [None, *MTT.PAPER], ids=str)
def test_every_resolved_setting_can_run(published: tuple[str, int] | None, budget: str) -> None:
    """Defaults, then what the paper changes, then what the budget changes: the pieces must fit."""
    paper = MTT.PAPER[published] if published else {}
    for changes in (paper, {**paper, **MTT.BUDGETS[budget]}):
        MTTConfig(**{key: value for key, value in changes.items() if key != "steps"})


def test_the_published_settings() -> None:
    assert len(MTT.PAPER) == 12
    assert all(changes["steps"] == 5000 for changes in MTT.PAPER.values())
    config = MTTConfig(**{key: value for key, value in MTT.PAPER["cifar100", 50].items() if key != "steps"})
    assert dataclasses.asdict(config) == {
        "syn_steps": 80,
        "expert_epochs": 2,
        "max_start_epoch": 40,
        "batch_syn": 125,
        "lr_img": 1000.0,
        "lr_lr": 1e-5,
        "lr_init": 0.01,
        "momentum": 0.5,
        "pix_init": "real",
        "num_experts": 100,
        "train_epochs": 50,
        "lr_expert": 0.01,
        "batch_train": 256,
        "steps_per_epoch": None,
        "rematerialize": False,
    }


@pytest.mark.parametrize("batch_syn", [None, 4])
def test_rematerialised_steps_are_those_of_the_plain_unroll(batch_syn: int | None) -> None:
    """Values, gradients and draws, with augmentation; and no activations are kept that the plain unroll keeps."""
    plain, again = (
        method(dtype=torch.float64, syn_steps=6, batch_syn=batch_syn, rematerialize=rematerialize)
        for rematerialize in (False, True)
    )
    for _ in range(3):
        losses = [made.step()["matching"] for made in (plain, again)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=0)
        assert torch.equal(plain.task.generator.get_state(), again.task.generator.get_state())
    for tensor, other in zip(plain.learned, again.learned, strict=True):
        ours, theirs = (made.optimiser.state[key]["momentum_buffer"] for made, key in ((plain, tensor), (again, other)))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(plain.images, again.images, rtol=0, atol=1e-10)
    assert not torch.equal(plain.images, method(dtype=torch.float64).images), "they moved"
