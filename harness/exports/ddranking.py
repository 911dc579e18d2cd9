"""The files that DD-Ranking 0.2.0 (github.com/NUS-HPC-AI-Lab/DD-Ranking) reads; the package itself is not needed here.

Its interface: ``compute_metrics(image_tensor, soft_labels or hard_labels, syn_lr)`` of an object that is made from a
YAML file. Images are float, (n, 3, H, W), class-major in the order of its data set, in the space of its own test
images. Soft labels are logits: its losses take their softmax.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.errors import UserError
from harness.exports.base import Format, Source, write_pictures
from harness.records.class_orders import class_order

_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DATASETS = {
    "cifar10": ("CIFAR10", _CIFAR),
    "cifar100": ("CIFAR100", _CIFAR),
    "tiny_imagenet": ("TinyImageNet", _IMAGENET),
    "imagenette": ("ImageNette", _IMAGENET),
    "imagewoof": ("ImageWoof", _IMAGENET),
}
"""Data set here → its name there, and the mean and standard deviation by which its images are normalised there."""
WHITENED = ("cifar10", "cifar100", "tiny_imagenet")
"""Data sets that are whitened there on request."""
SMALLEST = 1e-12
"""The least probability of a soft label, whose logarithm is finite."""

Settings = dict[str, Any]
COMMON: Settings = {
    "real_data_path": "./dataset/",
    "custom_train_trans": None,  # these two must be there
    "custom_val_trans": None,
    "data_aug_func": "dsa",
    "aug_params": {
        **{"flip": 0.5, "rotate": 15.0, "saturation": 2.0, "brightness": 1.0, "contrast": 0.5},
        **{"scale": 1.2, "crop": 0.125, "cutout": 0.5},
    },
    **{"optimizer": "sgd", "lr_scheduler": "step", "step_size": 500, "weight_decay": 0.0005, "momentum": 0.9},
    **{"num_eval": 5, "num_epochs": 1000, "syn_batch_size": 256, "real_batch_size": 256, "num_workers": 4},
    **{"device": "cuda", "dist": False, "eval_full_data": False},
    **{"random_data_path": "./random_data", "random_data_format": "tensor", "save_path": "./scores.csv"},
}
"""Settings that say nothing about the set: those of its examples, for one GPU."""
SOFT: Settings = {
    **{"soft_label_mode": "S", "soft_label_criterion": "sce"},
    "loss_fn_kwargs": {"temperature": 1.0, "scale_loss": False},
    **{"use_aug_for_hard": False, "stu_use_torchvision": False, "tea_use_torchvision": False},
    "teacher_dir": "./teacher_models",
}


class DDRanking(Format):
    """``images.pt``, ``labels.pt``, ``lr.pt`` where a step size was learned, ``ddranking.yaml``, and PNGs to look at.

    ``labels.pt`` holds classes (n,) where the labels are one-hot, and else logits (n, classes).
    """

    meaning = "what DD-Ranking 0.2.0 reads (CIFAR, Tiny ImageNet, Imagenette, Imagewoof)"

    def write(self, source: Source, folder: Path) -> list[str]:
        dataset = _checked(source)
        name, (mean, std) = DATASETS[dataset]
        synthetic, own, classes = source.synthetic, source.distilled, source.distilled.class_names
        whitened = own.preprocess.name == "zca_kornia"
        images = synthetic.images.float() if whitened else _normalised(source.natural, mean, std)
        # Sets of all its data sets are counted as by MTT, whose lists of classes it took over.
        order = torch.tensor(class_order(dataset, classes, Path(), "mtt", "mtt").classes)
        ipc = len(images) // len(classes)
        rows = torch.arange(len(images)).view(-1, ipc)[order].flatten()
        labels = order.argsort()[source.classes][rows] if source.hard else _logits(synthetic.labels[:, order])[rows]
        torch.save(images[rows].clone(), folder / "images.pt")
        torch.save(labels.clone(), folder / "labels.pt")
        if synthetic.lr is not None:
            torch.save(synthetic.lr.float().clone(), folder / "lr.pt")
        height, width = images.shape[2:]
        depth = {32: 3, 64: 4, 128: 5}.get(height, 3)
        model = f"ConvNet-{depth}"
        settings = {"dataset": name, "ipc": ipc, "im_size": [height, width], "model_name": model, "use_zca": whitened}
        settings |= COMMON | ({"use_torchvision": False} if source.hard else SOFT | {"teacher_model_names": [model]})
        lines = (f"{key}: {json.dumps(value)}" for key, value in settings.items())  # JSON is YAML
        (folder / "ddranking.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        pictures = folder / "images"
        pictures.mkdir()
        write_pictures(
            source.natural[rows], source.classes, [f"{index:05d}" for index in range(len(classes))], pictures
        )
        kind = "LabelRobustScoreHard" if source.hard else "LabelRobustScoreSoft"
        return [f"Score it with {kind}(Config.from_file('ddranking.yaml')), in an environment with numpy < 2."]


def _checked(source: Source) -> str:
    """The data set. Raises UserError, with the reason, for what DD-Ranking cannot be told."""
    own, synthetic = source.distilled, source.synthetic
    dataset = str(own.distillation.get("dataset"))
    if dataset not in DATASETS:
        raise UserError(f"DD-Ranking has no data set {dataset!r}, but {', '.join(DATASETS)}")
    if synthetic.images.shape[1] != 3:
        raise UserError("DD-Ranking takes three channels, and these images have one")
    if len(own.classes) < len(own.class_names):
        raise UserError("DD-Ranking takes images of every class, and this set lacks some")
    if synthetic.label_space != "probability":
        raise UserError(
            f"DD-Ranking trains by cross entropy on the softmax of labels, and these are {synthetic.label_space}"
        )
    if own.preprocess.name == "zca_frepo" or (own.preprocess.zca is not None and dataset not in WHITENED):
        raise UserError(
            f"the images are whitened by {own.preprocess.name}, which DD-Ranking does not do to the test images of "
            f"{dataset}: it whitens {', '.join(WHITENED)} by zca_kornia"
        )
    if synthetic.lr is not None and synthetic.lr.numel() > 1:
        raise UserError("DD-Ranking takes one step size, and this set has one for each step")
    return dataset


def _normalised(natural: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (natural - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def _logits(labels: Tensor) -> Tensor:
    """Numbers whose softmax is ``labels`` (n, classes), probabilities."""
    return labels.float().clamp_min(SMALLEST).log()
