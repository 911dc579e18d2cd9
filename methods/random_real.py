"""Random real images: the baseline that every method has to beat, shown in every table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from methods._selection import Selection


@dataclass(frozen=True)
class RandomRealConfig:
    """Nothing to set."""


class RandomReal(Selection):
    """``ipc`` real images of every class, drawn uniformly with the task's generator, with one-hot labels."""

    Config = RandomRealConfig
    # Nothing to set, hence published everywhere: the sets of FRePo's tables 1 and 3, and of DC and DSA.
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

    def choose(self) -> tuple[Tensor, Tensor]:
        return self.task.draw_per_class()
