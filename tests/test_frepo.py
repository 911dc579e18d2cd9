"""FRePo: the meta-gradient, the pool, LAMB, and the method as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.errors import UserError
from benchmarks.krr import centred_one_hot
from benchmarks.networks import NetworkSpec
from benchmarks.task import Task
from methods import frepo
from methods._optim import LAMB
from methods._pool import Member
from methods.frepo import FRePo, FRePoConfig


def make_task(
    *,
    ipc: int = 2,
    classes: int = 3,
    network: str = "convnet_doubling",
    norm: str = "batch",
    flip: bool = True,
    seed: int = 0,
    per_class: int = 20,
    shape: tuple[int, int, int] = (3, 8, 8),
    dtype: torch.dtype = torch.float32,
) -> Task:
    data = torch.Generator().manual_seed(99)
    labels = torch.arange(classes).repeat_interleave(per_class)
    means = torch.randn(classes, *shape, generator=data)
    images = means[labels] + 0.5 * torch.randn(len(labels), *shape, generator=data)
    spec = NetworkSpec(network, shape[0], shape[1:], classes, width=4, depth=2, norm=norm)  # type: ignore[arg-type]
    return Task(
        images.to(dtype),
        labels,
        classes,
        ipc,
        lambda generator: spec.build(generator, dtype=dtype),
        torch.Generator().manual_seed(seed),
        flip,
    )


def make(total_steps: int = 10, *, config: dict[str, Any] | None = None, **task: Any) -> FRePo:
    return FRePo(make_task(**task), FRePoConfig(**{"lr": 0.01, "pool_size": 3, **(config or {})}), total_steps)


def tensors_in(state: Any) -> list[Tensor]:
    """All tensors of a nested state, in order."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, dict):
        return [tensor for value in state.values() for tensor in tensors_in(value)]
    if isinstance(state, list | tuple):
        return [tensor for value in state for tensor in tensors_in(value)]
    return []


def same(a: Any, b: Any) -> bool:
    ours, theirs = tensors_in(a), tensors_in(b)
    return len(ours) == len(theirs) and all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("network", "norm"), [("convnet_doubling", "batch"), ("convnet", "instance")])
def test_the_meta_gradient_is_that_of_finite_differences(network: str, norm: str, flip: bool) -> None:
    task = make_task(network=network, norm=norm, dtype=torch.float64)
    model = task.network(task.generator)
    model.train()(task.images)  # running statistics of their own
    images, classes = task.draw_per_class()
    labels = centred_one_hot(classes, task.num_classes, task.dtype)
    labels[0] = torch.tensor([0.3, 0.1, -0.4])  # a margin below 1/C
    targets = centred_one_hot(task.labels, task.num_classes, task.dtype)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        kernel, label = frepo.meta_losses(model, x, y, task.images, targets, ridge=1e-2, flip=flip)
        return kernel + label

    leaves = images.clone().requires_grad_(), labels.clone().requires_grad_()
    gradients = torch.autograd.grad(loss(*leaves), leaves)
    step = 1e-7  # small: there is a kink at every zero of a ReLU
    for which, gradient in enumerate(gradients):
        for seed in range(3):
            along = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(seed), dtype=task.dtype)
            values = []
            for sign in (1, -1):
                moved = [images, labels]
                moved[which] = moved[which] + sign * step * along
                with torch.no_grad():
                    values.append(float(loss(*moved)))
            numeric = (values[0] - values[1]) / (2 * step)
            assert numeric == pytest.approx(float((gradient * along).sum()), rel=1e-5)
            assert abs(numeric) > 1e-6


def test_the_label_loss_does_not_see_rows_that_are_far_apart() -> None:
    labels = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.4, 0.0]], requires_grad=True)
    loss = frepo.label_loss(labels)
    assert float(loss.detach()) == pytest.approx(-(1 / 3 + 0.1) / 2, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, labels)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0, 0.0], [-0.5, 0.5, 0.0]]))


def test_lamb_leaves_a_zero_tensor_with_a_ratio_of_one() -> None:
    zero, weights = torch.zeros(4), torch.ones(4)
    zero.grad, weights.grad = torch.ones(4), torch.zeros(4)
    LAMB([zero, weights], lr=0.1).step()
    torch.testing.assert_close(zero, torch.full((4,), -0.1))
    assert torch.equal(weights, torch.ones(4))


