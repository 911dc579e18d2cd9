"""Random real images: the baseline that every method has to beat, and that carries every table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from methods.base import Method, Store, Synthetic


@dataclass(frozen=True)
class RandomRealConfig:
    """Nothing to set."""


class RandomReal(Method):
    """``ipc`` real images of every class, drawn uniformly with the task's generator, with one-hot labels."""

    Config = RandomRealConfig
    # Nothing to set, hence published everywhere: the sets of FRePo's table 1 (and 3), and those of DC and DSA.
    PAPER: ClassVar[Mapping[tuple[str, int], Mapping[str, Any]]] = {
        (dataset, ipc): {}
        for dataset, ipcs in (
            ("mnist", (1, 10, 50)),
            ("fashion_mnist", (1, 10, 50)),
            ("svhn", (1, 10, 50)),
            ("cifar10", (1, 10, 50)),
            ("cifar100", (1, 10, 50)),
            ("tiny_imagenet", (1, 10, 50)),
            ("cub200", (1, 10)),
            ("imagenette", (1, 10)),
            ("imagewoof", (1, 10)),
            ("imagenet64", (1, 2)),
        )
        for ipc in ipcs
    }
    PROTOCOL = "vico"
    iterative = False

    chosen: Synthetic

    def prepare(self, store: Store) -> None:
        """Draws the images; nothing is stored, for every seed is a draw of its own."""
        images, classes = self.task.draw_per_class()
        labels = F.one_hot(classes, self.task.num_classes).to(images.dtype)
        self.chosen = Synthetic(images, labels, "probability")

    def step(self) -> dict[str, Tensor]:
        """Raises NotImplementedError: there is nothing to optimise."""
        raise NotImplementedError("random_real has no steps: prepare() is all there is")

    def synthetic(self) -> Synthetic:
        return Synthetic(self.chosen.images.clone(), self.chosen.labels.clone(), "probability")

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.chosen.images.clone(), "labels": self.chosen.labels.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.chosen = Synthetic(state["images"].clone(), state["labels"].clone(), "probability")
