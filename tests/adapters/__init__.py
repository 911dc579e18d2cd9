"""Golden values: what a file of ``tests/golden`` says, and how one is held against our code.

An adapter only renames and transposes; every operation it checks is imported from the suite. Each
module of this package has ``ADAPTERS`` (file-name prefix → adapter) and ``MISTAKES`` (a mistake the golden README
names, planted; the adapter must then fail, by at least ten times its tolerances).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor


@dataclass
class Case:
    """One golden file, read in one dtype; records what was compared."""

    path: Path
    dtype: torch.dtype
    slack: float = 1.0
    """Every tolerance is multiplied by this."""
    arrays: dict[str, np.ndarray] = field(init=False)
    cfg: dict[str, Any] = field(init=False)
    checked: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        with np.load(self.path) as z:
            self.arrays = {name: z[name] for name in z.files}
        self.cfg = {}
        for name, array in self.arrays.items():
            if name == "cfg" or name.startswith("cfg."):
                value = array.item() if array.ndim == 0 else array.tolist()
                if isinstance(value, str) and value[:1] in "{[":
                    value = json.loads(value)
                self.cfg.update(value if name in ("cfg", "cfg.json") else {name[4:]: value})

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> Tensor:
        """An array as a tensor: floating point in the dtype of the case, integers as they are."""
        array = torch.from_numpy(np.array(self.arrays[name]))
        return array.to(self.dtype) if array.is_floating_point() else array

    def names(self, prefix: str) -> list[str]:
        """The names that start with ``prefix``, without it."""
        return [name[len(prefix) :] for name in self.arrays if name.startswith(prefix)]

    def check(self, name: str, actual: Tensor, *, f64: float, f32: float) -> None:
        """``actual`` against the recorded array ``name`` by max|a − b| / max|b|; ``f64``, ``f32``: the tolerances."""
        expected = torch.from_numpy(np.array(self.arrays[name])).double()
        shapes = f"{tuple(actual.shape)}, not {tuple(expected.shape)}"
        assert actual.shape == expected.shape, f"{self.path.name} {name}: {shapes}"
        error = float((actual.detach().double() - expected).abs().max() / expected.abs().max().clamp_min(1e-300))
        self.hold(name, error, f64 if self.dtype == torch.float64 else f32)

    def hold(self, name: str, error: float, tolerance: float) -> None:
        """Raise AssertionError where ``error`` is above the tolerance, or not a number."""
        allowed = self.slack * tolerance
        assert error <= allowed, f"{self.path.name} {name}: relative error {error:.2e} > {allowed:.0e}"
        self.checked += 1


@dataclass(frozen=True)
class Mistake:
    """A mistake to plant: ``patch`` makes it, and the adapter must fail on ``file`` in float64."""

    name: str
    file: str
    patch: Callable[[pytest.MonkeyPatch], None]


Adapter = Callable[[Case], None]

NOT_COVERED = {"datadam_loss": "datadam"}
"""Prefixes of golden files that are known, but of a method that is not in the suite → that method. They are skipped."""

UNIT_ROUNDOFF = torch.finfo(torch.float64).eps / 2
"""u of float64; that of float32 is 6e-8."""

# Tolerances in float32. In float64 the same causes need less than a hundredth of the tolerances that are written there.
FORWARD32 = 1e-5
"""Forward passes and losses: a sum of n terms is off by about √n·u, so a network of L layers by L·√n·u; n is below 300
and L at most 4, and processors differ by about a quarter of that. Twice as much, 170·u, is allowed."""
KINK32 = 0.1
"""Gradients through ReLU, and what is made of them. One activation in 10⁵ is within rounding of zero; whether its
gradient passes depends on the processor, and moves the gradient of a small network by up to a fiftieth."""

VISIBLE = 10.0
"""A planted mistake is off by more than this many tolerances."""
