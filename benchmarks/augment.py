"""Differentiable augmentations of DSA and FRePo. Both draw an operation for a batch, then its parameters.

The operations take images (B, C, H, W) and a parameter for each image (B,), or for all (1,). All are affine in the
images, and differentiable. Operations that resample can be differentiated twice on torch 2.13, not on every older
version. No method needs that: the gradient of a network's weights, differentiated again, passes through here once.
Nothing is clamped: the images are preprocessed, not in [0, 1].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

DSA_STRATEGY = "color_crop_cutout_flip_scale_rotate"
FLIP_ROTATE = "flip_rotate"
"""The strategy of RaT-BPTT (Feng, Vedantam, Kempe, ICLR 2024): images are mirrored, or rotated by up to 15°."""


def draw_dsa(
    image_size: tuple[int, int],
    count: int,
    generator: torch.Generator,
    *,
    flip: bool,
    strategy: str = DSA_STRATEGY,
) -> tuple[str, Tensor]:
    """Draw an operation of ``strategy``, and its k parameters ``count`` times (k, count), from a CPU generator.

    ``count``: 1 to share the draw between all images (siamese), else the number of images. ``flip`` False: the
    operation ``flip`` is left out of ``strategy``.
    """
    ops = [op for op in strategy.split("_") if flip or op != "flip"]
    op = ops[int(torch.randint(len(ops), (), generator=generator))]
    match op:
        case "crop":
            # Up to an eighth of the size, rounded half up, in either direction.
            reaches = [int(0.125 * size + 0.5) for size in image_size]
            bounds = [(-reach, reach + 1) for reach in reaches]
        case "cutout":
            bounds = [(0, size + 1 - _cutout_side(size) % 2) for size in image_size]
        case _:
            return op, torch.rand({"color": 3, "scale": 2}.get(op, 1), count, generator=generator)
    return op, torch.stack([torch.randint(low, high, (count,), generator=generator) for low, high in bounds])


def apply_dsa(op: str, images: Tensor, draws: Tensor) -> Tensor:
    """Apply operation ``op`` of DSA to images (B, C, H, W), with parameters from ``draws`` (k, B) or (k, 1).

    Differentiable Siamese augmentation: Zhao and Bilen, ICML 2021. The official DC, DSA and DM ran on a torch that
    aligned corners, and MTT on a torch that did not. Both sample the same points of a square image here, since
    ``scale`` and ``rotate`` leave its centre where it is.

    Draws for ``crop`` and ``cutout`` are integers in pixels, rows before columns. All other draws are uniform in
    [0, 1): for ``scale`` width before height, for ``color`` the draws of its parts ``brightness``, ``saturation`` and
    ``contrast``, which are operations too.
    """
    draws = draws.to(images.device, images.dtype, non_blocking=True)
    match op:
        case "color":
            for part, draw in zip(("brightness", "saturation", "contrast"), draws, strict=True):
                images = apply_dsa(part, images, draw[None])
            return images
        case "brightness":
            return brightness(images, draws[0] - 0.5)
        case "saturation":
            return saturation(images, 2 * draws[0])
        case "contrast":
            return contrast(images, draws[0] + 0.5)
        case "crop":
            return shift(images, draws[0], draws[1])
        case "cutout":
            height, width = images.shape[-2:]
            return cutout(images, draws[0], draws[1], (_cutout_side(height), _cutout_side(width)))
        case "flip":
            return flip_horizontally(images, draws[0] < 0.5)
        case "scale":
            x, y = draws * (1.2 - 1 / 1.2) + 1 / 1.2
            return scale(images, x, y)
        case "rotate":
            return rotate(images, (draws[0] - 0.5) * math.radians(30))
    raise ValueError(f"DSA has no operation {op!r}")


FREPO_OPERATIONS = ("flip", "color", "crop", "rotate", "translate", "cutout")


def draw_frepo(count: int, generator: torch.Generator, *, flip: bool) -> tuple[str, Tensor]:
    """Draw an operation of FRePo's evaluation (Zhou et al., NeurIPS 2022), and (3, count), from a CPU generator."""
    ops = FREPO_OPERATIONS if flip else [op for op in FREPO_OPERATIONS if op != "flip"]
    op = ops[int(torch.randint(len(ops), (), generator=generator))]
    return op, torch.rand(3, count, generator=generator)


