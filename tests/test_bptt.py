"""BPTT: ``higher`` against an independent unroll, closed form, finite differences; the update, options, settings."""

from __future__ import annotations

import gc
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.errors import UserError
from benchmarks.networks import Network, NetworkSpec
from methods import bptt
from methods._unroll import flatten, unflatten, unroll
from methods.bptt import BPTT, BPTTConfig
from methods.checks import tiny_task

SETTINGS: dict[str, Any] = {"unroll": 4, "batch_size": 40, "lr_init": 0.1}


def method(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> BPTT:
    return BPTT(tiny_task(seed, dtype), BPTTConfig(**{**SETTINGS, **changes}), total_steps=5)


def network(name: str = "convnet", norm: str = "instance") -> Network:
    spec = NetworkSpec(name, 1, (8, 8), num_classes=3, width=4, norm=norm)  # type: ignore[arg-type]
    return spec.build(torch.Generator().manual_seed(1), dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(soft: bool) -> Tensor:
    return draw(6, 3, seed=9).softmax(1) if soft else torch.tensor([0, 0, 1, 1, 2, 2])


def plain_unroll(net: Network, x: Tensor, y: Tensor, lr: Tensor, steps: int, **settings: Any) -> tuple[Tensor, Tensor]:
    return unroll(net, flatten(net.parameters()), lambda step: (x, y), steps, [], lr, **settings)


def outer_loss(net: nn.Module, parameters: Tensor, images: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(functional_call(net, unflatten(net, parameters), (images,)), y)


# --- the inner training


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize(
    ("name", "norm"), [("convnet", "instance"), ("convnet", "batch"), ("convnet_doubling", "batch")]
)
def test_higher_agrees_with_an_independent_unroll(
    name: str, norm: str, momentum: float, soft: bool, window: int | None
) -> None:
    """Values and gradients, in float64; a step size for every step."""
    real_images, real_labels = draw(12, 1, 8, 8, seed=5), torch.arange(12) % 3
    results = []
    for own in (False, True):
        net = network(name, norm)
        images, y = draw(6, 1, 8, 8, seed=2).requires_grad_(), labels(soft).requires_grad_(soft)
        lr = torch.tensor([0.1, 0.2, 0.05, 0.1], dtype=torch.float64, requires_grad=True)
        if own:
            final, losses = plain_unroll(net, images, y, lr, 4, momentum=momentum, window=window)
        else:
            final, losses = bptt.inner_training(net, images, y, lr, steps=4, momentum=momentum, window=window)
        loss, arriving = bptt.outer_gradient(net, final, real_images, real_labels)
        leaves = [images, lr, y] if soft else [images, lr]
        results.append([loss, final.detach(), losses, *torch.autograd.grad(final, leaves, arriving)])
        assert not losses.requires_grad
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= 1e-11 * theirs.abs().max()


class Linear(nn.Module):
    """Logits W x + b of flattened images."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(images.flatten(1), self.weight, self.bias)

    def map_size(self, height: int, width: int) -> int:
        return height * width


def test_one_step_of_a_linear_network_in_closed_form() -> None:
    """With G = ∇ of the inner and Λ = ∇ of the outer loss at w − αG: dL/dα = −⟨Λ, G⟩, dL/dx = −α ∂⟨Λ, G⟩/∂x."""
    classes, size, n = 3, 12, 6
    weight, bias = draw(classes, size), draw(classes, seed=1)
    x, y, alpha = draw(n, 1, 3, 4, seed=2), labels(soft=True), 0.3
    real_x, real_y = draw(10, 1, 3, 4, seed=3), torch.arange(10) % classes

    def gradients(w: Tensor, b: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        error = (F.linear(images.flatten(1), w, b).softmax(1) - targets) / len(images)
        return error.T @ images.flatten(1), error.sum(0)

    g_w, g_b = gradients(weight, bias, x, y)
    after_w, after_b = weight - alpha * g_w, bias - alpha * g_b
    l_w, l_b = gradients(after_w, after_b, real_x, F.one_hot(real_y, classes))
    p = F.linear(x.flatten(1), weight, bias).softmax(1)
    along = F.linear(x.flatten(1), l_w, l_b)  # Λ applied to every image
    centred = along - (p * along).sum(1, keepdim=True)
    expected_x = -alpha / n * ((p - y) @ l_w + (p * centred) @ weight)  # (diag p − p pᵀ) along = p · centred
    expected_y = alpha / n * centred  # the inner gradient in the logits is (Σy) p − y
    expected_lr = -((l_w * g_w).sum() + (l_b * g_b).sum())

    leaves = [x.requires_grad_(), torch.tensor(alpha, dtype=torch.float64, requires_grad=True), y.requires_grad_()]
    net: Any = Linear(weight, bias)
    final, _ = bptt.inner_training(net, x, y, leaves[1], steps=1)
    torch.testing.assert_close(final.detach(), torch.cat([after_w.flatten(), after_b]).detach(), rtol=0, atol=1e-13)
    _, arriving = bptt.outer_gradient(net, final, real_x, real_y)
    found = torch.autograd.grad(final, leaves, arriving)
    for ours, expected in zip(found, (expected_x.view_as(x), expected_lr, expected_y), strict=True):
        torch.testing.assert_close(ours, expected.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradients_agree_with_finite_differences(momentum: float) -> None:
    real_images, real_labels = draw(12, 1, 8, 8, seed=5), torch.arange(12) % 3

    def outer(x: Tensor, y: Tensor, lr: Tensor) -> Tensor:
        net = network()
        final, _ = bptt.inner_training(net, x, y, lr, steps=3, momentum=momentum)
        return outer_loss(net, final, real_images, real_labels)

    start = [draw(6, 1, 8, 8, seed=2), labels(soft=True), torch.tensor([0.1, 0.2, 0.05], dtype=torch.float64)]
    at = [tensor.clone().requires_grad_() for tensor in start]
    gradients = torch.autograd.grad(outer(*at), at)
    h = 1e-7  # ReLU: inner gradients jump at kinks, so the step must be tiny
    for i, gradient in enumerate(gradients):
        direction = draw(*gradient.shape, seed=7 + i)
        ahead, behind = list(start), list(start)
        ahead[i], behind[i] = start[i] + h * direction, start[i] - h * direction
        slope = (outer(*ahead) - outer(*behind)).detach() / (2 * h)
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-7)


def test_no_graph_waits_for_the_garbage_collector() -> None:
    """Were the patched network part of a reference cycle, the activations of all steps would live on with it."""
    made = method(unroll=3, window=2, momentum=0.9)
    made.step()
    gc.collect()
    gc.disable()
    try:
        made.step()
        found = [item for item in gc.get_objects() if issubclass(type(item), Tensor) and item.grad_fn is not None]
    finally:
        gc.enable()
    assert not found


# --- the method


@pytest.mark.parametrize("per_step", [False, True])
def test_a_step_is_adam_on_images_and_step_sizes(per_step: bool) -> None:
    made = method(lr_per_step=per_step)
    generator = torch.Generator()
    generator.set_state(made.task.generator.get_state())
    images = made.images.clone().requires_grad_()
    raw = torch.full((4,) if per_step else (), 0.1, dtype=torch.float64).expm1().log().requires_grad_()
    optimiser = torch.optim.Adam([images, raw], lr=0.01, betas=(0.5, 0.999))
    for _ in range(3):
        index = torch.randperm(60, generator=generator)[:40]
        net = made.task.network(generator)
        final, _ = plain_unroll(net, images, made.classes, F.softplus(raw), 4)
        loss = outer_loss(net, final, made.task.images[index], made.task.labels[index])
        images.grad, raw.grad = torch.autograd.grad(loss, [images, raw])
        optimiser.step()
        torch.testing.assert_close(made.step()["loss"], loss.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(made.synthetic().images, images.detach(), rtol=0, atol=1e-7)
    found = made.synthetic().lr
    assert found is not None and found.shape == raw.shape and (found > 0).all()
    torch.testing.assert_close(found, F.softplus(raw).detach(), rtol=0, atol=1e-7)
    assert (found - 0.1).abs().min() > 1e-4, "the step size is learned"


@pytest.mark.parametrize("change", [{}, {"learn_label": True, "momentum": 0.9, "window": 2}, {"lr_per_step": False}])
def test_rematerialised_steps_are_those_of_higher(change: dict[str, Any]) -> None:
    # SGD: Adam's first updates depend on the signs of gradients alone, however small they are.
    change = {**change, "outer_optimiser": "sgd", "lr_outer": 1.0}
    plain, again = (method(rematerialize=rematerialize, **change) for rematerialize in (False, True))
    start = plain.synthetic()
    for _ in range(3):
        losses = [made.step() for made in (plain, again)]
        for name in losses[0]:
            torch.testing.assert_close(losses[0][name], losses[1][name], rtol=1e-10, atol=0)
    for ours, theirs in zip(plain.learned, again.learned, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert (plain.synthetic().images - start.images).abs().max() > 1e-3


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_the_outer_gradient_is_that_at_the_final_parameters(norm: str) -> None:
    images, y = draw(12, 1, 8, 8, seed=5), torch.arange(12) % 3
    net = network(norm=norm)
    at = (flatten(net.parameters()).detach() + 0.1).requires_grad_()
    expected = outer_loss(net, at, images, y)
    loss, gradient = bptt.outer_gradient(net, at, images, y)
    assert not loss.requires_grad and not gradient.requires_grad
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, at)[0], rtol=0, atol=1e-12)


def test_learned_labels_move_and_stay_probabilities() -> None:
    made = method(learn_label=True, lr_outer=0.3)
    first = made.synthetic().labels
    torch.testing.assert_close(first.max(1).values, torch.full((6,), 0.9, dtype=torch.float64))
    for _ in range(5):
        made.step()
    last = made.synthetic().labels
    assert (last - first).abs().max() > 0.01
    assert (last >= 0).all()
    torch.testing.assert_close(last.sum(1), torch.ones(6, dtype=torch.float64))
    hard = method().synthetic().labels
    assert torch.equal(hard.sort(1).values, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(6, 3))


def test_a_network_trained_on_the_images_becomes_better() -> None:
    made = method(dtype=torch.float32, lr_outer=0.05)
    losses = [float(made.step()["loss"]) for _ in range(25)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_every_step_has_a_fresh_network_and_a_new_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def outer_gradient(net: Network, parameters: Tensor, images: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((net.head.weight.sum().item(), images.sum().item()))
        return parameters.sum().detach(), torch.ones_like(parameters)

    monkeypatch.setattr(bptt, "outer_gradient", outer_gradient)
    made = method()
    for _ in range(3):
        made.step()
    networks, batches = zip(*seen, strict=True)
    assert len(seen) == len(set(networks)) == len(set(batches)) == 3


def test_noise_as_a_start() -> None:
    real, noise = method(), method(pix_init="noise")
    assert (real.images[:, None] == real.task.images).flatten(2).all(2).any(1).all()
    assert not (noise.images[:, None] == noise.task.images).flatten(2).all(2).any()


def test_adam_inside_is_refused() -> None:
    with pytest.raises(UserError, match="differentiates Adam wrongly") as caught:
        BPTTConfig(inner_optimiser="adam")
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "higher", None)
    with pytest.raises(UserError, match="pip install higher") as caught:
        method()
    assert "\n" not in str(caught.value)
    method(rematerialize=True).step()


@pytest.mark.parametrize(
    "change", [{"unroll": 0}, {"window": 0}, {"batch_size": -1}, {"lr_init": 0.0}, {"lr_outer": float("nan")}]
)
def test_a_value_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        BPTTConfig(**change)
