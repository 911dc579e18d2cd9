"""Pictures as PIL reads them → pictures as people see them: upright, opaque, 8 bits, RGB or grey."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks.errors import UserError

BACKGROUND = 255
"""Level of every channel behind transparent pixels: white, as on a sheet of paper."""
GREY_MODES = frozenset({"1", "L", "LA", "La"})


def upright(image: Image.Image) -> Image.Image:
    """Turn ``image`` as its EXIF orientation says, and put it on white where it is transparent.

    Grey modes become ``L``; palettes and all other modes become ``RGB``. The current frame of an animation is taken.
    EXIF data that cannot be read are ignored, as viewers do.

    Raises UserError for 16 or 32 bits per channel: no file states which of the levels are black and white. Raises
    the errors of PIL where the pixels are yet to be decoded and are damaged.
    """
    image.load()
    if image.mode.startswith(("I", "F")):
        raise UserError(f"a picture of more than 8 bits per channel (mode {image.mode}): convert it to 8 bits")
    try:
        image = ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF data may raise anything
        pass
    grey = image.mode in GREY_MODES
    mode = "L" if grey else "RGB"
    if not image.has_transparency_data:
        return image.convert(mode)
    layer = image.convert("LA" if grey else "RGBA")
    picture = Image.new(mode, layer.size, (BACKGROUND,) * len(mode))
    picture.paste(layer.convert(mode), mask=layer.getchannel("A"))
    return picture


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize ``image`` to just cover ``height`` × ``width`` pixels, and cut these from its centre."""
    target, side = max((height, image.height), (width, image.width), key=lambda pair: pair[0] / pair[1])
    whole = (round(image.width * target / side), round(image.height * target / side))
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    return image.resize(whole, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))


def square(image: Image.Image, side: int) -> Image.Image:
    """Cut the largest square from the centre of ``image``, and bring it to ``side`` × ``side`` pixels by area.

    Every pixel is the mean of the area that it covers, rounded to 8 bits. FRePo prepares Imagenette, Imagewoof and
    CUB-200 so, by TensorFlow's method ``area``, and does not round.
    """
    size = min(image.size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    shares = _shares(size, side)
    rows = np.tensordot(shares, pixels, 1)
    means = np.tensordot(shares, rows, (1, 1)).swapaxes(0, 1)
    return Image.fromarray(np.rint(means).astype(np.uint8))


@functools.lru_cache
def _shares(size: int, side: int) -> NDArray[np.float64]:
    """Shares of ``size`` pixels in each of the ``side`` pixels that replace them, (side, size); rows sum to 1."""
    edges, pixels = np.linspace(0, size, side + 1), np.arange(size)
    overlaps = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return overlaps.clip(0) * (side / size)
