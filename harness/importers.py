"""Distilled sets as others publish them → `Imported` → the `Synthetic` that the harness evaluates.

What is read, told by the content of the files and not by their names:

- DC, DSA, DM (github.com/VICO-UoE/DatasetCondensation): one ``.pt``, ``{"data": [[images, labels], …], "accs_all_exps":
  {network: [accuracy, …]}}``, an entry of ``data`` for each experiment.
- MTT (github.com/GeorgeCazenavette/mtt-distillation) and those who save as it does: a ``.pt`` with the images, one with
  the labels, and one with the learned step size where it was kept. Labels are class indices, or soft.
- FRePo (github.com/yongchao97/FRePo): one ``.npz`` with ``image`` and ``label``.
- KIP (github.com/google-research/google-research/tree/master/kip): one ``.npz`` with ``images`` and ``labels``.
- This suite: one ``.safetensors``.

``.pt`` holds images as (n, C, H, W), ``.npz`` as (n, H, W, C). Nothing in a file can run code: torch reads tensors and
numpy's scalar numbers only, numpy no objects.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.errors import UserError
from harness import artifact
from harness.artifact import Artifact
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
KEYS = (("image", "label"), ("images", "labels"))
"""Names of images and labels in an ``.npz``: FRePo's, and KIP's."""

_SCALAR = np.float64(0).__reduce__()[0]
_ALLOWED = [
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # as numpy 1 wrote it
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64")),
]
"""What torch may build besides tensors: DC, DSA and DM save their accuracies as numpy scalars."""


@dataclass(frozen=True)
class Imported:
    """What the files of one set say; whether it fits a data set is for `fitted` to find out."""

    images: Tensor
    """(n, channels, height, width)."""
    labels: Tensor
    """(n,) class indices, or (n, num_classes)."""
    lr: Tensor | None
    """The learned step size, 0-d."""
    label_space: LabelSpace | None
    """Of labels (n, num_classes) where the format decides it."""
    files: tuple[tuple[str, str], ...]
    """Name and SHA-256 of every file."""
    experiment: int | None = None
    """Which one it is of a file that holds several …"""
    experiments: int | None = None
    """… of so many."""
    own: Artifact | None = None
    """A set of this suite, which knows all else about itself."""


def read(paths: Sequence[Path], *, experiment: int | None = None) -> Imported:
    """The set in ``paths``, one file or the parts of one set.

    ``experiment``: which one of a file with several; None: the first. Raises UserError, one line, for a file that is
    missing, damaged, in none of the known formats or able to run code, for parts that are missing or there twice, and
    for an experiment that is not there.
    """
    files = tuple((path.name, _sha256(path)) for path in paths)
    parts: dict[str, Tensor] = {}
    found: Imported | None = None
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
            found = Imported(content.images, content.labels, content.lr, content.label_space, files, own=content)
        elif "data" in content:
            found = _of_experiments(path, content, experiment or 0, files)
        else:
            found = _of_arrays(path, content, files)
    if found is None:
        for part in ("images", "labels"):
            if part not in parts:
                raise UserError(f"no {part} in {', '.join(map(str, paths))}: give images_best.pt and labels_best.pt")
        lr = parts["lr"].float().reshape(()) if "lr" in parts else None
        found = Imported(parts["images"], parts["labels"], lr, None, files)
    if experiment is not None and found.experiment is None:
        raise UserError(f"--experiment means nothing for {paths[0]}, which holds one set")
    return found


def fitted(
    found: Imported, class_names: Sequence[str], shape: Sequence[int], label_space: LabelSpace | None = None
) -> Synthetic:
    """``found`` as a set for a data set of these classes and (channels, height, width); float32, on the CPU.

    ``label_space`` says what labels (n, num_classes) are; None: what the format or else the numbers say. Images are
    brought into class-major order by their largest labels. Learned labels may have the largest value anywhere: where
    the classes that they name are not equally large, the order of the file stays.

    Raises UserError where images, labels and data set do not fit each other, where a class has more images than
    another, and where a number is not finite.
    """
    images, labels, classes = found.images, found.labels, len(class_names)
    if not images.is_floating_point():
        raise UserError(f"the images are {_name(images.dtype)}; a distilled set has floating point, preprocessed ones")
    if tuple(images.shape[1:]) != tuple(shape):
        raise UserError(f"the images are {_times(images.shape[1:])}, and those of the data set {_times(shape)}")
    if len(labels) != len(images) or len(images) == 0:
        raise UserError(f"there are {len(images)} images and {len(labels)} labels")
    if found.own is None:
        labels = labels.long() if labels.ndim == 1 else labels.float()  # whatever integers or floats a file has
    if label_space is not None and (found.own is not None or labels.ndim == 1):
        what = "this suite" if found.own is not None else "class indices"
        raise UserError(f"--label-space means nothing for a set of {what}: leave it out")
    if labels.ndim == 2 and labels.shape[1] != classes:
        raise UserError(f"the labels are for {labels.shape[1]} classes, and the data set has {classes}")
    if labels.ndim == 1 and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(
            f"the labels go from {int(labels.min())} to {int(labels.max())}: the data set has {classes} classes"
        )
    for name, tensor in (("images", images), ("labels", labels), ("step size", found.lr)):
        if tensor is not None and not bool(tensor.isfinite().all()):
            raise UserError(f"a value of the {name} is not finite")
    if found.lr is not None and not float(found.lr.mean()) > 0:
        raise UserError(f"the learned step size is {float(found.lr.mean()):g}; it must be above 0")
    if found.own is not None:
        return Synthetic(images, labels, cast(LabelSpace, found.label_space), found.lr)

    named = labels if labels.ndim == 1 else labels.argmax(1)
    counts = named.bincount(minlength=classes)
    if int(counts.min()) == int(counts.max()):
        order = named.argsort(stable=True)
        images, labels = images[order], labels[order]
    elif labels.ndim == 1 or len(labels) % classes:
        few, many = int(counts.argmin()), int(counts.argmax())
        raise UserError(
            f"class {class_names[few]!r} has {int(counts[few])} images and {class_names[many]!r} {int(counts[many])}: "
            "every class must have the same number"
        )
    if labels.ndim == 1:
        labels, space = F.one_hot(labels, classes).float(), "probability"
    else:
        space = label_space or found.label_space or _space(labels)
    return Synthetic(images.float(), labels, cast(LabelSpace, space), found.lr)


def _space(labels: Tensor) -> LabelSpace:
    """What labels (n, num_classes) are by their values. Raises UserError where these do not say."""
    if bool((labels >= 0).all()) and bool(((labels.sum(1) - 1).abs() < 1e-3).all()):
        return "probability"
    if bool((labels.sum(1).abs() < 1e-3).all()):
        return "centred"
    raise UserError(
        "the labels are neither probabilities nor centred: give --label-space centred for regression targets "
        "(logits must be turned into probabilities first)"
    )


# --- the formats ------------------------------------------------------------------------------------------------------


def _content(path: Path) -> Any:
    """An `Artifact`, a tensor, or a mapping: an ``.npz`` as name → tensor, or what DC, DSA and DM save."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        return artifact.load(path)
    if zipfile.is_zipfile(path):
        with _damaged(path), zipfile.ZipFile(path) as archive:
            arrays = all(name.endswith(".npy") for name in archive.namelist())
        return _read_npz(path) if arrays else _read_pt(path)
    if start[:2] == b"\x80\x02":  # torch.save before its files were archives
        return _read_pt(path)
    raise UserError(f"{path} is none of the known formats: .pt, .npz, and .safetensors of this suite")


