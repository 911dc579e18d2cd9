"""Distilled sets as others publish them → `Imported` → the `Synthetic` that the harness evaluates.

What is read, told by the content of the files and not by their names:

- DC, DSA, DM (github.com/VICO-UoE/DatasetCondensation): one ``.pt``, ``{"data": [[images, labels], …], "accs_all_exps":
  {network: [accuracy, …]}}``, an entry of ``data`` for each experiment.
- MTT (github.com/GeorgeCazenavette/mtt-distillation) and those who save as it does: a ``.pt`` with the images, one with
  the labels, and one with the learned step size where it was kept. Labels are class indices, or soft.
- IDC, DREAM, NCFM (github.com/snu-mllab/Efficient-Dataset-Condensation): one ``.pt``, ``[images, labels]``, the images
  in [0, 1] and before their decoder.
- FRePo (github.com/yongchao97/FRePo): one ``.npz`` with ``image`` and ``label``, or a checkpoint of flax.
- KIP (github.com/google-research/google-research/tree/master/kip): one ``.npz`` with ``images`` and ``labels``.
- SRe2L, RDED, D4M and whoever else publishes pictures: a folder with a folder of them for each class.
- This suite: one ``.safetensors``.

``.pt`` holds images as (n, C, H, W), ``.npz`` and flax as (n, H, W, C). Nothing in a file can run code: torch reads
tensors and numpy's scalar numbers only, numpy no objects.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.errors import UserError
from benchmarks.preprocess import Preprocess
from harness.records import artifact, flax_checkpoints, picture_folders
from harness.records.artifact import Artifact
from methods.base import LabelSpace, Synthetic

USED_BY = {
    "standardise": "FRePo on MNIST and Fashion-MNIST, KIP without ZCA",
    "standardise_vico": "DC, DSA, DM",
    "standardise_mtt": "MTT without ZCA",
    "zca_frepo": "FRePo on coloured images",
    "zca_kornia": "MTT with ZCA",
}
"""Preprocessing → whose published sets lie in its space. KIP's ZCA, which scales every image by its own norm, is none
of ours."""
OUTSIDE = 0.25
"""The images of a pair of IDC are pixels where at most this share lies outside [0, 1]: they are optimised, and need not
be clipped. Of images that are normalised or whitened about half lie below 0."""
KEYS = {"frepo": ("image", "label"), "kip": ("images", "labels")}
"""Source → names of images and labels in its ``.npz``."""
TOLERANCE = 1e-3
"""Sums of labels are rounded: in float16 by less than this. bfloat16 has a larger one of its own."""
LARGEST_TARGET = 3.0
"""Regression targets are at most 1 before they are learned, and FRePo's learned ones at most 1.8. Logits reach 10."""
LARGEST_HEADER = 1 << 16
"""Bytes of an array that are read for its header. numpy takes no header of more than 10000 letters."""
PICTURES = (b"\x89PNG", b"\xff\xd8\xff")
"""Beginnings of PNG and JPEG files."""
NUMBERS = frozenset(
    {
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    }
)
"""Types of tensors that are read."""

_SCALAR = np.float64(0).__reduce__()[0]
_ALLOWED = [
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # as numpy 1 wrote it
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64")),
]
"""Types that torch may build besides tensors: DC, DSA and DM save their accuracies as numpy scalars."""


@dataclass(frozen=True)
class Imported:
    """The content of the files of one set; whether it fits a data set is for `fitted` to find out."""

    source: str
    """Code that writes this format: one of ``harness.records.class_orders.SOURCES``, or ``own``."""
    images: Tensor
    """(n, channels, height, width). Only shape and dtype, on the device ``meta``, where there is ``arrays``."""
    labels: Tensor
    """(n,) class indices, or (n, num_classes); like ``images``."""
    lr: Tensor | None
    """The learned step size, 0-d, or one for each step."""
    files: tuple[tuple[str, str], ...]
    """Name and SHA-256 of every file."""
    experiment: int | None = None
    """Which one it is of a file that holds several …"""
    experiments: int | None = None
    """… of so many."""
    own: Artifact | None = None
    """A set of this suite, which knows all else about itself."""
    natural: bool = False
    """Whether the images are pixels in [0, 1], which are yet to be preprocessed."""
    class_names: tuple[str, ...] | None = None
    """Label number → name of the class, where the file tells; None: the numbers are all there is."""
    label_space: str | None = None
    """What the labels are, where the file tells."""
    arrays: Callable[[], tuple[Tensor, Tensor]] | None = None
    """Reads images and labels of an ``.npz``, which may be a thousand times larger than its file."""


