"""Data sets by name → `RawData` (uint8) → `Benchmark`: the task that a method is given, and the held-out test images.

Published sets are read in the layout in which they are published, under a data root; nothing is downloaded unless asked
for, and data are never substituted. One's own set is an image folder, ``folder:PATH``. Nothing is written but the
cache: decoded images, and images whitened by ZCA with their matrices. A cache costs time, never correctness: its keys
are the contents of all files that are read, so files may change as they like, and so may their time stamps; and a
cached file that is damaged or is that of another key is made again.
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
import stat
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import DATASETS, PREPROCESSINGS
from benchmarks import preprocess as preprocessing
from benchmarks._torchvision import datasets as torchvision_datasets
from benchmarks.errors import UserError, choose
from benchmarks.networks import NetworkSpec
from benchmarks.pictures import upright
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
BLOCK = 1 << 20
"""Bytes of a file that are hashed at a time."""
SYSTEM_NAMES = frozenset(
    {
        "@eadir",  # thumbnails of a Synology
        "#recycle",
        "@recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "__macosx",  # in archives that a Mac made
        "thumbs.db",
        "desktop.ini",
    }
)
"""Files and folders, in lower case, that systems put among others; like hidden names they are passed over."""
CACHE_VERSION = 2
"""To be raised when decoding or preprocessing changes: cached tensors of older versions are then left alone."""
_DECODERS = [features.version(library) for library in ("pil", "jpg", "libjpeg_turbo", "jpg_2000", "webp")]
"""Versions of what decodes lossy images and resizes: another version may give other pixels."""


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
    left_out: str = ""
    """One line about what lies in the class folders of an image folder and is not in the tensors; else empty."""


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
            key = [preprocess, str(dtype), torch.__version__]
            tensors, about = _cached(cache, source, key, preprocessed)
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
    """A set on the disk."""

    name: str
    decode: Callable[[], Decoded]
    files: Sequence[str | Path]
    """Every file that ``decode`` reads, in the order of what it returns."""
    facts: str = ""
    """Whatever else determines its result."""
    slow: bool = True
    """Whether the result of ``decode`` is worth keeping."""
    left_out: str = ""

    @functools.cached_property
    def stamp(self) -> str:
        """`digest` as it is when first asked for."""
        return self.digest()

    def digest(self) -> str:
        """A hash of all that determines the result of ``decode``: the contents of the files, not their time stamps."""
        total = hashlib.blake2b(repr((self.name, self.facts, _DECODERS)).encode())
        for file in self.files:
            content = hashlib.blake2b()
            with open(file, "rb", buffering=0, opener=_regular) as stream:
                while block := stream.read(BLOCK):
                    content.update(block)
            total.update(content.digest())
        return total.hexdigest()


def _regular(path: str, flags: int) -> int:
    """An opener for ``open``. Raises UserError where ``path`` is no regular file: reading a pipe might never end."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is no regular file: remove it")
    return descriptor


def _text(file: Path) -> str:
    with open(file, "rb", opener=_regular) as stream:
        return stream.read().decode()