def _read_npz(path: Path) -> dict[str, Tensor]:
    with _damaged(path), np.load(path, allow_pickle=False) as archive:
        return {name: torch.from_numpy(np.array(archive[name])) for name in archive.files}


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
        return content.detach()
    if isinstance(content, dict) and "data" in content:
        return content
    raise UserError(f"{path} holds neither a tensor nor the 'data' of DC, DSA and DM")


def _part(path: Path, tensor: Tensor) -> str:
    """Which part of a set a lone tensor is."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise UserError(f"{path} holds a tensor that is sparse, quantised or complex: save it as plain numbers")
    if tensor.ndim == 4:
        return "images"
    if tensor.numel() == 1 and tensor.is_floating_point():
        return "lr"
    if tensor.ndim == 2 or (tensor.ndim == 1 and not tensor.is_floating_point()):
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
    images, labels = (tensor.detach() for tensor in pair[:2])
    _expect(path, images, labels)
    return Imported(images, labels, None, None, files, experiment, len(data))


def _of_arrays(path: Path, arrays: dict[str, Tensor], files: tuple[tuple[str, str], ...]) -> Imported:
    for image_key, label_key in KEYS:
        if image_key in arrays and label_key in arrays:
            images, labels = arrays[image_key], arrays[label_key]
            _expect(path, images, labels)
            learned = labels.ndim == 2 and bool((labels < 0).any())  # FRePo's and KIP's; others are one-hot
            space: LabelSpace | None = "centred" if learned else None
            return Imported(images.permute(0, 3, 1, 2).contiguous(), labels, None, space, files)
    known = ", ".join(f"{image_key} and {label_key}" for image_key, label_key in KEYS)
    raise UserError(f"{path} holds {', '.join(arrays) or 'nothing'}, and images with labels are expected as {known}")


def _expect(path: Path, images: Tensor, labels: Tensor) -> None:
    for name, tensor, part in (("images", images, "images"), ("labels", labels, "labels")):
        if _part(path, tensor) != part:
            raise UserError(f"{path}: a tensor {_times(tensor.shape)} of {_name(tensor.dtype)} cannot be the {name}")


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
