"""Sets of image files in class folders, in every format that PIL reads."""

from __future__ import annotations

import functools
import io
import itertools
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from benchmarks.data.source import Decoded, Source, said
from benchmarks.data.views import FORMS
from benchmarks.errors import UserError
from benchmarks.files import regular
from benchmarks.pictures import cover, square, upright

LARGE_FILE = 4096
"""Bytes on average from which image files are decoded in several threads: decoding a smaller file takes less time than
handing the interpreter over."""
PART = 32
"""Files that a thread decodes before it hands them over."""
SYSTEM_NAMES = frozenset(
    {
        *("@eadir", "@recycle", "#recycle"),  # of network storage
        *("$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"),  # of Windows
        *("__macosx", "lost+found"),
    }
)
"""Files and folders of operating systems, in lower case; like hidden names they are passed over."""
PROGRAMS = frozenset({"EPS"})
"""Formats that PIL hands over to another program: what stands in such a file would run there."""
T = TypeVar("T")
Labelled = Sequence[tuple[str, int]]
"""Image files with their classes. Paths are strings here: there may be a million."""
SORTED = "sorted names of the class folders"
"""The order of classes that have a folder each."""
SWAPPED = (5, 6, 7, 8)
"""EXIF orientations of pictures that lie on their side."""


def find_folder(name: str, folder: Path, image_size: int | None, test_names: Sequence[str] = ("test", "val")) -> Source:
    """The user's own set: ``train/<class>/*``, and alike the first folder of ``test_names`` that is there.

    Raises UserError where the folder is no such set.
    """
    if not folder.is_dir():
        hint = f" (views are {FORMS})" if "@" in folder.name else ""
        raise UserError(f"{name}: there is no folder {folder.absolute()}{hint}")
    test = next((folder / split for split in test_names if (folder / split).is_dir()), None)
    if test is None or not (folder / "train").is_dir():
        raise UserError(f"{name}: {folder} must hold train/ and test/ (or val/), with one folder per class in each")
    ((train_files, class_names), (test_files, test_names)), left_out = labelled(folder / "train", test)
    if test_names != class_names:
        raise UserError(f"{name}: {_odd_class(class_names, test_names, test.name)}")
    return image_source(name, folder, train_files, test_files, class_names, image_size, left_out=left_out)


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
    """A line about the paths that were left out, if any."""
    if not left_out:
        return ""
    many = f"{len(left_out)} files or links are" if len(left_out) > 1 else "1 file or link is"
    reasons = "no suffix of an image, no regular file, or a link to images that count already"
    return f"{name}: {many} left out ({reasons}), for example {os.path.relpath(min(left_out), folder)!r}"


