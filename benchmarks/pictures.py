"""Pictures as PIL reads them → pictures as they are meant to be looked at: upright, opaque, 8 bits, RGB or grey."""

from __future__ import annotations

from PIL import Image, ImageOps

from benchmarks.errors import UserError

BACKGROUND = 255
"""Level, in every channel, of the colour behind transparent pixels: white, as on a sheet of paper."""
GREY_MODES = frozenset({"1", "L", "LA", "La"})


def upright(image: Image.Image) -> Image.Image:
    """``image`` turned as its EXIF orientation says, on white where it is transparent, in mode ``L`` or ``RGB``.

    Grey modes become ``L``; palettes and all other modes ``RGB``. Of an animation the current frame is taken. EXIF data
    that cannot be read are ignored, as viewers do.

    Raises UserError for 16 or 32 bits per channel: no file states which of the levels are black and white. Raises
    whatever PIL does where the pixels are yet to be decoded and are damaged.
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
    """``image`` resized to just cover ``height`` × ``width`` pixels, and cut to them from the centre."""
    target, side = max((height, image.height), (width, image.width), key=lambda pair: pair[0] / pair[1])
    whole = (round(image.width * target / side), round(image.height * target / side))
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    return image.resize(whole, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