def apply_frepo(op: str, images: Tensor, draws: Tensor) -> Tensor:
    """Apply operation ``op`` of FRePo's augmentation, with parameters from ``draws`` (3, B), uniform in [0, 1)."""
    draws = draws.to(images.device, images.dtype, non_blocking=True)
    signed = 2 * draws - 1
    match op:
        case "flip":
            return flip_horizontally(images, draws[0] < 0.5)
        case "color":
            images = brightness(images, 0.25 * signed[0])
            images = contrast(images, torch.exp(0.25 * signed[1]))
            return saturation(images, torch.exp(0.25 * signed[2]))
        case "crop":
            # Log-uniform in 0.8 to 1.25. The window stays inside the image, or the image inside the window.
            zoom = torch.exp(math.log(1.25) * signed[0])
            return crop_and_zoom(images, zoom, (1 - 1 / zoom) * signed[1], (1 - 1 / zoom) * signed[2])
        case "rotate":
            return rotate(images, math.radians(15) * signed[0])
        case "translate":
            return translate(images, 0.125 * signed[0], 0.125 * signed[1])
        case "cutout":
            height, width = images.shape[-2:]
            rows, columns = (draws[0] * height).floor(), (draws[1] * width).floor()
            return cutout(images, rows, columns, (height // 4, width // 4))
    raise ValueError(f"FRePo's augmentation has no operation {op!r}")


def brightness(images: Tensor, amount: Tensor) -> Tensor:
    """Add ``amount``."""
    return images + _per_image(amount)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance of every pixel to its mean over the channels."""
    mean = images.mean(1, keepdim=True)
    return (images - mean) * _per_image(factor) + mean


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance of every value to the mean of its image."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * _per_image(factor) + mean


def shift(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Shift by whole pixels: out[i, j] = in[i + rows, j + columns], and 0 where that is outside."""
    inside = []
    for dim, by in ((2, rows), (3, columns)):
        size = images.shape[dim]
        source = torch.arange(size, device=images.device) + by.long()[:, None]
        along = (-1, 1, size, 1) if dim == 2 else (-1, 1, 1, size)
        inside.append(((source >= 0) & (source < size)).view(along))
        images = images.gather(dim, source.clamp(0, size - 1).view(along).expand(images.shape))
    return images * (inside[0] & inside[1])


def cutout(images: Tensor, rows: Tensor, columns: Tensor, side: tuple[int, int]) -> Tensor:
    """Zero a rectangle of ``side`` (height, width) pixels, from row rows − height//2 on, columns likewise."""
    covered = []
    for size, start, length in zip(images.shape[2:], (rows, columns), side, strict=True):
        offset = torch.arange(size, device=images.device) - (start.long()[:, None] - length // 2)
        covered.append((offset >= 0) & (offset < length))
    return images * ~(covered[0][:, None, :, None] & covered[1][:, None, None, :])


def flip_horizontally(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror the images where ``mirrored`` (B,) or (1,) is True, along the width."""
    return torch.where(_per_image(mirrored), images.flip(3), images)


def scale(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Show ``x`` times the width and ``y`` times the height of the image around its centre: above 1 it shrinks."""
    zero = torch.zeros_like(x)
    return affine(images, (x, zero, zero, zero, y, zero))


def rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate around the centre by ``angle`` in radians, in coordinates from −1 to 1 along either side.

    As in the official codes: an image that is not square is sheared as well.
    """
    sin, cos, zero = torch.sin(angle), torch.cos(angle), torch.zeros_like(angle)
    return affine(images, (cos, -sin, zero, sin, cos, zero))


def crop_and_zoom(images: Tensor, zoom: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Enlarge by ``zoom`` the surroundings of the point (x, y) of the image, in [−1, 1]."""
    zero = torch.zeros_like(zoom)
    return affine(images, (1 / zoom, zero, x, zero, 1 / zoom, y))


def translate(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Move the content left by ``x`` widths and up by ``y`` heights."""
    zeros, ones = torch.zeros_like(x), torch.ones_like(x)
    return affine(images, (ones, zeros, 2 * x, zeros, ones, 2 * y))


def affine(images: Tensor, theta: tuple[Tensor, ...]) -> Tensor:
    """Sample bilinearly at ``theta`` times the output coordinates (x, y, 1), which are in [−1, 1]; 0 outside.

    ``theta``: the six entries of the 2×3 matrix, row by row, each (B,) or (1,).
    """
    matrix = torch.stack(theta, 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, [len(matrix), *images.shape[1:]], align_corners=False)
    return F.grid_sample(images, grid.expand(len(images), -1, -1, -1), align_corners=False)


def _per_image(parameter: Tensor) -> Tensor:
    return parameter.view(-1, 1, 1, 1)


def _cutout_side(size: int) -> int:
    """Side of the square that DSA cuts out: half of the size, rounded half up."""
    return int(0.5 * size + 0.5)
