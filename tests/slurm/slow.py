"""A method that dawdles until a file is there: its runs are as long as a test needs them, and its sets the same."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.base import Method, Store, Synthetic

GATE = "SLOW_GATE"
"""The variable with the path of the file."""


@dataclass(frozen=True)
class SlowConfig:
    """Settings of the method."""

    lr: float = 0.1
    """How far the images move."""


class Slow(Method):
    Config = SlowConfig
    BUDGETS = {"smoke": {"steps": 2400}}  # noqa: RUF012
    steps_per_cycle = 40  # so that there are few windows, each of which costs time

    def prepare(self, store: Store) -> None:
        images, classes = self.task.draw_per_class()
        self.images, self.labels = images, F.one_hot(classes, self.task.num_classes).to(images.dtype)

    def step(self) -> dict[str, Tensor]:
        if not Path(os.environ[GATE]).exists():
            time.sleep(0.5)
        self.images += self.config.lr * torch.randn(self.images.shape, generator=self.task.generator)
        return {"loss": self.images.mean()}

    def synthetic(self) -> Synthetic:
        return Synthetic(self.images.clone(), self.labels.clone(), "probability")

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images.clone(), "generator": self.task.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.images = state["images"]
        self.task.generator.set_state(state["generator"])