def read(paths: Sequence[Path], *, experiment: int | None = None) -> Imported:
    """The set in ``paths``, one file or the parts of one set.

    ``experiment``: which one of a file with several; None: the first. Raises UserError, one line, for a file that is
    missing, damaged, in none of the known formats or able to run code, for parts that are missing or there twice, and
    for an experiment that is not there.
    """
    parts: dict[str, Tensor] = {}
    imported: Imported | None = None
    if len(paths) == 1 and paths[0].is_dir():
        imported = _of_pictures(paths[0])
        paths, files = [], imported.files
    else:
        files = tuple((path.name, _sha256(path)) for path in paths)
    for path in paths:
        content = _content(path)
        if isinstance(content, Tensor):
            part = _part(path, content)
            if part in parts:
                raise UserError(f"{path} is the second file with {part}: give the parts of one set")
            parts[part] = content
        elif len(paths) > 1:
            raise UserError(f"{path} is a whole set: give no other file with it")
        elif isinstance(content, Artifact):
            imported = Imported("own", content.images, content.labels, content.lr, files, own=content)
        elif isinstance(content, list):
            images, labels = content
            _expect(path, images, labels)
            natural = float(((images < 0) | (images > 1)).double().mean()) <= OUTSIDE
            imported = Imported("idc", images, labels, None, files, natural=natural)
        elif isinstance(content.get("image"), Tensor):
            images, labels = content["image"], content["label"]
            _expect(path, images, labels)
            imported = Imported("frepo", images.permute(0, 3, 1, 2), labels, None, files)
        elif "data" in content:
            imported = _of_experiments(path, content, experiment or 0, files)
        else:
            imported = _of_arrays(path, content, files)
    if imported is None:
        for part in ("images", "labels"):
            if part not in parts:
                raise UserError(f"no {part} in {', '.join(map(str, paths))}: give images_best.pt and labels_best.pt")
        lr = parts["lr"].float().squeeze() if "lr" in parts else None
        imported = Imported("mtt", parts["images"], parts["labels"], lr, files)
    if experiment is not None and imported.experiment is None:
        raise UserError(f"--experiment means nothing for {files[0][0]}, which holds one set")
    return imported


def fitted(
    imported: Imported,
    class_names: Sequence[str],
    shape: Sequence[int],
    label_space: str | None = None,
    *,
    order: Sequence[int] | None = None,
    most: int | None = None,
    present: Sequence[int] | None = None,
) -> Synthetic:
    """``imported`` as a set for a data set of these classes and (channels, height, width), on the CPU; float32.

    ``label_space`` says what labels (n, num_classes) are: ``probability``, ``centred``, or ``logits``, of which the
    softmax is taken; None: what the format or else the numbers say. ``order``: (num_classes,), label number → class of
    the data set; None: the same. ``most``: images that a set may have; None: any number. ``present``: the classes of
    which the data set has training images, and the set its own; None: all.

    Images are brought into class-major order by their largest labels. Learned labels may have the largest value
    anywhere: where the classes that they name are not equally large, the images stay in the classes of the file. A set
    of this suite changes in the ``order`` alone.

    Raises UserError where images, labels and data set do not fit each other, where labels are not of their space, where
    a class has more images than another, and where a number is not finite.
    """
    classes = len(class_names)
    _check_shapes(imported.images, imported.labels, classes, shape, most)
    images, labels = imported.arrays() if imported.arrays else (imported.images, imported.labels)
    rounding = torch.finfo(labels.dtype).eps if labels.is_floating_point() else 0.0
    if imported.own is None:  # whatever integers or floats a file has
        images, labels = images.float(), labels.long() if labels.ndim == 1 else labels.float()
    for name, tensor in (("images", images), ("labels", labels), ("step size", imported.lr)):
        if tensor is not None and not bool(tensor.isfinite().all()):
            raise UserError(f"a value of the {name} is not finite")
    if imported.lr is not None and not float(imported.lr.mean()) > 0:
        raise UserError(f"the learned step size is {float(imported.lr.mean()):g}; it must be above 0")
    if label_space is not None and (imported.own is not None or labels.ndim == 1):
        what = "this suite" if imported.own is not None else "class indices"
        raise UserError(f"--label-space means nothing for a set of {what}: leave it out")
    if labels.ndim == 1 and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(
            f"the labels go from {int(labels.min())} to {int(labels.max())}: the data set has {classes} classes"
        )

    to_class = torch.arange(classes) if order is None else torch.tensor(order)
    own_classes = to_class if present is None else to_class[torch.isin(to_class, torch.tensor(present))]
    if imported.own is not None:
        rows = _in_our_order(len(labels), own_classes)
        labels = labels[:, to_class.argsort()] if labels.ndim == 2 else labels
        return Synthetic(images[rows], labels[rows], imported.own.label_space, imported.lr, imported.own.factor)
    space: LabelSpace = "probability"
    if labels.ndim == 1:
        labels = F.one_hot(to_class[labels], classes).float()
    else:
        told = label_space or imported.label_space
        labels, space = _in_space(labels, told, imported.source, max(TOLERANCE, rounding))
        labels = labels[:, to_class.argsort()]
    rows = _class_major(labels, own_classes, class_names, hard=imported.labels.ndim == 1)
    return Synthetic(images[rows], labels[rows], space, imported.lr)


