"""The differentiable inner loop, against torch's optimiser and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.networks import Network, NetworkSpec
from methods._unroll import flatten, minibatches, unflatten, unroll


def network(name: str = "convnet", norm: str = "instance") -> Network:
    spec = NetworkSpec(name, 1, (8, 8), num_classes=3, width=4, norm=norm)  # type: ignore[arg-type]
    return spec.build(torch.Generator().manual_seed(1), dtype=torch.float64)


def data(seed: int = 2) -> tuple[Tensor, Tensor]:
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return images, torch.tensor([0, 0, 1, 1, 2, 2])


def test_flatten_and_unflatten_are_inverse_and_in_the_order_of_the_parameters() -> None:
    net = network()
    flat = flatten(net)
    named = unflatten(net, flat)
    assert list(named) == [name for name, _ in net.named_parameters()]
    assert all(torch.equal(named[name], parameter) for name, parameter in net.named_parameters())
    flat.zero_()
    assert any(parameter.any() for parameter in net.parameters()), "flatten must copy"


@pytest.mark.parametrize("name", ["convnet", "convnet_doubling"])
@pytest.mark.parametrize("norm", ["none", "batch", "instance"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equals_torch_sgd_and_leaves_the_network_alone(name: str, norm: str, momentum: float) -> None:
    net = network(name, norm)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    images, labels = data()
    final, losses = unroll(
        net, flatten(net), [(images, labels)] * 4, torch.tensor(0.1, dtype=torch.float64), momentum=momentum
    )
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
    torch.testing.assert_close(final.detach(), flatten(net), rtol=0, atol=1e-13)
    torch.testing.assert_close(losses, torch.stack(expected), rtol=0, atol=1e-13)
    assert not losses.requires_grad


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradients_agree_with_finite_differences(norm: str, momentum: float) -> None:
    net = network(norm=norm)
    images, labels = data()
    soft = F.one_hot(labels, 3).double() * 0.8 + 0.1
    target = flatten(network("convnet", norm)) + 0.1
    start = flatten(net)
    rates = torch.tensor([0.1, 0.2, 0.05], dtype=torch.float64)

    def outer(x: Tensor, y: Tensor, lr: Tensor) -> Tensor:
        return (unroll(net, start, [(x, y)] * 3, lr, momentum=momentum)[0] - target).square().sum()

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


def test_a_step_size_for_each_step() -> None:
    net, batch = network(), data()
    rates = torch.tensor([0.1, 0.3], dtype=torch.float64)
    once, _ = unroll(net, flatten(net), [batch], rates[0])
    twice, _ = unroll(net, once, [batch], rates[1])
    both, _ = unroll(net, flatten(net), [batch, batch], rates)
    assert torch.equal(both, twice)


def test_minibatches_come_from_the_end_of_a_permutation() -> None:
    batches = minibatches(7, 3, 5, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in batches] == [1, 3, 3, 1, 3]
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randperm(7, generator=generator), torch.randperm(7, generator=generator)
    assert torch.equal(torch.cat(batches[2::-1]), first)
    assert torch.equal(torch.cat([batches[4], batches[3]]), second[3:])
    assert [len(batch) for batch in minibatches(4, 9, 2, generator)] == [4, 4]
