"""Networks that are trained on the synthetic set while it changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.networks import Network


class Member:
    """A network of the pool, with its optimiser and the number of its updates."""

    def __init__(self, network: Network, lr: float, counter: int = 0) -> None:
        self.network, self.counter = network, counter
        self.optimiser = torch.optim.Adam(network.parameters(), lr=lr, fused=True)

    def update(self, images: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """One step of the whole network on synthetic data, in training mode; the loss before it, 0-d and detached."""
        self.network.train()
        value = loss(self.network(images), labels)
        value.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.counter += 1
        return value.detach()

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that later updates depend on."""
        network, optimiser = self.network.state_dict(), self.optimiser.state_dict()
        return copy.deepcopy({"network": network, "optimiser": optimiser, "counter": self.counter})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.counter = state["counter"]