def _lines(file: Path) -> list[str]:
    """The lines of a table that are not empty."""
    return [line for line in _text(file).splitlines() if line.strip()]


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
        return _Source(name, _digits, [_digits_file()], slow=False)
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

    tensors, about = _cached(cache if source.slow else None, source, [], decode)
    return RawData(
        name=source.name,
        **{name: tensors[name] for name in TENSORS},
        class_names=tuple(about["class_names"]),
        flip=source.name not in NO_FLIP,
        fingerprint=about["fingerprint"],
        left_out=source.left_out,
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
        classes = f"only the class {class_names[0]!r}" if class_names else "no class"
        raise UserError(f"{name} has {classes}: give at least two")
    size = tensors["train_images"].shape[1:]
    for split in ("train", "test"):
        images, labels = tensors[f"{split}_images"], tensors[f"{split}_labels"]
        if len(labels) == 0 or len(images) != len(labels):
            raise UserError(f"{name}: the {split} split has {len(images)} images and {len(labels)} labels")
        if images.dtype != torch.uint8 or images.shape[1:] != size:
            described = f"{images.dtype} images of shape {tuple(images.shape[1:])}".removeprefix("torch.")
            raise UserError(f"{name}: the {split} split has {described}, instead of uint8 of {tuple(size)}")
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
    table = torch.from_numpy(np.loadtxt(_digits_file(), dtype=np.uint8, delimiter=","))
    images = table[:, :-1].double().mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    labels = table[:, -1].long()
    test = torch.zeros(len(labels), dtype=torch.bool)
    for c in range(10):
        members = torch.nonzero(labels == c).flatten().tolist()
        members.sort(key=lambda index: hashlib.sha256(f"digits {index}".encode()).digest())
        test[members[: round(len(members) / 5)]] = True
    return images[~test], labels[~test], images[test], labels[test], [str(c) for c in range(10)]


def _digits_file() -> Path:
    # The file itself: to import scikit-learn takes longer than all that a short run does with the images.
    package = find_spec("sklearn")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"


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

    return _Source(name, decode, files)


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
    ((train_files, class_names), (test_files, test_names)), left_out = _labelled(folder / "train", test)
    if test_names != class_names:
        raise UserError(f"{name}: {_odd_class(class_names, test_names, test.name)}")
    return _image_source(
        name, train_files, test_files, class_names, image_size, left_out=_left_out_line(name, folder, left_out)
    )


def _odd_class(train: Sequence[str], test: Sequence[str], split: str) -> str:
    """Describe the first class that is in only one of train/ and ``split``/."""

    def plain(class_name: str) -> str:
        return unicodedata.normalize("NFC", class_name).casefold()

    odd = sorted(set(train) ^ set(test))
    twins = [other for other in odd[1:] if plain(other) == plain(odd[0])]
    hint = f" ({twins[0]!a} is written in another way)" if twins else ""
    shown = ascii(odd[0]) if twins else repr(odd[0])
    return f"class {shown} is in only one of train/ and {split}/{hint}; both must have the same"


def _left_out_line(name: str, folder: Path, left_out: Sequence[str]) -> str:
    """One line about what was left out, if anything."""
    if not left_out:
        return ""
    many = f"{len(left_out)} files or links are" if len(left_out) > 1 else "1 file or link is"
    reasons = "no suffix of an image, no regular file, or a link to images that count already"
    return f"{name}: {many} left out ({reasons}), for example {os.path.relpath(min(left_out), folder)!r}"


def listed_wnids(root: Path) -> list[str]:
    """WordNet ids as Tiny ImageNet's own list has them, which is not sorted. Raises UserError where it is damaged."""
    file = root / "tiny-imagenet-200" / "wnids.txt"
    with _one_line("tiny_imagenet"), _damaged("tiny_imagenet", file):
        return _text(file).split()


def _find_tiny_imagenet(root: Path, image_size: int) -> _Source:
    """``train/<wnid>/images/*`` and ``val/images/*`` with their classes in ``val/val_annotations.txt``."""
    folder = root / "tiny-imagenet-200"
    if not folder.is_dir():
        raise _missing("tiny_imagenet", folder, "unzip http://cs231n.stanford.edu/tiny-imagenet-200.zip there")
    [(train_files, class_names)], left_out = _labelled(folder / "train")
    left_out = [path for path in left_out if not path.endswith("_boxes.txt")]  # part of the published set
    annotations, images = folder / "val" / "val_annotations.txt", folder / "val" / "images"
    with _damaged("tiny_imagenet", folder):
        _expect("tiny_imagenet", class_names, listed_wnids(root))
        rows = [line.split("\t")[:2] for line in _lines(annotations)]
        test_files = [(str(images / file), class_names.index(wnid)) for file, wnid in rows]
    unlisted = {name for name in os.listdir(images) if not _passed_over(name)}.difference(file for file, _ in rows)
    if unlisted:
        raise UserError(f"tiny_imagenet: {annotations} does not name the class of {min(unlisted)}")
    line = _left_out_line("tiny_imagenet", folder, left_out)
    return _image_source("tiny_imagenet", train_files, test_files, class_names, image_size, rgb=True, left_out=line)


def _find_cub200(root: Path, image_size: int) -> _Source:
    """``images/`` with the tables classes.txt, images.txt, image_class_labels.txt and train_test_split.txt."""
    folder = root / "CUB_200_2011"
    if not folder.is_dir():
        url = "https://data.caltech.edu/records/65de6-vp158"
        raise _missing("cub200", folder, f"unpack CUB_200_2011.tgz of {url} there")

    def table(file: str) -> dict[str, str]:
        rows = [line.split(maxsplit=1) for line in _lines(folder / file)]
        values = {key: value.strip() for key, value in rows}
        if len(values) != len(rows):
            raise ValueError(f"{file} has two rows with the same number")
        return values

    with _damaged("cub200", folder):
        names = table("classes.txt")
        classes = sorted(names, key=int)
        labels, is_train = table("image_class_labels.txt"), table("train_test_split.txt")
        splits: tuple[list[tuple[str, int]], list[tuple[str, int]]] = [], []
        for image, file in table("images.txt").items():
            splits[("1", "0").index(is_train[image])].append(
                (str(folder / "images" / file), classes.index(labels[image]))
            )
    class_names = [names[number] for number in classes]
    return _image_source("cub200", *splits, class_names, image_size, rgb=True)


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


def wordnet_ids(name: str) -> Mapping[str, str]:
    """Class name → WordNet id, for a data set whose class folders have other names than its classes; else empty."""
    return {class_name: wnid for wnid, class_name in _TEN_CLASSES.get(name, {}).items()}


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
    ((train_files, wnids), (test_files, test_wnids)), left_out = _labelled(folder / "train", folder / "val")
    for found in (wnids, test_wnids):
        _expect(name, found, _TEN_CLASSES[name])
    class_names = [_TEN_CLASSES[name][wnid] for wnid in wnids]
    line = _left_out_line(name, folder, left_out)
    return _image_source(name, train_files, test_files, class_names, image_size, rgb=True, left_out=line)


def _expect(name: str, found: Sequence[str], published: Iterable[str]) -> None:
    if odd := sorted(set(found) ^ set(published)):
        raise UserError(f"{name}: the folder is not the published set: class {odd[0]} is missing or does not belong")


def _labelled(*splits: Path) -> tuple[list[tuple[Labelled, list[str]]], list[str]]:
    """Image files of the class folders in each of ``splits``, at any depth, with their classes; class names, sorted.

    The second value are paths that were left out: files that are no images, and links that are not followed.

    Hidden names and ``SYSTEM_NAMES`` are passed over at every level. Links to folders are followed, but each real
    folder is read once, for one class: a link into a class folder, or to a folder around one, leads to images that
    count already. A link to a file is an image like any other: stores that keep equal files once consist of such links.

    Raises UserError where there are no classes, where a class is empty, and where two classes share a folder.
    """
    Image.preinit()  # first, so that the common formats are tried first
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    images: dict[str, list[str]] = {}  # class folder → image files in it
    owners: dict[Path, str] = {}  # real folder → class folder for which all below it is read
    around: set[Path] = set()  # real folders that contain such a folder
    links: list[tuple[str, str]] = []  # class folder, link to a folder somewhere below it
    left_out: list[str] = []

    def owner_of(folder: Path) -> str | None:
        return next((owners[place] for place in (folder, *folder.parents) if place in owners), None)

    def claim(folder: Path, owner: str) -> None:
        owners[folder] = owner
        around.update(folder.parents)

    def visit(top: str, owner: str) -> None:
        folders = [top]
        while folders:
            for entry in _entries(folders.pop()):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_dir():
                    links.append((owner, entry.path))
                # A link that leads nowhere is an error when it is opened: somebody wanted that image.
                elif _suffix(entry.name) in suffixes and (entry.is_file() or entry.is_symlink()):
                    images[owner].append(entry.path)
                else:
                    left_out.append(entry.path)

    classes: list[list[str]] = []
    for split in splits:
        folders = [entry.path for entry in _entries(split) if entry.is_dir()]
        left_out += [entry.path for entry in _entries(split) if not entry.is_dir()]
        if not folders:
            raise UserError(f"there are no class folders in {split}")
        for folder in folders:
            real = Path(os.path.realpath(folder))
            other = owner_of(real)
            if real in around:
                other = next(owner for place, owner in owners.items() if real in place.parents)
            if other:
                raise UserError(f"{other} and {folder} share a folder: an image has one class and is in one split")
            claim(real, folder)
            images[folder] = []
        classes.append(folders)
    own = set(owners)
    for folder in images:
        visit(folder, folder)
    for owner, link in links:  # grows: links lead to links
        real = Path(os.path.realpath(link))
        other = owner_of(real)
        if other is None and real not in around:
            claim(real, owner)
            visit(link, owner)
        elif other in (None, owner) or not own.isdisjoint((real, *real.parents)):
            left_out.append(link)
        else:
            raise UserError(f"{link} leads to images of {other}: an image has one class and is in one split")
    for folder, files in images.items():
        if not files:
            raise UserError(f"there is no image in {folder}")
    return [
        (
            [(file, label) for label, folder in enumerate(folders) for file in sorted(images[folder])],
            [os.path.basename(folder) for folder in folders],
        )
        for folders in classes
    ], left_out


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Entries of ``folder`` in order of name, without those that are passed over."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not _passed_over(entry.name)), key=lambda entry: entry.name)


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _image_source(
    name: str,
    train: Labelled,
    test: Labelled,
    class_names: Sequence[str],
    image_size: int | None,
    rgb: bool = False,
    left_out: str = "",
) -> _Source:
    files = [file for file, _ in (*train, *test)]
    labels = [label for _, label in (*train, *test)]
    cut = len(train)
    for split, members in (("train", train), ("test", test)):
        if not members:
            raise UserError(f"{name}: the {split} split has no images")
    if len(set(files)) < len(files):
        twice = next(file for file, count in Counter(files).items() if count > 1)
        raise UserError(f"{name}: {twice} is listed twice: an image has one class and is in one split")

    def decode() -> Decoded:
        images, targets = _decode(name, files, image_size, rgb), torch.tensor(labels)
        return images[:cut], targets[:cut], images[cut:], targets[cut:], class_names

    # Labels and names as they were read from paths and tables: the files of tables may change after that.
    facts = repr((image_size, rgb, cut, labels, class_names))
    return _Source(name, decode, files, facts, left_out=left_out)


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
    with open(file, "rb", opener=_regular) as stream:
        try:
            with Image.open(stream) as image:
                pixels = upright(image)
        except UserError as error:
            raise UserError(f"{name}: {file} is {error}") from error
        except Exception as error:  # a decoder may raise anything
            if not os.fstat(stream.fileno()).st_size:
                reason = "it is empty"
            elif isinstance(error, UnidentifiedImageError):
                reason = "its content is in no known format"
            else:
                reason = _said(error)
            raise UserError(f"{name}: {file} cannot be decoded as an image ({reason})") from error
    if image_size is not None:
        pixels = cover(pixels, image_size, image_size)
    array = np.asarray(pixels)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


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

    return _Source("imagenet64", decode, files)


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


def _cached(cache: Path | None, source: _Source, settings: Sequence[str], make: Callable[[], State]) -> State:
    """What ``make`` returns, kept in a file of ``cache`` for this content of ``source`` and these ``settings``."""
    if cache is None:
        return make()
    key = hashlib.sha256(repr((CACHE_VERSION, source.stamp, *settings)).encode()).hexdigest()
    readable = re.sub(r"\W+", "-", source.name)[-40:].strip("-")
    path = cache / "datasets" / f"{readable}-{key[:16]}.safetensors"
    state = _read_state(path, key)
    if state is None:
        state = make()
        if source.digest() == source.stamp:  # else it was made of other files than the key says
            _write_state(path, key, *state)
    return state


def _read_state(path: Path, key: str) -> State | None:
    """The state in ``path``; None where it is missing, unreadable or not what was written there under ``key``."""
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["header"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        about = header["about"]
        return (tensors, about) if header["checksum"] == _checksum(key, tensors, about) else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _write_state(path: Path, key: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Complete or not at all; a cache that cannot be written is gone without."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    header = json.dumps({"about": about, "checksum": _checksum(key, tensors, about)})
    with contextlib.suppress(OSError, SafetensorError):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(dict(tensors), temporary, {"header": header})
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _checksum(key: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """Against accidents, not malice: CRC-32 over everything."""
    value = zlib.crc32(json.dumps([key, about], sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(repr((name, tensor.dtype, tuple(tensor.shape))).encode(), value)
        value = zlib.crc32(tensor.numpy().data, value)
    return f"{value:08x}"
