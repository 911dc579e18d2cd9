"""Sets in the layouts of Hugging Face: parquet files, or an image folder, in a folder or in the cache of the hub.

Only files inside the folder are read, and nothing in them is run. ``pyarrow`` reads parquet files and
``huggingface_hub`` knows the hub and its cache; the extra ``hub`` brings both.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any

import torch

from benchmarks.data.image_files import decoded, find_folder, image_source, passed_over, sizes
from benchmarks.data.names import place_of
from benchmarks.data.source import UNNAMED, Decoded, Source, damaged, numbered, said
from benchmarks.errors import UserError
from benchmarks.files import regular

SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("val", "valid", "validation", "dev"),
}
"""Split → the words for it in the names of files and folders, as the library ``datasets`` has them."""
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
"""Names of columns, preferred from left to right where several could be meant."""
TABLES = (".jsonl", ".csv")
"""Suffixes of tables ``metadata`` with a row for each file of an image folder."""


def find_hub(name: str, image_size: int | None, download: bool) -> Source:
    """The set ``hf:PATH``, a folder, or ``hf:OWNER/NAME`` or ``hf:OWNER/NAME/FOLDER``, a data set of the hub.

    The hub's sets come from its own cache; with ``download`` they are fetched into it. The test split is used, and
    where there is none the validation split.

    Raises UserError where the folder is no such set, and where an extra is missing.
    """
    folder = place_of(name)
    if not folder.is_dir():
        folder = _snapshot(name, download)
    if tables := [file for file in _files(folder) if file.suffix == ".parquet"]:
        return _parquet(name, folder, tables, image_size)
    rows = [file for file in _files(folder) if file.stem == "metadata" and file.suffix in TABLES]
    if rows:
        return _listed(name, folder, rows, image_size)
    inside = next((each for each in (folder, folder / "data") if (each / "train").is_dir()), folder)
    return find_folder(name, inside, image_size, (*SPLITS["test"], *SPLITS["validation"]))


def _needed(package: str, name: str) -> Any:
    """The module ``package``. Raises UserError where it is not installed."""
    if find_spec(package.partition(".")[0]) is None:
        raise UserError(f'{name} needs the package {package.partition(".")[0]}: pip install "frepo-bench[hub]"')
    return importlib.import_module(package)


def _snapshot(name: str, download: bool) -> Path:
    """The folder in the hub's cache. Raises UserError where it is not there and cannot be fetched."""
    place = name.removeprefix("hf:")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", place):
        raise UserError(f"{name}: there is no folder {place_of(name).absolute()}, and it is no name on the hub")
    *owner, rest = place.split("/", 2) if place.count("/") > 1 else (place, "")
    hub = _needed("huggingface_hub", name)
    patterns = [f"{rest}/*"] if rest else None
    try:
        folder = hub.snapshot_download(
            "/".join(owner), repo_type="dataset", allow_patterns=patterns, local_files_only=not download
        )
    except Exception as error:  # the hub's errors share no base class
        if download:
            raise UserError(f"{name} could not be downloaded: {said(error)}") from error
        raise UserError(
            f"{name}: there is no folder {place_of(name).absolute()}, and the hub's cache does not have it: "
            "give its path, or add --download to fetch it"
        ) from error
    return Path(folder, rest)


def _files(folder: Path) -> Iterator[Path]:
    """All files below ``folder``, in order, without names that are passed over."""
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not passed_over(name))
        yield from (Path(top, name) for name in sorted(names) if not passed_over(name))


def _split_of(path: PurePath) -> str | None:
    """The split that a relative path names; the part of it that is nearest to its end counts."""
    words = re.findall("[a-z]+", str(path).lower())
    return next((split for word in reversed(words) for split, known in SPLITS.items() if word in known), None)


def _chosen(name: str, folder: Path, paths: Sequence[Path]) -> tuple[list[Path], list[Path], str]:
    """Those of ``paths`` with training images, those with test images, and a line about the others.

    Raises UserError where one of the two is missing.
    """
    splits: dict[str | None, list[Path]] = {}
    for path in paths:
        splits.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    test = "test" if "test" in splits else "validation"
    if "train" not in splits or test not in splits:
        known = ", ".join(sorted(filter(None, splits))) or "none that their names tell"
        raise UserError(f"{name}: {folder} must hold a train and a test (or validation) split; there is {known}")
    others = [path for split, own in splits.items() if split not in ("train", test) for path in own]
    files = f"{len(others)} files are" if len(others) > 1 else "1 file is"
    example = f", for example {os.path.relpath(others[0], folder)!r}" if others else ""
    return splits["train"], splits[test], f"{name}: {files} of other splits{example}" if others else ""


# Parquet


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str
    names: tuple[str, ...] | None
    """Class names in the order of the labels, where the files have them."""


