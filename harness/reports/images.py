"""Distilled sets → pictures: images in natural colours under their classes, and learned labels as bars.

Figures 1 and 4 of Zhou et al., NeurIPS 2022. The paper gives the groups of figure 4 d in words alone; the rule here is
ours, and stands in every caption.
"""

from __future__ import annotations

import functools
import json
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from harness.records.record import Distilled
from harness.reports import drawing
from harness.reports.drawing import WIDTH_INCHES, drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from harness.records.artifact import Artifact

COLUMNS, SHOWN = 10, 100
"""Images in a row, and in a figure at most."""
LARGE, SMALL, LOW = "high confidence, large margin", "high confidence, small margin", "low confidence, small margin"
"""The groups of figure 4 d."""
EXAMPLES, BARS = 3, 5
"""Images shown of every group, and the largest labels shown of each."""
RULE = (
    "Low confidence: the largest label is in the lowest third of the set. Of the rest, a small margin: the two largest "
    "labels differ by less than 1/C or by less than the median of the set"
)
TITLE_CHARACTERS, TITLE_INCHES, CAPTION_INCHES = 17, 0.09, 0.1
"""Characters in a line above an image, its height, and that of a line of the caption."""


def write(distilled: Sequence[Distilled], folder: Path) -> list[Path]:
    """Draw the images of every set in ``distilled``, and the labels where they are learned, into ``folder``.

    Of sets that differ in the seed alone, the one with the lowest is drawn. Returns the paths, three for each figure.

    Raises UserError for a damaged set, where matplotlib is missing, and where the files cannot be written.
    """
    return drawing.write(_figures(distilled), folder)


def _figures(distilled: Sequence[Distilled]) -> Iterator[tuple[str, Callable[[], Figure]]]:
    from harness.records import artifact

    for each in one_seed(distilled):
        loaded = artifact.load(each.set_path)
        about = _about(each)
        yield f"images-{each.folder.name}", functools.partial(_image_figure, loaded, about)
        if is_learned(loaded.labels):
            yield f"labels-{each.folder.name}", functools.partial(_label_figure, loaded, about)


def one_seed(distilled: Sequence[Distilled]) -> list[Distilled]:
    """Those of ``distilled`` that have a set, and of sets that differ in the seed alone the one with the lowest."""
    lowest: dict[str, Distilled] = {}
    for each in distilled:
        if each.record["artifact"] is None:
            continue
        settings = {name: value for name, value in each.record["distillation"].items() if name != "seed"}
        key = json.dumps([settings, each.record["config"]], sort_keys=True)
        known = lowest.setdefault(key, each)
        if each.record["distillation"]["seed"] < known.record["distillation"]["seed"]:
            lowest[key] = each
    return list(lowest.values())


def is_learned(labels: Tensor) -> bool:
    """Whether the rows of ``labels``, (n, C), differ in more than the order of their values."""
    values = labels.sort(1).values
    return not torch.allclose(values, values[:1].expand_as(values), rtol=0, atol=1e-6)


