"""Files of tensors, as MTT (github.com/GeorgeCazenavette/mtt-distillation) publishes its sets."""

from __future__ import annotations

from pathlib import Path

import torch

from harness.exports.base import Format, Source, numbers, preprocess_tensors


class TorchFiles(Format):
    """``images_best.pt`` (n, C, H, W), ``labels_best.pt`` (n, classes), ``lr_best.pt`` where a step size was learned.

    ``preprocess.pt`` holds what real images must go through, by name. ``torch.load(weights_only=True)`` reads them all.
    """

    meaning = "tensors in .pt files, as MTT saves them"

    def write(self, source: Source, folder: Path) -> list[str]:
        synthetic = source.synthetic
        parts = {"images": synthetic.images, "labels": synthetic.labels, "lr": synthetic.lr}
        for name, tensor in parts.items():
            if tensor is not None:
                torch.save(numbers(tensor).clone(), folder / f"{name}_best.pt")  # a view would take its storage along
        torch.save(preprocess_tensors(source), folder / "preprocess.pt")
        return []
