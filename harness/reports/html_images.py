"""Distilled sets in a page: a small picture of each, by class, with what its labels say.

A page has room for some millions of letters, so it shows as many classes and images of each set as fit. Which those
are is the same for all sets, and the page says how many there are.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.errors import UserError, printable
from harness.records.record import Distilled
from harness.reports.groups import Group

if TYPE_CHECKING:
    from harness.records.artifact import Artifact

LETTERS = 2_800_000
"""Of all pictures together."""
SIDE = 64
"""Pixels of the longer side; larger images are made smaller."""
LEVELS = ((10, 10), (10, 5), (10, 3), (10, 2), (10, 1), (8, 1), (6, 1), (4, 1), (2, 1), (1, 1))
"""Classes of a set, and images of a class, that may be shown: as many as there is room for."""
HEAD = 1200
"""Letters of a picture beside those of its pixels: the palette."""
TOLD = 3
"""Classes that are named of a label that is not of one class."""


@dataclass(frozen=True)
class Sheet:
    """A set: ``rows`` classes from top to bottom, ``columns`` images of each."""

    method: str
    title: str
    record: int
    """Place of the distillation among those of the page."""
    picture: str
    """PNG, as an address of the scheme ``data``."""
    rows: int
    columns: int
    labels: str
    """JSON: a text for each image, row by row."""


@dataclass(frozen=True)
class Block:
    """The sets of one data set and number of images per class, beside each other."""

    title: str
    classes: tuple[str, ...]
    """Names of the rows."""
    shown: str
    """How many there are, and how many are shown."""
    sheets: tuple[Sheet, ...]


@dataclass(frozen=True)
class Images:
    """The sets of a page."""

    blocks: tuple[Block, ...]
    missing: tuple[tuple[str, str], ...]
    """(set, why it is not shown)."""
    coarse: bool
    """Whether the pictures have fewer colours than the images."""
    left_out: int
    """Sets for which there was no room."""


@dataclass(frozen=True)
class _Set:
    """The part of a set that may be shown."""

    group: Group
    record: int
    pixels: Any
    """uint8 (classes, images, H, W, C), C is 1 or 3."""
    names: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    classes: int
    """There are in the set."""
    ipc: int


def images(groups: Sequence[Group], folders: Sequence[Distilled], told: Callable[[Group], str]) -> Images:
    """Pictures of one set for each of ``groups`` whose distillations lie in ``folders``; ``told``: its title."""
    places = {id(folder.record): place for place, folder in enumerate(folders)}
    sets, missing, seen = list[_Set](), dict[str, str](), set[int]()
    for group in groups:
        ended = [places[id(record)] for record in group.records if record["artifact"] and record["status"] == "ok"]
        if not ended or group.ceiling or seen & set(ended):
            continue
        seen.update(ended)
        for place in ended:  # the first seed whose file is there
            try:
                sets.append(_read(group, place, folders[place]))
                break
            except UserError as error:
                missing.setdefault(f"{_task(group)}, {told(group)}", printable(str(error)))
    level, coarse = _room(sets)
    blocks: dict[tuple[Any, ...], list[_Set]] = {}
    left, left_out = float(LETTERS), 0
    for each in sets:
        left -= _letters(each, level, coarse)
        if left < 0:
            left_out += 1
            continue
        blocks.setdefault(each.group.contest, []).append(each)
    made = tuple(_block(same, level, coarse, told) for same in blocks.values())
    return Images(made, tuple(missing.items()), coarse and any(s.pixels.shape[-1] == 3 for s in sets), left_out)


def _task(group: Group) -> str:
    asked = group.distillation
    return f"{asked['dataset']}, {asked['ipc']} image{'s' if asked['ipc'] > 1 else ''} per class"


def _room(sets: Sequence[_Set]) -> tuple[tuple[int, int], bool]:
    """As many images as there is room for, rather with fewer colours than fewer than ten classes."""
    choices = [(level, False) for level in LEVELS if level[0] == LEVELS[0][0]] + [(level, True) for level in LEVELS]
    fitting = (choice for choice in choices if sum(_letters(each, *choice) for each in sets) <= LETTERS)
    return next(fitting, choices[-1])


def _letters(each: _Set, level: tuple[int, int], coarse: bool) -> float:
    rows, columns = (min(most, there) for most, there in zip(level, each.pixels.shape[:2], strict=True))
    height, width, channels = each.pixels.shape[2:]
    return HEAD + float(rows * columns * (height * width * (1 if coarse else channels) * 4 / 3 + 60))


def _read(group: Group, place: int, folder: Distilled) -> _Set:
    """Raises UserError where the file of the set is not there or not as it was written."""
    import torch
    from PIL import Image

    from harness.records.artifact import load, lost

    assert folder.record["artifact"]
    if problem := lost(folder.set_path, folder.record["artifact"]["sha256"]):
        raise UserError(problem)
    artifact = load(folder.set_path)
    count, ipc = len(artifact.images), max(1, int(group.distillation["ipc"]))
    classes = count // ipc
    if not classes or classes * ipc != count or artifact.images.ndim != 4:
        raise UserError(f"its set has {count} images, which are not {ipc} for each class")
    if artifact.labels.ndim != 2 or len(artifact.labels) != count or not artifact.labels.shape[1]:
        raise UserError(f"its set has labels of shape {tuple(artifact.labels.shape)} for {count} images")
    rows, columns = min(LEVELS[0][0], classes), min(LEVELS[0][1], ipc)
    chosen = [row * ipc + column for row in range(rows) for column in range(columns)]
    natural = artifact.preprocess.inverse(artifact.images[chosen]).clamp(0, 1).nan_to_num()
    if natural.shape[1] != 3:
        natural = natural.mean(1, keepdim=True)
    scale = min(1.0, SIDE / max(natural.shape[2:]))
    pixels = (natural * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    if scale < 1:
        import numpy as np

        height, width = (max(1, round(side * scale)) for side in natural.shape[2:])
        small = [
            Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).resize((width, height))
            for image in pixels
        ]
        pixels = np.stack([np.asarray(image).reshape(height, width, -1) for image in small])
    names, labels = [], []
    for row in range(rows):
        first = row * ipc
        # Learned labels may be largest at any class. Only of a set of unknown classes do they name it.
        known = classes == len(artifact.classes)
        names.append(_name(artifact, artifact.classes[row] if known else int(artifact.labels[first].argmax())))
        labels.append(
            tuple(
                f"{names[-1]}, image {column + 1} of {ipc}: {_label(artifact, first + column)}"
                for column in range(columns)
            )
        )
    shaped = pixels.reshape(rows, columns, *pixels.shape[1:])
    return _Set(group, place, shaped, tuple(names), tuple(labels), classes, ipc)


def _name(artifact: Artifact, place: int) -> str:
    names = artifact.class_names
    return printable(names[place]) if place < len(names) else f"class {place}"


def _label(artifact: Artifact, place: int) -> str:
    """The class of a label, or the largest values of one that is not of a single class."""
    label = artifact.labels[place].double()
    top = label.topk(min(TOLD, len(label)))
    values = [float(value) for value in top.values]
    if len(label) > 1 and float(label.sort().values[:-1].max() - label.min()) < 1e-6:
        return f"label {_name(artifact, int(top.indices[0]))}"
    kind = "soft label" if artifact.label_space == "probability" else f"learned label ({artifact.label_space})"
    shown = [f"{_name(artifact, int(i))}: {value:.2f}" for i, value in zip(top.indices, values, strict=True)]
    return f"{kind} {', '.join(shown)}{', …' if len(label) > len(shown) else ''}"


def _block(same: Sequence[_Set], level: tuple[int, int], coarse: bool, told: Callable[[Group], str]) -> Block:
    first = same[0]
    sheets = []
    for each in same:
        rows, columns = min(level[0], each.pixels.shape[0]), min(level[1], each.pixels.shape[1])
        labels = [label for row in each.labels[:rows] for label in row[:columns]]
        sheets.append(
            Sheet(
                each.group.method,
                told(each.group),
                each.record,
                _png(each.pixels[:rows, :columns], coarse),
                rows,
                columns,
                json.dumps(labels, ensure_ascii=False),
            )
        )
    rows, columns = max(sheet.rows for sheet in sheets), max(sheet.columns for sheet in sheets)
    names = max((each.names for each in same), key=len)[:rows]
    parts = [f"{rows} of {first.classes} classes"] if rows < first.classes else [f"all {rows} classes"]
    if first.ipc > 1:
        parts.append(f"{columns} of {first.ipc} images of each" if columns < first.ipc else "all images")
    return Block(_task(first.group), names, ", ".join(parts), tuple(sheets))


def _png(pixels: Any, coarse: bool) -> str:
    """uint8 (rows, columns, H, W, C) as the address of a picture without gaps between its images."""
    from PIL import Image

    rows, columns, height, width, channels = pixels.shape
    joined = pixels.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
    picture = Image.fromarray(joined.squeeze(2) if channels == 1 else joined)
    if coarse and channels == 3:
        picture = picture.quantize(256)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
