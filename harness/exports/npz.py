"""Arrays of numpy, as FRePo (github.com/yongchao97/FRePo) publishes its sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from harness.exports.base import Format, Source, numbers, preprocess_tensors


class Npz(Format):
    """``set.npz``: ``image`` (n, H, W, C), ``label`` (n, classes), ``lr`` where a step size was learned.

    ``preprocess_mean`` and so on: what real images must go through.
    """

    meaning = "arrays in one .npz, as FRePo saves them"

    def write(self, source: Source, folder: Path) -> list[str]:
        synthetic = source.synthetic
        arrays = {"image": synthetic.images.permute(0, 2, 3, 1), "label": synthetic.labels}
        arrays |= {} if synthetic.lr is None else {"lr": synthetic.lr}
        arrays |= {f"preprocess_{name}": tensor for name, tensor in preprocess_tensors(source).items()}
        named: dict[str, Any] = {name: numbers(tensor).numpy() for name, tensor in arrays.items()}
        np.savez(folder / "set.npz", **named)
        return []
