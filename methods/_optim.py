"""Synthetic sets that an optimiser moves, and optimisers that torch lacks."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.task import Task
from methods.base import Method


def initial_images(task: Task, init: Literal["real", "noise"]) -> tuple[Tensor, Tensor]:
    """Images to start from, ``ipc`` of each class (n, C, H, W), class-major, and their classes (n,).

    Random real images, or standard normal noise in their place.
    """
    images, classes = task.draw_per_class()
    if init == "noise":
        images = torch.randn(images.shape, generator=task.generator, dtype=task.dtype).to(task.device)
    return images, classes


class Optimised(Method):
    """A method whose steps move the tensors ``learned`` by one ``optimiser``."""

    learned: Sequence[Tensor]
    """Everything that steps may change; the images come first."""
    optimiser: torch.optim.Optimizer

    def leaves(self) -> list[Tensor]:
        """The tensors ``learned`` as leaves of a new graph, which shares their memory."""
        return [tensor.detach().requires_grad_() for tensor in self.learned]

    def update(self, gradients: Sequence[Tensor]) -> None:
        """One update by the gradients of the first tensors of ``learned``; the remaining tensors stay as they are."""
        for tensor, gradient in zip(self.learned, gradients, strict=False):
            tensor.grad = gradient
        self.optimiser.step()
        self.optimiser.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        learned, optimiser = list(self.learned), self.optimiser.state_dict()
        return copy.deepcopy({"learned": learned, "optimiser": optimiser, "generator": self.task.generator.get_state()})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for tensor, saved in zip(self.learned, state["learned"], strict=True):
            tensor.copy_(saved)
        self.optimiser.load_state_dict(state["optimiser"])
        self.task.generator.set_state(state["generator"])


def after_plateau(loss: Tensor, lr: Tensor, best: Tensor, idle: Tensor, patience: int) -> tuple[Tensor, Tensor, Tensor]:
    """Step size, smallest loss and iterations without a smaller one after an iteration with ``loss``; all 0-d.

    The step size is halved when ``idle`` exceeds ``patience``. A loss is smaller by 1e-4 of the best at least.
    """
    smaller = loss < best * (1 - 1e-4)
    idle = torch.where(smaller, 0, idle + 1)
    worn = idle > patience
    return torch.where(worn, lr / 2, lr), torch.where(smaller, loss, best), torch.where(worn, 0, idle)


class _Moments(torch.optim.Optimizer):
    """Optimisers that keep running means of gradients and of their squares, as Adam does."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every tensor that has a gradient, in place."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(step=0, first=torch.zeros_like(parameter), second=torch.zeros_like(parameter))
                state["step"] += 1
                first = state["first"].lerp_(parameter.grad, 1 - beta1)
                second = self._second(state["second"], parameter.grad, first, group)
                mean, square = first / (1 - beta1 ** state["step"]), second / (1 - beta2 ** state["step"])
                self._move(parameter, mean, square.sqrt() + group["eps"], group)

    def _second(self, second: Tensor, gradient: Tensor, first: Tensor, group: Mapping[str, Any]) -> Tensor:
        """The running mean of squares after a step, in place."""
        return second.lerp_(gradient.square(), 1 - group["betas"][1])

    def _move(self, parameter: Tensor, mean: Tensor, root: Tensor, group: Mapping[str, Any]) -> None:
        """Move ``parameter`` along the ``mean`` gradient in units of ``root``, in place."""
        raise NotImplementedError


class LAMB(_Moments):
    """You et al., "Large Batch Optimization for Deep Learning", ICLR 2020; without weight decay.

    As in optax, the trust ratio ‖w‖ / ‖u‖ is that of a whole tensor, has no bounds, and is 1 where a norm is zero.
    """

    def __init__(
        self, tensors: Iterable[Tensor], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6
    ) -> None:
        super().__init__(tensors, {"lr": lr, "betas": betas, "eps": eps})

    def _move(self, parameter: Tensor, mean: Tensor, root: Tensor, group: Mapping[str, Any]) -> None:
        direction = mean / root
        ratio = torch.linalg.vector_norm(parameter) / torch.linalg.vector_norm(direction)
        ratio = torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0)
        parameter.sub_(group["lr"] * ratio * direction)


class AdamW(_Moments):
    """Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, as in torch.

    There a step size that is a tensor is read back from the device. Here ``lr``, 0-d, may change on the device between
    two steps.
    """

    def __init__(
        self,
        tensors: Iterable[Tensor],
        lr: Tensor,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(tensors, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps})

    def _move(self, parameter: Tensor, mean: Tensor, root: Tensor, group: Mapping[str, Any]) -> None:
        lr = group["lr"]
        parameter.mul_(1 - lr * group["weight_decay"]).sub_(lr * mean / root)


class AdaBelief(_Moments):
    """Zhuang et al., "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients", NeurIPS 2020.

    As in optax 0.2.8: Adam, with the squared distance of the gradient from its running mean after the step in place of
    its square. ``eps`` is added to the average of these squares in every step, and to the root.
    """

    def __init__(
        self,
        tensors: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
    ) -> None:
        super().__init__(tensors, {"lr": lr, "betas": betas, "eps": eps})

    def _second(self, second: Tensor, gradient: Tensor, first: Tensor, group: Mapping[str, Any]) -> Tensor:
        return super()._second(second, gradient - first, first, group).add_(group["eps"])

    def _move(self, parameter: Tensor, mean: Tensor, root: Tensor, group: Mapping[str, Any]) -> None:
        parameter.sub_(group["lr"] * mean / root)


class Average:
    """Exponential moving average of tensors, started at 0 and corrected for it."""

    def __init__(self, tensors: Iterable[Tensor], decay: float) -> None:
        self.decay = decay
        self.count = 0
        self.hidden = [torch.zeros_like(tensor, requires_grad=False) for tensor in tensors]

    @torch.no_grad()
    def update(self, tensors: Iterable[Tensor]) -> None:
        self.count += 1
        for hidden, tensor in zip(self.hidden, tensors, strict=True):
            hidden.lerp_(tensor, 1 - self.decay)

    def values(self) -> list[Tensor]:
        return [hidden / (1 - self.decay**self.count) for hidden in self.hidden]
