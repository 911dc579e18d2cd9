"""Choosing real images, for the selection baselines."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from methods.base import Method, Store, Synthetic


class Selection(Method):
    """Real images with one-hot labels, chosen once and for all by ``choose``."""

    PROTOCOL = "vico"
    iterative = False

    @abstractmethod
    def choose(self) -> tuple[Tensor, Tensor]:
        """Copies of ``ipc`` real images of each class (n, C, H, W), class-major, and their classes (n,)."""

    def prepare(self, store: Store) -> None:
        """Choose. Nothing is stored, because every seed has its own choice."""
        self.images, classes = self.choose()
        self.labels = F.one_hot(classes, self.task.num_classes).to(self.images.dtype)

    def step(self) -> dict[str, Tensor]:
        """Raises NotImplementedError: there is nothing to optimise."""
        raise NotImplementedError(f"{type(self).__name__} has no steps: prepare() is all there is")

    def synthetic(self) -> Synthetic:
        return Synthetic(self.images.clone(), self.labels.clone(), "probability")

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images.clone(), "labels": self.labels.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.images, self.labels = state["images"].clone(), state["labels"].clone()
