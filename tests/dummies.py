"""A method that does nothing well, for tests of the harness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import methods
from benchmarks.errors import UserError
from methods.base import Method, Store, Synthetic


@dataclass(frozen=True)
class DummyConfig:
    """Settings of a method that moves its images a little."""

    lr: float = 0.1
    """How far."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Numbers that nothing uses."""
    fail: Literal["no", "nan", "oom", "error", "user", "late"] = "no"
    """What goes wrong in a step (``late``: only at the end)."""
    entry: bool = False
    """Keep something in the store."""

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise UserError(f"dummy: lr is {self.lr}; it must be at least 0")


class Dummy(Method):
    Config = DummyConfig
    PAPER: ClassVar[Mapping[tuple[str, int], Mapping[str, Any]]] = {("digits", 2): {"steps": 9, "lr": 0.2}}
    BUDGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"steps": 4}, "quick": {"lr": 0.3}}
    steps_per_cycle = 2

    def prepare(self, store: Store) -> None:
        images, classes = self.task.draw_per_class()
        self.images, self.labels = images, F.one_hot(classes, self.task.num_classes).to(images.dtype)
        if self.config.entry and "entry" not in store:
            store["entry"] = {"t": torch.ones(1)}
        self.done = 0

    def step(self) -> dict[str, Tensor]:
        fail = self.config.fail
        if fail == "oom":
            raise MemoryError
        if fail == "error":
            raise RuntimeError("the first line\nand more")
        if fail == "user":
            raise UserError("try another way")
        self.images += self.config.lr * torch.randn(self.images.shape, generator=self.task.generator)
        self.done += 1
        return {"loss": torch.tensor(float("nan") if fail == "nan" and self.done >= 3 else 1.0)}

    def synthetic(self) -> Synthetic:
        late = self.config.fail == "late" and self.done > 0
        images = self.images * float("inf") if late else self.images.clone()
        return Synthetic(images, self.labels.clone(), "probability")

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images.clone(), "done": self.done, "generator": self.task.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.images, self.done = state["images"], state["done"]
        self.task.generator.set_state(state["generator"])


@pytest.fixture
def dummy(monkeypatch: pytest.MonkeyPatch) -> type[Dummy]:
    """Makes ``dummy`` a method that the registry knows."""
    names, get = methods.names(), methods.get
    monkeypatch.setattr(methods, "names", lambda: [*names, "dummy"])
    monkeypatch.setattr(methods, "get", lambda name: Dummy if name == "dummy" else get(name))
    return Dummy
