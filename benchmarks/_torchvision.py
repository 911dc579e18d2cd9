"""Data sets of torchvision, also where its compiled operators cannot be loaded.

Beside a CPU build of torch the compiled part of torchvision may be missing. Then ``import torchvision`` stops at the
operators ``nms`` and ``qnms``, which no data set uses. Declaring the two is enough to go on.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

_Library: Any = torch.library.Library  # without types in torch
_declared: list[Any] = []  # operators live as long as their library object


def datasets() -> Any:
    """The module ``torchvision.datasets``, imported only when it is asked for: that takes seconds."""
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    library = _Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    return importlib.import_module("torchvision.datasets")
