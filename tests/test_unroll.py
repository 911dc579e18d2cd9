"""The differentiable inner loop, against torch's optimiser and finite differences."""

from __future__ import annotations

from typing import Any

import higher
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.augment import apply_dsa, draw_dsa
from benchmarks.networks import Network, NetworkSpec
from methods._unroll import AdamForm, flatten, minibatches, unflatten, unroll


def network(name: str = "convnet", norm: str = "instance") -> Network:
    spec = NetworkSpec(name, 1, (8, 8), num_classes=3, width=4, norm=norm)  # type: ignore[arg-type]
    return spec.build(torch.Generator().manual_seed(1), dtype=torch.float64)


def data(seed: int = 2) -> tuple[Tensor, Tensor]:
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return images, torch.tensor([0, 0, 1, 1, 2, 2])


def test_flatten_and_unflatten_are_inverse_and_in_the_order_of_the_parameters() -> None:
    net = network()
    flat = flatten(net.parameters())
    named = unflatten(net, flat)
    assert list(named) == [name for name, _ in net.named_parameters()]
    assert all(torch.equal(named[name], parameter) for name, parameter in net.named_parameters())
    flat.detach().zero_()
    assert any(parameter.any() for parameter in net.parameters()), "flatten must copy"


@pytest.mark.parametrize("name", ["convnet", "convnet_doubling"])
@pytest.mark.parametrize("norm", ["none", "batch", "instance"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equals_torch_sgd_and_leaves_the_network_alone(name: str, norm: str, momentum: float) -> None:
    net = network(name, norm)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    images, labels = data()
    lr = torch.tensor(0.1, dtype=torch.float64)
    final, losses = unroll(net, flatten(net.parameters()), lambda step: (images, labels), 4, [], lr, momentum=momentum)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())

    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum)
    expected = []
    for _ in range(4):
        loss = F.cross_entropy(net(images), labels)
        for parameter, gradient in zip(
            net.parameters(), torch.autograd.grad(loss, list(net.parameters())), strict=True
        ):
            parameter.grad = gradient
        optimiser.step()
        expected.append(loss.detach())
    torch.testing.assert_close(final.detach(), flatten(net.parameters()).detach(), rtol=0, atol=1e-13)
    torch.testing.assert_close(losses, torch.stack(expected), rtol=0, atol=1e-13)
    assert not losses.requires_grad


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradients_agree_with_finite_differences(norm: str, momentum: float) -> None:
    net = network(norm=norm)
    images, labels = data()
    soft = F.one_hot(labels, 3).double() * 0.8 + 0.1
    start = flatten(net.parameters()).detach()
    target = start + 0.1
    rates = torch.tensor([0.1, 0.2, 0.05], dtype=torch.float64)

    def outer(x: Tensor, y: Tensor, lr: Tensor) -> Tensor:
        return (unroll(net, start, lambda step: (x, y), 3, [], lr, momentum=momentum)[0] - target).square().sum()

    at = [tensor.clone().requires_grad_() for tensor in (images, soft, rates)]
    gradients = torch.autograd.grad(outer(*at), at)
    generator = torch.Generator().manual_seed(3)
    h = 1e-7  # ReLU: inner gradients jump at kinks, so the step must be tiny
    for i, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        ahead, behind = ([t.detach() for t in at] for _ in range(2))
        ahead[i], behind[i] = ahead[i] + h * direction, behind[i] - h * direction
        slope = (outer(*ahead) - outer(*behind)).detach() / (2 * h)
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("form", ["exact", "faithful"])
def test_steps_before_the_window_are_those_of_torchs_adam(form: AdamForm) -> None:
    """In both forms. Without a norm: a bias before one has no gradient but rounding, of which Adam makes full steps."""
    net, (images, labels) = network(norm="none"), data()
    lr = torch.tensor(0.01, dtype=torch.float64)
    start = flatten(net.parameters())
    final, losses = unroll(net, start, lambda step: (images, labels), 4, [], lr, adam=form, window=0)
    inside, _ = unroll(net, start, lambda step: (images, labels), 4, [], lr, adam=form)
    optimiser, expected = torch.optim.Adam(net.parameters(), lr=0.01), []
    for _ in range(4):
        expected.append(F.cross_entropy(net(images), labels))
        optimiser.zero_grad()
        expected[-1].backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    trained = flatten(net.parameters()).detach()
    torch.testing.assert_close(final, trained, rtol=0, atol=1e-10)
    torch.testing.assert_close(losses, torch.stack(expected).detach(), rtol=0, atol=1e-10)
    apart = (inside - trained).abs().max()
    assert apart < 1e-10 if form == "exact" else apart > 1e-9, "epsilon in another place"


