"""Data sets by name → `RawData` (uint8) → `Benchmark`: the task that a method is given, and the held-out test images.

Published sets are read in the layout in which they are published, under a data root; nothing is downloaded unless asked
for, and data are never substituted. One's own set is an image folder, ``folder:PATH``. Nothing is written but the
cache: decoded images, and images whitened by ZCA with their matrices. A cache that is damaged, outdated or cannot be
written costs time, never correctness.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
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


def default_cache() -> Path:
    """``$FREPO_BENCH_CACHE``; else ``frepo-bench`` in the user's cache folder."""
    if folder := os.environ.get("FREPO_BENCH_CACHE"):
        return Path(folder)
    base = Path(os.environ.get("XDG_CACHE_HOME") or ".")
    return (base if base.is_absolute() else Path.home() / ".cache") / "frepo-bench"


def default_root() -> Path:
    """``$FREPO_BENCH_DATA``; else ``data`` in the default cache folder."""
    folder = os.environ.get("FREPO_BENCH_DATA")
    return Path(folder) if folder else default_cache() / "data"


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
    with _one_line(name):
        source = _find(name, root, image_size, download)
        make = functools.partial(_preprocessed, source, cache, preprocess, dtype)
        if preprocess.startswith("zca"):  # only the fit is slow
            tensors, about = _cached(cache, name, [source.stamp(), preprocess, str(dtype)], make)
        else:
            tensors, about = make()
    class_names = tuple(about["class_names"])
    counts = torch.bincount(tensors["train_labels"], minlength=len(class_names))
    if ipc > int(counts.min()):
        smallest = int(counts.argmin())
        raise UserError(
            f"ipc {ipc} is above the {int(counts[smallest])} training images of class {class_names[smallest]!r}"
        )
    images = tensors["train_images"].to(device)
    spec = NetworkSpec(
        cast(Any, network),
        in_channels=images.shape[1],
        image_size=(images.shape[2], images.shape[3]),
        num_classes=len(class_names),
        width=width,
        depth=depth,
        norm=cast(Any, norm),
    )
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


# Where a set lies, and how it is read

Decoded = tuple[Tensor, Tensor, Tensor, Tensor, Sequence[str]]
"""Training images and labels, test images and labels (as in `RawData`), class names."""
Labelled = Sequence[tuple[Path, int]]
"""Image files with their classes."""
State = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""Tensors, and what JSON can hold."""


@dataclass(frozen=True)
class _Source:
    """A set that was found."""

    name: str
    decode: Callable[[], Decoded]
    root: Path = Path()
    files: Sequence[Path] = ()
    """Every file that ``decode`` reads, under ``root``; none: nothing worth caching."""
    image_size: int | None = None

    def stamp(self) -> str:
        """A hash that changes when the files do, by their relative paths, sizes and times of change."""
        digest = hashlib.sha256(repr((self.name, self.image_size)).encode())
        for file in self.files:
            stat = file.stat()
            digest.update(repr((str(file.relative_to(self.root)), stat.st_size, stat.st_mtime_ns)).encode())
        return digest.hexdigest()


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
    if image_size is not None and image_size < 1:
        raise UserError(f"image size is {image_size}; it must be at least 1")
    choose("data set", "folder:PATH" if name.startswith("folder:") else name, [*DATASETS, "folder:PATH"])
    if name in FIXED_SIZE and image_size is not None:
        raise UserError(f"{name} has one image size: leave out --image-size, which is for sets of image files")
    if name == "digits":
        return _Source(name, _digits)
    return _find_torchvision(name, root, download)


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


def _preprocessed(source: _Source, cache: Path | None, preprocess: str, dtype: torch.dtype) -> State:
    raw = _read(source, cache)
    constants = preprocessing.CONSTANTS.get(preprocess, {}).get(source.name)
    fitted = preprocessing.fit(preprocess, raw.train_images, constants=constants).to(dtype=dtype)
    tensors = {
        "train_images": fitted.forward(raw.train_images),
        "train_labels": raw.train_labels,
        "test_images": fitted.forward(raw.test_images),
        "test_labels": raw.test_labels,
    }
    tensors |= {f"preprocess.{name}": tensor for name, tensor in fitted.tensors().items()}
    about = {"class_names": raw.class_names, "fingerprint": raw.fingerprint, "preprocess": fitted.settings()}
    return tensors, about


def _check(name: str, tensors: Mapping[str, Tensor], class_names: Sequence[str]) -> None:
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
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
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
        root.mkdir(parents=True, exist_ok=True)
        try:
            for split in splits:
                getattr(torchvision_datasets(), class_name)(root, download=True, **split)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{name} could not be downloaded to {root}: {_first_line(error)}") from error

    def decode() -> Decoded:
        try:
            train, test = (getattr(torchvision_datasets(), class_name)(root, **split) for split in splits)
            images = (torch.as_tensor(part.data) for part in (train, test))
            labels = (torch.as_tensor(part.labels if name == "svhn" else part.targets).long() for part in (train, test))
            (train_images, test_images), (train_labels, test_labels) = images, labels
        except (OSError, MemoryError):
            raise
        except Exception as error:  # a damaged file may raise anything
            raise UserError(
                f"{name}: the files in {root / folder} are damaged; delete them and fetch them again with --download "
                f"({_first_line(error)})"
            ) from error
        if train_images.ndim == 3:  # MNIST: one channel, left out
            train_images, test_images = train_images.unsqueeze(1), test_images.unsqueeze(1)
        elif name.startswith("cifar"):  # channels last
            train_images, test_images = train_images.permute(0, 3, 1, 2), test_images.permute(0, 3, 1, 2)
        class_names = [str(c) for c in range(10)] if name in ("svhn", "mnist") else train.classes
        return train_images, train_labels, test_images, test_labels, class_names

    return _Source(name, decode, root, files)


def _missing(name: str, place: Path, remedy: str) -> UserError:
    return UserError(f"{name} is not in {place}: name its folder with --data-root, or {remedy}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


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
            header = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        about = json.loads(header["about"])
        return (tensors, about) if header["checksum"] == _checksum(tensors, about) else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def _write_state(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Complete or not at all; a cache that cannot be written is gone without."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    header = {"about": json.dumps(about), "checksum": _checksum(tensors, about)}
    with contextlib.suppress(OSError, SafetensorError):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(dict(tensors), temporary, header)
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
