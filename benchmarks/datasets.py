"""Data sets by name → `RawData` (uint8) → `Benchmark`: the task that a method is given, and the held-out test images.

Published sets are read in the layout in which they are published, under a data root; nothing is downloaded unless asked
for, and data are never substituted. One's own set is an image folder, ``folder:PATH``. Nothing is written but the
cache: decoded images, and images whitened by ZCA with their matrices. A cache that is damaged, outdated or cannot be
written costs time, never correctness.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import hashlib
import itertools
import json
import os
import pickle
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import DATASETS, PREPROCESSINGS
from benchmarks import preprocess as preprocessing
from benchmarks._torchvision import datasets as torchvision_datasets
from benchmarks.errors import UserError, choose
from benchmarks.networks import NetworkSpec
from benchmarks.preprocess import Preprocess
from benchmarks.task import Task

NO_FLIP = frozenset({"digits", "mnist", "svhn"})
"""Sets whose mirrored images leave their class (DSA's rule; Fashion-MNIST *is* flipped)."""
TENSORS = ("train_images", "train_labels", "test_images", "test_labels")
LARGE_FILE = 4096
"""Bytes on average from which image files are decoded in several threads: to decode a smaller one takes less time than
to hand the interpreter over."""
PART = 32
"""Files that a thread decodes before it hands them over."""
CACHE_VERSION = 1
"""To be raised when decoding or preprocessing changes: cached tensors of older versions are then left alone."""


@dataclass(frozen=True)
class RawData:
    """A data set as it is published, on the CPU."""

    name: str
    train_images: Tensor
    """(N, channels, height, width) uint8."""
    train_labels: Tensor
    """(N,) int64, indices into ``class_names``."""
    test_images: Tensor
    """(M, channels, height, width) uint8."""
    test_labels: Tensor
    """(M,) int64."""
    class_names: tuple[str, ...]
    flip: bool
    """Whether a mirrored image still belongs to its class."""
    fingerprint: str
    """SHA-256 over the four tensors, in hexadecimal."""


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


def load_raw(
    name: str, root: Path, *, image_size: int | None = None, download: bool = False, cache: Path | None = None
) -> RawData:
    """The data set called ``name``, one of ``benchmarks.DATASETS`` or ``folder:PATH``.

    ``root``: where published sets lie. ``image_size``: side in pixels to which images of image folders are brought
    (shorter side resized, then cut from the centre). ``cache``: where to keep decoded images; None: nowhere.

    Raises UserError for an unknown name, and for data that are missing, empty, damaged or unreadable.
    """
    with _one_line(name):
        return _read(_find(name, root, image_size, download), cache)


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
    """The benchmark on data set ``name``: ``ipc`` images per class, distilled with the given network.

    ``generator``: the cell's CPU generator, handed to the task; nothing is drawn from it here. Preprocessing is
    computed on the CPU, so that it is the same for every ``device``. For the rest see `load_raw`, `NetworkSpec` and
    ``benchmarks.PREPROCESSINGS``.

    Raises UserError as those do, and for an ``ipc`` below 1 or above the size of the smallest class.
    """
    choose("preprocessing", preprocess, PREPROCESSINGS)
    if ipc < 1:
        raise UserError(f"ipc is {ipc}; it must be at least 1")

    def spec_for(images: Tensor, labels: Tensor, class_names: Sequence[str]) -> NetworkSpec:
        """The network for these images. Raises UserError where the request does not go with them."""
        counts = torch.bincount(labels, minlength=len(class_names))
        if ipc > int(counts.min()):
            smallest = int(counts.argmin())
            raise UserError(
                f"ipc {ipc} is above the {int(counts[smallest])} training images of class {class_names[smallest]!r}"
            )
        return NetworkSpec(
            cast(Any, network),
            in_channels=images.shape[1],
            image_size=(images.shape[2], images.shape[3]),
            num_classes=len(class_names),
            width=width,
            depth=depth,
            norm=cast(Any, norm),
        )

    def preprocessed() -> State:
        raw = _read(source, cache)
        spec_for(raw.train_images, raw.train_labels, raw.class_names)  # before anything slow
        return _preprocess(raw, preprocess, dtype)

    with _one_line(name):
        source = _find(name, root, image_size, download)
        if preprocess.startswith("zca"):  # only the fit is slow
            tensors, about = _cached(cache, name, [source.stamp(), preprocess, str(dtype)], preprocessed)
        else:
            tensors, about = preprocessed()
    images, class_names = tensors["train_images"].to(device), tuple(about["class_names"])
    spec = spec_for(images, tensors["train_labels"], class_names)
    flip = name not in NO_FLIP
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


@dataclass(frozen=True)
class Shape:
    """What is known of a published set without having it."""

    channels: int
    size: int
    """Side in pixels; for sets of image files that to which they are brought."""
    classes: int
    train: int
    test: int
    """Images."""


PUBLISHED = {
    "mnist": Shape(1, 28, 10, 60_000, 10_000),
    "fashion_mnist": Shape(1, 28, 10, 60_000, 10_000),
    "svhn": Shape(3, 32, 10, 73_257, 26_032),
    "cifar10": Shape(3, 32, 10, 50_000, 10_000),
    "cifar100": Shape(3, 32, 100, 50_000, 10_000),
    "tiny_imagenet": Shape(3, 64, 200, 100_000, 10_000),
    "cub200": Shape(3, 32, 200, 5_994, 5_794),
    "imagenette": Shape(3, 128, 10, 9_469, 3_925),
    "imagewoof": Shape(3, 128, 10, 9_025, 3_929),
    "imagenet64": Shape(3, 64, 1000, 1_281_167, 50_000),
}
"""Data set → its shape, for forecasts."""


def stand_in(name: str, image_size: int | None = None) -> RawData:
    """The published data set ``name`` in its shape alone.

    Raises UserError for an ``image_size`` where a set has one already.
    """
    _check_image_size(name, image_size)
    shape = PUBLISHED[name]
    return blank(name, replace(shape, size=image_size or shape.size))


def blank(name: str, shape: Shape) -> RawData:
    """Blank images that take no memory, in classes of one size."""

    def split(count: int) -> tuple[Tensor, Tensor]:
        images = torch.zeros(1, dtype=torch.uint8).expand(count, shape.channels, shape.size, shape.size)
        return images, torch.arange(count) * shape.classes // count

    (train_images, train_labels), (test_images, test_labels) = split(shape.train), split(shape.test)
    return RawData(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=tuple(str(c) for c in range(shape.classes)),
        flip=name not in NO_FLIP,
        fingerprint="none",
    )


# Where a set lies, and how it is read

Decoded = tuple[Tensor, Tensor, Tensor, Tensor, Sequence[str]]
"""Training images and labels, test images and labels (as in `RawData`), class names."""
Labelled = Sequence[tuple[str, int]]
"""Image files with their classes. Paths are strings here: there may be a million."""
State = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""Tensors, and what JSON can hold."""


@dataclass(frozen=True)
class _Source:
    """A set that was found."""

    name: str
    decode: Callable[[], Decoded]
    root: Path = Path()
    files: Sequence[str | Path] = ()
    """Every file that ``decode`` reads, under ``root``; none: nothing worth caching."""
    image_size: int | None = None

    def stamp(self) -> str:
        """A hash that changes when the files do, by their relative paths, sizes and times of change."""
        digest = hashlib.sha256(repr((self.name, self.image_size)).encode())
        for file in self.files:
            stat = os.stat(file)
            relative = str(file).removeprefix(str(self.root))
            digest.update(repr((relative, stat.st_size, stat.st_mtime_ns)).encode())
        return digest.hexdigest()


@contextlib.contextmanager
def _damaged(name: str, place: Path) -> Iterator[None]:
    """Says in one line what a parser could not make sense of."""
    try:
        yield
    except (OSError, MemoryError, UserError):
        raise
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f"{name}: {place} is damaged ({_said(error)}): delete it and fetch it again") from error


@contextlib.contextmanager
def _downloading(name: str, root: Path) -> Iterator[None]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, RuntimeError) as error:
        raise UserError(f"{name} could not be downloaded to {root}: {_said(error)}") from error


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turns what the file system refuses into one line, and silences decoders, which warn of files they can read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{name}: {error.filename or 'its files'} cannot be read: {error.strerror or error}"
            ) from error


def _find(name: str, root: Path, image_size: int | None, download: bool) -> _Source:
    choose("data set", "folder:PATH" if name.startswith("folder:") else name, [*DATASETS, "folder:PATH"])
    _check_image_size(name, image_size)
    if name == "digits":
        return _Source(name, _digits)
    if name in _TORCHVISION:
        return _find_torchvision(name, root, download)
    if name == "imagenet64":
        return _find_imagenet64(root)
    if name == "tiny_imagenet":
        return _find_tiny_imagenet(root, image_size or PUBLISHED[name].size)
    if name == "cub200":
        return _find_cub200(root, image_size or PUBLISHED[name].size)
    if name in _TEN_CLASSES:
        return _find_ten_classes(name, root, image_size or PUBLISHED[name].size, download)
    return _find_folder(name, Path(name.removeprefix("folder:")).expanduser(), image_size)


def _check_image_size(name: str, image_size: int | None) -> None:
    if image_size is not None and image_size < 1:
        raise UserError(f"image size is {image_size}; it must be at least 1")
    if name in FIXED_SIZE and image_size is not None:
        raise UserError(f"{name} has one image size: leave out --image-size, which is for sets of image files")


def _read(source: _Source, cache: Path | None) -> RawData:
    """The decoded data of ``source``, from the cache where they are there."""

    def decode() -> State:
        *tensors, class_names = source.decode()
        named = {name: tensor.contiguous() for name, tensor in zip(TENSORS, tensors, strict=True)}
        _check(source.name, named, class_names)
        return named, {"class_names": list(class_names), "fingerprint": _fingerprint(named)}

    tensors, about = _cached(cache, source.name, [source.stamp()], decode) if source.files else decode()
    return RawData(
        name=source.name,
        **{name: tensors[name] for name in TENSORS},
        class_names=tuple(about["class_names"]),
        flip=source.name not in NO_FLIP,
        fingerprint=about["fingerprint"],
    )


def _preprocess(raw: RawData, name: str, dtype: torch.dtype) -> State:
    constants = preprocessing.CONSTANTS.get(name, {}).get(raw.name)
    fitted = preprocessing.fit(name, raw.train_images, constants=constants).to(dtype=dtype)
    tensors = {
        "train_images": fitted.forward(raw.train_images),
        "train_labels": raw.train_labels,
        "test_images": fitted.forward(raw.test_images),
        "test_labels": raw.test_labels,
    }
    tensors |= {f"preprocess.{key}": tensor for key, tensor in fitted.tensors().items()}
    about = {"class_names": raw.class_names, "fingerprint": raw.fingerprint, "preprocess": fitted.settings()}
    return tensors, about


def _check(name: str, tensors: Mapping[str, Tensor], class_names: Sequence[str]) -> None:
    if len(class_names) < 2:
        raise UserError(f"{name} has only the class {class_names[0]!r}: give at least two")
    for split in ("train", "test"):
        images, labels = tensors[f"{split}_images"], tensors[f"{split}_labels"]
        if len(labels) == 0 or len(images) != len(labels):
            raise UserError(f"{name}: the {split} split has {len(images)} images and {len(labels)} labels")
        if int(labels.min()) < 0 or int(labels.max()) >= len(class_names):
            raise UserError(f"{name}: the {split} split has labels that are not among its {len(class_names)} classes")


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in TENSORS:
        tensor = tensors[name]
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


# The published sets


def _digits() -> Decoded:
    """scikit-learn's 1797 real handwritten digits: 8×8, values 0 … 16 brought to 0 … 255.

    The split is fixed: of every class, the fifth of its images whose index has the smallest SHA-256 is for testing, so
    that it depends on no library's random numbers.
    """
    # The file itself: to import scikit-learn takes longer than all that a short run does with the images.
    package = find_spec("sklearn")
    assert package is not None and package.origin is not None
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = torch.from_numpy(np.loadtxt(file, dtype=np.uint8, delimiter=","))
    images = table[:, :-1].double().mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    labels = table[:, -1].long()
    test = torch.zeros(len(labels), dtype=torch.bool)
    for c in range(10):
        members = torch.nonzero(labels == c).flatten().tolist()
        members.sort(key=lambda index: hashlib.sha256(f"digits {index}".encode()).digest())
        test[members[: round(len(members) / 5)]] = True
    return images[~test], labels[~test], images[test], labels[test], [str(c) for c in range(10)]


_TORCHVISION: Mapping[str, tuple[str, str, Sequence[str]]] = {
    "mnist": (
        "MNIST",
        "MNIST/raw",
        [f"{s}-{f}-ubyte" for s in ("train", "t10k") for f in ("images-idx3", "labels-idx1")],
    ),
    "cifar10": (
        "CIFAR10",
        "cifar-10-batches-py",
        [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"],
    ),
    "cifar100": ("CIFAR100", "cifar-100-python", ["train", "test", "meta"]),
    "svhn": ("SVHN", ".", ["train_32x32.mat", "test_32x32.mat"]),
}
"""Data set → class of torchvision.datasets, its folder under the root, the files in it."""
_TORCHVISION = {**_TORCHVISION, "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw", _TORCHVISION["mnist"][2])}
FIXED_SIZE = frozenset({"digits", "imagenet64", *_TORCHVISION})


def _find_torchvision(name: str, root: Path, download: bool) -> _Source:
    class_name, folder, names = _TORCHVISION[name]
    files = [root / folder / file for file in names]
    splits: Sequence[dict[str, Any]] = [{"train": True}, {"train": False}]
    if name == "svhn":
        splits = [{"split": "train"}, {"split": "test"}]
    if not all(file.is_file() for file in files):
        if not download:
            raise _missing(name, root / folder, "add --download to fetch it")
        loader = getattr(torchvision_datasets(), class_name)
        with _downloading(name, root):
            for split in splits:
                loader(root, download=True, **split)

    def decode() -> Decoded:
        loader = getattr(torchvision_datasets(), class_name)
        with _damaged(name, root / folder):
            train, test = (loader(root, **split) for split in splits)
            train_images, test_images = (torch.as_tensor(part.data) for part in (train, test))
            train_labels, test_labels = (
                torch.as_tensor(part.labels if name == "svhn" else part.targets).long() for part in (train, test)
            )
        if train_images.ndim == 3:  # MNIST: one channel, left out
            train_images, test_images = train_images.unsqueeze(1), test_images.unsqueeze(1)
        elif name.startswith("cifar"):  # channels last
            train_images, test_images = train_images.permute(0, 3, 1, 2), test_images.permute(0, 3, 1, 2)
        class_names = [str(c) for c in range(10)] if name in ("svhn", "mnist") else train.classes
        return train_images, train_labels, test_images, test_labels, class_names

    return _Source(name, decode, root, files)


def _missing(name: str, place: Path, remedy: str) -> UserError:
    return UserError(f"{name} is not in {place}: name its folder with --data-root, or {remedy}")


def _said(error: BaseException) -> str:
    """What ``error`` says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


# Sets of image files


def _find_folder(name: str, folder: Path, image_size: int | None) -> _Source:
    """One's own set: ``train/<class>/*``, and ``test/`` or ``val/`` alike; every format that PIL reads."""
    if not folder.is_dir():
        raise UserError(f"{name}: there is no folder {folder.absolute()}")
    test = next((folder / split for split in ("test", "val") if (folder / split).is_dir()), None)
    if test is None or not (folder / "train").is_dir():
        raise UserError(f"{name}: {folder} must hold train/ and test/ (or val/), with one folder per class in each")
    train_files, class_names = _labelled(folder / "train")
    test_files, test_names = _labelled(test)
    if test_names != class_names:
        odd = sorted(set(class_names) ^ set(test_names))[0]
        raise UserError(f"{name}: class {odd!r} is in only one of train/ and {test.name}/; both must have the same")
    return _image_source(name, folder, train_files, test_files, class_names, image_size)


def _find_tiny_imagenet(root: Path, image_size: int) -> _Source:
    """``train/<wnid>/images/*`` and ``val/images/*`` with their classes in ``val/val_annotations.txt``."""
    folder = root / "tiny-imagenet-200"
    if not folder.is_dir():
        raise _missing("tiny_imagenet", folder, "unzip http://cs231n.stanford.edu/tiny-imagenet-200.zip there")
    train_files, class_names = _labelled(folder / "train")
    annotations = folder / "val" / "val_annotations.txt"
    with _damaged("tiny_imagenet", folder):
        _expect("tiny_imagenet", class_names, (folder / "wnids.txt").read_text().split())
        rows = [line.split("\t")[:2] for line in annotations.read_text().splitlines()]
        test_files = [(str(folder / "val" / "images" / file), class_names.index(wnid)) for file, wnid in rows]
    return _image_source("tiny_imagenet", folder, train_files, test_files, class_names, image_size, rgb=True)


def _find_cub200(root: Path, image_size: int) -> _Source:
    """``images/`` with the tables classes.txt, images.txt, image_class_labels.txt and train_test_split.txt."""
    folder = root / "CUB_200_2011"
    if not folder.is_dir():
        url = "https://data.caltech.edu/records/65de6-vp158"
        raise _missing("cub200", folder, f"unpack CUB_200_2011.tgz of {url} there")

    def table(file: str) -> dict[str, str]:
        rows = (line.split(maxsplit=1) for line in (folder / file).read_text().splitlines())
        return {key: value.strip() for key, value in rows}

    with _damaged("cub200", folder):
        names = table("classes.txt")
        classes = sorted(names, key=int)
        labels, is_train = table("image_class_labels.txt"), table("train_test_split.txt")
        splits: tuple[list[tuple[str, int]], list[tuple[str, int]]] = [], []
        for image, file in table("images.txt").items():
            split = splits[0 if is_train[image] == "1" else 1]
            split.append((str(folder / "images" / file), classes.index(labels[image])))
    class_names = [names[number] for number in classes]
    return _image_source("cub200", folder, *splits, class_names, image_size, rgb=True)


_TEN_CLASSES: Mapping[str, Mapping[str, str]] = {
    "imagenette": {
        "n01440764": "tench",
        "n02102040": "English springer",
        "n02979186": "cassette player",
        "n03000684": "chain saw",
        "n03028079": "church",
        "n03394916": "French horn",
        "n03417042": "garbage truck",
        "n03425413": "gas pump",
        "n03445777": "golf ball",
        "n03888257": "parachute",
    },
    "imagewoof": {
        "n02086240": "Shih-Tzu",
        "n02087394": "Rhodesian ridgeback",
        "n02088364": "beagle",
        "n02089973": "English foxhound",
        "n02093754": "Border terrier",
        "n02096294": "Australian terrier",
        "n02099601": "golden retriever",
        "n02105641": "Old English sheepdog",
        "n02111889": "Samoyed",
        "n02115641": "dingo",
    },
}
"""Data set → WordNet id → class name."""


def _find_ten_classes(name: str, root: Path, image_size: int, download: bool) -> _Source:
    """``imagenette2-160/{train,val}/<wnid>/*``; else the 320 px or the full-size version; Imagewoof alike."""
    candidates = [root / f"{name}2{suffix}" for suffix in ("-160", "-320", "")]
    folder = next((candidate for candidate in candidates if candidate.is_dir()), None)
    if folder is None and name == "imagenette" and download:
        loader = torchvision_datasets().Imagenette
        with _downloading(name, root):
            loader(root, size="160px", download=True)
        folder = candidates[0]
    if folder is None:
        url = f"https://s3.amazonaws.com/fast-ai-imageclas/{name}2-160.tgz"
        remedy = f"unpack {url} there" if name == "imagewoof" else "add --download to fetch it"
        raise _missing(name, candidates[0], remedy)
    train_files, wnids = _labelled(folder / "train")
    test_files, test_wnids = _labelled(folder / "val")
    for found in (wnids, test_wnids):
        _expect(name, found, _TEN_CLASSES[name])
    class_names = [_TEN_CLASSES[name][wnid] for wnid in wnids]
    return _image_source(name, folder, train_files, test_files, class_names, image_size, rgb=True)


def _expect(name: str, found: Sequence[str], published: Iterable[str]) -> None:
    if odd := sorted(set(found) ^ set(published)):
        raise UserError(f"{name}: the folder is not the published set: class {odd[0]} is missing or does not belong")


def _labelled(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """The image files in the class folders of ``folder``, at any depth, with their classes; class names, sorted."""
    class_names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    if not class_names:
        raise UserError(f"there are no class folders in {folder}")
    Image.preinit()  # first, so that the common formats are tried first
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files: list[tuple[str, int]] = []
    for label, class_name in enumerate(class_names):
        members = [
            os.path.join(parent, file)
            for parent, _, names in os.walk(folder / class_name, followlinks=True, onerror=_fail)
            for file in names
            if file[0] != "." and os.path.splitext(file)[1].lower() in suffixes
        ]
        if not members:
            raise UserError(f"there is no image in {folder / class_name}")
        files += [(file, label) for file in sorted(members)]
    return files, class_names


def _fail(error: OSError) -> None:
    raise error


def _image_source(
    name: str,
    folder: Path,
    train: Labelled,
    test: Labelled,
    class_names: Sequence[str],
    image_size: int | None,
    rgb: bool = False,
) -> _Source:
    def decode() -> Decoded:
        files = [file for file, _ in (*train, *test)]
        images = _decode(name, files, image_size, rgb)
        labels = torch.tensor([label for _, label in (*train, *test)])
        cut = len(train)
        return images[:cut], labels[:cut], images[cut:], labels[cut:], class_names

    return _Source(name, decode, folder, [file for file, _ in (*train, *test)], image_size)


def _decode(name: str, files: Sequence[str], image_size: int | None, rgb: bool) -> Tensor:
    """(N, C, H, W) uint8: three channels, or one where every image is grey and ``rgb`` is not asked for."""
    parts = [files[start : start + PART] for start in range(0, len(files), PART)]
    sample = files[:: len(parts)]
    large = sum(map(os.path.getsize, sample)) >= LARGE_FILE * len(sample)

    def read(part: Sequence[str]) -> list[NDArray[np.uint8]]:
        return [_read_image(name, file, image_size) for file in part]

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        arrays = list(itertools.chain.from_iterable((threads.map if large else map)(read, parts)))
    for file, array in zip(files, arrays, strict=True):
        if array.shape[1:] != arrays[0].shape[1:]:
            (h, w), (h0, w0) = array.shape[1:], arrays[0].shape[1:]
            raise UserError(
                f"{name}: images differ in size ({files[0]} is {h0}×{w0}, {file} is {h}×{w}): "
                "give --image-size to bring them to one"
            )
    channels = 3 if rgb else max(len(array) for array in arrays)
    images = np.empty((len(arrays), channels, *arrays[0].shape[1:]), dtype=np.uint8)
    for target, array in zip(images, arrays, strict=True):
        target[:] = array
    return torch.from_numpy(images)


def _read_image(name: str, file: str, image_size: int | None) -> NDArray[np.uint8]:
    """(1, H, W) of a grey image and (3, H, W) of any other."""
    try:
        with Image.open(file) as image:
            image.load()
    except PermissionError:
        raise
    except Exception as error:  # a decoder may raise anything
        raise UserError(f"{name}: {file} cannot be decoded as an image ({_said(error)})") from error
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{name}: {file} has more than 8 bits per pixel: convert it")
    grey = image.mode in ("1", "L", "LA")
    pixels = image.convert("L" if grey else "RGB")
    if image_size is not None:
        pixels = cover(pixels, image_size, image_size)
    array = np.asarray(pixels)
    return array[None] if grey else array.transpose(2, 0, 1)


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """``image`` resized to just cover ``height`` × ``width`` pixels, and cut to them from the centre."""
    target, side = max((height, image.height), (width, image.width), key=lambda pair: pair[0] / pair[1])
    whole = (round(image.width * target / side), round(image.height * target / side))
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    return image.resize(whole, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))


# ImageNet at 64×64


def _find_imagenet64(root: Path) -> _Source:
    """The downsampled ImageNet's batches ``train_data_batch_1`` … ``10`` and ``val_data``."""
    folder = root / "imagenet64"
    train = [folder / f"train_data_batch_{i}" for i in range(1, 11)]
    files = [*train, folder / "val_data"]
    for file in files:
        if not file.is_file():
            url = "https://image-net.org/download-images (Downsampled ImageNet, 64×64)"
            raise _missing("imagenet64", file, f"unzip the batches of {url} there")

    def decode() -> Decoded:
        names = [str(c) for c in range(1, 1001)]
        return *_read_batches(train), *_read_batches(files[-1:]), names

    return _Source("imagenet64", decode, folder, files)


def _read_batches(files: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 64, 64) uint8 and labels (N,), from 0."""
    pixels = 3 * 64 * 64
    # A file holds its images uncompressed and more; what of this is not used is never touched.
    images = torch.empty(sum(file.stat().st_size for file in files) // pixels, pixels, dtype=torch.uint8)
    labels: list[int] = []
    for file in files:
        with _damaged("imagenet64", file), file.open("rb") as stream:
            batch = _ArrayUnpickler(stream, encoding="latin1").load()
            data, start = batch["data"], len(labels)
            if data.dtype != np.uint8 or data.shape != (len(batch["labels"]), pixels):
                raise ValueError(f"{len(batch['labels'])} labels and {data.dtype} images of shape {data.shape}")
            labels += (int(label) - 1 for label in batch["labels"])
            images[start : len(labels)] = torch.from_numpy(data)
    return images[: len(labels)].view(-1, 3, 64, 64), torch.tensor(labels)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads NumPy arrays in plain containers, and runs nothing that a file names besides."""

    def find_class(self, module: str, name: str) -> Any:
        kind = (module.replace("numpy._core", "numpy.core"), name)
        if kind == ("numpy.core.multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]
        if kind in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if kind == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return codecs.encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


# The cache


def _cached(cache: Path | None, name: str, key: Sequence[str], make: Callable[[], State]) -> State:
    """What ``make`` returns, kept in a file of ``cache`` under ``key``; made again where the file is damaged."""
    if cache is None:
        return make()
    digest = hashlib.sha256(repr((CACHE_VERSION, name, *key)).encode()).hexdigest()[:16]
    readable = re.sub(r"\W+", "-", name)[-40:].strip("-")
    path = cache / "datasets" / f"{readable}-{digest}.safetensors"
    found = _read_state(path)
    if found is None:
        found = make()
        _write_state(path, *found)
    return found


def _read_state(path: Path) -> State | None:
    """The state in ``path``; None where it is missing, unreadable or not what was written."""
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["header"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        about = header["about"]
        return (tensors, about) if header["checksum"] == _checksum(tensors, about) else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def _write_state(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Complete or not at all; a cache that cannot be written is gone without."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    header = json.dumps({"about": about, "checksum": _checksum(tensors, about)})
    with contextlib.suppress(OSError, SafetensorError):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(dict(tensors), temporary, {"header": header})
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """Against accidents, not malice: CRC-32 over everything."""
    value = zlib.crc32(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(repr((name, tensor.dtype, tuple(tensor.shape))).encode(), value)
        value = zlib.crc32(tensor.numpy().data, value)
    return f"{value:08x}"