@pytest.mark.parametrize("norm", ["none", "instance"])
def test_the_faithful_adam_is_that_of_higher(norm: str) -> None:
    net, (images, labels) = network(norm=norm), data()
    images.requires_grad_()
    net.head.bias.data -= torch.tensor([0.0, 0.0, 1e3], dtype=torch.float64)  # a gradient that is exactly 0
    lr = torch.tensor(0.01, dtype=torch.float64)
    ours, _ = unroll(net, flatten(net.parameters()), lambda step, x: (x, labels), 4, [images], lr, adam="faithful")
    with higher.innerloop_ctx(net, torch.optim.Adam(net.parameters(), lr=0.01)) as (student, descent):
        for _ in range(4):
            descent.step(F.cross_entropy(student(images), labels))
        theirs = flatten(student.parameters())
    (found,), (expected,) = (torch.autograd.grad(student_loss(net, flat), images) for flat in (ours, theirs))
    assert expected.abs().max() > 1e-6
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()


def student_loss(net: Network, flat: Tensor) -> Tensor:
    """On other images, so that directions of the parameters without meaning count for nothing."""
    images, labels = data(seed=5)
    return F.cross_entropy(functional_call(net, unflatten(net, flat), (images,)), labels)


@pytest.mark.parametrize("form", ["exact", "faithful"])
def test_gradients_through_adam_agree_with_finite_differences(form: AdamForm) -> None:
    net = network(norm="none")
    images, labels = data()
    soft, start = F.one_hot(labels, 3).double() * 0.8 + 0.1, flatten(net.parameters()).detach()
    rates = torch.tensor([0.01, 0.02, 0.005], dtype=torch.float64)

    def outer(x: Tensor, y: Tensor, lr: Tensor) -> Tensor:
        return student_loss(net, unroll(net, start, lambda step: (x, y), 3, [], lr, adam=form)[0])

    at = [tensor.clone().requires_grad_() for tensor in (images, soft, rates)]
    gradients = torch.autograd.grad(outer(*at), at)
    generator = torch.Generator().manual_seed(3)
    h = 1e-7  # as above
    for i, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        ahead, behind = ([t.detach() for t in at] for _ in range(2))
        ahead[i], behind[i] = ahead[i] + h * direction, behind[i] - h * direction
        slope = (outer(*ahead) - outer(*behind)).detach() / (2 * h)
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-8)


def test_a_step_size_for_each_step() -> None:
    net, batch = network(), data()
    rates = torch.tensor([0.1, 0.3], dtype=torch.float64)
    once, _ = unroll(net, flatten(net.parameters()), lambda step: batch, 1, [], rates[0])
    twice, _ = unroll(net, once, lambda step: batch, 1, [], rates[1])
    both, _ = unroll(net, flatten(net.parameters()), lambda step: batch, 2, [], rates)
    assert torch.equal(both, twice)


def test_minibatches_come_from_the_end_of_a_permutation() -> None:
    batches = minibatches(7, 3, 5, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in batches] == [1, 3, 3, 1, 3]
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randperm(7, generator=generator), torch.randperm(7, generator=generator)
    assert torch.equal(torch.cat(batches[2::-1]), first)
    assert torch.equal(torch.cat([batches[4], batches[3]]), second[3:])
    assert [len(batch) for batch in minibatches(4, 9, 2, generator)] == [4, 4]


def test_before_the_window_everything_is_a_constant() -> None:
    net, (images, labels) = network(), data()
    rates = torch.full((5,), 0.1, dtype=torch.float64, requires_grad=True)
    images.requires_grad_()

    def descend(window: int | None) -> tuple[Tensor, Tensor]:
        start = flatten(net.parameters())
        return unroll(net, start, lambda step, x: (x, labels), 5, [images], rates, momentum=0.9, window=window)

    (windowed, losses), (whole, all_losses) = descend(2), descend(None)
    # Backward of a norm is another kernel where it is differentiated in turn: the same up to rounding.
    torch.testing.assert_close(windowed, whole, rtol=0, atol=1e-13)
    torch.testing.assert_close(losses, all_losses, rtol=0, atol=1e-13)
    (rate_gradient,) = torch.autograd.grad(windowed.sum(), rates, retain_graph=True)
    assert not rate_gradient[:3].any() and rate_gradient[3:].all()
    short, long = (torch.autograd.grad(final.sum(), images)[0] for final in (windowed, whole))
    assert (short - long).abs().max() > 0.01 * long.abs().max()
    for wide in (5, 9):
        assert torch.equal(torch.autograd.grad(descend(wide)[0].sum(), images)[0], long)


# --- rematerialisation


