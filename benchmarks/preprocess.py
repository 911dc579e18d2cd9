"""Preprocessing of images: channel normalisation, and the two variants of ZCA whitening in the literature.

The variants are incompatible: images distilled under the first are noise under the second. So every distilled set is
stored with its `Preprocess`, as `Preprocess.tensors` and `Preprocess.settings`.

Everything is fitted in float64 and applied in the dtype of the `Preprocess`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks import PREPROCESSINGS
from benchmarks.errors import UserError, choose

Layout = Literal["strided", "contiguous"]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]

CHUNK_BYTES = 1 << 26
"""Working memory of one chunk of images; the result does not depend on it beyond rounding."""
CACHED_BYTES = 1 << 22
"""The same where no pixel depends on another: a chunk that stays in the processor's cache is faster."""
ZCA_BLOCK = 64
"""The largest image side that `zca_frepo` whitens as a whole (FRePo, appendix: 64×64 blocks for the 128² sets)."""
FREPO_RIDGE = 0.1
"""Ridge of FRePo's ZCA, as a fraction of the mean eigenvalue."""
TYPES = frozenset({torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64})
"""Types of images whose black and white are known: 0 and 255 for uint8, else 0 and 1."""
KORNIA_EPS = 0.1
"""Ridge of kornia's ZCA: absolute, for pixels in [0, 1] (MTT)."""

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_FREPO: dict[str, Statistics] = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2861,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny_imagenet": ((0.4759, 0.4481, 0.3926), (0.2763, 0.2687, 0.2813)),
    "imagenette": ((0.4626, 0.4588, 0.4251), (0.2790, 0.2745, 0.2973)),
    "imagewoof": ((0.4917, 0.4613, 0.3931), (0.2513, 0.2442, 0.2530)),
    "imagenet64": ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
    "cub200": ((0.4810, 0.4964, 0.4245), (0.2129, 0.2084, 0.2468)),
}
_VICO: dict[str, Statistics] = {
    **_FREPO,
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "tiny_imagenet": _IMAGENET,
}
CONSTANTS: dict[str, dict[str, Statistics]] = {
    "standardise": _FREPO,
    "standardise_vico": _VICO,
    "standardise_mtt": {**_VICO, "cifar100": _VICO["cifar10"], "imagenette": _IMAGENET, "imagewoof": _IMAGENET},
    "zca_frepo": _FREPO,
}
"""Preprocessing → data set → published (mean, std) per channel, of pixels in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Zca:
    """A whitening x ↦ (x − mean)·W of flattened images, or of equal square blocks of them."""

    mean: Tensor
    """(channels, height, width)."""
    whiten: Tensor
    """W, (d, d) for pixels in the order channel, row, column; (blocks, d, d) where every block has its own."""
    restore: Tensor
    """W⁻¹, of the same shape."""
    block: int | None = None
    """Side of a block in pixels; None: the whole image."""
    layout: Layout = "strided"

    def forward(self, images: Tensor) -> Tensor:
        """Whitened images, (N, C, H, W)."""
        rows = to_blocks(images - self.mean, self.block, self.layout)
        return from_blocks(rows @ self.whiten, images.shape, self.block, self.layout)

    def inverse(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) that `forward` would map to ``images``."""
        rows = to_blocks(images, self.block, self.layout)
        return from_blocks(rows @ self.restore, images.shape, self.block, self.layout) + self.mean


