"""DSA: gradient matching in which real and synthetic images are augmented alike.

Zhao, Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021, algorithm 1.

Differences from the authors' code (github.com/VICO-UoE/DatasetCondensation), and why:
- The code stops at an ipc for which it has no loop lengths; here the lengths of the next larger ipc hold.
- The gradient for the images is taken class by class: the same sum in the memory of one class.
- One step is one update of the images, as for every method here: an iteration of the paper is ``outer_loop`` steps.
- The augmentation is drawn from the task's generator, so that a seed repeats it; theirs is seeded from the clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from methods._matching import PUBLISHED, GradientMatching, GradientMatchingConfig, augment_alike
from methods.base import Range


@dataclass(frozen=True)
class DSAConfig(GradientMatchingConfig):
    """Hyper-parameters of DSA; the defaults are the paper's."""

    init: Literal["noise", "real"] = "real"
    """Synthetic images start from standard normal noise or from random real images."""


class DSA(GradientMatching):
    """Gradient matching under siamese augmentation: algorithm 1 of the paper, which is DC's with A_ω."""

    Config = DSAConfig
    PAPER = PUBLISHED
    BUDGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 4, "outer_loop": 2, "inner_loop": 1, "batch_real": 16},
        # Few real images, short inner training and larger steps: the best of twelve trials on MNIST (docs/tuning.md).
        "quick": {"steps": 200, "inner_loop": 3, "batch_real": 60, "lr_img": 2.35, "momentum": 0.122},
    }
    TUNE: ClassVar[Mapping[str, Range]] = {
        "lr_img": Range(1e-2, 3.0),
        "momentum": Range(0.0, 0.9, log=False),
        "inner_loop": Range(1, 50),
        "batch_real": Range(16, 256),
    }
    AUGMENT = "dsa"

    def pair(self, real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
        """Both batches under A_ω, with one new ω for the class."""
        return augment_alike(self.task, real, synthetic)
