"""GSAM: training that leads to flat minima, for the experts of FTD and DATM.

Zhuang et al., "Surrogate Gap Minimization Improves Sharpness-Aware Training", ICLR 2022; its adaptive form from Kwon et
al., "ASAM", ICML 2021; experts so trained from Du et al., "Minimizing the Accumulated Trajectory Error to Improve
Dataset Distillation", CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.networks import Network
from methods._unroll import flatten

EPS = 1e-12
"""Added to norms by which is divided."""


def ascent(parameters: Tensor, gradient: Tensor, rho: float, adaptive: bool) -> Tensor:
    """Perturbation (P,) of ``parameters`` (P,) of length ``rho`` along ``gradient`` (P,).

    ``adaptive``: its length is measured in units of the parameters, entry by entry.
    """
    scale = parameters.abs() if adaptive else torch.ones_like(parameters)
    scaled = scale * gradient
    length: Tensor = torch.linalg.vector_norm(scaled)
    return rho * scale * scaled / (length + EPS)


def direction(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """Direction (P,) that is followed: ``second``, less ``alpha`` times the part of ``first`` that is orthogonal to it.

    ``first``, ``second`` (P,): gradients at the parameters and at the perturbed ones.
    """
    norms: list[Tensor] = [torch.linalg.vector_norm(gradient) for gradient in (first, second)]
    cosine = (first * second).sum() / (norms[0] * norms[1] + EPS)
    return second - alpha * (first - cosine * norms[0] * second / (norms[1] + EPS))


@dataclass(frozen=True)
class GSAM:
    """A `benchmarks.training.Descent` that costs a second pass on every batch."""

    rho: float
    alpha: float
    adaptive: bool

    @property
    def name(self) -> str:
        """Everything that determines it."""
        return f"{'a' if self.adaptive else ''}gsam{self.rho}-alpha{self.alpha}"

    def __call__(self, networks: Sequence[Network], backward: Callable[[], None]) -> None:
        backward()
        starts = [flatten(network.parameters()).detach() for network in networks]
        firsts = [flatten(gradients(network)) for network in networks]
        for network, start, first in zip(networks, starts, firsts, strict=True):
            write(start + ascent(start, first, self.rho, self.adaptive), network.parameters())
        backward()
        for network, start, first in zip(networks, starts, firsts, strict=True):
            own = gradients(network)
            write(direction(first, flatten(own), self.alpha), own)
            write(start, network.parameters())


def gradients(network: Network) -> list[Tensor]:
    """Gradients of the parameters, in their order."""
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


@torch.no_grad()
def write(flat: Tensor, tensors: Iterable[Tensor]) -> None:
    """The vector ``flat`` into ``tensors``, in place."""
    tensors = list(tensors)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)])
