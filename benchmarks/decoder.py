"""The decoder of IDC: one image of a set holds several smaller ones, which are enlarged before networks see them.

Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022
(github.com/snu-mllab/Efficient-Dataset-Condensation). The order of the images differs from theirs: those of one stored
image follow each other, so that a class-major set stays class-major.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

PADDING = 0.5
"""Value below and right of an image that does not divide into equal tiles, as published; in whatever space it is."""


def decode(images: Tensor, factor: int) -> Tensor:
    """Cut images (n, C, H, W) into ``factor`` × ``factor`` tiles and enlarge each: (n·factor², C, H, W).

    Tiles come in reading order, and are enlarged bilinearly. Differentiable. The ``images`` themselves at factor 1.
    """
    if factor == 1:
        return images
    height, width = images.shape[2:]
    padded = F.pad(images, (0, -width % factor, 0, -height % factor), value=PADDING)
    rows, columns = (side // factor for side in padded.shape[2:])
    tiles = padded.unfold(2, rows, rows).unfold(3, columns, columns)  # (n, C, factor, factor, rows, columns)
    tiles = tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    return F.interpolate(tiles, size=(height, width), mode="bilinear", align_corners=False)


def fits(factor: int, size: Sequence[int]) -> bool:
    """Whether every tile of images of ``size`` (height, width) holds more than padding."""
    return all((factor - 1) * math.ceil(side / factor) < side for side in size)


def encode(images: Tensor, factor: int) -> Tensor:
    """Shrink images (n·factor², C, H, W) into the tiles of n images (n, C, H, W), in the order of `decode`.

    Pixels are picked, not averaged, as published (initialisation ``mix``). Where a side does not divide into equal
    tiles, the first tiles are a pixel larger: `decode` then cuts elsewhere, as it does in the authors' code.
    """
    if factor == 1:
        return images
    heights, widths = (_parts(side, factor) for side in images.shape[2:])
    tiles = images.view(-1, factor, factor, *images.shape[1:])
    rows = [
        torch.cat([F.interpolate(tiles[:, i, j], size=(height, width)) for j, width in enumerate(widths)], 3)
        for i, height in enumerate(heights)
    ]
    return torch.cat(rows, 2)


def _parts(side: int, factor: int) -> list[int]:
    """``side`` in ``factor`` parts, the first ones a pixel larger where they cannot be equal."""
    return [side // factor + (part < side % factor) for part in range(factor)]