def _check_shapes(images: Tensor, labels: Tensor, classes: int, shape: Sequence[int], most: int | None) -> None:
    """Raises UserError by shapes and dtypes alone, before numbers are read or copied."""
    if not images.is_floating_point():
        raise UserError(f"the images are {_name(images.dtype)}; a distilled set has floating point, preprocessed ones")
    if tuple(images.shape[1:]) != tuple(shape):
        raise UserError(f"the images are {_times(images.shape[1:])}, and those of the data set {_times(shape)}")
    if labels.ndim not in (1, 2) or (labels.ndim == 1 and labels.is_floating_point()):
        raise UserError(f"a tensor {_times(labels.shape)} of {_name(labels.dtype)} cannot be the labels")
    if len(labels) != len(images) or len(images) == 0:
        raise UserError(f"there are {len(images)} images and {len(labels)} labels")
    if most is not None and len(images) > most:
        raise UserError(
            f"there are {len(images)} images, more than the {most} of the data set: this is no distilled set"
        )
    if labels.ndim == 2 and labels.shape[1] != classes:
        raise UserError(f"the labels are for {labels.shape[1]} classes, and the data set has {classes}")


def _class_major(labels: Tensor, own_classes: Tensor, class_names: Sequence[str], *, hard: bool) -> Tensor:
    """The rows of ``labels``, (n, num_classes), class by class: by their largest labels, if these name all as often.

    ``own_classes``: the classes of the set, in the order of the file. Raises UserError where they are not named as
    often and labels are ``hard``, or n is no multiple of these classes.
    """
    named = labels.argmax(1)
    counts = named.bincount(minlength=len(class_names))
    own = counts[own_classes]
    if int(own.min()) * len(own) == len(labels):
        return named.argsort(stable=True)
    if hard or len(labels) % len(own):
        if others := sorted(set(named.tolist()).difference(own_classes.tolist())):
            raise UserError(f"class {class_names[others[0]]!r} has images, and in the training data it has none")
        few, many = int(own_classes[own.argmin()]), int(counts.argmax())
        raise UserError(
            f"class {class_names[few]!r} has {int(counts[few])} images and {class_names[many]!r} {int(counts[many])}: "
            "every class must have the same number"
        )
    return _in_our_order(len(labels), own_classes)


def _in_our_order(count: int, own_classes: Tensor) -> Tensor:
    """The rows of a class-major file so that its classes come in our order; as they are where classes are not equal."""
    rows = torch.arange(count)
    return rows if count % len(own_classes) else rows.view(len(own_classes), -1)[own_classes.argsort()].flatten()


