"""A data set on disk → `RawData`, checked, with its fingerprint, and kept in a cache.

The key of a cached entry is made from the contents of all files that are read. So files may change without a change of
their time stamps, and time stamps without a change of the files.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import features
from safetensors import SafetensorError
from torch import Tensor

from benchmarks.cache import Cache, Entry
from benchmarks.data.names import flips
from benchmarks.errors import UserError
from benchmarks.files import regular

TENSORS = ("train_images", "train_labels", "test_images", "test_labels")
CACHE_VERSION = 2
"""To be raised when decoding or preprocessing changes: cached tensors of older versions are then left alone."""
DECODERS = [features.version(library) for library in ("pil", "jpg", "libjpeg_turbo", "jpg_2000", "webp")]
"""Versions of what decodes lossy images and resizes: another version may give other pixels."""
Decoded = tuple[Tensor, Tensor, Tensor, Tensor, Sequence[str]]
"""Training images and labels, test images and labels (as in `RawData`), class names."""


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
    """SHA-256 over the four tensors, in hexadecimal; of a view, over that of the data behind it and the view."""
    left_out: str = ""
    """One line about what lies beside the images and is not in the tensors; else empty."""
    class_order: str = ""
    """Where the order of the classes comes from, in words; empty where nobody knows."""
    fit_images: Tensor | None = None
    """(K, channels, height, width) uint8: what preprocessing is fitted on; None: the training images."""
    published_statistics: bool = True
    """Whether preprocessing may use published statistics of the whole set."""


@dataclass(frozen=True)
class Source:
    """A set on the disk."""

    name: str
    decode: Callable[[], Decoded]
    files: Sequence[str | Path]
    """Every file that ``decode`` reads, in the order of what it returns."""
    facts: str = ""
    """All else that determines its result, as text."""
    slow: bool = True
    """Whether the result of ``decode`` is worth keeping."""
    left_out: str = ""
    class_order: str = "the numbers in the published files"
    sizes: Callable[[], Mapping[tuple[int, int], int]] | None = None
    """Counts the images by (height, width) in their files, before they are resized; None: all have one size."""

    @functools.cached_property
    def stamp(self) -> str:
        """`digest` as it is when first asked for."""
        return self.digest()

    def digest(self) -> str:
        """A hash of all that determines the result of ``decode``: the contents of the files, not their time stamps."""
        total = hashlib.blake2b(repr((CACHE_VERSION, self.name, self.facts, DECODERS)).encode(), digest_size=16)
        for file in self.files:
            with open(file, "rb", buffering=0, opener=regular) as stream:
                total.update(hashlib.file_digest(stream, hashlib.blake2b).digest())
        return total.hexdigest()

    def read(self, cache: Path | None) -> RawData:
        """The decoded data, from ``cache`` where they are there. Raises UserError for data that cannot be right."""

        def decode() -> Entry:
            *tensors, class_names = self.decode()
            named = {name: tensor.contiguous() for name, tensor in zip(TENSORS, tensors, strict=True)}
            _check(self.name, named, class_names)
            return named, {"class_names": list(class_names), "fingerprint": _fingerprint(named)}

        tensors, about = self.cached(cache if self.slow else None, [], decode)
        return RawData(
            name=self.name,
            train_images=tensors["train_images"],
            train_labels=tensors["train_labels"],
            test_images=tensors["test_images"],
            test_labels=tensors["test_labels"],
            class_names=tuple(about["class_names"]),
            flip=flips(self.name),
            fingerprint=about["fingerprint"],
            left_out=self.left_out,
            class_order=self.class_order,
        )

    def cached(self, folder: Path | None, settings: Sequence[str], make: Callable[[], Entry]) -> Entry:
        """The result of ``make``, kept in ``folder`` for this content of the files and these ``settings``.

        Where the cache cannot be written, the result is made every time.
        """
        if folder is None:
            return make()
        cache, name = Cache(folder / "datasets"), " ".join((self.name[-40:], *settings, self.stamp))
        entry = cache.read(name)
        if entry is None:
            entry = make()
            if self.digest() == self.stamp:  # else it was made of other files than the name says
                with contextlib.suppress(OSError, SafetensorError):
                    cache.write(name, *entry)
        return entry


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


@contextlib.contextmanager
def one_line(name: str) -> Iterator[None]:
    """Turn errors of the file system into one line, and silence decoders: they warn of files that they can read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{name}: {error.filename or 'its files'} cannot be read: {error.strerror or error}"
            ) from error


@contextlib.contextmanager
def damaged(name: str, place: Path | str) -> Iterator[None]:
    """Say in one line where a parser failed, and why."""
    try:
        yield
    except (OSError, MemoryError, UserError):
        raise
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f"{name}: {place} is damaged ({said(error)}): delete it and fetch it again") from error


UNNAMED = "the labels: numbers as they are, words sorted"
"""The order of classes whose names are not listed."""


def numbered(name: str, labels: Sequence[Any], names: Sequence[str] | None) -> tuple[list[int], Sequence[str]]:
    """Labels as class indices, and class names: ``names``, else the numbers up to the largest, or the sorted words.

    Raises UserError for labels that are neither whole numbers nor words, and for numbers that cannot be classes.
    """
    if all(type(label) is int for label in labels):
        if names is None and max(labels, default=0) >= max(len(labels), 2):
            raise UserError(f"{name}: an image has the label {max(labels)}, and there are only {len(labels)} images")
        return list(labels), names or [str(number) for number in range(max(labels, default=-1) + 1)]
    if all(type(label) is str for label in labels):
        order = {word: number for number, word in enumerate(names or sorted(set(labels)))}
        if odd := [label for label in labels if label not in order]:
            raise UserError(f"{name}: the label {odd[0]!r} is not among its classes")
        return [order[label] for label in labels], list(order)
    odd = next(label for label in labels if type(label) not in (int, str) or type(label) is not type(labels[0]))
    raise UserError(f"{name}: an image has the label {odd!r}; labels must be whole numbers, or words")


def said(error: BaseException) -> str:
    """The message of ``error``, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
