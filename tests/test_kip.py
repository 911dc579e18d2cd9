"""KIP: the kernels against wide random networks, the loss and its gradient, labels, batches, settings."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.errors import UserError
from benchmarks.protocols import PROTOCOLS
from methods._ntk import kernels
from methods.checks import tiny_task
from methods.kip import KIP, KIPConfig, kip_loss, solved_labels


def method(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> KIP:
    return KIP(tiny_task(seed, dtype), KIPConfig(**{"batch_size": 30, **changes}), total_steps=5)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the kernels


def empirical(x: Tensor, sizes: list[int], w_std: float, b_std: float, seed: int) -> tuple[Tensor, Tensor]:
    """NNGP and NTK of one random network with layers of ``sizes``."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for fan_in, fan_out in itertools.pairwise(sizes)
        for shape in ((fan_out, fan_in), (fan_out,))
    ]
    features = x
    for layer, (weight, bias) in enumerate(zip(parameters[::2], parameters[1::2], strict=True)):
        inputs = features.relu() if layer else features
        features = w_std / math.sqrt(sizes[layer]) * inputs @ weight.T + b_std * bias
    rows = [torch.autograd.grad(output, parameters, retain_graph=True) for output in features[:, 0]]
    jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    return (w_std**2 / sizes[-2] * inputs @ inputs.T + b_std**2).detach(), jacobian @ jacobian.T


@pytest.mark.parametrize(("depth", "width", "networks", "tolerance"), [(1, 20000, 4, 0.02), (2, 800, 16, 0.06)])
def test_kernels_are_those_of_wide_random_networks(depth: int, width: int, networks: int, tolerance: float) -> None:
    """Up to twice the standard error, about sqrt(5·depth / (width·networks)): a mean square of ReLUs varies so."""
    x, w_std, b_std = draw(4, 5), 1.3, 0.4
    drawn = [empirical(x, [5, *[width] * depth, 1], w_std, b_std, seed) for seed in range(networks)]
    nngp, ntk = kernels(x, x, depth=depth, w_std=w_std, b_std=b_std)
    for analytic, sampled in zip((nngp, ntk), zip(*drawn, strict=True), strict=True):
        assert (analytic - torch.stack(sampled).mean(0)).abs().max() < tolerance * analytic.abs().max()
    assert (ntk - nngp).abs().max() > 0.5 * nngp.abs().max(), "the two are far enough apart to be told apart"