def _parquet(name: str, folder: Path, tables: Sequence[Path], image_size: int | None) -> Source:
    train, test, left_out = _chosen(name, folder, tables)
    _check_one_configuration(name, folder, [*train, *test])
    _check_shards(name, [*train, *test])
    parquet = _needed("pyarrow.parquet", name)
    with damaged(name, train[0]), open(train[0], "rb", opener=regular) as stream:
        columns = _columns(name, parquet.read_schema(stream))

    def rows(files: Sequence[Path]) -> tuple[dict[str, bytes], list[Any]]:
        images: dict[str, bytes] = {}
        labels: list[Any] = []
        for file in files:
            with damaged(name, file), open(file, "rb", opener=regular) as stream:
                table = parquet.read_table(stream, columns=[columns.image, columns.label]).to_pydict()
            for place, value in enumerate(table[columns.image]):
                content = value.get("bytes") if isinstance(value, dict) else value
                if not isinstance(content, bytes):
                    raise UserError(f"{name}: image {place} of {file} is not in the file")
                images[f"image {place} of {file}"] = content
            labels += table[columns.label]
        return images, labels

    def decode() -> Decoded:
        (train_images, train_labels), (test_images, test_labels) = rows(train), rows(test)
        labels, class_names = numbered(name, [*train_labels, *test_labels], columns.names)
        images, cut = decoded(name, train_images | test_images, image_size), len(train_labels)
        numbers = torch.tensor(labels)
        return images[:cut], numbers[:cut], images[cut:], numbers[cut:], class_names

    return Source(
        name,
        decode,
        [*train, *test],
        repr((image_size, len(train), columns)),
        left_out=left_out,
        class_order="the names in the parquet files" if columns.names else UNNAMED,
        sizes=lambda: sizes(name, rows([*train, *test])[0]),
    )


def _columns(name: str, schema: Any) -> _Columns:
    """The columns with the images and the labels. Raises UserError where that is not clear."""
    with damaged(name, "the header of its parquet files"):
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        known = {column: feature for column, feature in features.items() if isinstance(feature, Mapping)}

    def one(what: str, kind: str, types: str, preferred: Sequence[str]) -> str:
        names: list[str] = schema.names
        typed = [column for column in names if known.get(column, {}).get("_type") == kind]
        found = typed or [column for column in names if re.search(types, str(schema.field(column).type))]
        # A column that is called as it should be, but is of another type, is not to be passed over for some other.
        lone = found if len(found) == 1 and (typed or not set(preferred) & set(names)) else []
        for column in (*preferred, *lone):
            if column in found:
                return column
        raise UserError(
            f"{name}: which of the columns {', '.join(names)} has the {what} is not clear: call it {preferred[0]}"
        )

    image = one("images", "Image", "binary", IMAGE_COLUMNS)
    label = one("labels", "ClassLabel", "^(u?int|(large_)?string)", LABEL_COLUMNS)
    listed = known.get(label, {}).get("names")
    words = isinstance(listed, list) and all(isinstance(each, str) for each in listed)
    return _Columns(image, label, tuple(map(str, listed or ())) if words else None)


def _check_one_configuration(name: str, folder: Path, tables: Sequence[Path]) -> None:
    """Raises UserError where ``tables`` are of several sets, which lie in folders apart."""
    words = {word for known in SPLITS.values() for word in known}
    homes = {path.parent.parent if path.parent.name.lower() in words else path.parent for path in tables}
    if len(homes) > 1:
        shown = ", ".join(sorted(str(home.relative_to(folder)) for home in homes))
        raise UserError(f"{name}: there are several sets in it ({shown}): name one of these folders")


def _check_shards(name: str, tables: Sequence[Path]) -> None:
    """Raises UserError where a part of a split is missing, which the names ``…-00000-of-00002`` tell."""
    parts = Counter(named.groups() for path in tables if (named := re.match(r"(.*?)\d+-of-(\d+)", str(path))))
    for (beginning, count), there in parts.items():
        if there != int(count):
            raise UserError(f"{name}: {there} of {int(count)} files {beginning}… are there: fetch the others")


# Image folders with a table


def _listed(name: str, folder: Path, tables: Sequence[Path], image_size: int | None) -> Source:
    """Image files with their labels in tables ``metadata``, which have columns ``file_name`` and ``label``."""
    labels: dict[Path, Any] = {}
    for table in tables:
        with damaged(name, table):
            rows = list(_rows(table))
        for row in rows:
            label = next((row[column] for column in LABEL_COLUMNS if column in row), None)
            if not isinstance(row.get("file_name"), str) or label is None:
                raise UserError(f"{name}: {table} must have the columns file_name and label in every row")
            place = os.path.normpath(table.parent.relative_to(folder) / row["file_name"])
            if place.startswith((os.pardir, os.sep)):
                raise UserError(f"{name}: {table} names {row['file_name']!r}, which is outside of {folder}")
            if labels.setdefault(folder / place, label) != label:
                raise UserError(f"{name}: {table} gives {row['file_name']!r} two labels: an image has one class")
    train, test, left_out = _chosen(name, folder, list(labels))
    if missing := next((path for path in (*train, *test) if not path.is_file()), None):
        raise UserError(f"{name}: a table names {str(missing.relative_to(folder))!r}, and there is no such file")
    numbers, class_names = numbered(name, [labels[path] for path in (*train, *test)], None)
    listed = [(str(path), number) for path, number in zip((*train, *test), numbers, strict=True)]
    cut = len(train)
    source = image_source(name, folder, listed[:cut], listed[cut:], class_names, image_size, class_order=UNNAMED)
    return replace(source, left_out=left_out)


def _rows(table: Path) -> Iterator[dict[str, Any]]:
    with open(table, "rb", opener=regular) as stream:
        lines = stream.read().decode("utf-8-sig").splitlines()
    if table.suffix == ".csv":
        yield from csv.DictReader(lines)
    else:
        yield from (dict(json.loads(line)) for line in lines if line.strip())
