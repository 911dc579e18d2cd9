"""A distilled set on disk, with everything that is needed to use it.

One ``.safetensors`` file holds the images, the labels, the learned step size and the preprocessing with its matrices;
what is no tensor stands in one JSON entry of its header. Nothing in it tells time, host, path or command, so that the
same run gives the same bytes. A PNG beside it shows the images in natural colours.

    from harness.records.artifact import load
    distilled = load("frepo.safetensors")
    train_set, transform = distilled.dataset, distilled.transform
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import safetensors
import safetensors.torch
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.data import TensorDataset

from benchmarks import PREPROCESSINGS
from benchmarks.datasets import Benchmark, cover
from benchmarks.errors import UserError, printable
from benchmarks.files import replacing
from benchmarks.networks import NetworkSpec
from benchmarks.pictures import upright
from benchmarks.preprocess import Preprocess
from methods.base import LabelSpace, Synthetic

SCHEMA, DECODED_SCHEMA = 2, 3
"""Schemas: images are used as they are; images are decoded, which a reader that knows no decoder refuses."""
FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
"""Types of the images and labels of a set."""
_HEADER = "frepo_bench"
"""The one entry of the header: with several, safetensors writes them in an order that changes from run to run."""
_FACTOR = " factor "
"""Between label space and factor in the entry of a snapshot with a decoder."""
_PREPROCESS = "preprocess."
"""Prefix of the tensors of the preprocessing."""
ROUNDING = 1e-3
"""How far outside [0, 1] an image may lie: resizing in float16 or float32 rounds."""


class NewerSet(UserError):
    """A set that a later version of the suite wrote."""


@dataclass(frozen=True)
class Transform:
    """From an image as one has it to the space of the distilled images.

    Takes a PIL image, or a tensor (C, H, W) or (N, C, H, W), uint8 or floating point in [0, 1]; gives a tensor of the
    same shape, (C, H, W) for a PIL image, in the dtype of the distilled images. PIL images are turned upright and made
    opaque as in image folders, converted to the set's number of channels, resized to cover its image size and cut from
    the centre; a tensor must have both. Fits torchvision's ``transform=`` and survives pickling.

    Raises UserError for an image of another shape or type (numpy arrays, whole numbers that are not uint8, PIL images
    of more than 8 bits per channel), and for floating point values that are not finite or outside [0, 1].
    """

    preprocess: Preprocess
    channels: int
    image_size: tuple[int, int]
    """(height, width) in pixels."""

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        if isinstance(image, Image.Image):
            pixels = self._pixels(image)
        elif isinstance(image, Tensor) and image.layout == torch.strided and not image.is_meta:
            pixels = image
        else:
            kind = type(image).__name__
            if isinstance(image, Tensor):
                kind = f"{'empty' if image.is_meta else image.layout} tensor"
            raise UserError(f"this takes a PIL image (Image.fromarray) or a plain tensor (C, H, W), and not: {kind}")
        expected = (self.channels, *self.image_size)
        if pixels.ndim not in (3, 4) or pixels.shape[-3:] != expected:
            raise UserError(f"an image of shape {tuple(pixels.shape)} does not fit this set; it takes {expected}")
        if pixels.is_floating_point() and pixels.numel():
            low, high = pixels.float().aminmax()
            if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # nor where they are NaN
                raise UserError(
                    f"floating point images must lie in [0, 1], and go from {float(low):.4g} to {float(high):.4g}: "
                    "divide by 255, and do not normalise them before"
                )
        batch = pixels if pixels.ndim == 4 else pixels[None]
        result = self.preprocess.forward(batch)
        return result if pixels.ndim == 4 else result[0]

    def _pixels(self, image: Image.Image) -> Tensor:
        """(C, H, W) uint8."""
        height, width = self.image_size
        image = upright(image).convert("L" if self.channels == 1 else "RGB")
        if image.size != (width, height):
            image = cover(image, height, width)
        return torch.from_numpy(np.array(image)).reshape(height, width, self.channels).permute(2, 0, 1)


@dataclass(frozen=True)
class Artifact:
    """A distilled set as ``load`` gives it, on the CPU."""

    images: Tensor
    """(n, C, H, W): ipc images of each of ``classes``, class-major, preprocessed: train on them as they are, where
    ``factor`` is 1, and else on ``dataset``."""
    labels: Tensor
    """(n, num_classes), one-hot, soft or regression targets: see ``label_space``."""
    label_space: LabelSpace
    """``probability``: cross entropy or squared error. ``centred`` (one-hot − 1/C, as FRePo learns): squared error."""
    lr: Tensor | None
    """The learned step size of SGD, where the method learns it."""
    class_names: tuple[str, ...]
    classes: tuple[int, ...]
    """The classes that have images, ascending: all, or those of a view of the data set."""
    preprocess: Preprocess
    network: NetworkSpec
    """The network that distilled."""
    distillation: Mapping[str, Any]
    """Method, data set and its fingerprint, ipc, seed, steps and whatever else determined the set."""
    config: Mapping[str, Any]
    """The method's hyper-parameters, resolved."""
    factor: int = 1
    """The decoder: each of ``images`` holds factor × factor smaller ones (`benchmarks.decoder`)."""

    @property
    def synthetic(self) -> Synthetic:
        """The set as a method gives it."""
        return Synthetic(self.images, self.labels, self.label_space, self.lr, self.factor)

    @property
    def dataset(self) -> TensorDataset:
        """(image, label) pairs for anyone's own DataLoader, decoded."""
        decoded = self.synthetic.decoded()
        return TensorDataset(decoded.images, decoded.labels)

    @property
    def hard_labels(self) -> Tensor:
        """(n,) int64: the class with the largest label, of each of ``images``."""
        return self.labels.argmax(dim=1)

    @property
    def transform(self) -> Transform:
        """Preprocessing of real images for a network that was trained on this set."""
        channels, height, width = self.images.shape[1:]
        return Transform(self.preprocess, channels, (height, width))

    def natural_images(self) -> Tensor:
        """``images`` with the preprocessing undone, clamped to [0, 1]: for eyes, not for training."""
        return self.preprocess.inverse(self.images).clamp(0, 1)