def test_kernels_of_orthogonal_and_of_parallel_inputs() -> None:
    """Without biases: relu moments are scale/(2π) and 1/4 at a right angle, scale/2 and 1/2 at none, 0 and 0 at π."""
    x = torch.tensor([[3.0, 0.0], [0.0, 2.0], [6.0, 0.0], [-3.0, 0.0]], dtype=torch.float64)
    nngp, ntk = kernels(x[:1], x, depth=1, b_std=0.0)
    expected = torch.tensor([[9.0, 6 / math.pi, 18.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(nngp, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(ntk - nngp, torch.tensor([[9.0, 0.0, 18.0, 0.0]], dtype=torch.float64))


def test_without_hidden_layers_both_are_the_linear_kernel() -> None:
    x, z = draw(3, 4), draw(5, 4, seed=1)
    for kernel in kernels(x, z, depth=0):
        torch.testing.assert_close(kernel, 2 * x @ z.T / 4 + 0.01)


@pytest.mark.parametrize("depth", [1, 3])
def test_kernels_are_symmetric_and_positive_semidefinite(depth: int) -> None:
    x = draw(30, 6)
    x[1], x[2] = x[0], 2 * x[0]  # duplicated and parallel
    for kernel in kernels(x, x, depth=depth):
        torch.testing.assert_close(kernel, kernel.T, rtol=0, atol=1e-13 * float(kernel.max()))
        assert torch.linalg.eigvalsh(kernel).min() > -1e-6 * kernel.trace() / 30
    for kernel, crossed in zip(kernels(x[:4], x, depth=depth), kernels(x, x[:4], depth=depth), strict=True):
        torch.testing.assert_close(kernel, crossed.T, rtol=0, atol=1e-13 * float(kernel.max()))


def test_kernels_are_differentiable_also_on_the_diagonal() -> None:
    x, z = draw(4, 5).requires_grad_(), draw(3, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: kernels(a, a, depth=3), x)
    assert torch.autograd.gradcheck(lambda a, b: kernels(a, b, depth=2), (x, z))
    twice = torch.cat([x, x])  # duplicates off the diagonal
    (gradient,) = torch.autograd.grad(kernels(twice, twice, depth=3)[1].sum(), x)
    assert gradient.isfinite().all()


# --- the loss


def predictor(k_ts: Tensor, k_ss: Tensor, ridge: float) -> Tensor:
    """K_ts (K_ss + λ·(tr K_ss / n)·I)⁻¹, (B, n)."""
    return k_ts @ torch.linalg.inv(k_ss + ridge * k_ss.trace() / 6 * torch.eye(6, dtype=torch.float64))


def gram(count: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """K_ts, K_ss, Y_s, Y_t of 6 synthetic and ``count`` real images."""
    synthetic, real = draw(6, 8, seed=seed), draw(count, 8, seed=seed + 1)
    k_ts, k_ss = kernels(real, synthetic, depth=2)[1], kernels(synthetic, synthetic, depth=2)[1]
    return k_ts, k_ss, draw(6, 3, seed=seed + 2), draw(count, 3, seed=seed + 3)


def test_the_loss_is_that_of_the_direct_solve() -> None:
    k_ts, k_ss, y_syn, y_real = gram(10)
    prediction = predictor(k_ts, k_ss, 0.01) @ y_syn
    torch.testing.assert_close(kip_loss(k_ts, k_ss, y_syn, y_real, 0.01), ((prediction - y_real) ** 2).sum() / 2 / 30)


def test_without_a_ridge_it_interpolates() -> None:
    _, k_ss, y_syn, _ = gram()
    losses = [float(kip_loss(k_ss, k_ss, y_syn, y_syn, ridge)) for ridge in (1e-1, 1e-3, 1e-9)]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 1e-15


@pytest.mark.parametrize("kernel", [0, 1], ids=["nngp", "ntk"])
def test_the_meta_gradient_agrees_with_finite_differences(kernel: int) -> None:
    real, y_real = draw(7, 8, seed=1), draw(7, 3, seed=2)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        k_ts, k_ss = kernels(real, images, depth=2)[kernel], kernels(images, images, depth=2)[kernel]
        return kip_loss(k_ts, k_ss, labels, y_real, 1e-6)

    assert torch.autograd.gradcheck(loss, (draw(5, 8).requires_grad_(), draw(5, 3, seed=3).requires_grad_()))


def test_solved_labels_are_the_best_there_are() -> None:
    k_ts, k_ss, _, y_real = gram(20)
    solved = solved_labels(k_ts, k_ss, y_real, 1e-6).requires_grad_()
    best = kip_loss(k_ts, k_ss, solved, y_real, 1e-6)
    expected = torch.linalg.lstsq(predictor(k_ts, k_ss, 1e-6), y_real).solution
    torch.testing.assert_close(solved.detach(), expected, rtol=1e-3, atol=1e-3)
    for seed in range(5):
        assert kip_loss(k_ts, k_ss, solved + 0.1 * draw(6, 3, seed=seed), y_real, 1e-6) > best


# --- the method


@pytest.mark.parametrize("learn_label", [False, True])
def test_a_step_is_adam_on_images_and_learned_labels(learn_label: bool) -> None:
    made = method(learn_label=learn_label, batch_size=10**6, kernel="nngp", depth=1)
    images, labels = made.images.clone().requires_grad_(), made.labels.clone().requires_grad_(learn_label)
    torch.testing.assert_close(labels.detach().sum(1), torch.zeros(6, dtype=torch.float64))
    real, targets = made.task.images.flatten(1), F.one_hot(made.task.labels, 3).double() - 1 / 3
    optimiser = torch.optim.Adam([images, labels] if learn_label else [images], lr=0.04)
    for _ in range(3):
        x = images.flatten(1)
        loss = kip_loss(kernels(real, x, depth=1)[0], kernels(x, x, depth=1)[0], labels, targets, 1e-6)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        torch.testing.assert_close(made.step()["loss"], loss.detach(), rtol=1e-8, atol=0)
    torch.testing.assert_close(made.synthetic().images, images.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(made.synthetic().labels, labels.detach(), rtol=0, atol=1e-6)


def test_solved_labels_belong_to_the_images_as_they_stand() -> None:
    made = method(solve_label=True, batch_size=10**6)
    for _ in range(2):
        made.step()
        found = made.synthetic()
        real, x = made.task.images.flatten(1), found.images.flatten(1)
        targets = F.one_hot(made.task.labels, 3).double() - 1 / 3
        k_ts, k_ss = kernels(real, x, depth=3)[1], kernels(x, x, depth=3)[1]
        torch.testing.assert_close(found.labels, solved_labels(k_ts, k_ss, targets, 1e-6), rtol=1e-6, atol=1e-6)


def test_batches_are_balanced_and_without_repetition() -> None:
    made = method(batch_size=20)
    first, second = made._batch()[0], made._batch()[0]
    images, targets = made._batch()
    assert len(images) == 18 and len({image.numpy().tobytes() for image in images}) == 18
    assert torch.equal(targets.argmax(1).bincount(), torch.tensor([6, 6, 6]))
    torch.testing.assert_close(targets.sum(1), torch.zeros(18, dtype=torch.float64))
    assert not torch.equal(first, second)
    assert len(method(batch_size=10**6)._batch()[0]) == 60


def test_a_float32_task_is_worked_on_in_float64() -> None:
    single, double = method(dtype=torch.float32), method(dtype=torch.float64)
    for _ in range(5):
        losses = [made.step()["loss"] for made in (single, double)]
        assert losses[0].dtype == torch.float64
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)
    assert single.synthetic().images.dtype == torch.float32


@pytest.mark.parametrize("change", [{}, {"kernel": "nngp"}, {"learn_label": True}, {"solve_label": True}])
def test_kernel_regression_becomes_better(change: dict[str, Any]) -> None:
    made = method(**change, lr=0.1)
    losses = [float(made.step()["loss"]) for _ in range(40)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_its_own_evaluation_is_squared_error() -> None:
    protocol = PROTOCOLS[KIP.PROTOCOL]
    assert protocol.recipe.loss == "mse" and not protocol.krr
    assert protocol.preprocess("cifar10", 1) == "standardise"


@pytest.mark.parametrize(
    "change", [{"depth": 0}, {"batch_size": 0}, {"ridge": 0.0}, {"w_std": -1.0}, {"b_std": float("nan")}, {"lr": -1.0}]
)
def test_a_value_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        KIPConfig(**change)


def test_labels_are_learned_or_solved_for() -> None:
    with pytest.raises(UserError, match="set one of them") as caught:
        KIPConfig(learn_label=True, solve_label=True)
    assert "\n" not in str(caught.value)