def test_a_step_is_one_update_of_images_and_labels_and_of_one_network() -> None:
    method = make()
    before, networks = method.synthetic(), [member.network.state_dict() for member in method.pool]
    networks = [{name: value.clone() for name, value in state.items()} for state in networks]
    losses = method.step()
    after = method.synthetic()
    # LAMB's step is lr · ‖w‖, whatever the gradient.
    for old, new in ((before.images, after.images), (before.labels, after.labels)):
        assert float((new - old).norm() / old.norm()) == pytest.approx(0.01, rel=1e-4)
    trained = [not same(m.network.state_dict(), old) for m, old in zip(method.pool, networks, strict=True)]
    assert sum(trained) == 1
    assert set(losses) == {"loss", "kernel_loss", "label_loss", "online_loss"}
    assert all(loss.ndim == 0 and not loss.requires_grad and loss.isfinite() for loss in losses.values())
    torch.testing.assert_close(losses["loss"], losses["kernel_loss"] + losses["label_loss"])


def test_labels_stay_when_they_are_not_learned() -> None:
    method = make(config={"learn_label": False})
    before = method.synthetic()
    method.step()
    assert torch.equal(method.synthetic().labels, before.labels)
    assert not torch.equal(method.synthetic().images, before.images)


def test_the_start_is_real_images_and_scaled_labels_class_by_class() -> None:
    method = make(ipc=2, classes=5)
    synthetic = method.synthetic()
    pool = make_task(classes=5).images.flatten(1)
    assert all((image.flatten() == pool).all(1).any() for image in synthetic.images)
    assert synthetic.labels.argmax(1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert float(synthetic.labels.max()) == pytest.approx(0.8 / 0.5**0.5)
    assert synthetic.label_space == "centred"
    unscaled = make(ipc=2, classes=5, config={"scale_label": False}).synthetic().labels
    assert float(unscaled.max()) == pytest.approx(0.8)


def test_distilling_lowers_the_kernel_loss() -> None:
    method = make(40, per_class=40)
    losses = [float(method.step()["kernel_loss"]) for _ in range(40)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_a_network_that_was_updated_too_often_is_replaced_and_not_trained() -> None:
    method = make(config={"pool_size": 1, "max_online_updates": 2})
    counters, replaced = [], []
    for _ in range(8):
        before = method.pool[0].network
        losses = method.step()
        counters.append(method.pool[0].counter)
        replaced.append(method.pool[0].network is not before)
        assert ("online_loss" in losses) != replaced[-1]
    assert counters == [1, 2, 3, 0, 1, 2, 3, 0]
    assert replaced == [False, False, False, True] * 2


def test_the_networks_of_the_pool_are_fresh_and_different() -> None:
    method = make(config={"pool_size": 3, "max_online_updates": 10})
    assert [member.counter for member in method.pool] == [0, 3, 6]
    heads = [member.network.head.weight for member in method.pool]
    assert not torch.equal(heads[0], heads[1]) and not torch.equal(heads[1], heads[2])


def test_from_a_thousand_images_on_a_random_part_trains_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FRePoConfig().online_batch_size == 1000
    seen: list[Tensor] = []
    update = Member.update

    def keep(member: Member, images: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        seen.append(images.clone())
        return update(member, images, labels, loss)

    monkeypatch.setattr(Member, "update", keep)
    method = make(classes=2, ipc=501, per_class=510, shape=(1, 4, 4), config={"batch_size": 64})
    method.step()
    assert len(seen[0]) == 1000
    now = method.synthetic().images.flatten(1)
    assert len({int((row == now).all(1).nonzero()[0]) for row in seen[0].flatten(1)}) == 1000
    small = make(ipc=2)
    small.step()
    assert torch.equal(seen[1], small.synthetic().images)


def test_mirrored_images_count_only_where_mirroring_makes_sense() -> None:
    losses = [
        float(make(flip=flip, config={"use_flip": use}).step()["kernel_loss"])
        for flip, use in ((True, True), (True, False), (False, True), (False, False))
    ]
    assert losses[0] != losses[1]
    assert losses[1] == losses[2] == losses[3]


@pytest.mark.parametrize("norm", ["none", "batch", "instance"])
@pytest.mark.parametrize("network", ["convnet", "convnet_doubling"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 12)])
def test_every_network_and_norm(network: str, norm: str, shape: tuple[int, int, int]) -> None:
    method = make(network=network, norm=norm, shape=shape)
    for _ in range(2):
        assert method.step()["loss"].isfinite()
    synthetic = method.synthetic()
    assert synthetic.images.shape == (6, *shape) and synthetic.images.is_contiguous()
    assert synthetic.images.isfinite().all() and synthetic.labels.isfinite().all()


def test_the_memory_format_changes_no_number() -> None:
    fast, plain = make(dtype=torch.float64), make(dtype=torch.float64)
    for member in plain.pool:
        member.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for _ in range(3):
        fast.step()
        plain.step()
    torch.testing.assert_close(fast.synthetic().images, plain.synthetic().images, rtol=1e-7, atol=1e-9)


def test_resuming_in_the_middle_is_bit_for_bit() -> None:
    config = {"pool_size": 2, "max_online_updates": 2}
    straight = make(12, config=config)
    for _ in range(6):
        straight.step()
    state = straight.state_dict()
    for _ in range(6):
        straight.step()
    resumed = make(12, config=config, seed=123)
    resumed.step()  # optimisers that have a state of their own to forget
    resumed.load_state_dict(state)
    for _ in range(6):
        resumed.step()
    assert len(tensors_in(state)) > 50
    assert same(straight.state_dict(), resumed.state_dict())


def test_a_saved_state_does_not_move_with_the_method() -> None:
    method = make()
    method.step()
    state = method.state_dict()
    kept = [tensor.clone() for tensor in tensors_in(state)]
    for _ in range(4):
        method.step()
    assert same(state, kept)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    results = []
    for seed in (0, 0, 1):
        method = make(seed=seed)
        for _ in range(3):
            method.step()
        results.append(method.synthetic())
    assert torch.equal(results[0].images, results[1].images) and torch.equal(results[0].labels, results[1].labels)
    assert not torch.equal(results[0].images, results[2].images)


def test_global_random_state_is_neither_read_nor_moved() -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        method = make()
        method.step()
        assert torch.equal(torch.get_rng_state(), before)
        results.append(method.synthetic().images)
    assert torch.equal(*results)


def test_nothing_keeps_a_graph() -> None:
    method = make()
    for _ in range(3):
        method.step()
    held = [method.images, method.labels, *tensors_in(method.optimiser.state_dict())]
    for member in method.pool:
        held += [*member.network.parameters(), *member.network.buffers(), *tensors_in(member.optimiser.state_dict())]
    assert all(tensor.grad_fn is None and tensor.grad is None for tensor in held)
    assert not method.synthetic().images.requires_grad


def test_a_synthetic_set_is_a_copy() -> None:
    method = make()
    first = method.synthetic()
    kept = first.images.clone(), first.labels.clone()
    method.step()
    assert torch.equal(first.images, kept[0]) and torch.equal(first.labels, kept[1])


def test_the_features_come_from_running_statistics() -> None:
    method = make(config={"pool_size": 1})
    modes: list[bool] = []

    def watch(module: nn.Module, *_: Any) -> None:
        modes.append(module.training)

    method.pool[0].network.body.register_forward_pre_hook(watch)
    method.step()
    assert modes == [False, False, True]  # real features, synthetic features, online update


def test_published_settings() -> None:
    assert FRePo.PAPER["cifar10", 50] == {"steps": 500_000, "use_flip": True}
    assert FRePo.PAPER["cifar100", 1]["use_flip"] and not FRePo.PAPER["cifar100", 10]["use_flip"]
    assert FRePo.PAPER["cifar100", 20]["use_flip"], "in continual learning, distill_cl.py"
    assert not FRePo.PAPER["fashion_mnist", 1]["use_flip"] and not FRePo.PAPER["imagenet64", 2]["use_flip"]
    assert ("digits", 1) not in FRePo.PAPER
    for settings in (*FRePo.PAPER.values(), *FRePo.BUDGETS.values()):
        replace(FRePoConfig(), **{name: value for name, value in settings.items() if name != "steps"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pool_size", 0),
        ("batch_size", -1),
        ("ridge", 0.0),
        ("lr", -1e-3),
        ("lr", float("nan")),
    ],
)
def test_a_setting_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"frepo: {name} is"):
        FRePoConfig(**{name: value})