def save(
    path: Path,
    synthetic: Synthetic,
    benchmark: Benchmark,
    *,
    distillation: Mapping[str, Any],
    config: Mapping[str, Any],
) -> str:
    """Write ``synthetic`` to ``path`` (``.safetensors``) and a picture of it beside (``.png``), each in one go.

    ``distillation`` and ``config``: what determined the set, JSON values only.
    Returns the SHA-256 of the ``.safetensors``.
    """
    preprocess = benchmark.preprocess.to("cpu", synthetic.images.dtype)
    tensors = _tensors(synthetic) | {_PREPROCESS + name: t for name, t in preprocess.tensors().items()}
    header: dict[str, Any] = {
        "schema": SCHEMA if synthetic.factor == 1 else DECODED_SCHEMA,
        "label_space": synthetic.label_space,
        "class_names": list(benchmark.class_names),
        "preprocess": preprocess.settings(),
        "network": asdict(benchmark.spec),
        "distillation": dict(distillation),
        "config": dict(config),
    }
    classes = benchmark.task.classes
    if len(classes) < len(benchmark.class_names):
        header["classes"] = list(classes)
    if synthetic.factor != 1:
        header["decoder"] = {"name": "idc", "factor": synthetic.factor}
    digest = _write(path, tensors, json.dumps(header, sort_keys=True, ensure_ascii=False, allow_nan=False))
    natural = preprocess.inverse(synthetic.images.detach().cpu()).clamp(0, 1)
    with replacing(path.with_suffix(".png")) as temporary:
        picture(natural, benchmark.class_names, classes).save(temporary, format="PNG")
    return digest


def load(path: str | Path) -> Artifact:
    """Read a distilled set.

    Raises UserError, one line, for a file that is missing, damaged or not written by ``save``.
    """
    header, tensors = _read(Path(path))
    try:
        settings = json.loads(header)
        if settings["schema"] > DECODED_SCHEMA:
            raise NewerSet(f"{path} was written by a newer version of this suite (schema {settings['schema']})")
        return _decode(settings, tensors)
    except NewerSet:
        raise
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # JSON may be nested deeply, and tensors may not fit each other
        first = next(iter(str(error).splitlines()), "")
        raise UserError(f"{path} is damaged: {type(error).__name__}: {first}") from error


