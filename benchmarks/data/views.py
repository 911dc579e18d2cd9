"""Views of a data set: a part of its training images, named by a suffix of its name, as in ``mnist@images:0-1000``.

Suffixes chain, and apply from left to right. ``@images:A-B``: training images A to B − 1, in the set's own order.
``@half:K``: a random half. ``@fold:K-of-N``: all but one of N random parts, which takes the place of the test images.
``@step:T-of-S-order-K``: step T of S, counted from 0, in continual learning.

Names are read without torch: the command line and the protocols ask for them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.data.names import kind_of
from benchmarks.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.data.source import RawData

FORMS = "@images:A-B, @half:K, @fold:K-of-N, @step:T-of-S-order-K, @step:T-of-S-order-K-leak"
_NUMBER = "(?:0|[1-9][0-9]{0,8})"
_VIEW = re.compile(
    rf"@(?:images:{_NUMBER}-{_NUMBER}|half:{_NUMBER}|fold:{_NUMBER}-of-{_NUMBER}"
    rf"|step:{_NUMBER}-of-{_NUMBER}-order-{_NUMBER}(?:-leak)?)"
)
_SUFFIX = re.compile(rf"(?:{_VIEW.pattern})+\Z")


def split(source: str) -> tuple[str, str]:
    """The name of the whole data set, and the suffix of its views, empty where ``source`` has none.

    Only a suffix that has the form of views counts, so the path of an image folder may contain ``@``.
    """
    match = _SUFFIX.search(source)
    return (source[: match.start()], match.group()) if match else (source, "")


def base_name(source: str) -> str:
    """The name of the whole data set, by which published settings, statistics and rules are looked up."""
    return split(source)[0]


def parse(source: str) -> tuple[str, tuple[View, ...]]:
    """The name of the whole data set, and its views from left to right.

    Raises UserError for a view that does not exist, and for numbers that cannot be right whatever the data.
    """
    base, suffix = split(source)
    if not kind_of(base) and "@" in base:
        unknown = next(text for text in re.findall("@[^@]*", source) if not _VIEW.fullmatch(text))
        raise UserError(f"{source}: unknown view {unknown!r}; views are {FORMS}")
    return base, tuple(_view(source, text) for text in _VIEW.findall(suffix))


def _view(source: str, text: str) -> View:
    numbers = [int(number) for number in re.findall("[0-9]+", text)]
    if text.startswith("@images:"):
        first, end = numbers
        if first >= end:
            raise UserError(f"{source}: @images:A-B takes images A to B − 1, so A must be below B")
        return Images(text, first, end)
    if text.startswith("@half:"):
        return Half(text, numbers[0])
    if text.startswith("@fold:"):
        fold, folds = numbers
        if fold >= folds or folds < 2:
            raise UserError(f"{source}: @fold:K-of-N has 2 folds or more, counted from 0, so K must be below N")
        return Fold(text, fold, folds)
    step, steps, seed = numbers
    if step >= steps:
        raise UserError(f"{source}: steps are counted from 0, so step {step} of {steps} does not exist")
    return Step(text, step, steps, seed, leak=text.endswith("-leak"))


@dataclass(frozen=True)
class Images:
    """Training images ``first`` to ``end`` − 1."""

    text: str
    """The suffix that names this view; that of every view."""
    first: int
    end: int

    def of(self, raw: RawData) -> RawData:
        count = len(raw.train_labels)
        if self.end > count:
            raise UserError(f"{raw.name}{self.text}: the set has {count} training images")
        return _reduced(raw, self.text, slice(self.first, self.end))


@dataclass(frozen=True)
class Half:
    """The training images in half ``seed``."""

    text: str
    seed: int

    def of(self, raw: RawData) -> RawData:
        return _reduced(raw, self.text, half_mask(len(raw.train_labels), self.seed))


@dataclass(frozen=True)
class Fold:
    """The training images without fold ``fold`` of ``folds``, which are tested on: the test set is not looked at.

    Preprocessing is fitted on the training images of the view, and takes no published statistics of the whole set.
    """

    text: str
    fold: int
    folds: int

    def of(self, raw: RawData) -> RawData:
        held_out = fold_mask(len(raw.train_labels), self.fold, self.folds)
        if not bool(held_out.any()):
            raise UserError(f"{raw.name}{self.text}: {len(raw.train_labels)} images are too few for so many folds")
        return dataclasses.replace(
            _reduced(raw, self.text, ~held_out),
            test_images=_rows(raw.train_images, held_out),
            test_labels=raw.train_labels[held_out],
            published_statistics=False,
        )


@dataclass(frozen=True)
class Step:
    """Step ``step`` of ``steps`` in class-incremental learning, in the class order of ``seed``.

    Training images are those of the step's classes, test images those of all classes seen up to the step. Labels keep
    all classes. Preprocessing is fitted on the training images of the classes seen. ``leak``: it is fitted on those of
    all classes, as published code does, and takes published statistics of the whole set.
    """

    text: str
    step: int
    steps: int
    seed: int
    leak: bool

    def of(self, raw: RawData) -> RawData:
        import torch

        name, classes = f"{raw.name}{self.text}", len(raw.class_names)
        if classes % self.steps:
            raise UserError(f"{name}: {classes} classes cannot be divided into {self.steps} steps of equal size")
        own = torch.tensor(classes_of_step(classes, self.steps, self.step, self.seed))
        seen = torch.tensor(classes_seen(classes, self.steps, self.step, self.seed))
        tested = torch.isin(raw.test_labels, seen)
        if not bool(tested.any()):
            raise UserError(f"{name}: there are no test images of its classes")
        return dataclasses.replace(
            _reduced(raw, self.text, torch.isin(raw.train_labels, own)),
            test_images=_rows(raw.test_images, tested),
            test_labels=raw.test_labels[tested],
            fit_images=raw.train_images if self.leak else _rows(raw.train_images, torch.isin(raw.train_labels, seen)),
            published_statistics=raw.published_statistics and self.leak,
        )


View = Images | Half | Fold | Step


def apply(raw: RawData, views: Sequence[View]) -> RawData:
    """``raw`` as the ``views`` show it, one after another.

    Each appends its suffix to the name, and has a fingerprint of its own, made from that of the data before it. The
    images themselves are not hashed again.

    Raises UserError where a view does not fit the data, or shows no training images.
    """
    for view in views:
        raw = view.of(raw)
    return raw


def _reduced(raw: RawData, text: str, rows: slice | Tensor) -> RawData:
    """``raw`` with only the training images ``rows``, on which preprocessing is fitted."""
    name, labels = f"{raw.name}{text}", raw.train_labels[rows]
    if len(labels) == 0:
        raise UserError(f"{name}: there are no training images in this view")
    return dataclasses.replace(
        raw,
        name=name,
        train_images=_rows(raw.train_images, rows),
        train_labels=labels,
        fingerprint=hashlib.sha256(f"{raw.fingerprint}{text}".encode()).hexdigest(),
        fit_images=None,
    )


def _rows(images: Tensor, rows: slice | Tensor) -> Tensor:
    if images.stride(0) == 0 and not isinstance(rows, slice):  # blank images, which take no memory: nor should these
        return images[: int(rows.sum())]
    return images[rows]


def half_mask(count: int, seed: int) -> Tensor:
    """Which of ``count`` training images are in half ``seed``, (count,) bool: count // 2 of them."""
    import torch

    from benchmarks.task import generator_for

    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.randperm(count, generator=generator_for("half", seed, count))[: count // 2]] = True
    return mask


def fold_mask(count: int, fold: int, folds: int) -> Tensor:
    """Which of ``count`` training images are in ``fold`` of ``folds`` random ones, (count,) bool; sizes differ by 1."""
    import torch

    from benchmarks.task import generator_for

    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.randperm(count, generator=generator_for("folds", count))[fold::folds]] = True
    return mask


