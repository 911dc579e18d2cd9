"""Sets of pictures: a folder for each class, and beside them the table of `harness.exports.imagefolder`."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.data.image_files import decoded, labelled, passed_over
from benchmarks.errors import UserError
from harness.records.record import SET

TABLE, FACTS = "labels.csv", "export.json"
COLUMNS = ("file", "class", "low", "high")
"""Columns of the table before those of the labels, of which there is one per class. A level v of a picture stands for
low + (high − low)·v/255."""


@dataclass(frozen=True)
class Pictures:
    """The content of a folder."""

    images: Tensor
    """(n, C, H, W) float32: pixels of [0, 1], or beyond where the table has another range."""
    labels: Tensor
    """(n,) label numbers, or (n, classes)."""
    class_names: tuple[str, ...] | None
    """Label number → name of the class; None: the folders have numbers alone."""
    label_space: str | None
    lr: Tensor | None
    sha256: str
    """Of all files that were read, and their names."""


def holds_pictures(folder: Path) -> bool:
    """Whether there is a picture in a folder in ``folder``, as in a set with a folder for each class.

    The picture beside a set of this suite is none.
    """
    below = (place for place in folder.iterdir() if place.is_dir() and not passed_over(place.name))
    below = (place for place in below if not (place / SET).exists())
    return any(file.suffix.lower() in (".png", ".jpg", ".jpeg") for place in below for file in place.iterdir())


def read(folder: Path) -> Pictures:
    """The set in ``folder``. Raises UserError where it is none, and where its table does not fit it."""
    if not holds_pictures(folder):
        raise UserError(f"{folder} holds neither records of this suite nor pictures in a folder for each class")
    (((files, names),), _) = labelled(folder)
    paths = [file for file, _ in files]
    shown = [Path(path).relative_to(folder).as_posix() for path in paths]
    images = decoded(str(folder), {path: path for path in paths}, None).float() / 255
    digest = hashlib.sha256()
    beside = [place for name in (TABLE, FACTS) if (place := folder / name).is_file()]
    for place in (*map(Path, paths), *beside):
        content = place.read_bytes()
        name = os.fsencode(place.relative_to(folder).as_posix())  # which need not be text
        digest.update(b"%b\0%d\0%b" % (name, len(content), content))
    facts = _facts(folder / FACTS)
    rate = None if facts.get("lr") is None else torch.tensor(facts["lr"], dtype=torch.float32)
    if (folder / TABLE).is_file():
        low, high, labels = _table(folder / TABLE, shown)
        images = low + (high - low) * images
        named = tuple(facts["class_names"]) if "class_names" in facts else None
        return Pictures(images, labels, named, facts.get("label_space"), rate, digest.hexdigest())
    numbers, named = _numbered(names)
    return Pictures(images, torch.tensor([numbers[index] for _, index in files]), named, None, rate, digest.hexdigest())


def _numbered(names: Sequence[str]) -> tuple[Sequence[int], tuple[str, ...] | None]:
    """The label number of every folder in ``names``, and what the numbers are called where folders are not numbered.

    Numbered are 00000, class7 or new012, where all numbers are there from 0.
    """
    found = [re.fullmatch(r"\D*(\d+)", name) for name in names]
    numbers = [int(each[1]) if each else -1 for each in found]
    if sorted(numbers) == list(range(len(names))):
        return numbers, None
    return range(len(names)), tuple(names)


def _facts(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        names, lr = facts.get("class_names", []), facts.get("lr")
        rates = lr if isinstance(lr, list) else [] if lr is None else [lr]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("class_names is no list of texts")
        if facts.get("label_space") not in (None, *_SPACES):
            raise TypeError(f"label_space is none of {', '.join(_SPACES)}")
        if not all(type(rate) in (int, float) for rate in rates) or lr == []:
            raise TypeError("lr is neither a number nor a list of numbers")
        torch.tensor(rates, dtype=torch.float32)  # which a whole number may be too large for
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise UserError(f"{path} is damaged ({first}): remove it, and say what it told") from error
    return dict(facts)


_SPACES = ("probability", "weighted", "centred")


def _table(path: Path, files: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Low and high (n, 1, 1, 1) and labels (n, classes) of ``files``. Raises UserError where they are not all there."""
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            head, *rows = (row for row in csv.reader(stream) if row)  # editors leave empty lines
        if tuple(head[:4]) != COLUMNS or len(head) == len(COLUMNS):
            raise UserError(f"{path}: the first columns must be {', '.join(COLUMNS)}, and then those of the labels")
        if any(len(row) != len(head) for row in rows):
            raise ValueError("a row has more or fewer columns than the first")
        values = {row[0]: [float(cell) for cell in row[2:]] for row in rows}
        table = torch.tensor([values[file] for file in files], dtype=torch.float32)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{path} has no row for {error.args[0]}") from error
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if len(values) != len(files) or len(rows) != len(files):
        raise UserError(f"{path} has {len(rows)} rows, and there are {len(files)} pictures")
    low, high = (column.view(-1, 1, 1, 1) for column in table[:, :2].unbind(1))
    return low, high, table[:, 2:]