def lost(path: Path, sha256: str) -> str | None:
    """Why the set in ``path`` is not the one that was written, in words; None: it is. ``sha256``: as it was written."""
    if not path.is_file():
        return f"its set {path.name} is missing"
    try:
        with open(path, "rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError as error:
        return f"its set {path.name} cannot be read: {error.strerror}"
    return None if same else f"its set {path.name} is not as it was written"


def save_snapshot(path: Path, synthetic: Synthetic) -> str:
    """Write the tensors of ``synthetic`` and how they are used. Returns the SHA-256 of the file."""
    factor = "" if synthetic.factor == 1 else f"{_FACTOR}{synthetic.factor}"
    return _write(path, _tensors(synthetic), synthetic.label_space + factor)


def load_snapshot(path: Path) -> Synthetic:
    """Read what `save_snapshot` wrote, on the CPU. Raises UserError where the file is missing or damaged."""
    entry, tensors = _read(path)
    space, _, factor = entry.partition(_FACTOR)
    if not {"images", "labels"} <= tensors.keys():
        raise UserError(f"{path} is damaged: it has no images or no labels")
    if factor and not factor.isdecimal():
        raise UserError(f"{path} is damaged: the factor of its decoder is {factor!r}")
    lr = tensors.get("lr")
    return Synthetic(tensors["images"], tensors["labels"], cast(LabelSpace, space), lr, int(factor or 1))


def _tensors(synthetic: Synthetic) -> dict[str, Tensor]:
    step_size = {} if synthetic.lr is None else {"lr": synthetic.lr}
    return {"images": synthetic.images, "labels": synthetic.labels, **step_size}


def _write(path: Path, tensors: Mapping[str, Tensor], entry: str) -> str:
    """Write a file whose header has one ``entry``. Returns the SHA-256 of its bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(plain, metadata={_HEADER: entry})
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The entry in the header, and the tensors. Raises UserError where `_write` did not write this."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: the set of a distillation is the file set.safetensors in its folder")
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            entry = (file.metadata() or {}).get(_HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged or no .safetensors file: {error}") from error
    if entry is None:
        raise UserError(f"{path} is a .safetensors file, but not a distilled set of this suite")
    return entry, tensors


def _decode(header: dict[str, Any], tensors: dict[str, Tensor]) -> Artifact:
    if header["schema"] not in (SCHEMA, DECODED_SCHEMA):
        raise ValueError(f"schema {header['schema']!r}, and this version reads {SCHEMA} and {DECODED_SCHEMA}")
    if header["label_space"] not in get_args(LabelSpace):
        raise ValueError(f"labels are {header['label_space']!r}, which is none of {', '.join(get_args(LabelSpace))}")
    names = header["class_names"]
    if not (isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names)):
        raise TypeError("class_names is no list of names")
    classes = header.get("classes", range(len(names)))
    if not classes or not all(type(c) is int and 0 <= c < len(names) for c in classes):
        raise ValueError(f"classes are {classes!r}, and there are {len(names)}")
    if not (isinstance(header["distillation"], dict) and isinstance(header["config"], dict)):
        raise TypeError("distillation or config is no mapping")
    images, labels, lr = tensors["images"], tensors["labels"], tensors.get("lr")
    if not all(tensor is None or tensor.dtype in FLOATS for tensor in (images, labels, lr)):
        raise TypeError("images, labels or lr are no floating point numbers")
    pictures = images.ndim == 4 and images.shape[1] in (1, 3) and images.numel()
    if not pictures or labels.shape != (len(images), len(names)):
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in (images, labels))
        raise ValueError(f"images and labels have the shapes {shapes}, for {len(names)} classes")
    if lr is not None and not lr.numel():
        raise ValueError("lr is empty")
    decoder = {"name": "idc", "factor": 1} if header["schema"] == SCHEMA else header["decoder"]
    factor = decoder["factor"]
    if decoder["name"] != "idc" or type(factor) is not int or not 1 <= factor <= min(images.shape[2:]):
        raise ValueError(f"the decoder {decoder!r} does not fit images of {tuple(images.shape[2:])} pixels")
    if header["preprocess"]["name"] not in PREPROCESSINGS:
        raise ValueError(f"preprocessing {header['preprocess']['name']!r} is none of {', '.join(PREPROCESSINGS)}")
    preprocess = Preprocess.rebuild(
        {name.removeprefix(_PREPROCESS): t for name, t in tensors.items() if name.startswith(_PREPROCESS)},
        header["preprocess"],
    )
    preprocess.forward(preprocess.inverse(images[:1]))  # fails where its parts do not fit each other or the images
    size = header["network"].pop("image_size")
    return Artifact(
        images=images,
        labels=labels,
        label_space=header["label_space"],
        lr=lr,
        class_names=tuple(names),
        classes=tuple(classes),
        preprocess=preprocess,
        network=NetworkSpec(image_size=(size[0], size[1]), **header["network"]),
        distillation=header["distillation"],
        config=header["config"],
        factor=factor,
    )


FONT_SIZE, LINE, LABEL_WIDTH, GAP = 11, 15, 160, 2
"""Sizes in pictures, in pixels: letters, a line of them, the widest label of a row, and the white between images."""


def picture(images: Tensor, class_names: Sequence[str], classes: Sequence[int] | None = None) -> Image.Image:
    """Images (N, C, H, W) in [0, 1], class-major, on a white grid with the names of their ``classes`` (None: all).

    A row for each class, its name before it, and a column for each of its images. With one image per class, the classes
    in reading order, the name below each image. Small images are enlarged to about 64 pixels.
    """
    count, channels, height, width = images.shape
    classes = range(len(class_names)) if classes is None else classes
    ipc = count // len(classes)
    columns = ipc if ipc > 1 else math.ceil(math.sqrt(count))
    scale = max(1, 64 // max(height, width))
    step_y, step_x = height * scale + GAP, width * scale + GAP
    font = ImageFont.load_default(FONT_SIZE)
    if ipc > 1:
        names = [_label(c, class_names[c], font, LABEL_WIDTH) for c in classes]
        left = math.ceil(max(map(font.getlength, names))) + 3 * GAP
    else:
        names = [_label(c, class_names[c], font, width * scale) for c in classes]
        left, step_y = GAP, step_y + LINE
    rows = math.ceil(count / columns)
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    canvas = np.full((rows * step_y + GAP, left + columns * step_x, channels), 255, dtype=np.uint8)
    for i, image in enumerate(pixels):
        top, begin = GAP + i // columns * step_y, left + i % columns * step_x
        canvas[top : top + height * scale, begin : begin + width * scale] = image.repeat(scale, 0).repeat(scale, 1)
    drawn = Image.fromarray(cast(Any, canvas.squeeze(2) if channels == 1 else canvas))
    pen = ImageDraw.Draw(drawn)
    black = 0 if channels == 1 else (0, 0, 0)
    for i, name in enumerate(names):
        if ipc > 1:
            x, y, anchor = left - 2.0 * GAP, GAP + i * step_y + height * scale / 2, "rm"
        else:
            x, y, anchor = left + (i % columns + 0.5) * step_x - GAP / 2, (i // columns + 1) * step_y - LINE, "ma"
        pen.text((x, y), name, fill=black, font=font, anchor=anchor)
    return drawn


def _label(index: int, name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """``name`` without accents, as far as it fits into ``width`` pixels.

    The number of the class where ``font``, which knows little more than ASCII, lacks a letter.
    """
    text = "".join(c for c in unicodedata.normalize("NFKD", printable(name)) if not unicodedata.combining(c))
    missing = bytes(font.getmask("\U0010ffff"))
    if any(bytes(font.getmask(letter)) == missing for letter in text):
        text = f"class {index}"
    if font.getlength(text) <= width:
        return text
    fitting = [text[:end].rstrip() + "…" for end in range(len(text)) if font.getlength(text[:end] + "…") <= width]
    return fitting[-1] if fitting else ""
