"""A network linearised at its parameters: tangents of its logits, solves with their kernel, Adam on a quadratic.

What belongs to the n·C logits of n images is float64; what belongs to the P parameters has the dtype of the network. A
tangent is a vector (P,) over parameters, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.networks import Network, batch_norms
from benchmarks.training import chunks

Map = Callable[[Tensor], Tensor]
COLUMNS = 2**15
"""Columns of a Jacobian that are float64 at a time."""
EXPLICIT_ROWS = 2000
"""Most rows of a Jacobian that is kept: the matrix of so many logits is factored in float64."""
EXPLICIT_BYTES = 2**29
"""Largest Jacobian that is kept: 1000 logits of a network of width 32. With more logits its Gram matrix takes longer
than conjugate gradients."""


class Softplus(nn.Module):
    """log(1 + exp(βx)) / β: a ReLU without the kink, for gradients of gradients."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x, self.beta, threshold=40)  # above it the difference is below the rounding of float64


def smooth(network: Network, beta: float) -> Network:
    """``network`` with a `Softplus` in place of every ``nn.ReLU`` (as it is for β = 0), ready for `along`."""
    for module in list(network.modules()) if beta else ():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, Softplus(beta))
    if any(isinstance(module, nn.GroupNorm) for module in network.modules()) or batch_norms(network):
        # Derivatives of norms along tangents know no channels last.
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return network


def names_of(network: Network) -> list[str]:
    """The parameters that have tangents: all but the weights of the last layer, which regression solves for."""
    return [name for name, _ in network.named_parameters() if name != "head.weight"]


def parts(network: Network, names: list[str], tangent: Tensor) -> dict[str, Tensor]:
    """The vector ``tangent`` (P,) as tensors of the shapes of the parameters ``names``."""
    parameters = [network.get_parameter(name) for name in names]
    split = torch.split(tangent, [parameter.numel() for parameter in parameters])
    return {name: part.view_as(p) for name, part, p in zip(names, split, parameters, strict=True)}


class _FeaturesAndLogits(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(images)
        return features, cast(Tensor, self.network.head(features))


def along(network: Network, images: Tensor, tangent: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Features (n, D), logits (n, C), and the derivative of the logits along ``tangent``, (n, C)."""
    with forward_ad.dual_level():
        duals = {
            f"network.{name}": forward_ad.make_dual(network.get_parameter(name), part)  # type: ignore[no-untyped-call]
            for name, part in tangent.items()
        }
        outputs = functional_call(_FeaturesAndLogits(network), duals, (images,))
        features, logits = (forward_ad.unpack_dual(output) for output in outputs)  # type: ignore[no-untyped-call]
        return features.primal, logits.primal, logits.tangent


def pulled_back(network: Network, logits: Tensor, right: Tensor, names: list[str]) -> Tensor:
    """Jᵀ·right (P,) for ``right`` (n, C), by going back from ``logits`` (n, C) of ``network``."""
    parameters = [network.get_parameter(name) for name in names]
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(logits, parameters, right)])


class Jacobian:
    """J (n·C, P): the derivatives of the logits of images (n, C, H, W), constants.

    It is kept where it is small, else every product goes through the network.
    """

    def __init__(self, network: Network, images: Tensor, names: list[str]) -> None:
        self.network, self.images, self.names = network, images, names
        size = sum(network.get_parameter(name).numel() for name in names)
        rows = len(images) * network.head.out_features
        small = rows <= EXPLICIT_ROWS and rows * size * images.element_size() <= EXPLICIT_BYTES
        self.matrix = torch.cat([self._rows(image) for image in torch.split(images, 1)]) if small else None

    def _rows(self, image: Tensor) -> Tensor:
        """The rows (C, P) of one image (1, C, H, W)."""
        logits = self.network(image)[0]
        every = torch.eye(len(logits), dtype=image.dtype, device=image.device)
        parameters = [self.network.get_parameter(name) for name in self.names]
        gradients = torch.autograd.grad(logits, parameters, every, is_grads_batched=True)
        return torch.cat([gradient.flatten(1) for gradient in gradients], 1)

    def times(self, tangent: Tensor) -> Tensor:
        """J·tangent for (P,), as (n, C) in float64."""
        if self.matrix is not None:
            return (self.matrix @ tangent).double().view(len(self.images), -1)
        own = parts(self.network, self.names, tangent)
        with torch.no_grad():
            return torch.cat([along(self.network, part, own)[2] for part in chunks(self.network, self.images)]).double()

    def transposed(self, right: Tensor) -> Tensor:
        """Jᵀ·right (P,) for (n, C), in the dtype of the network."""
        right = right.to(self.images.dtype)
        if self.matrix is not None:
            return self.matrix.T @ right.flatten()
        split = chunks(self.network, self.images)
        pulled = torch.zeros((), dtype=right.dtype, device=right.device)
        for part, own in zip(split, torch.split(right, len(split[0])), strict=True):
            pulled = pulled + pulled_back(self.network, self.network(part), own, self.names)
        return pulled

    def inverse(self, gram: Tensor, factor: Tensor, iterations: int) -> Map:
        """The map from right sides (n, C) to (JJᵀ + gram ⊗ I)⁻¹·right, for ``gram`` (n, n) and its Cholesky factor.

        By Cholesky's decomposition where J is kept, else by ``iterations`` of conjugate gradients. ``gram``, of the
        features, resembles JJᵀ, so that it makes a good preconditioner.
        """
        if self.matrix is None:

            def product(u: Tensor) -> Tensor:
                return self.times(self.transposed(u)) + gram @ u

            def precondition(u: Tensor) -> Tensor:
                return torch.cholesky_solve(u, factor)

            return lambda right: conjugate_gradients(product, right, precondition, iterations)
        kernel = torch.kron(gram, torch.eye(len(self.matrix) // len(gram), dtype=gram.dtype, device=gram.device))
        for columns in torch.split(self.matrix, COLUMNS, 1):
            kernel.addmm_(columns.double(), columns.double().T)
        whole = torch.linalg.cholesky_ex(kernel).L
        return lambda right: torch.cholesky_solve(right.reshape(-1, 1), whole).view_as(right)


def conjugate_gradients(product: Map, right: Tensor, precondition: Map, iterations: int) -> Tensor:
    """An approximate solution of product(x) = right for positive definite linear maps; never synchronises."""
    solution, residual = torch.zeros_like(right), right
    direction = conditioned = precondition(residual)
    square = (residual * conditioned).sum()
    for _ in range(iterations):
        image = product(direction)
        # A residual of 0, or of rounding, has no direction left.
        length = torch.where(square > 0, square / (direction * image).sum(), 0.0)
        solution = solution + length * direction
        residual = residual - length * image
        conditioned = precondition(residual)
        before, square = square, (residual * conditioned).sum()
        direction = conditioned + torch.where(before > 0, square / before, 0.0) * direction
    return solution


def adam(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, lr: Tensor | float, steps: int
) -> tuple[Tensor, Tensor]:
    """The point after ``steps`` steps of Adam from ``start`` (P,), and the values before each of them (steps,).

    ``objective``: point → (value, gradient).
    """
    point, first, second = start, torch.zeros_like(start), torch.zeros_like(start)
    values = []
    for step in range(1, steps + 1):
        value, gradient = objective(point)
        values.append(value)
        first = first.lerp(gradient, 1 - 0.9)
        second = second.lerp(gradient.square(), 1 - 0.999)
        point = point - lr * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return point, torch.stack(values)