@dataclass(frozen=True, eq=False)
class Preprocess:
    """A fitted preprocessing: pixels in [0, 1] → (pixels − mean) / std, then ZCA if any."""

    name: str
    """One of ``benchmarks.PREPROCESSINGS``."""
    mean: Tensor
    """(channels,)."""
    std: Tensor
    """(channels,)."""
    zca: Zca | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Preprocessed images, (N, C, H, W), on the device and in the dtype of this object.

        ``images``: (N, C, H, W), uint8 or floating point in [0, 1]. Raises UserError where the shape does not fit, and
        for all other types, because their white is not known.
        """
        self._check(images)
        if images.dtype not in TYPES:
            kind = str(images.dtype).removeprefix("torch.")
            raise UserError(f"images of type {kind} are not taken: give uint8, or floating point in [0, 1]")

        def apply(chunk: Tensor) -> Tensor:
            scaled = chunk.to(self.mean, copy=True)
            if chunk.dtype == torch.uint8:
                scaled /= 255
            normalised = scaled.sub_(self.mean.view(-1, 1, 1)).div_(self.std.view(-1, 1, 1))
            return self.zca.forward(normalised) if self.zca else normalised

        return self._in_chunks(apply, images)

    def inverse(self, images: Tensor) -> Tensor:
        """The images in [0, 1] that `forward` would map to ``images``, (N, C, H, W); not clipped."""
        self._check(images)

        def apply(chunk: Tensor) -> Tensor:
            chunk = chunk.to(self.mean)
            normalised = self.zca.inverse(chunk) if self.zca else chunk
            return normalised * self.std.view(-1, 1, 1) + self.mean.view(-1, 1, 1)

        return self._in_chunks(apply, images)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Preprocess:
        """The same preprocessing on another device or in another dtype."""
        moved = {name: tensor.to(device=device, dtype=dtype) for name, tensor in self.tensors().items()}
        return Preprocess.rebuild(moved, self.settings())

    def tensors(self) -> dict[str, Tensor]:
        """The part of the state that is tensors."""
        tensors = {"mean": self.mean, "std": self.std}
        if self.zca:
            tensors |= {"zca_mean": self.zca.mean, "zca_whiten": self.zca.whiten, "zca_restore": self.zca.restore}
        return tensors

    def settings(self) -> dict[str, Any]:
        """The part of the state that JSON can hold."""
        if self.zca is None:
            return {"name": self.name}
        return {"name": self.name, "block": self.zca.block, "layout": self.zca.layout}

    @classmethod
    def rebuild(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Preprocess:
        """The inverse of `tensors` and `settings`."""
        zca = None
        if "zca_mean" in tensors:
            mean, whiten, restore = (tensors[f"zca_{part}"] for part in ("mean", "whiten", "restore"))
            zca = Zca(mean, whiten, restore, settings["block"], settings["layout"])
        return cls(settings["name"], tensors["mean"], tensors["std"], zca)

    def _check(self, images: Tensor) -> None:
        expected = ("N", *(self.zca.mean.shape if self.zca else (len(self.mean), "height", "width")))
        fits = images.ndim == 4 and all(
            not isinstance(want, int) or want == have for want, have in zip(expected, images.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join(map(str, expected))
            raise UserError(f"images of shape {tuple(images.shape)} do not fit this preprocessing: give ({wanted})")

    def _in_chunks(self, apply: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        out = torch.empty(images.shape, dtype=self.mean.dtype, device=self.mean.device)
        size = CHUNK_BYTES if self.zca else CACHED_BYTES
        for source, target in zip(_chunks(images, size), _chunks(out, size), strict=True):
            target.copy_(apply(source))
        return out


def fit(name: str, images: Tensor, *, constants: Statistics | None = None) -> Preprocess:
    """The preprocessing called ``name``, fitted to training images; on the CPU, in float64.

    ``images``: (N, C, H, W) uint8. ``constants``: the published mean and std per channel; None: those of the images.
    `zca_kornia` takes no constants: it has no channel normalisation. Raises UserError for an unknown name, and where
    the images are too large to whiten.
    """
    check(name, images)
    if name == "zca_kornia":
        constants = ((0.0,) * images.shape[1], (1.0,) * images.shape[1])
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in constants or channel_statistics(images))
    normalise = Preprocess(name, mean, std)
    if name == "zca_frepo":
        return replace(normalise, zca=zca_frepo(normalise, images, block=block_side(images.shape[-2:])))
    return replace(normalise, zca=zca_kornia(normalise, images)) if name == "zca_kornia" else normalise


def check(name: str, images: Tensor) -> None:
    """Raise UserError where `fit` would for ``images``, (N, C, H, W), without their pixels being looked at."""
    choose("preprocessing", name, PREPROCESSINGS)
    if name == "zca_frepo":
        block_side(images.shape[-2:])
    if name == "zca_kornia" and max(images.shape[-2:]) > ZCA_BLOCK:
        size = "×".join(map(str, images.shape[-2:]))
        raise UserError(f"zca_kornia cannot whiten {size} images (at most {ZCA_BLOCK}×{ZCA_BLOCK}): use zca_frepo")
    if name == "zca_kornia" and len(images) < 2:
        raise UserError("zca_kornia needs at least two training images")


def channel_statistics(images: Tensor) -> Statistics:
    """Mean and standard deviation of every channel's pixels in [0, 1]; ``images``: (N, C, H, W) uint8.

    Exact: the 256 values are counted. A constant channel has standard deviation 1, so that it can be divided by.
    """
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for chunk in _chunks(images):
        for c, channel in enumerate(chunk.unbind(1)):
            counts[c] += torch.bincount(channel.flatten(), minlength=256)
    values = torch.arange(256).double() / 255
    weights = counts.double() / counts.sum(1, keepdim=True)
    mean = weights @ values
    std = (weights * (values - mean[:, None]).square()).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(torch.where(std > 0, std, 1.0).tolist())


def zca_frepo(
    normalise: Preprocess,
    images: Tensor,
    *,
    ridge: float = FREPO_RIDGE,
    block: int | None = None,
    layout: Layout = "strided",
    shared: bool = True,
) -> Zca:
    """ZCA of FRePo: covariance with 1/n, ridge relative to its mean eigenvalue, rank control.

    ``normalise``: the channel normalisation; ``images``: (N, C, H, W) uint8. ``block``, ``layout``: as in `Zca`;
    ``shared``: a single matrix from the mean covariance of all blocks, as for FRePo's 128² sets, or a matrix for each.
    """
    mean, covariance = pixel_covariance(normalise, images, block=block, layout=layout, shared=shared)
    whiten, restore = whitening(covariance, relative_ridge(covariance, ridge), rank=len(images))
    return Zca(mean, whiten, restore, block, layout)


def zca_kornia(scale: Preprocess, images: Tensor, *, eps: float = KORNIA_EPS) -> Zca:
    """ZCA of kornia as MTT uses it: covariance with 1/(n − 1), absolute ``eps``, no channel normalisation.

    ``scale``: the preprocessing that only scales to [0, 1]; ``images``: (N, C, H, W) uint8. Raises UserError for images
    that are too large or fewer than two.
    """
    check("zca_kornia", images)
    mean, covariance = pixel_covariance(scale, images)
    return Zca(mean, *whitening(covariance * (len(images) / (len(images) - 1)), eps))


def pixel_covariance(
    normalise: Preprocess,
    images: Tensor,
    *,
    block: int | None = None,
    layout: Layout = "strided",
    shared: bool = True,
) -> tuple[Tensor, Tensor]:
    """Mean image (C, H, W) and covariance XᵀX/n of the centred pixels, in float64, of the normalised images.

    ``images``: (N, C, H, W) uint8. The covariance is (d, d), the mean over all blocks, or with ``shared=False``
    (blocks, d, d). Sums and products are of whole numbers, at most 1024 products of at most 2⁷·2⁷ at a time. So float32
    rounds none of them, at twice the speed of float64. The matrix is symmetric: only stripes from the diagonal to the
    right are multiplied, 5/8 of it.
    """
    n, channels = images.shape[:2]
    blocks, _, d = to_blocks(images[:1], block, layout).shape
    size = max(1, 1024 // blocks) if shared else 1024
    totals = torch.zeros(images.shape[1:], dtype=torch.float64)
    products = torch.zeros((d, d) if shared else (blocks, d, d), dtype=torch.float64)
    stripes = [(left, min(left + -(-d // 4), d)) for left in range(0, d, -(-d // 4))]
    for start in range(0, n, size):
        centred = images[start : start + size].float() - 128
        totals += centred.sum(0)
        rows = to_blocks(centred, block, layout)
        rows = rows.flatten(0, 1) if shared else rows
        for left, right in stripes:
            products[..., left:right, left:] += rows[..., left:right].mT @ rows[..., left:]
    for left, right in stripes:
        products[..., right:, left:right] = products[..., left:right, right:].mT
    mean = to_blocks(totals[None] / n, block, layout)
    mean = mean.flatten(0, 1) if shared else mean
    copies = blocks if shared else 1
    covariance = products / (n * copies) - (mean.mT @ mean) / copies
    scale = (255 * normalise.std).repeat_interleave(covariance.shape[-1] // channels)
    return normalise.forward((totals[None] / n + 128) / 255)[0], covariance / scale / scale[:, None]


def relative_ridge(covariance: Tensor, ridge: float) -> Tensor:
    """``ridge`` times the mean eigenvalue, tr(cov)/d: (1,), or (blocks, 1) for a stack of covariances."""
    return ridge * covariance.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)


def whitening(covariance: Tensor, ridge: Tensor | float, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """Whitening W = U (S + r)^(−1/2) Uᵀ and its inverse, for cov = U S Uᵀ; (…, d, d) each.

    ``rank``: eigenvalues after the ``rank`` largest are rounding (more pixels than images); their factor is 1 in both.
    Raises UserError where nothing varies.
    """
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    scales = (values.clamp_min(0) + ridge).sqrt()
    if rank is not None:
        scales[..., : max(0, values.shape[-1] - rank)] = 1
    if not bool((scales > 0).all()):
        raise UserError("ZCA whitening needs training images that differ")
    return (vectors / scales[..., None, :]) @ vectors.mT, (vectors * scales[..., None, :]) @ vectors.mT


def to_blocks(images: Tensor, block: int | None, layout: Layout) -> Tensor:
    """Cut (N, C, H, W) into (blocks, N, C·block²): blocks row by row, each flattened as channel, row, column.

    ``strided``: block (i, j) of a p×q grid takes the pixels [i::p, j::q]. None: the image is one block.
    """
    if block is None:
        return images.flatten(1)[None]
    n, c, height, width = images.shape
    p, q = height // block, width // block
    if layout == "strided":
        grid = images.reshape(n, c, block, p, block, q).permute(3, 5, 0, 1, 2, 4)
    else:
        grid = images.reshape(n, c, p, block, q, block).permute(2, 4, 0, 1, 3, 5)
    return grid.reshape(p * q, n, c * block * block)


def from_blocks(rows: Tensor, shape: torch.Size, block: int | None, layout: Layout) -> Tensor:
    """Images of shape (N, C, H, W): the inverse of `to_blocks`."""
    if block is None:
        return rows.reshape(shape)
    n, c, height, width = shape
    p, q = height // block, width // block
    grid = rows.reshape(p, q, n, c, block, block)
    order = (2, 3, 4, 0, 5, 1) if layout == "strided" else (2, 3, 0, 4, 1, 5)
    return grid.permute(order).reshape(shape)


def _chunks(images: Tensor, filled: int = CHUNK_BYTES) -> Iterator[Tensor]:
    """Pieces of ``images``, (N, ...), that fill ``filled`` bytes as float64."""
    size = max(1, filled // (8 * math.prod(images.shape[1:])))
    for start in range(0, len(images), size):
        yield images[start : start + size]


def block_side(image_size: torch.Size) -> int | None:
    """Side of a block: the largest up to 64 that divides both sides of the image; None if that is at most 64×64.

    Raises UserError where the largest is small.
    """
    if max(image_size) <= ZCA_BLOCK:
        return None
    common = math.gcd(*image_size)
    side = max(side for side in range(1, ZCA_BLOCK + 1) if common % side == 0)
    if side < ZCA_BLOCK // 4:
        size = "×".join(map(str, image_size))
        raise UserError(f"zca_frepo cannot cut {size} images into blocks: give an --image-size with a divisor near 64")
    return side