def _in_space(labels: Tensor, said: str | None, source: str, tolerance: float) -> tuple[Tensor, LabelSpace]:
    """Labels (n, num_classes) with their space: what the user ``said``, else what their values say.

    Raises UserError where labels are not of the space, or do not tell it, and for an image without a label.
    """
    if said == "weighted":
        return labels, "weighted"
    sums = labels.sum(1)
    are = (
        f"the labels go from {float(labels.min()):.3g} to {float(labels.max()):.3g}, "
        f"and their sums from {float(sums.min()):.3g} to {float(sums.max()):.3g}"
    )
    if bool((empty := (labels == labels[:, :1]).all(1)).any()):
        row = int(empty.nonzero()[0])
        raise UserError(f"all labels of image {row} are {float(labels[row, 0]) + 0.0:g}: they name no class")
    probability = bool((labels >= -tolerance).all()) and bool(((sums - 1).abs() <= tolerance).all())
    centred = bool((sums.abs() <= tolerance).all()) and float(labels.abs().max()) <= LARGEST_TARGET
    if said == "probability" and not probability:
        raise UserError(
            f"{are}: they are no probabilities, whose sums are 1. Give --label-space logits for what comes before a "
            "softmax, which is then taken, or --label-space centred for regression targets"
        )
    if said in ("centred", "logits") and probability:
        raise UserError(f"{are}: they are probabilities. Leave out --label-space {said}")
    if said == "logits":
        return labels.softmax(1), "probability"
    if probability:  # where rounding was as coarse as bfloat16's, sums are made 1, as sets of this suite have them
        rounded = (sums - 1).abs() > TOLERANCE
        return torch.where(rounded[:, None], labels / sums[:, None], labels), "probability"
    # FRePo and KIP learn their targets, and what was learned need not sum to 0.
    if said == "centred" or centred or (source in KEYS and float(labels.abs().max()) <= LARGEST_TARGET):
        return labels, "centred"
    raise UserError(
        f"{are}: they may be logits or regression targets. Give --label-space logits, and their softmax is taken, or "
        "--label-space centred for targets of squared error, which sum to about 0 and are at most about 1"
    )


def doubts(synthetic: Synthetic, class_names: Sequence[str], present: Sequence[int] | None = None) -> list[str]:
    """Lines about labels of a set that are unusual, though they may be learned; ``present`` as in `fitted`."""
    labels = synthetic.labels
    lines = []
    if synthetic.label_space == "centred":
        largest = labels.abs().amax(1)
        if bool((labels.sum(1).abs() > 0.5 * largest).any()):
            lines.append(
                "Centred labels sum to 0 before they are learned; here the sum of a row is up to "
                f"{float(labels.sum(1).abs().max()):.3g}."
            )
        if float(largest.max()) > LARGEST_TARGET:
            lines.append(
                f"Centred labels are at most about 1; here up to {float(largest.max()):.3g}, as logits are "
                "(--label-space logits)."
            )
    counts = labels.argmax(1).bincount(minlength=len(class_names))
    if missing := [c for c in (range(len(counts)) if present is None else present) if not counts[c]]:
        named = f"the class {class_names[missing[0]]!r}" if len(missing) == 1 else f"{len(missing)} of the classes"
        lines.append(f"No image has its largest label at {named}.")
    return lines


# --- pixels -----------------------------------------------------------------------------------------------------------

SAMPLE = 1000
"""Real images, at most, that a set is compared with."""
WIDE, NARROW = 8.0, 0.1
"""Spread of a set relative to real images, beyond which its preprocessing is doubted. Sets of this suite and published
ones have 0.2 (KIP from noise) to 3.9 (DM, one image per class), standardised CIFAR-10 taken for whitened has 17."""
SMOOTH, ROUGH = 1.7, 0.65
"""Coarse structure relative to fine, both relative to real images. Published and own sets have up to 1.9 (FRePo on
whitened images, with a coarse structure of 2.1), and less than 0.65 only where their coarse structure is at least half
that of real images. Standardised images taken for whitened have 1.8 to 6.5 with a coarse structure of 5.5 and more;
whitened images taken for standardised have 0.1 to 0.6. Digits of 8×8 pixels are not told apart."""