def started_as(loaded: Artifact) -> list[int] | None:
    """The class from which every image started: sets are class-major. None where their number does not tell."""
    if len(loaded.images) % len(loaded.classes):
        return None
    return [loaded.classes[index // _ipc(loaded)] for index in range(len(loaded.images))]


def _ipc(loaded: Artifact) -> int:
    """Images per class; 1 where there are fewer. What the file says of itself need not be so."""
    return max(1, len(loaded.images) // len(loaded.classes))


def shown_images(count: int, ipc: int) -> list[int]:
    """Which of ``count`` class-major images stand in a figure: some of each class, as far as ``SHOWN`` allows."""
    each = max(1, SHOWN * ipc // count)
    return [index for index in range(count) if index % ipc < each][:SHOWN]


def grouped_labels(labels: Tensor) -> list[str]:
    """The group of every row of ``labels``, (n, C), by ``RULE``."""
    top = labels.double().topk(2, dim=1).values
    largest, margin = top[:, 0], top[:, 0] - top[:, 1]
    low = largest < torch.quantile(largest, 1 / 3)
    small = (margin < 1 / labels.shape[1]) | (margin < margin.median())
    return [LOW if is_low else SMALL if is_small else LARGE for is_low, is_small in zip(low, small, strict=True)]


def examples(labels: Tensor) -> dict[str, list[int]]:
    """Group → the rows of ``labels`` that show it best: the largest margins, the smallest, and the lowest maxima."""
    top = labels.double().topk(2, dim=1).values
    order = {LARGE: top[:, 1] - top[:, 0], SMALL: top[:, 0] - top[:, 1], LOW: top[:, 0]}
    groups = grouped_labels(labels)
    chosen = {}
    for name, key in order.items():
        members = [row for row, group in enumerate(groups) if group == name]
        chosen[name] = sorted(members, key=lambda row, key=key: (float(key[row]), row))[:EXAMPLES]  # type: ignore[misc]
    return chosen


def _about(each: Distilled) -> str:
    asked = each.record["distillation"]
    steps = "" if each.record["steps"] is None else f", {each.record['steps']} steps"
    return (
        f"{asked['method']} on {asked['dataset']}, {asked['ipc']} image{'s' if asked['ipc'] > 1 else ''} per class, "
        f"{asked['network']} of width {asked['width']}{steps}, seed {asked['seed']}"
    )


def _pixels(loaded: Artifact) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """(n, H, W, 3) in [0, 1]."""
    images = loaded.natural_images().float().permute(0, 2, 3, 1)
    return images.expand(-1, -1, -1, 3).numpy()


def _image_figure(loaded: Artifact, about: str) -> Figure:
    from matplotlib.figure import Figure

    shown = shown_images(len(loaded.images), _ipc(loaded))
    starts, largest = started_as(loaded), loaded.hard_labels.tolist()
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    moved = starts is not None and any(starts[index] != largest[index] for index in shown)
    words = [about, f"{len(shown)} of {len(loaded.images)} images, without their preprocessing, cut to [0, 1]"]
    words.append("Above an image: the class of its largest label" + moved * ", and where it started from another, that")
    caption = textwrap.wrap(drawn(" ".join(f"{text}." for text in words)), drawing.FOOTER_CHARACTERS)
    cell = WIDTH_INCHES / COLUMNS
    title = TITLE_INCHES * (1 + moved)
    height = rows * (cell + title) + CAPTION_INCHES * len(caption) + 0.1
    figure = Figure(figsize=(WIDTH_INCHES, height))
    pixels = _pixels(loaded)
    for place, index in enumerate(shown):
        left = place % columns * cell
        bottom = height - (place // columns + 1) * (cell + title)
        _show(figure, pixels[index], (left + 0.02, bottom, cell - 0.04, cell - 0.04))
        names = [_short(loaded.class_names[largest[index]])]
        if starts is not None and starts[index] != largest[index]:
            names.append(_short(f"from {loaded.class_names[starts[index]]}"))
        middle, above = (left + cell / 2) / WIDTH_INCHES, (bottom + cell - 0.03) / height
        figure.text(middle, above, "\n".join(names), size=4.5, ha="center", va="bottom", linespacing=1.1)
    _caption(figure, caption)
    return figure


def _label_figure(loaded: Artifact, about: str) -> Figure:
    from matplotlib.figure import Figure

    chosen = examples(loaded.labels)
    starts = started_as(loaded)
    units = {"centred": "regression targets, centred at 0", "weighted": "probabilities times the weight of the image"}
    unit = units.get(loaded.label_space, "probabilities")
    groups = grouped_labels(loaded.labels)
    counted = ", ".join(f"{groups.count(name)} {name}" for name in chosen)
    words = [f"Learned labels ({unit}) of {about}", RULE, f"Images: {counted}", f"Bars: the {BARS} largest labels"]
    caption = textwrap.wrap(drawn(" ".join(f"{text}." for text in words)), drawing.FOOTER_CHARACTERS)
    row, head, width = 0.95, 0.3, WIDTH_INCHES / len(chosen)
    rows = max(map(len, chosen.values()))
    height = head + rows * row + CAPTION_INCHES * len(caption) + 0.1
    figure = Figure(figsize=(WIDTH_INCHES, height))
    pixels, highest = _pixels(loaded), float(loaded.labels.max())
    lowest = min(0.0, float(loaded.labels.topk(min(BARS, loaded.labels.shape[1]), dim=1).values.min()))
    for column, (name, members) in enumerate(chosen.items()):
        left = column * width
        figure.text((left + width / 2) / WIDTH_INCHES, 1 - 0.12 / height, name, size=6.5, ha="center", va="center")
        for line, index in enumerate(members):
            bottom = height - head - (line + 1) * row
            _show(figure, pixels[index], (left + 0.05, bottom + 0.2, 0.6, 0.6))
            if starts is not None:
                start = _short(f"from {loaded.class_names[starts[index]]}")
                figure.text((left + 0.35) / WIDTH_INCHES, (bottom + 0.11) / height, start, size=4.5, ha="center")
            box = (left + 1.15, bottom + 0.2, width - 1.25, row - 0.3)
            axes = figure.add_axes(_relative(figure, box))
            values, classes = loaded.labels[index].float().topk(min(BARS, loaded.labels.shape[1]))
            names = [drawn(textwrap.shorten(loaded.class_names[k], 13, placeholder="…")) for k in classes.tolist()]
            axes.barh(range(len(names)), values.tolist(), height=0.7, color="#0173b2")
            axes.set_yticks(range(len(names)), names, size=4.5)
            axes.invert_yaxis()
            axes.set_xlim(lowest, highest * 1.05)
            axes.tick_params(axis="x", labelsize=4.5)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
    _caption(figure, caption)
    return figure


def _show(figure: Figure, image: np.ndarray[tuple[int, ...], np.dtype[np.float32]], inches: Sequence[float]) -> None:
    """Draw ``image`` (H, W, 3) into the box ``inches``: left, bottom, width, height."""
    axes = figure.add_axes(_relative(figure, inches))
    axes.imshow(image, interpolation="nearest")
    axes.set_axis_off()


def _relative(figure: Figure, inches: Sequence[float]) -> tuple[float, float, float, float]:
    width, height = figure.get_size_inches()
    left, bottom, across, up = inches
    return left / width, bottom / height, across / width, up / height


def _caption(figure: Figure, lines: Sequence[str]) -> None:
    height = figure.get_size_inches()[1]
    figure.text(0.008, 0.04 / height, "\n".join(lines), size=5.5, color="0.35", linespacing=1.3)


def _short(name: str) -> str:
    return drawn(textwrap.shorten(name, TITLE_CHARACTERS, placeholder="…"))
