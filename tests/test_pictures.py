"""Pictures of every mode come out upright, opaque and in 8 bits."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.errors import UserError
from benchmarks.pictures import square, upright

ORIENTATION = 0x0112
UPRIGHT = np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8)
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: np.transpose,
    6: np.rot90,
    7: lambda pixels: np.rot90(pixels, 2).T,
    8: lambda pixels: np.rot90(pixels, -1),
}
"""EXIF orientation → what a camera stores of a scene."""


def saved(image: Image.Image, kind: str = "PNG", **settings: Any) -> Image.Image:
    """``image`` as a file of ``kind`` gives it back."""
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return Image.open(file)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(("kind", "settings"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_a_picture_is_turned_as_its_exif_orientation_says(
    orientation: int, kind: str, settings: dict[str, Any]
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](UPRIGHT)))
    image = saved(stored, kind, exif=exif, **settings)
    for picture in (upright(image), upright(upright(image))):
        assert np.array_equal(np.asarray(picture.convert("L")), UPRIGHT)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0damaged", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"\0", b"Exif\0\0MM\0*" + b"\xff" * 40]
)
def test_damaged_exif_data_are_ignored(exif: bytes) -> None:
    assert np.array_equal(np.asarray(upright(saved(Image.fromarray(UPRIGHT), exif=exif))), UPRIGHT)


def palette(transparency: bytes | int) -> Image.Image:
    image = Image.new("P", (3, 1))
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    for i in range(3):
        image.putpixel((i, 0), i)
    return saved(image, transparency=transparency)


def pixels(mode: str, *values: Any) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    for i, value in enumerate(values):
        image.putpixel((i, 0), value)
    return image


@pytest.mark.parametrize(
    ("image", "mode", "expected"),
    [
        (pixels("1", 0, 1), "L", [0, 255]),
        (pixels("L", 7, 200), "L", [7, 200]),
        (pixels("LA", (100, 255), (100, 0), (55, 51)), "L", [100, 255, 215]),
        (saved(pixels("L", 7, 200), transparency=7), "L", [255, 200]),
        (pixels("RGB", (1, 2, 3)), "RGB", [[1, 2, 3]]),
        (saved(pixels("RGB", (1, 2, 3), (4, 5, 6)), transparency=(1, 2, 3)), "RGB", [[255, 255, 255], [4, 5, 6]]),
        (
            pixels("RGBA", (0, 55, 155, 255), (0, 55, 155, 51), (0, 55, 155, 0)),
            "RGB",
            [[0, 55, 155], [204, 215, 235], [255, 255, 255]],
        ),
        (palette(1), "RGB", [[200, 0, 0], [255, 255, 255], [0, 0, 200]]),
        (palette(bytes([0, 51, 255])), "RGB", [[255, 255, 255], [204, 244, 204], [0, 0, 200]]),
        (pixels("CMYK", (0, 0, 0, 0), (0, 0, 0, 255), (255, 0, 0, 0)), "RGB", [[255] * 3, [0] * 3, [0, 255, 255]]),
        (pixels("HSV", (0, 255, 255)), "RGB", [[255, 0, 0]]),
        (pixels("YCbCr", (77, 128, 128)), "RGB", [[77, 77, 77]]),
    ],
)
def test_every_mode_becomes_grey_or_rgb_on_white(image: Image.Image, mode: str, expected: list[Any]) -> None:
    picture = upright(image)
    assert picture.mode == mode
    assert not picture.has_transparency_data
    assert np.asarray(picture)[0].tolist() == expected


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_than_eight_bits_per_channel_are_refused(dtype: Any) -> None:
    with pytest.raises(UserError, match="more than 8 bits per channel"):
        upright(Image.fromarray(np.full((2, 2), 4000, dtype=dtype)))


@pytest.mark.parametrize(("height", "width", "side"), [(10, 10, 8), (5, 8, 4), (9, 4, 2), (7, 7, 7), (3, 4, 5)])
@pytest.mark.parametrize("channels", [(), (3,)], ids=["grey", "rgb"])
def test_a_square_is_the_mean_over_areas_of_the_centre(
    height: int, width: int, side: int, channels: tuple[int, ...]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    size = min(height, width)
    top, left = (height - size) // 2, (width - size) // 2
    centre = pixels[top : top + size, left : left + size].astype(float)
    # Every pixel as side × side small ones: a pixel of the result covers size × size of them.
    small = centre.repeat(side, 0).repeat(side, 1).reshape(side, size, side, size, *channels)
    ours = np.asarray(square(Image.fromarray(pixels), side))
    assert ours.shape == (side, side, *channels) and ours.dtype == np.uint8
    assert np.abs(ours - small.mean((1, 3))).max() <= 0.5 + 1e-9


def test_a_square_is_no_sample_of_pixels() -> None:
    """Five pixels become four: a quarter of the second goes to the first."""
    row = np.tile(np.array([0, 100, 0, 0, 200], dtype=np.uint8), (5, 1))
    assert np.asarray(square(Image.fromarray(row), 4)).tolist() == [[20, 60, 0, 160]] * 4
