"""RCIG: the implicit gradient, its solves, and the method as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.errors import UserError
from benchmarks.krr import centred_one_hot
from benchmarks.networks import Network, NetworkSpec
from benchmarks.networks.layers import Residual
from benchmarks.protocols import PROTOCOLS
from methods import _implicit, _tangents, rcig
from methods._optim import AdaBelief, Average
from methods.rcig import RCIG, RCIGConfig
from tests.test_frepo import make_task, same, tensors_in

RIDGE, SCALE = 0.05, 0.3


def make(total_steps: int = 10, *, config: dict[str, Any] | None = None, **task: Any) -> RCIG:
    small = {"pool_size": 3, "online_updates": 3, **(config or {})}
    return RCIG(make_task(**{"norm": "none", **task}), RCIGConfig(**small), total_steps)


class Problem:
    """A tiny bilevel problem in float64."""

    def __init__(self, *, flip: bool = False, norm: str = "none", beta: float = 5.0, ipc: int = 1) -> None:
        task = make_task(norm=norm, dtype=torch.float64, per_class=4, shape=(2, 4, 4), ipc=ipc)
        self.flip, self.network = flip, _tangents.smooth(task.network(task.generator), beta)
        self.names = _tangents.names_of(self.network)
        self.real = task.images, task.labels
        self.images, classes = task.draw_per_class()
        self.labels = centred_one_hot(classes, 3, torch.float64)
        self.labels[0] = torch.tensor([0.30, 0.25, -0.55])  # a margin below 1/(2C)
        self.scale = torch.tensor(SCALE, dtype=torch.float64)

    def inner(self, images: Tensor | None = None, labels: Tensor | None = None) -> _implicit.Inner:
        images, labels = self.images if images is None else images, self.labels if labels is None else labels
        return _implicit.Inner(self.network, *rcig.seen(images, labels, self.flip), RIDGE, self.names)

    def outer_of(self, inner: _implicit.Inner) -> Callable[[Tensor, Tensor], _implicit.Outer]:
        return lambda tangent, fitted: _implicit.outer(inner, tangent, fitted, self.scale, *self.real)

    def exact(self, iterations: int = 100) -> tuple[_implicit.Inner, _implicit.Solved]:
        inner = self.inner()
        return inner, _implicit.exact(inner, self.outer_of(inner), iterations)

    def objective(self, images: Tensor, labels: Tensor, scale: Tensor) -> float:
        """The outer loss at the inner optimum by code of its own: dense Jacobians, normal equations in τ."""
        network, real = self.network.eval(), self.real[0]
        images, labels = rcig.seen(images, labels, self.flip)
        with torch.no_grad():
            feats, real_feats = network.features(images), network.features(real)
            gram = feats @ feats.T + RIDGE * torch.eye(len(images), dtype=torch.float64)
            jac, real_jac = self.jacobian(images), self.jacobian(real)  # (n, C, P)
            weighted = torch.linalg.solve(gram, jac.flatten(1)).view_as(jac).flatten(0, 1)
            hessian = torch.eye(jac.shape[2], dtype=torch.float64) + jac.flatten(0, 1).T @ weighted
            tangent = torch.linalg.solve(hessian, weighted.T @ labels.flatten())
            fitted = torch.linalg.solve(gram, labels - jac @ tangent)
            predictions = (real_jac @ tangent + real_feats @ feats.T @ fitted) * scale.exp()
            top = labels.topk(2).values
            apart = (top[:, 0] - top[:, 1]).clamp(max=1 / 6).mean()
            return float(F.cross_entropy(predictions, self.real[1]) - apart)

    def jacobian(self, images: Tensor) -> Tensor:
        parameters = [self.network.get_parameter(name) for name in self.names]
        rows = []
        with torch.enable_grad():
            for logit in self.network(images).flatten():
                gradients = torch.autograd.grad(logit, parameters, retain_graph=True)
                rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
        return torch.stack(rows).view(len(images), 3, -1)


@pytest.mark.parametrize(("flip", "norm"), [(False, "none"), (True, "none"), (False, "batch"), (True, "instance")])
def test_the_gradient_is_that_of_finite_differences_of_the_bilevel_objective(flip: bool, norm: str) -> None:
    problem = Problem(flip=flip, norm=norm)
    inner, solved = problem.exact()
    direct, implicit, apart = rcig.meta_gradients(inner, solved, problem.labels, flip)
    at = [problem.images, problem.labels, problem.scale]
    assert problem.objective(*at) == pytest.approx(float(solved.outer.loss + apart), rel=1e-10)
    gradients = [a + b for a, b in zip(direct, implicit, strict=True)] + [solved.outer.scale]
    for place, gradient in enumerate(gradients):
        along = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        step = 1e-5
        moved = [[t + sign * step * along if i == place else t for i, t in enumerate(at)] for sign in (1, -1)]
        numeric = (problem.objective(*moved[0]) - problem.objective(*moved[1])) / (2 * step)
        assert float((gradient * along).sum()) == pytest.approx(numeric, rel=1e-6)
        assert abs(numeric) > 1e-4
    for part in implicit:
        assert part.norm() > 0.01 * gradients[0].norm()


def test_the_exact_tangent_is_where_the_inner_gradient_vanishes() -> None:
    problem = Problem()
    inner, solved = problem.exact()
    zero = torch.zeros_like(solved.tangent)
    assert inner.loss(solved.tangent)[1].norm() < 1e-10 * inner.loss(zero)[1].norm()
    assert inner.loss(solved.tangent)[0] < inner.loss(zero)[0]


def test_the_inner_gradient_and_curvature_are_those_of_the_inner_loss() -> None:
    inner = Problem(flip=True).inner()
    size = len(inner.start)
    at, along = torch.randn(2, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plus, minus = (inner.loss(at + sign * along) for sign in (1, -1))
    # A quadratic: central differences are exact at any distance.
    assert float((plus[0] - minus[0]) / 2) == pytest.approx(float(inner.loss(at)[1] @ along), rel=1e-9)
    torch.testing.assert_close((plus[1] - minus[1]) / 2, inner.curvature(along), rtol=1e-9, atol=1e-12)


def test_conjugate_gradients_find_what_the_kept_jacobian_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(ipc=2, flip=True)
    inner, kept = problem.exact()
    assert inner.jacobian.matrix is not None
    monkeypatch.setattr(_tangents, "EXPLICIT_BYTES", 0)
    inner, found = problem.exact()
    assert inner.jacobian.matrix is None
    for ours, theirs in zip((*found[:2], *found[3:]), (*kept[:2], *kept[3:]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    rough = problem.exact(12)[1]
    error = (rough.inverse - kept.inverse).norm() / kept.inverse.norm()
    assert 1e-5 < error < 1e-2


def test_conjugate_gradients_stand_still_at_the_solution() -> None:
    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    for right in (torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, -2.0], dtype=torch.float64)):
        found = _tangents.conjugate_gradients(lambda u: matrix @ u, right, lambda u: u, 500)
        torch.testing.assert_close(found, torch.linalg.solve(matrix, right))


def test_products_are_those_of_the_dense_jacobian(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(norm="instance")
    dense = problem.jacobian(problem.images)
    generator = torch.Generator().manual_seed(0)
    tangent = torch.randn(dense.shape[2], generator=generator, dtype=torch.float64)
    right = torch.randn(dense.shape[:2], generator=generator, dtype=torch.float64)
    for size in (2**30, 0):
        monkeypatch.setattr(_tangents, "EXPLICIT_BYTES", size)
        jacobian = _tangents.Jacobian(problem.network.eval(), problem.images, problem.names)
        torch.testing.assert_close(jacobian.times(tangent), dense @ tangent)
        torch.testing.assert_close(jacobian.transposed(right), torch.einsum("icp,ic->p", dense, right))


def test_many_adam_steps_come_near_the_exact_solution() -> None:
    problem = Problem()
    inner, best = problem.exact()
    errors = []
    for steps in (20, 2000):
        solved, losses, residuals = _implicit.faithful(inner, problem.outer_of(inner), 1e-3, 1e-2, steps)
        assert losses.shape == residuals.shape == (steps,)
        errors.append(float((solved.tangent - best.tangent).norm() / best.tangent.norm()))
    assert errors[0] > 0.2 and errors[1] < 0.05


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients() -> list[Tensor]:
        problem = Problem(ipc=2)
        inner, solved = problem.exact()
        direct, implicit, _ = rcig.meta_gradients(inner, solved, problem.labels, False)
        return [*direct, *implicit, solved.outer.scale, solved.outer.tangent]

    whole = gradients()
    for module in (_implicit, _tangents):
        monkeypatch.setattr(module, "chunks", lambda _, images: images.split(2))
    for a, b in zip(whole, gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_implicit_part_is_never_longer_than_the_direct_one() -> None:
    direct, short, long = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 50.0])
    torch.testing.assert_close(rcig.clipped(short, direct), short)
    torch.testing.assert_close(rcig.clipped(long, direct), torch.tensor([0.0, 5.0]))
    assert torch.equal(rcig.clipped(torch.tensor([float("nan"), 1.0]), direct), torch.zeros(2))
    assert torch.equal(rcig.clipped(torch.zeros(2), direct), torch.zeros(2))


def test_adabelief_takes_full_steps_where_gradients_agree() -> None:
    steady, noisy, still = (torch.zeros(1) for _ in range(3))
    optimiser = AdaBelief([steady, noisy, still], lr=0.1)
    for step in range(20):
        steady.grad, noisy.grad, still.grad = torch.ones(1), torch.full((1,), (-1.0) ** step), torch.zeros(1)
        optimiser.step()
    assert float(steady) < -2.5 and abs(float(noisy)) < 0.5
    assert float(still) == 0


def smooth_layers(network: Network) -> tuple[int, int]:
    kinds = [type(module) for module in network.modules()]
    return kinds.count(nn.ReLU), kinds.count(_tangents.Softplus)


def test_distilling_networks_are_smooth_and_evaluated_ones_are_not() -> None:
    method = make()
    assert all(smooth_layers(member.network) == (0, 2) for member in method.pool)
    assert smooth_layers(method.task.network(torch.Generator())) == (2, 0)
    assert smooth_layers(make(config={"softplus": 0.0}).pool[0].network) == (2, 0)
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    torch.testing.assert_close(_tangents.Softplus(7.0)(x), torch.logaddexp(7 * x, 0 * x) / 7)


def test_residual_blocks_become_smooth_as_well() -> None:
    spec = NetworkSpec("resnet18", 3, (8, 8), 3, width=4, norm="batch")
    network = _tangents.smooth(spec.build(torch.Generator()), 60.0)
    assert any(isinstance(module, Residual) for module in network.modules())
    assert smooth_layers(network)[0] == 0


def test_a_step_updates_the_set_and_one_network() -> None:
    method = make()
    before = [member.state_dict() for member in method.pool]
    start = method.synthetic()
    losses = method.step()
    trained = [not same(member.state_dict(), old) for member, old in zip(method.pool, before, strict=True)]
    assert sum(trained) == 1
    counters = sorted(member.counter for member in method.pool)
    assert counters[:2] == [0, 0] and 1 <= counters[2] <= 3
    assert set(losses) == {"loss", "online_loss"}
    after = method.synthetic()
    assert not torch.equal(start.images, after.images) and not torch.equal(start.labels, after.labels)
    # AdaBelief's first step is lr / 0.9 along the sign of every gradient that is not 0.
    assert float((after.images - start.images).abs().max()) == pytest.approx(3e-3 / 0.9, rel=1e-3)
    assert float(method.scale.abs()) == pytest.approx(3e-2 / 0.9, rel=1e-3)


def test_the_result_is_the_moving_average() -> None:
    method = make(config={"lr": 0.1})
    seen = []
    for _ in range(3):
        method.step()
        seen.append(method.images.clone())
    weights = [0.99**2, 0.99, 1.0]
    expected = sum((w * x for w, x in zip(weights, seen, strict=True)), torch.zeros(())) / sum(weights)
    torch.testing.assert_close(method.synthetic().images, expected)


def test_the_ridge_counts_images_without_mirroring(monkeypatch: pytest.MonkeyPatch) -> None:
    ridges, rows = [], []
    right = rcig.Inner

    def keep(network: Network, images: Tensor, labels: Tensor, ridge: float, names: list[str]) -> _implicit.Inner:
        ridges.append(ridge)
        rows.append(len(images))
        return right(network, images, labels, ridge, names)

    monkeypatch.setattr(rcig, "Inner", keep)
    for flip, use in ((True, True), (True, False), (False, True)):
        make(flip=flip, config={"use_flip": use}).step()
    assert ridges == pytest.approx([5e-4 * 6] * 3)
    assert rows == [12, 6, 6]


def test_a_network_that_was_updated_often_enough_is_replaced() -> None:
    method = make(config={"pool_size": 1, "max_online_updates": 4, "online_updates": 2})
    counters = []
    for _ in range(12):
        before, network = method.pool[0].counter, method.pool[0].network
        method.step()
        counters.append(method.pool[0].counter)
        assert (method.pool[0].network is not network) == (counters[-1] == 0)
        assert counters[-1] == 0 or before < counters[-1] <= before + 2
    assert 0 in counters and max(counters) < 4


@pytest.mark.parametrize("solver", ["exact", "faithful"])
def test_distilling_lowers_the_loss(solver: str) -> None:
    rates = {"lr_inner": 1e-3, "lr_hessian": 1e-2}
    method = make(15, config={"solver": solver, "lr": 0.05, **rates})
    losses = [float(method.step()["loss"]) for _ in range(15)]
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5  # a mean of 0.1


def test_step_sizes_are_as_large_as_lets_the_objectives_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(config={"solver": "faithful"})
    objectives, tried = method._objectives, {0: [], 1: []}

    def watched(network: Network, place: int) -> Tensor:
        values = objectives(network, place)
        tried[place].append((float(method.rates[place]), bool((values.diff() < 0).all())))
        return values

    monkeypatch.setattr(method, "_objectives", watched)
    method.prepare({})
    for place, start in enumerate((1e-5, 5e-5)):
        rates, fell = zip(*tried[place], strict=True)
        assert rates == pytest.approx([start * 1.2**trial for trial in range(len(rates))], rel=1e-5)
        assert len(fell) > 1 and all(fell[:-1]) and not fell[-1]
        assert float(method.rates[place]) == pytest.approx(rates[-1] * 1.2 * 0.7, rel=1e-5)
    given = make(config={"solver": "faithful", "lr_inner": 1e-3, "lr_hessian": 1e-2})
    given.prepare({})
    given.step()
    torch.testing.assert_close(given.rates, torch.tensor([1e-3, 1e-2]))


def test_average_of_a_constant_is_the_constant() -> None:
    average = Average([torch.ones(2)], 0.9)
    for _ in range(3):
        average.update([torch.ones(2)])
        torch.testing.assert_close(average.values(), [torch.ones(2)])


def test_the_inner_step_size_follows_what_inner_losses_do() -> None:
    method = make(config={"solver": "faithful"})
    falling, rising, neither = torch.tensor([3.0, 2, 1]), torch.tensor([1.0, 2, 3]), torch.tensor([3.0, 1, 2])
    for share, factor in (((50, 0), 1.05), ((34, 0), 1.0), ((35, 0), 1.05), ((35, 15), 0.9), ((0, 14), 1.0)):
        method.rates = torch.tensor([1e-3, 1e-2])
        losses = [falling] * share[0] + [rising] * share[1]
        for own in losses + [neither] * (50 - len(losses)):
            method._adapt(own)
        torch.testing.assert_close(method.rates, torch.tensor([factor * 1e-3, 1e-2]))


@pytest.mark.parametrize("solver", ["exact", "faithful"])
def test_resuming_in_the_middle_is_bit_for_bit(solver: str) -> None:
    config = {"pool_size": 2, "max_online_updates": 3, "solver": solver, "lr_hessian": 1e-2}
    straight = make(12, config=config)
    straight.prepare({})
    for _ in range(3):
        straight.step()
    state = straight.state_dict()
    for _ in range(3):
        straight.step()
    resumed = make(12, config=config, seed=123)
    resumed.prepare({})
    resumed.step()
    resumed.load_state_dict(state)
    for _ in range(3):
        resumed.step()
    assert len(tensors_in(state)) > 30
    assert same(straight.state_dict(), resumed.state_dict())


def test_published_settings() -> None:
    assert RCIG.PAPER["cifar10", 1] == {"steps": 15_000, "use_flip": True}
    assert not RCIG.PAPER["mnist", 10]["use_flip"] and not RCIG.PAPER["fashion_mnist", 1]["use_flip"]
    assert ("cifar100", 50) not in RCIG.PAPER
    for settings in (*RCIG.PAPER.values(), *RCIG.BUDGETS.values()):
        replace(RCIGConfig(), **{name: value for name, value in settings.items() if name != "steps"})


def test_the_native_evaluation_is_the_papers() -> None:
    protocol = PROTOCOLS[RCIG.PROTOCOL]
    assert (protocol.distill_norm, protocol.test_norm, protocol.network) == ("none", "none", "convnet_doubling")
    assert [protocol.recipe.steps(images) for images in (10, 20, 100, 1000)] == [1000, 2000, 2000, 2000]


@pytest.mark.parametrize(("name", "value"), [("pool_size", 0), ("ridge", 0.0), ("lr", -1.0), ("inner_steps", 0)])
def test_a_setting_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"rcig: {name} is"):
        RCIGConfig(**{name: value})
