"""The bilevel problem of a linearised network: its inner optimum, and the gradient through it.

Inner: ridge regression on the features f of n images, beside a tangent τ of the network's parameters, fits their labels
Y. Outer: the loss of that model on real images. The gradient in the n images and labels has a part at fixed τ (direct)
and a part through τ (implicit). Both are written as sums over images, so that nothing keeps a graph of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn import functional as F

from benchmarks.networks import Network
from benchmarks.training import chunks, features
from methods._tangents import Jacobian, adam, along, parts, pulled_back

Lr = Tensor | float


class Inner:
    """The inner problem on n images, a convex quadratic in the tangent τ (P,) over the parameters ``names``.

    L(τ) = λ/(2nC)·[rᵀ(K + λI)⁻¹r + ‖τ‖²] with r = Y − Jτ, K = f fᵀ for the features f, and the Jacobian J of the
    logits; ``gram`` is K + λI.
    """

    def __init__(self, network: Network, images: Tensor, labels: Tensor, ridge: float, names: list[str]) -> None:
        self.network, self.images, self.names = network.eval(), images, names
        self.labels, self.features = labels.double(), features(network, images).double()
        identity = torch.eye(len(images), dtype=torch.float64, device=images.device)
        self.gram = self.features @ self.features.T + ridge * identity
        self.factor = torch.linalg.cholesky_ex(self.gram).L
        self.scale = ridge / labels.numel()
        self.jacobian = Jacobian(network, images, names)
        size = sum(network.get_parameter(name).numel() for name in names)
        self.start = torch.zeros(size, dtype=images.dtype, device=images.device)

    def solve(self, right: Tensor) -> Tensor:
        """(K + λI)⁻¹·right for (n, C)."""
        return torch.cholesky_solve(right, self.factor)

    def coefficients(self, tangent: Tensor) -> Tensor:
        """a = (K + λI)⁻¹(Y − Jτ), (n, C): the last layer that fits what the tangent leaves over is aᵀf."""
        return self.solve(self.labels - self.jacobian.times(tangent))

    def loss(self, tangent: Tensor) -> tuple[Tensor, Tensor]:
        """L, 0-d, and its gradient λ/(nC)·(τ − Jᵀa), (P,)."""
        left = self.labels - self.jacobian.times(tangent)
        fitted = self.solve(left)
        value = self.scale / 2 * ((left * fitted).sum() + tangent.double().square().sum())
        return value, self.scale * (tangent - self.jacobian.transposed(fitted))

    def curvature(self, tangent: Tensor) -> Tensor:
        """H·tangent = λ/(nC)·(I + Jᵀ((K + λI)⁻¹ ⊗ I)J)·tangent, (P,)."""
        return self.scale * (tangent + self.jacobian.transposed(self.solve(self.jacobian.times(tangent))))


class Outer(NamedTuple):
    """The loss on real images at fixed τ and last layer, 0-d, and its gradients."""

    loss: Tensor
    tangent: Tensor
    """(P,)"""
    weights: Tensor
    """(C, D), of the last layer"""
    scale: Tensor
    """0-d, of ρ"""


def outer(inner: Inner, tangent: Tensor, coefficients: Tensor, scale: Tensor, images: Tensor, classes: Tensor) -> Outer:
    """Mean cross entropy of e^ρ·(J_t τ + f_t f_sᵀ a) on real images (B, …) with ``classes`` (B,)."""
    network, own = inner.network, parts(inner.network, inner.names, tangent)
    weights = (coefficients.T @ inner.features).to(images.dtype)
    split = chunks(network, images)
    total: list[Tensor] = []
    for part, labels in zip(split, torch.split(classes, len(split[0])), strict=True):
        feats, logits, moved = along(network, part, own)
        leaves = [leaf.detach().requires_grad_() for leaf in (moved, weights, scale)]
        predictions = (leaves[0] + F.linear(feats.detach(), leaves[1])) * leaves[2].exp()
        loss = F.cross_entropy(predictions, labels, reduction="sum") / len(images)
        right, *others = grad(loss, leaves)
        found = [loss.detach(), pulled_back(network, logits, right, inner.names), *others]
        total = [a + b for a, b in zip(total, found, strict=True)] if total else found
    return Outer(*total)


class Solved(NamedTuple):
    """Parts of the gradient in the synthetic set."""

    tangent: Tensor
    """τ, (P,)"""
    fitted: Tensor
    """a, (n, C)"""
    outer: Outer
    inverse: Tensor
    """λ/(nC)·H⁻¹g, (P,), for the gradient g of the outer loss in τ, of which a part goes through a"""
    direct: Tensor
    """Gradient of the outer loss in Y at fixed τ, (n, C)"""
    implicit: Tensor
    """Gradient in Y through τ, (n, C)"""


def exact(inner: Inner, outer_of: Callable[[Tensor, Tensor], Outer], iterations: int) -> Solved:
    """Both solves by M = JJᵀ + (K + λI) ⊗ I: a = M⁻¹Y and τ = Jᵀa, then their adjoint (Woodbury's formula)."""
    inverse = inner.jacobian.inverse(inner.gram, inner.factor, iterations)
    fitted = inverse(inner.labels)
    tangent = inner.jacobian.transposed(fitted)
    outer = outer_of(tangent, fitted)
    right = inner.features @ outer.weights.T.double()  # ∂L_out/∂a
    total = inverse(right + inner.jacobian.times(outer.tangent))
    direct = inner.solve(right)
    return Solved(tangent, fitted, outer, outer.tangent - inner.jacobian.transposed(total), direct, total - direct)


def faithful(
    inner: Inner, outer_of: Callable[[Tensor, Tensor], Outer], lr_inner: Lr, lr_hessian: Lr, steps: int
) -> tuple[Solved, Tensor, Tensor]:
    """Both solves by ``steps`` of Adam from 0, and the values of their objectives, (steps,) each."""
    tangent, losses = adam(inner.loss, inner.start, lr_inner, steps)
    solved, residuals = adjoint(inner, outer_of, tangent, lr_hessian, steps)
    return solved, losses, residuals


def adjoint(
    inner: Inner, outer_of: Callable[[Tensor, Tensor], Outer], tangent: Tensor, lr: Lr, steps: int
) -> tuple[Solved, Tensor]:
    """The gradient at any ``tangent`` by Adam on ½vᵀHv − gᵀv, of which twice the values come with it, (steps,)."""
    fitted = inner.coefficients(tangent)
    outer = outer_of(tangent, fitted)
    direct = inner.solve(inner.features @ outer.weights.T.double())
    through = outer.tangent - inner.jacobian.transposed(direct)

    def residual(point: Tensor) -> tuple[Tensor, Tensor]:
        image = inner.curvature(point)
        return point @ (image - 2 * through), image - through

    inverse, residuals = adam(residual, inner.start, lr, steps)
    inverse = inner.scale * inverse
    implicit = inner.solve(inner.jacobian.times(inverse))
    return Solved(tangent, fitted, outer, inverse, direct, implicit), residuals


def image_gradients(inner: Inner, solved: Solved) -> tuple[Tensor, Tensor]:
    """Direct and implicit part of the gradient of the outer loss in the images of the inner problem, (n, …) each."""
    dtype = inner.images.dtype
    last = solved.fitted.T @ inner.features

    def of_features(right: Tensor) -> Tensor:
        """The gradient in f, (n, D), of ⟨right, −(K + λI)·a⟩ at fixed a."""
        return -(right @ last + solved.fitted @ (right.T @ inner.features))

    at_features = of_features(solved.direct) + solved.fitted @ solved.outer.weights.double()
    split = chunks(inner.network, inner.images)
    constants = (solved.fitted, solved.direct, solved.implicit, at_features, of_features(solved.implicit))
    tangents = [parts(inner.network, inner.names, tangent) for tangent in (solved.tangent, solved.inverse)]
    found: list[tuple[Tensor, Tensor]] = []
    for images, *own in zip(split, *(torch.split(c.to(dtype), len(split[0])) for c in constants), strict=True):
        fitted, direct, implicit, at_features, implicitly = own
        leaf = images.detach().requires_grad_()
        feats, _, moved = along(inner.network, leaf, tangents[0])
        _, _, adjoint = along(inner.network, leaf, tangents[1])
        first = (feats * at_features).sum() - (moved * direct).sum()
        second = (feats * implicitly).sum() - (moved * implicit).sum() + (adjoint * fitted).sum()
        found.append((grad(first, leaf, retain_graph=True)[0], grad(second, leaf)[0]))
    direct, implicit = (torch.cat(parts) for parts in zip(*found, strict=True))
    return direct, implicit
