"""What every format is given, and what several share."""

from __future__ import annotations

import functools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor

from benchmarks.errors import UserError
from harness.records.artifact import Artifact
from harness.records.record import Record
from methods.base import Synthetic

Range = Literal["clip", "fit"]
"""How pixels outside [0, 1] get into 8 bits: they are clipped, or every image is stretched from its own darkest to its
own brightest pixel."""
ROUNDING = 1 / 510
"""Pixels nearer to [0, 1] than this lose no more to clipping than to 8 bits."""


@dataclass(frozen=True)
class Source:
    """A distilled set that is to be written in another format."""

    path: Path
    """Its file."""
    name: str
    """What it is called: the name of its folder, or of the file where there is no record."""
    distilled: Artifact
    written: Record | None
    """The record beside it."""
    range: Range = "clip"
    """For formats with pictures."""

    @functools.cached_property
    def synthetic(self) -> Synthetic:
        """The set that networks are trained on: no other program knows the decoder."""
        return self.distilled.synthetic.decoded()

    @property
    def classes(self) -> Tensor:
        """(n,) int64: the class of every image. Learned labels may have their largest value elsewhere."""
        own = torch.tensor(self.distilled.classes)
        return own.repeat_interleave(len(self.synthetic.images) // len(own))

    @functools.cached_property
    def natural(self) -> Tensor:
        """(n, C, H, W): the images with the preprocessing undone, not clipped."""
        return self.distilled.preprocess.inverse(self.synthetic.images).float()

    @property
    def outside(self) -> float:
        """Share of the pixels that lie outside [0, 1]."""
        return float(((self.natural < -ROUNDING) | (self.natural > 1 + ROUNDING)).double().mean())

    @property
    def hard(self) -> bool:
        """Whether the labels are one-hot."""
        labels = self.synthetic.labels
        one_hot = torch.nn.functional.one_hot(self.classes, labels.shape[1]).to(labels)
        return self.synthetic.label_space == "probability" and torch.equal(labels, one_hot)

    def facts(self) -> dict[str, Any]:
        """What else one has to know to use the set, as JSON values."""
        own, lr = self.distilled, self.synthetic.lr
        return {
            "set": self.name,
            "class_names": list(own.class_names),
            "classes": list(own.classes),
            "image_shape": list(self.synthetic.images.shape),
            "label_space": self.synthetic.label_space,
            "lr": None if lr is None else lr.tolist(),
            "preprocess": {**own.preprocess.settings(), "mean": own.preprocess.mean.tolist()}
            | {"std": own.preprocess.std.tolist()},
            "distillation": dict(own.distillation),
            "config": dict(own.config),
        }


class Format(ABC):
    """A way to write a set that other programs read."""

    meaning: ClassVar[str]
    """One line for ``--help``."""
    pictures: ClassVar[bool] = False
    """Whether the set becomes 8-bit pictures alone, so that ``--range`` means something."""

    @abstractmethod
    def write(self, source: Source, folder: Path) -> list[str]:
        """Write ``source`` into the empty ``folder``.

        Returns lines for the user: what the format loses, and what to do next. Raises UserError, with the reason, where
        the format cannot express the set.
        """


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def picture(image: Tensor) -> Image.Image:
    """The 8-bit picture of an image (C, H, W) in [0, 1]; values outside are clipped."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).numpy())


def write_pictures(images: Tensor, classes: Tensor, folders: Sequence[str], into: Path) -> list[str]:
    """Write images (n, C, H, W) in [0, 1] as ``FOLDER/00000.png``, counted in each class.

    ``classes``: (n,). ``folders``: class → its folder. Returns the paths relative to ``into``.
    """
    written, counts = [], dict.fromkeys(classes.tolist(), 0)
    for image, index in zip(images, classes.tolist(), strict=True):
        path = into / folders[index] / f"{counts[index]:05d}.png"
        path.parent.mkdir(exist_ok=True)
        picture(image).save(path)
        counts[index] += 1
        written.append(path.relative_to(into).as_posix())
    return written


def class_folders(class_names: Sequence[str]) -> list[str]:
    """A folder for each class whose sorted order is that of the classes, safe on every file system."""
    digits = len(str(len(class_names) - 1))
    return [f"{i:0{digits}d}_{re.sub(r'[^A-Za-z0-9-]+', '_', name)[:60]}" for i, name in enumerate(class_names)]


def preprocess_tensors(source: Source) -> dict[str, Tensor]:
    """Name → tensor of what real images must go through, without what only undoes it."""
    return {name: tensor for name, tensor in source.distilled.preprocess.tensors().items() if name != "zca_restore"}


def numbers(tensor: Tensor) -> Tensor:
    """``tensor`` in a type that every program knows."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).contiguous()


def installed(module: str, extra: str) -> None:
    """Raises UserError where ``module`` is not installed, which ``extra`` of this package brings."""
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise UserError(f"this needs the package {module}: pip install 'frepo-bench[{extra}]'")
