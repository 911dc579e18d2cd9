"""Pictures by class, which every program reads, with the labels in a table beside them."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from harness.exports.base import Format, Source, class_folders, write_pictures
from harness.records.picture_folders import COLUMNS, TABLE


class ImageFolder(Format):
    """``CLASS/00000.png``, and ``labels.csv`` with the labels and the range of every picture.

    A level v of a picture stands for low + (high − low)·v/255, in pixels of [0, 1] before any preprocessing: by
    ``--range clip`` low and high are 0 and 1, by ``--range fit`` those of the image.
    """

    meaning = "PNGs by class, and a table of labels (8 bits: see --range)"
    pictures = True

    def write(self, source: Source, folder: Path) -> list[str]:
        natural, labels = source.natural, source.synthetic.labels.float()
        low, high = torch.zeros(len(natural)), torch.ones(len(natural))
        if source.range == "fit":
            low, high = natural.flatten(1).amin(1), natural.flatten(1).amax(1)
            high = torch.where(high > low, high, low + 1)
        span = (high - low)[:, None, None, None]
        scaled = (natural - low[:, None, None, None]) / span
        names = source.distilled.class_names
        files = write_pictures(scaled, source.classes, class_folders(names), folder)
        with open(folder / TABLE, "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow([*COLUMNS, *(f"label_{index}" for index in range(len(names)))])
            for path, index, *numbers in zip(
                files, source.classes.tolist(), low.tolist(), high.tolist(), labels.tolist(), strict=True
            ):
                values = [*numbers[:2], *numbers[2]]
                table.writerow([path, index, *(f"{value:.9g}" for value in values)])  # float32 to the bit
        if source.range == "fit":
            return [
                f"{source.outside:.1%} of the pixels lie outside [0, 1]. Every image is stretched into 8 bits, in "
                f"steps of up to {float(span.max()) / 255:.2g}; {TABLE} has its range, to undo that."
            ]
        clipped = "no pixel is clipped" if not source.outside else f"{source.outside:.1%} of the pixels are clipped"
        return [f"{clipped} to [0, 1], and the rest is rounded by at most {1 / 510:.2g}."]
