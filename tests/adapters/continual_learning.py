"""Continual learning: class orders, the images of every step, the growing buffer, and what is tested."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.data import views
from benchmarks.data.source import RawData
from benchmarks.networks import NetworkSpec
from benchmarks.preprocess import Preprocess
from benchmarks.task import Task
from harness.evaluations import continual_learning
from harness.evaluations.continual_learning import ContinualLearning, ContinualLearningConfig
from harness.records.record import summarise
from methods.base import Synthetic
from methods.frepo import FRePo, FRePoConfig
from tests.adapters import Adapter, Case, Mistake

PIXELS = Preprocess("standardise", torch.zeros(2), torch.ones(2))
"""A preprocessing that leaves pixels as they are."""


def continual(case: Case) -> None:
    whole = numbered(case["in.labels_train"], case["in.labels_test"], int(case.cfg["num_classes"]))
    for seed in seeds(case, "vico"):
        vico(case, whole, seed)
    for seed in seeds(case, "frepo"):
        frepo(case, whole, seed)
    cells = []
    for step in case.arrays["table.in.accuracies"].tolist():
        mean, std = summarise(step)
        assert mean is not None and std is not None
        cells.append(f"& {100 * mean:.1f}$\\pm${100 * std * math.sqrt(1 - 1 / len(step)):.1f}  ")  # theirs is with n
    same(case, "table.row", "".join(cells) == case.arrays["table.row"].item())


def vico(case: Case, whole: RawData, seed: int) -> None:
    classes, steps, ipc = (int(case.cfg[name]) for name in ("num_classes", "steps", "ipc"))
    exact(case, f"vico.seed{seed}.class_order", torch.tensor(views.class_order(classes, seed)))
    rows = views.random_rows(whole.train_labels, classes, ipc, seed).chunk(steps)
    earlier: list[Synthetic] = []
    for step, view in enumerate(seen_by_step(whole, steps, seed)):
        prefix = f"vico.seed{seed}.step{step}."
        own = Synthetic(
            whole.train_images[rows[step]].double() / 255,
            F.one_hot(whole.train_labels[rows[step]], classes).double(),
            "probability",
        )
        buffer = continual_learning.union(earlier, own, PIXELS)
        earlier.append(own)
        exact(case, f"{prefix}classes_seen", torch.tensor(views.classes_seen(classes, steps, step, seed)))
        exact(case, f"{prefix}buffer_labels", buffer.labels.argmax(1))
        exact(case, f"{prefix}buffer_size", torch.tensor(len(buffer.images)))
        exact(case, f"{prefix}random_indices", numbers(buffer.images.mul(255).round()))
        exact(case, f"{prefix}test_indices", numbers(view.test_images))
        exact(case, f"{prefix}num_test", torch.tensor(len(view.test_labels)))


def frepo(case: Case, whole: RawData, seed: int) -> None:
    classes, steps, ipc = (int(case.cfg[name]) for name in ("num_classes", "steps", "ipc"))
    earlier: list[Synthetic] = []
    for step, view in enumerate(seen_by_step(whole, steps, seed)):
        prefix = f"frepo.seed{seed}.step{step}."
        own = first_set(view, ipc, case.dtype)
        buffer = continual_learning.union(earlier, own, PIXELS)
        earlier.append(own)
        distilled = torch.tensor(views.classes_of_step(classes, steps, step, seed))
        exact(case, f"{prefix}classes_distilled", distilled)
        same(case, f"{prefix}classes of the images", torch.equal(distilled.sort().values, view.train_labels.unique()))
        exact(case, f"{prefix}num_train_images", torch.tensor(len(view.train_labels)))
        exact(case, f"{prefix}buffer_classes", buffer.labels.argmax(1))
        if f"{prefix}y_first_rows" in case:
            case.check(f"{prefix}y_first_rows", own.labels[::ipc][:3], f64=1e-15, f32=1e-6)
        order = torch.tensor(views.classes_seen(classes, steps, step, seed))
        exact(case, f"{prefix}classes_seen", order)
        tested = numbers(view.test_images)  # theirs are class by class, in the order of the classes
        exact(case, f"{prefix}test_indices", torch.cat([tested[view.test_labels == c] for c in order]))


def numbered(train: Tensor, test: Tensor, classes: int) -> RawData:
    """Images whose two channels are the low and the high byte of their number."""

    def images(count: int) -> Tensor:
        index = torch.arange(count)
        return torch.stack([index % 256, index // 256], 1).to(torch.uint8)[:, :, None, None].expand(-1, -1, 2, 2)

    names = tuple(map(str, range(classes)))
    return RawData("numbered", images(len(train)), train, images(len(test)), test, names, True, "of these")


def numbers(images: Tensor) -> Tensor:
    low, high = images[:, :, 0, 0].long().unbind(1)
    return low + 256 * high


def seen_by_step(whole: RawData, steps: int, seed: int) -> Iterator[RawData]:
    """The data of every step, as the evaluation names them."""
    evaluation = ContinualLearning(ContinualLearningConfig(class_steps=steps, order=seed))
    for suffix in evaluation.views():
        yield views.apply(whole, views.parse(f"numbered{suffix}")[1])


def first_set(view: RawData, ipc: int, dtype: torch.dtype) -> Synthetic:
    """The images from which FRePo starts, with their labels."""
    classes, generator = len(view.class_names), torch.Generator().manual_seed(0)
    spec = NetworkSpec("convnet_doubling", 2, (2, 2), classes, width=1, depth=1, norm="none")
    task = Task(
        images=PIXELS.to(dtype=dtype).forward(view.train_images),
        labels=view.train_labels,
        num_classes=classes,
        ipc=ipc,
        network=lambda generator: spec.build(generator, dtype=dtype),
        generator=generator,
        flip=True,
    )
    return FRePo(task, FRePoConfig(pool_size=1), 1).synthetic()


def seeds(case: Case, source: str) -> list[int]:
    return sorted({int(name.partition(".")[0]) for name in case.names(f"{source}.seed")})


def exact(case: Case, name: str, actual: Tensor) -> None:
    case.check(name, actual, f64=0, f32=0)


def same(case: Case, name: str, equal: bool) -> None:
    case.hold(name, float(not equal), 0)


ADAPTERS: dict[str, Adapter] = {"cl_": continual}


def _in(module: Any, name: str, value: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda monkeypatch: monkeypatch.setattr(module, name, value)


_union = continual_learning.union


def _reversed(earlier: Sequence[Synthetic], own: Synthetic, preprocess: Preprocess) -> Synthetic:
    buffer = _union(earlier, own, preprocess)
    return replace(buffer, images=buffer.images.flip(0), labels=buffer.labels.flip(0))


MISTAKES = [
    Mistake(f"continual learning: {name}", "cl_c10_s5.npz", patch)
    for name, patch in {
        "another generator": _in(
            views, "class_order", lambda classes, seed: tuple(np.random.default_rng(seed).permutation(classes).tolist())
        ),
        "tested on the classes of the step": _in(views, "classes_seen", views.classes_of_step),
        "trained on the set of the step": _in(continual_learning, "union", lambda earlier, own, preprocess: own),
        "the latest set first": _in(continual_learning, "union", _reversed),
    }.items()
]
