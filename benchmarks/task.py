"""The task that a method is given: everything it may see, and nothing else."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.networks import Network


@dataclass(frozen=True)
class Task:
    """Distil ``images`` into ``ipc`` synthetic images for each class that they show.

    Holds no test images and no data set name: a method cannot select on the test set or look up a constant that
    belongs to its configuration.
    """

    images: Tensor
    """(N, channels, height, width), floating point, preprocessed, on the device to work on."""
    labels: Tensor
    """(N,) int64 in [0, num_classes), on the same device."""
    num_classes: int
    """Classes of the data set, the width of labels; see ``classes``."""
    ipc: int
    """Synthetic images for each of ``classes``."""
    network: Callable[[torch.Generator], Network]
    """Builds a freshly initialised network from a CPU generator, on the device and in the dtype of ``images``."""
    generator: torch.Generator
    """The cell's CPU generator: every random choice of a method comes from it."""
    flip: bool
    """Whether a mirrored image still belongs to its class (false for digits and the like)."""

    @functools.cached_property
    def classes(self) -> tuple[int, ...]:
        """The classes that have images, ascending: a view of a data set may show some only. Waits for the device."""
        return tuple(class_sizes(self.labels))

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def dtype(self) -> torch.dtype:
        return self.images.dtype

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """A uniformly drawn batch without repetition: images (count, C, H, W) and labels (count,).

        All images where there are fewer than ``count``.
        """
        index = torch.randperm(len(self.labels), generator=self.generator)[:count].to(self.device, non_blocking=True)
        return self.images[index], self.labels[index]

    def draw_per_class(self) -> tuple[Tensor, Tensor]:
        """``ipc`` random real images of each of ``classes``, class-major: images (n, C, H, W) and labels (n,)."""
        index = torch.cat([self._pick(rows, self.ipc) for rows in self.rows_of_classes()]).to(self.device)
        return self.images[index].clone(), self.labels[index].clone()

    def rows_of_classes(self) -> list[Tensor]:
        """For each of ``classes`` the rows of ``images`` that show it, on the CPU. Waits for the device."""
        labels = self.labels.cpu()
        return [torch.nonzero(labels == c).flatten() for c in self.classes]

    def draw(self, rows: Tensor, count: int) -> Tensor:
        """``count`` random images out of ``rows`` (CPU) without repetition; all of them where there are fewer."""
        return self.images[self._pick(rows, count).to(self.device, non_blocking=True)]

    def _pick(self, rows: Tensor, count: int) -> Tensor:
        return rows[torch.randperm(len(rows), generator=self.generator)[:count]]


def class_sizes(labels: Tensor) -> dict[int, int]:
    """Class → its number of images, for the classes in ``labels`` (N,), ascending. Waits for the device."""
    return {c: count for c, count in enumerate(labels.bincount().tolist()) if count}


def generator_for(*key: object) -> torch.Generator:
    """A CPU generator that depends on ``key`` alone: the same on every machine, different for every key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def device_generator(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator on ``device``, where many numbers are drawn faster, that depends on the next one of ``generator``."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator("cpu" if device.type == "meta" else device).manual_seed(seed)  # meta: only shapes count
