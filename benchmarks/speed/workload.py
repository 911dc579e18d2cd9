"""What is timed: tasks and benchmarks of random images in the shapes of the published sets, and the FLOPs of a call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.datasets import Benchmark
from benchmarks.networks import NetworkSpec
from benchmarks.preprocess import fit
from benchmarks.protocols import Protocol
from benchmarks.task import Task, generator_for
from harness.measure.counters import FORMULAS

SHAPES = {"cifar": (3, 32, 32), "mnist": (1, 28, 28), "digits": (1, 8, 8)}
"""Name → channels, height, width."""
REAL_IMAGES = 5000
"""As many as the largest batch of a method."""
TEST_IMAGES = 1000


def pixels(count: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """Random images (count, C, H, W) uint8."""
    return torch.randint(0, 256, (count, *shape), generator=generator_for("pixels"), dtype=torch.uint8)


def task(
    spec: NetworkSpec, *, ipc: int, images: int = REAL_IMAGES, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Task:
    """About ``images`` standard normal images, equally many of each class of ``spec``."""
    labels = torch.arange(spec.num_classes).repeat_interleave(images // spec.num_classes)
    shape = (len(labels), spec.in_channels, *spec.image_size)
    return Task(
        images=torch.randn(shape, generator=generator_for("images"), dtype=dtype),
        labels=labels,
        num_classes=spec.num_classes,
        ipc=ipc,
        network=functools.partial(spec.build, dtype=dtype),
        generator=generator_for("distil", seed),
        flip=True,
    )


def benchmark(protocol: Protocol, shape: tuple[int, int, int], *, width: int, ipc: int, classes: int = 10) -> Benchmark:
    """A task for ``protocol`` with its network, and held-out images."""
    spec = NetworkSpec(protocol.network, shape[0], shape[1:], classes, width=width, norm=protocol.distill_norm)
    return Benchmark(
        task=task(spec, ipc=ipc),
        test_images=torch.randn(TEST_IMAGES, *shape, generator=generator_for("test images")),
        test_labels=torch.arange(TEST_IMAGES) % classes,
        class_names=tuple(str(c) for c in range(classes)),
        preprocess=fit("standardise", pixels(10, shape)),
        spec=spec,
        raw_fingerprint="random",
        name="random",
        flip=True,
    )


def flops(call: Callable[[], Any]) -> float:
    """Floating-point operations of one ``call``: matrix products, convolutions and solves, forward and backward."""
    counter = _Flops()
    with counter:
        call()
    return counter.total


class _Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Those of the cells' counters; torch's own ``FlopCounterMode`` follows modules, with hooks that refuse
    ``autograd.grad`` of leaves."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := FORMULAS.get(func.overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out