def outer(final: Tensor) -> Tensor:
    """Of no meaning, but not linear."""
    return (final - 0.1).square().sum()


@pytest.mark.parametrize(
    ("name", "norm", "optimiser"),
    [
        *(
            (name, norm, {"momentum": momentum})
            for name, norm in (("convnet", "instance"), ("convnet", "batch"), ("convnet_doubling", "batch"))
            for momentum in (0.0, 0.9)
        ),
        ("convnet", "none", {"adam": "exact"}),
        ("convnet", "none", {"adam": "faithful"}),
    ],
)
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("per_step", [False, True])
def test_rematerialised_is_the_plain_unroll(
    name: str, norm: str, optimiser: dict[str, Any], window: int | None, per_step: bool
) -> None:
    """Same values and same gradients: images, soft labels and step sizes, through augmented minibatches."""
    net = network(name, norm)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    images, labels = data()
    soft = F.one_hot(labels, 3).double() * 0.8 + 0.1
    rates = torch.tensor([0.1, 0.2, 0.05, 0.1, 0.3] if per_step else 0.1, dtype=torch.float64)
    if "adam" in optimiser:
        rates /= 30  # so that no unit dies
    generator = torch.Generator().manual_seed(4)
    indices = minibatches(6, 4, 5, generator)
    draws = [draw_dsa((8, 8), len(index), generator, flip=True) for index in indices]

    def batch(step: int, images: Tensor, soft: Tensor) -> tuple[Tensor, Tensor]:
        op, parameters = draws[step]
        return apply_dsa(op, images[indices[step]], parameters), soft[indices[step]]

    leaves = [tensor.clone().requires_grad_() for tensor in (images, soft, rates)]
    x, y, lr = leaves

    def descend(rematerialize: bool) -> tuple[Tensor, Tensor]:
        settings: Any = {**optimiser, "window": window, "rematerialize": rematerialize}
        return unroll(net, flatten(net.parameters()), batch, 5, (x, y), lr, **settings)

    (final, losses), (again, same) = descend(False), descend(True)
    gradients = torch.autograd.grad(outer(final), leaves)
    found = torch.autograd.grad(outer(again), leaves)
    torch.testing.assert_close(final, again, rtol=0, atol=1e-13)
    torch.testing.assert_close(losses, same, rtol=0, atol=1e-13)
    assert not same.requires_grad
    for ours, theirs in zip(found, gradients, strict=True):
        assert theirs.abs().max() > 1e-3
        assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_rematerialised_takes_what_is_learned_only() -> None:
    """Labels as class indices are no matter of gradients, nor is a step size that is given."""
    net, (images, labels) = network(), data()
    lr = torch.tensor(0.1, dtype=torch.float64)
    images.requires_grad_()

    def descend(rematerialize: bool) -> Tensor:
        start, learned = flatten(net.parameters()), (images, labels)
        return unroll(net, start, lambda step, *batch: batch, 3, learned, lr, rematerialize=rematerialize)[0]

    (expected,) = torch.autograd.grad(outer(descend(False)), images)
    again = descend(True)
    outer(again).backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    torch.testing.assert_close(images.grad, expected, rtol=0, atol=1e-12)
    assert lr.grad is None


class Saved:
    """Bytes that autograd keeps for backward: now, and at most, as ``saved_tensors_hooks`` see them."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> Kept:
        return Kept(tensor, self)

    def unpack(self, kept: Kept) -> Tensor:
        return kept.tensor


class Kept:
    def __init__(self, tensor: Tensor, counter: Saved) -> None:
        self.tensor, self.counter = tensor.detach(), counter
        counter.now += tensor.nbytes
        counter.peak = max(counter.peak, counter.now)

    def __del__(self) -> None:
        self.counter.now -= self.tensor.nbytes


@pytest.mark.parametrize("optimiser", [{}, {"momentum": 0.9}, {"adam": "exact"}, {"adam": "faithful"}])
def test_saved_bytes_do_not_grow_with_the_steps(optimiser: dict[str, Any]) -> None:
    def peak(steps: int, rematerialize: bool) -> int:
        net, (images, labels) = network(), data()
        lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        images.requires_grad_()
        counter = Saved()
        with torch.autograd.graph.saved_tensors_hooks(counter.pack, counter.unpack):
            start, settings = flatten(net.parameters()), {**optimiser, "rematerialize": rematerialize}
            final, _ = unroll(net, start, lambda step, x: (x, labels), steps, [images], lr, **settings)
            torch.autograd.grad(outer(final), [images, lr])
        return counter.peak

    assert peak(8, False) > 3.5 * peak(2, False)
    assert peak(8, True) == peak(2, True) < 1.2 * peak(1, False)