def class_order(classes: int, seed: int) -> tuple[int, ...]:
    """The order in which classes 0 … ``classes`` − 1 arrive: the first permutation of NumPy's ``RandomState(seed)``.

    Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023; FRePo takes the same orders.
    """
    import numpy as np

    return tuple(np.random.RandomState(seed).permutation(classes).tolist())


def random_rows(labels: Tensor, classes: int, count: int, seed: int) -> Tensor:
    """Rows of ``labels`` (N,) with ``count`` random images of each class, class by class in the order of ``seed``.

    These are the images that Zhao and Bilen's continual learning keeps as its random baseline: the generator that gave
    the class order draws them.
    """
    import numpy as np
    import torch

    random = np.random.RandomState(seed)
    members = [np.flatnonzero(labels.cpu().numpy() == c) for c in random.permutation(classes)]
    return torch.from_numpy(np.concatenate([random.permutation(own)[:count] for own in members]))


def classes_of_step(classes: int, steps: int, step: int, seed: int) -> tuple[int, ...]:
    """The classes that arrive in ``step``, counted from 0, in the order of ``seed``; ``steps`` divides ``classes``."""
    size = classes // steps
    return class_order(classes, seed)[step * size : (step + 1) * size]


def classes_seen(classes: int, steps: int, step: int, seed: int) -> tuple[int, ...]:
    """The classes that have arrived up to the end of ``step``, in the order of ``seed``."""
    return class_order(classes, seed)[: (step + 1) * (classes // steps)]