def labelled(*splits: Path) -> tuple[list[tuple[Labelled, list[str]]], list[str]]:
    """Image files at any depth of the class folders in each of ``splits``, with their classes; class names, sorted.

    The second value lists the paths that were left out: files that are no images, and links that are not followed.

    Hidden names and ``SYSTEM_NAMES`` are passed over at every level. Links to folders are followed, but each real
    folder is read once, for one class: a link into a class folder, or to a folder around one, leads to images that
    count already. A link to a file is an image like any other: stores that keep equal files once consist of such links.

    Raises UserError where there are no classes, where a class is empty, and where two classes share a folder.
    """
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in _formats()}
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
                elif os.path.splitext(entry.name)[1].lower() in suffixes and (entry.is_file() or entry.is_symlink()):
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


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats that are read, in the order in which they are tried."""
    Image.preinit()  # the common formats come first
    Image.init()
    return tuple(name for name in Image.ID if name not in PROGRAMS)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Entries of ``folder`` in order of name, without names that are passed over."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not passed_over(entry.name)), key=lambda entry: entry.name)


def passed_over(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or belongs to the operating system."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def image_source(
    name: str,
    folder: Path,
    train: Labelled,
    test: Labelled,
    class_names: Sequence[str],
    image_size: int | None,
    rgb: bool = False,
    left_out: Sequence[str] = (),
    by_area: bool = False,
    class_order: str = SORTED,
) -> Source:
    """The set of the image files ``train`` and ``test`` in ``folder``.

    ``image_size``: side in pixels to which images are brought; None: they must have one size. ``rgb``: three channels,
    even where all images are grey. ``left_out``: paths that are passed over, for a line about them. ``by_area``: images
    are resized as by `benchmarks.pictures.square`, else as by ``cover``.

    Raises UserError for an empty split, and for a file that is listed twice.
    """
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
        images, targets = decoded(name, {file: file for file in files}, image_size, rgb, by_area), torch.tensor(labels)
        return images[:cut], targets[:cut], images[cut:], targets[cut:], class_names

    # Labels and names were read from paths and tables by now: these may change later, and are no part of `files`.
    facts = repr((image_size, rgb, by_area, cut, labels, class_names))
    return Source(
        name,
        decode,
        files,
        facts,
        left_out=_left_out_line(name, folder, left_out),
        class_order=class_order,
        sizes=lambda: sizes(name, {file: file for file in files}),
    )


def decoded(
    name: str, sources: Mapping[str, str | bytes], image_size: int | None, rgb: bool = False, by_area: bool = False
) -> Tensor:
    """Images (N, C, H, W) uint8: C is 1 where every image is grey and ``rgb`` is not asked for, else 3.

    ``sources``: where an image lies, in words → the path of its file, or what stands in it. Raises UserError for an
    image that cannot be read, for images of several sizes without an ``image_size``, and where there is none.
    """
    if not sources:
        raise UserError(f"{name}: there is no image in it")
    files = list(sources)
    parts = [files[start : start + PART] for start in range(0, len(files), PART)]
    sample = [sources[file] for file in files[:: len(parts)]]
    bytes_read = sum(len(each) if isinstance(each, bytes) else os.path.getsize(each) for each in sample)
    large = bytes_read >= LARGE_FILE * len(sample)

    def read(part: Sequence[str]) -> list[NDArray[np.uint8]]:
        return [_read_image(name, file, sources[file], image_size, by_area) for file in part]

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


def sizes(name: str, sources: Mapping[str, str | bytes]) -> Counter[tuple[int, int]]:
    """Count the images by (height, width), upright and not resized; ``sources`` and errors as in `decoded`.

    Only the beginnings of the files are read.
    """

    def size(image: Image.Image) -> tuple[int, int]:
        width, height = image.size
        return (width, height) if image.getexif().get(ExifTags.Base.Orientation) in SWAPPED else (height, width)

    return Counter(_opened(name, file, source, size) for file, source in sources.items())


def _read_image(name: str, file: str, source: str | bytes, image_size: int | None, by_area: bool) -> NDArray[np.uint8]:
    """Pixels (1, H, W) of a grey image and (3, H, W) of any other."""
    pixels = _opened(name, file, source, upright)
    if image_size is not None:
        pixels = square(pixels, image_size) if by_area else cover(pixels, image_size, image_size)
    array = np.asarray(pixels)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _opened(name: str, file: str, source: str | bytes, look: Callable[[Image.Image], T]) -> T:
    """What ``look`` says of the image in ``source``, which lies in ``file``. Raises UserError where it fails."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb", opener=regular) as stream:
        try:
            with Image.open(stream, formats=_formats()) as image:
                return look(image)
        except UserError as error:
            raise UserError(f"{name}: {file} is {error}") from error
        except Exception as error:  # a decoder may raise anything
            if not stream.seek(0, io.SEEK_END):
                reason = "it is empty"
            elif isinstance(error, UnidentifiedImageError):
                reason = "its content is in no known format"
            else:
                reason = said(error)
            raise UserError(f"{name}: {file} cannot be decoded as an image ({reason})") from error
