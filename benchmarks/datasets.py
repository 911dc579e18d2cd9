"""Data sets by name → `RawData` (uint8) → `Benchmark`: the task that a method sees, and the held-out test images.

``benchmarks/data`` knows where the sets lie and how they are read. Only the cache is written: decoded images, and
images whitened by ZCA with their matrices.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks import PREPROCESSINGS
from benchmarks import preprocess as preprocessing
from benchmarks.cache import Entry
from benchmarks.data import views
from benchmarks.data.image_files import find_folder
from benchmarks.data.names import check, flips, kind_of, place_of
from benchmarks.data.published import (
    PUBLISHED,
    Shape,
    blank,
    check_image_size,
    find,
    find_medmnist,
    listed_wnids,
    stand_in,
    wordnet_ids,
)
from benchmarks.data.source import RawData, Source, one_line
from benchmarks.errors import UserError, choose
from benchmarks.networks import NetworkSpec
from benchmarks.pictures import cover
from benchmarks.preprocess import Preprocess
from benchmarks.task import Task, class_sizes

__all__ = [
    "PUBLISHED",
    "Benchmark",
    "RawData",
    "Shape",
    "blank",
    "cover",
    "listed_wnids",
    "load",
    "load_raw",
    "stand_in",
    "wordnet_ids",
]


@dataclass(frozen=True)
class Benchmark:
    """A task and what it is judged by."""

    task: Task
    test_images: Tensor
    """(M, channels, height, width), preprocessed, on the device of the task."""
    test_labels: Tensor
    """(M,) int64."""
    class_names: tuple[str, ...]
    preprocess: Preprocess
    spec: NetworkSpec
    """The network that ``task.network`` builds."""
    raw_fingerprint: str
    """`RawData.fingerprint` of the data behind it."""
    name: str
    flip: bool
    """Whether a mirrored image still belongs to its class."""


def load_raw(
    name: str, root: Path, *, image_size: int | None = None, download: bool = False, cache: Path | None = None
) -> RawData:
    """The data set called ``name``, one of ``benchmarks.data.names.KNOWN``, or a view of it.

    ``root``: where published sets lie. ``image_size``: side in pixels to which images of image folders are brought
    (shorter side resized, then cut from the centre). ``cache``: where to keep decoded images; None: nowhere.

    Raises UserError for an unknown name, for data that are missing, empty, damaged or unreadable, and as
    `benchmarks.data.views.apply` does.
    """
    base, asked = views.parse(name)
    with one_line(name):
        return views.apply(find_source(base, root, image_size, download).read(cache), asked)


def load(
    name: str,
    *,
    ipc: int,
    network: str,
    width: int,
    depth: int | None,
    norm: str,
    preprocess: str,
    generator: torch.Generator,
    root: Path,
    cache: Path | None = None,
    image_size: int | None = None,
    download: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Benchmark:
    """The benchmark on data set ``name``: ``ipc`` images per class, distilled with ``network``.

    ``generator``: the cell's CPU generator, handed to the task; nothing is drawn from it here. Preprocessing is
    computed on the CPU, so that it is the same for every ``device``. `load_raw`, `NetworkSpec` and
    ``benchmarks.PREPROCESSINGS`` explain the other arguments.

    Raises UserError as those do, and for an ``ipc`` below 1 or above the size of the smallest class.
    """
    base, asked = views.parse(name)
    choose("preprocessing", preprocess, PREPROCESSINGS)
    if ipc < 1:
        raise UserError(f"ipc is {ipc}; it must be at least 1")

    def spec_for(images: Tensor, labels: Tensor, class_names: Sequence[str]) -> NetworkSpec:
        """The network for these images. Raises UserError where the request does not go with them."""
        count, smallest = min((size, c) for c, size in class_sizes(labels).items())
        if ipc > count:
            raise UserError(f"ipc {ipc} is above the {count} training images of class {class_names[smallest]!r}")
        return NetworkSpec(
            network,
            in_channels=images.shape[1],
            image_size=(images.shape[2], images.shape[3]),
            num_classes=len(class_names),
            width=width,
            depth=depth,
            norm=cast(Any, norm),
        )

    def preprocessed() -> Entry:
        raw = views.apply(source.read(cache), asked)
        spec_for(raw.train_images, raw.train_labels, raw.class_names)  # before anything slow
        return _preprocess(raw, preprocess, dtype)

    with one_line(name):
        source = find_source(base, root, image_size, download)
        folder = cache if preprocess.startswith("zca") else None  # only the fit of ZCA is slow
        settings = [preprocess, str(dtype), torch.__version__, *(view.text for view in asked)]
        tensors, about = source.cached(folder, settings, preprocessed)
    images, class_names = tensors["train_images"].to(device), tuple(about["class_names"])
    spec = spec_for(images, tensors["train_labels"], class_names)
    flip = flips(base)
    task = Task(
        images=images,
        labels=tensors["train_labels"].to(device),
        num_classes=len(class_names),
        ipc=ipc,
        network=functools.partial(spec.build, device=images.device, dtype=dtype),
        generator=generator,
        flip=flip,
    )
    fitted = {key.removeprefix("preprocess."): tensors[key] for key in tensors if key.startswith("preprocess.")}
    return Benchmark(
        task=task,
        test_images=tensors["test_images"].to(device),
        test_labels=tensors["test_labels"].to(device),
        class_names=class_names,
        preprocess=Preprocess.rebuild(fitted, about["preprocess"]).to(device),
        spec=spec,
        raw_fingerprint=about["fingerprint"],
        name=name,
        flip=flip,
    )


def find_source(name: str, root: Path, image_size: int | None, download: bool) -> Source:
    """The files of the data set called ``name``, without a view. Arguments and errors as in `load_raw`."""
    check(name)
    check_image_size(name, image_size)
    match kind_of(name):
        case "folder":
            return find_folder(name, place_of(name), image_size)
        case "hf":
            from benchmarks.data.hugging_face import find_hub

            return find_hub(name, image_size, download)
        case "medmnist":
            return find_medmnist(name, root)
        case _:
            return find(name, root, image_size, download)


def _preprocess(raw: RawData, name: str, dtype: torch.dtype) -> Entry:
    """Images and labels of both splits with the state of the preprocessing called ``name``, all in ``dtype``."""
    known = preprocessing.CONSTANTS.get(name, {}) if raw.published_statistics else {}
    images = raw.train_images if raw.fit_images is None else raw.fit_images
    fitted = preprocessing.fit(name, images, constants=known.get(views.base_name(raw.name))).to(dtype=dtype)
    tensors = {
        "train_images": fitted.forward(raw.train_images),
        "train_labels": raw.train_labels,
        "test_images": fitted.forward(raw.test_images),
        "test_labels": raw.test_labels,
    }
    tensors |= {f"preprocess.{key}": tensor for key, tensor in fitted.tensors().items()}
    about = {"class_names": raw.class_names, "fingerprint": raw.fingerprint, "preprocess": fitted.settings()}
    return tensors, about
