"""DC: synthetic images on which a network has the same gradients as on real images, class by class.

Zhao, Mopuri, Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021, algorithm 1.

Differences from the authors' code (github.com/VICO-UoE/DatasetCondensation), and why:
- The code stops at an ipc for which it has no loop lengths; here the lengths of the next larger ipc hold.
- The gradient for the images is taken class by class: the same sum in the memory of one class.
- One step is one update of the images, as for every method here: an iteration of the paper is ``outer_loop`` steps.
- The native evaluation is ``vico``, with DSA in 1000 epochs. The paper's own has no augmentation and 300 epochs, and on
  MNIST 1000 epochs with crops, scaling and rotation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from methods._matching import PUBLISHED, GradientMatching, GradientMatchingConfig
from methods.base import Range


@dataclass(frozen=True)
class DCConfig(GradientMatchingConfig):
    """Hyper-parameters of DC; the defaults are the paper's."""


class DC(GradientMatching):
    """Gradient matching: algorithm 1 of the paper, on images as they are."""

    Config = DCConfig
    PAPER = PUBLISHED
    BUDGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 4, "outer_loop": 2, "inner_loop": 1, "batch_real": 16},
        # Few real images and short inner training; from noise, 100 published updates do not lead far enough.
        # Chosen on digits.
        "quick": {"steps": 100, "inner_loop": 10, "lr_img": 1.0, "batch_real": 64},
    }
    TUNE: ClassVar[Mapping[str, Range]] = {
        "lr_img": Range(3e-2, 10.0),
        "momentum": Range(0.0, 0.9, log=False),
        "inner_loop": Range(1, 50),
        "batch_real": Range(16, 256),
    }
    AUGMENT = "none"

    def pair(self, real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
        return real, synthetic