def pixel_doubts(images: Tensor, real: Tensor, preprocess: Preprocess) -> list[str]:
    """At most one line: why ``images`` seem not to be preprocessed by ``preprocess``.

    ``images``, ``real``: (n, C, H, W), the set and real images that were preprocessed. Both are compared with the
    preprocessing undone: how far they spread around the mean colour of real images, and how much of that are large
    areas (means over a 4×4 grid) and neighbouring pixels (their differences).

    A set of one ZCA variant taken for the other is not told apart, nor are images in [−1, 1].
    """
    real = real[:: -(-len(real) // SAMPLE)]
    below, usual = (float((x < 0).double().mean()) for x in (images, real))
    natural, natural_real = preprocess.inverse(images), preprocess.inverse(real)
    centre = natural_real.mean((0, 2, 3), keepdim=True)

    def relative(measure: Callable[[Tensor], Tensor]) -> float:
        values = [float(measure(x - centre).square().mean().sqrt()) for x in (natural, natural_real)]
        return values[0] / max(values[1], 1e-6)

    spread = relative(lambda x: x)
    coarse, fine = relative(lambda x: F.adaptive_avg_pool2d(x, 4)), relative(lambda x: x.diff(dim=-1))
    structure = (
        f"large areas differ {coarse:.2g} times as much as in real images and neighbouring pixels {fine:.2g} times"
    )
    if below < usual / 10:
        scale = "[0, 1]" if float(images.max()) <= 1.5 else "0 to 255"
        why = f"{below:.0%} of the values are below 0, and {usual:.0%} in real images: they may be pixels in {scale}"
    elif not NARROW <= spread <= WIDE:
        low, high = float(natural.min()), float(natural.max())
        why = f"undone, it spreads the pixels {spread:.2g} times as far as in real images, from {low:.2g} to {high:.2g}"
    elif coarse > 5 and coarse > SMOOTH * fine:
        why = f"undone, {structure}: they may not be whitened"
    elif spread < 0.9 and coarse < 0.45 and coarse < ROUGH * fine:
        why = f"undone, {structure}: they may be whitened"
    else:
        return []
    return [f"The images may not be preprocessed by {preprocess.name} ({why}): look at --preprocess."]


# --- the formats ------------------------------------------------------------------------------------------------------


def _content(path: Path) -> Any:
    """An `Artifact`, a tensor, a list of two, or a mapping: name → `_Array` or tensor, or what DC, DSA and DM save."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        return artifact.load(path)
    if zipfile.is_zipfile(path):
        with _damaged(path), zipfile.ZipFile(path) as archive:
            arrays = all(name.endswith(".npy") for name in archive.namelist())
            size = sum(member.file_size for member in archive.infolist())
        if not arrays and size > path.stat().st_size:  # else a small file could take all memory
            raise UserError(f"{path} is no file of torch: its content is compressed, {size} bytes")
        return _open_npz(path) if arrays else _read_pt(path)
    if start[:2] == b"\x80\x02":  # torch.save before its files were archives
        return _read_pt(path)
    if start.startswith(PICTURES):
        raise UserError(f"{path} is a picture: a set of pictures is a folder with a folder of them for each class")
    if flax_checkpoints.begins_one(start):
        with _damaged(path, UserError):
            return flax_checkpoints.read(path)
    raise UserError(f"{path} is none of the known formats: .pt, .npz, and .safetensors of this suite")


@dataclass(frozen=True)
class _Array:
    """An array of an ``.npz``, of which only the header was read."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def torch_dtype(self) -> torch.dtype:
        """Raises UserError for what torch has no numbers for."""
        if self.dtype.kind == "V" and self.dtype.itemsize == 2 and self.dtype.names is None:
            return torch.bfloat16  # numpy has no such type and keeps its bytes
        if self.dtype.kind not in "fiub" or self.dtype.itemsize > 8:
            holds = "Python objects, which could run code" if self.dtype.hasobject else str(self.dtype)
            raise UserError(f"{self.path}: the array {self.name} holds {holds}: save it as float32 or int64")
        return torch.from_numpy(np.empty(0, self.dtype.newbyteorder("="))).dtype

    def outline(self) -> Tensor:
        """Shape and dtype as a tensor without numbers."""
        return torch.empty(self.shape, dtype=self.torch_dtype, device="meta")

    def read(self) -> Tensor:
        with _damaged(self.path), zipfile.ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
        bfloat16 = self.torch_dtype == torch.bfloat16
        array = np.ascontiguousarray(array, None if bfloat16 else self.dtype.newbyteorder("="))
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if bfloat16 else torch.from_numpy(array)


def _open_npz(path: Path) -> dict[str, _Array]:
    """Array name → its header. Raises UserError for headers that cannot be read."""
    arrays = {}
    with _damaged(path), zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                start = io.BytesIO(file.read(LARGEST_HEADER))
            major, _ = np.lib.format.read_magic(start)
            shape, _, dtype = getattr(np.lib.format, f"read_array_header_{major}_0")(start)
            name = member.removesuffix(".npy")
            arrays[name] = _Array(path, name, shape, dtype)
    return arrays


def _read_pt(path: Path) -> Any:
    try:
        with (
            _damaged(path, pickle.UnpicklingError),
            torch.serialization.safe_globals(cast(Any, _ALLOWED)),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "Validating sparse tensor")  # which are refused, once they are loaded
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        holds = f"holds {named[1]}, which is neither a tensor nor a number" if named else "is damaged, or holds code"
        raise UserError(f"{path} {holds}: it is not loaded, for that could run code; save the tensors alone") from error
    if isinstance(content, Tensor):
        return _plain(path, content)
    if isinstance(content, dict) and "data" in content:
        return content
    if isinstance(content, (list, tuple)) and len(content) == 2 and all(isinstance(each, Tensor) for each in content):
        return [_plain(path, tensor) for tensor in content]
    raise UserError(
        f"{path} holds neither a tensor nor the 'data' of DC, DSA and DM, nor the pair of images and labels of IDC"
    )


def _plain(path: Path, tensor: Tensor) -> Tensor:
    """``tensor`` without its graph. Raises UserError for one that has no numbers, or none that are known everywhere."""
    strided = not tensor.is_nested and tensor.layout == torch.strided and not tensor.is_quantized
    if not strided or tensor.device.type != "cpu" or tensor.dtype not in NUMBERS:
        raise UserError(
            f"{path} holds a tensor that is sparse, quantised, complex, empty or of a rare type "
            f"({_name(tensor.dtype)}): save it as plain numbers, such as float32"
        )
    return tensor.detach()


def _part(path: Path, tensor: Tensor) -> str:
    """Which part of a set a lone tensor is."""
    if tensor.ndim == 4:
        return "images"
    if tensor.is_floating_point() and (tensor.ndim == 1 or tensor.numel() == 1):
        return "lr"
    if tensor.ndim == 2 or tensor.ndim == 1:
        return "labels"
    raise UserError(
        f"{path} holds a tensor {_times(tensor.shape)} of {_name(tensor.dtype)}: neither images, labels nor a step size"
    )


def _of_experiments(path: Path, content: Any, experiment: int, files: tuple[tuple[str, str], ...]) -> Imported:
    data = content["data"]
    if not isinstance(data, (list, tuple)) or not data:
        raise UserError(f"{path} has no experiments under 'data'")
    if not 0 <= experiment < len(data):
        raise UserError(f"--experiment {experiment} is not in {path}, which has 0 to {len(data) - 1}")
    pair = data[experiment]
    if not (isinstance(pair, (list, tuple)) and len(pair) >= 2 and all(isinstance(t, Tensor) for t in pair[:2])):
        raise UserError(f"{path}: experiment {experiment} is no pair of images and labels")
    images, labels = (_plain(path, tensor) for tensor in pair[:2])
    _expect(path, images, labels)
    return Imported("dc", images, labels, None, files, experiment, len(data))


def _of_pictures(folder: Path) -> Imported:
    found = picture_folders.read(folder)
    return Imported(
        "mtt",  # whose order of classes is assumed only where it is the sorted one
        found.images,
        found.labels,
        found.lr,
        ((folder.resolve().name, found.sha256),),
        natural=True,
        class_names=found.class_names,
        label_space=found.label_space,
    )


def _of_arrays(path: Path, arrays: dict[str, _Array], files: tuple[tuple[str, str], ...]) -> Imported:
    source = next((source for source, keys in KEYS.items() if arrays.keys() >= set(keys)), None)
    if source is None:
        known = ", ".join(" and ".join(keys) for keys in KEYS.values())
        held = ", ".join(arrays) or "nothing"
        raise UserError(f"{path} holds {held}, and images with labels are expected as {known}")
    image_array, label_array = (arrays[key] for key in KEYS[source])

    def read_both() -> tuple[Tensor, Tensor]:
        return image_array.read().permute(0, 3, 1, 2).contiguous(), label_array.read()

    with _damaged(path, UserError):  # there is no tensor of any shape that a header may hold
        images, labels = image_array.outline(), label_array.outline()
    _expect(path, images, labels)
    lr = (
        arrays["lr"].read().float().squeeze()
        if "lr" in arrays and math.prod(arrays["lr"].shape) <= LARGEST_HEADER
        else None
    )
    return Imported(source, images.permute(0, 3, 1, 2), labels, lr, files, arrays=read_both)


def _expect(path: Path, images: Tensor, labels: Tensor) -> None:
    for part, tensor in (("images", images), ("labels", labels)):
        if _part(path, tensor) != part:
            raise UserError(f"{path}: a tensor {_times(tensor.shape)} of {_name(tensor.dtype)} cannot be the {part}")


@contextmanager
def _damaged(path: Path, *but: type[Exception]) -> Iterator[None]:
    """Says in one line what could not be read; ``but`` errors of these types go on."""
    try:
        yield
    except but:
        raise
    except Exception as error:  # a damaged file may raise anything
        first = next(iter(str(error).splitlines()), "")
        raise UserError(f"{path} is damaged or no set of tensors ({type(error).__name__}: {first})") from error


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "of one number"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
