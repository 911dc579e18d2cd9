"""Folders of images, whatever is in them: every image once, or one line; no program runs, nothing else is written."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.data.image_files import passed_over
from benchmarks.data.published import _read_batches
from benchmarks.datasets import load_raw
from benchmarks.preprocess import fit
from harness.plan.planning import load_data
from harness.plan.request import Request
from tests.properties.support import CHARACTERS, WORDS, damaged, examples, refused_or, watched
from tests.properties.test_foreign_sets import STREAMS


def encoded(mode: str, size: tuple[int, int], form: str) -> bytes:
    """An image of ``mode`` in the format ``form``."""
    pixels = Image.effect_mandelbrot((size[0] or 1, size[1] or 1), (-2, -1, 1, 1), 9)
    stream = io.BytesIO()
    pixels.convert(mode).save(stream, form)
    return stream.getvalue()


def png(width: int, height: int, depth: int = 8, colour: int = 0, pixels: bytes = b"") -> bytes:
    """A PNG that says that it has this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


SCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(touched) (w) file closefile showpage\n"
IMAGES = {
    **{f"{form} {mode}": encoded(mode, (8, 8), form) for form, mode in [("PNG", "L"), ("PNG", "RGB"), ("PNG", "P")]},
    **{f"{form} {mode}": encoded(mode, (8, 8), form) for form, mode in [("PNG", "RGBA"), ("PNG", "1"), ("PNG", "LA")]},
    **{f"{form} {mode}": encoded(mode, (8, 8), form) for form, mode in [("JPEG", "L"), ("JPEG", "RGB"), ("GIF", "P")]},
    **{
        f"{form} {mode}": encoded(mode, (8, 8), form)
        for form, mode in [("BMP", "RGB"), ("TIFF", "RGB"), ("WEBP", "RGB")]
    },
    **{
        f"{form} {mode}": encoded(mode, (8, 8), form)
        for form, mode in [("JPEG", "CMYK"), ("TIFF", "F"), ("PNG", "I;16")]
    },
    "PPM": encoded("RGB", (8, 8), "PPM"),
    "another size": encoded("L", (9, 7), "PNG"),
    "a row": encoded("L", (500, 1), "PNG"),
}
CONTENTS = st.one_of(
    st.sampled_from(sorted(IMAGES)).map(IMAGES.__getitem__),
    st.sampled_from(sorted(IMAGES)).map(IMAGES.__getitem__),
    st.sampled_from(sorted(IMAGES)).flatmap(lambda name: damaged(IMAGES[name])),
    st.sampled_from([b"", SCRIPT, b"P6\n100000 100000\n255\n", b"BM" + bytes(60), b"GIF89a" + b"\xff" * 10]),
    st.builds(
        png,
        *(st.sampled_from([0, 1, 8, 9000, 60_000, 2**31 - 1, 2**32 - 1]) for _ in range(2)),
        st.sampled_from([1, 8, 16]),
        st.sampled_from([0, 2, 3, 6]),
        st.sampled_from([b"", bytes(1 << 16)]),
    ),
    st.binary(max_size=100),
)
SUFFIXES = [
    ".png",
    ".png",
    ".PNG",
    ".jpg",
    ".gif",
    ".tif",
    ".eps",
    ".ps",
    ".txt",
    "",
    ".png.txt",
    ".pdf",
    ".fits",
    ".wmf",
]
NAMES = st.one_of(
    st.text(CHARACTERS, min_size=1, max_size=8).filter(lambda name: name not in (".", "..")),
    st.sampled_from(
        ["-rf", " ", "a b", "a\nb", "\udcff", "é", "e\u0301", "n" * 200, "Thumbs.db", ".x", "@eaDir", "$HOME"]
    ),
)


@st.composite
def trees(draw: st.DrawFn, root: Path) -> Path:
    """A folder ``root`` with two good classes, and then anything."""
    shutil.rmtree(root, ignore_errors=True)
    test = draw(st.sampled_from(["test", "test", "val"]))
    for split in ("train", test):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            (root / split / name / "0.png").write_bytes(IMAGES["PNG L"])
    for _ in range(draw(st.integers(1, 4))):
        folders = sorted(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())
        folder = folders[draw(st.integers(0, len(folders) - 1))] if folders else root
        name, kind = (
            draw(NAMES),
            draw(st.sampled_from(["image"] * 5 + ["class", "folder", "deep", "link", "pipe", "gone"])),
        )
        path = folder / name
        try:
            if kind == "image":
                (folder / f"{name}{draw(st.sampled_from(SUFFIXES))}").write_bytes(draw(CONTENTS))
            elif kind == "class":
                for split in ("train", test):
                    (root / split / name).mkdir()
                    (root / split / name / "0.png").write_bytes(draw(CONTENTS))
            elif kind == "folder":
                path.mkdir()
            elif kind == "deep":
                deep = folder / "/".join([name[:3]] * 60)
                deep.mkdir(parents=True)
                (deep / "0.png").write_bytes(IMAGES["PNG L"])
            elif kind == "link":
                path.symlink_to(draw(st.sampled_from([".", "..", "../b", "none", "/", "/dev/zero", name, str(root)])))
            elif kind == "pipe":
                os.mkfifo(f"{path}.png")
            elif folder.name != root.name:
                shutil.rmtree(folder)
        except OSError:  # there is such a name already, or there can be none
            pass
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where folder after folder lies, and a cache."""
    return tmp_path_factory.mktemp("folders")


@examples(100)
@given(data=st.data())
def test_a_folder_is_a_data_set_or_a_line(root: Path, data: st.DataObject) -> None:
    folder = data.draw(trees(root / data.draw(st.sampled_from(["set", "a\nb", "\udcff", "-x"]))))
    size = data.draw(st.sampled_from([None, None, 1, 8, 13]))
    cache = data.draw(st.sampled_from([None, root / "cache"]))
    with watched(root):
        raw = refused_or(lambda: load_raw(f"folder:{folder}", root, image_size=size, cache=cache))
        if raw is None:
            return
        for split, images, labels in (
            ("train", raw.train_images, raw.train_labels),
            ("test", raw.test_images, raw.test_labels),
        ):
            top = folder / split if (folder / split).is_dir() else folder / "val"
            files = {
                os.path.realpath(path)
                for path in top.rglob("*")
                if path.is_file() and not any(map(passed_over, path.relative_to(top).parts))
            }
            linked = any(path.is_symlink() for path in folder.rglob("*"))
            assert linked or len(images) <= len(files)
            assert images.dtype == torch.uint8 and len(images) == len(labels) > 0
            assert set(labels.tolist()) == set(range(len(raw.class_names)))
        for name in ("standardise", "zca_frepo"):
            fitted = refused_or(lambda name=name: fit(name, raw.train_images))
            assert fitted is None or bool(fitted.forward(raw.test_images).isfinite().all())


# Tables


def published(root: Path) -> dict[str, list[Path]]:
    """Tiny ImageNet and CUB-200 below ``root``, with a few images: the name of each → the places of its tables."""
    tiny, cub = root / "tiny-imagenet-200", root / "CUB_200_2011"
    images = [tiny / "train" / wnid / "images" / f"{wnid}_0.png" for wnid in ("n1", "n2")]
    images += [tiny / "val" / "images" / f"val_{index}.png" for index in range(2)]
    images += [cub / "images" / name / f"{letter}.png" for name in ("001.A", "002.B") for letter in "xy"]
    for image in images:
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(IMAGES["PNG RGB"])
    return {
        "tiny_imagenet": [tiny / "wnids.txt", tiny / "val" / "val_annotations.txt"],
        "cub200": [cub / f"{name}.txt" for name in [*GOOD][2:]],
    }


GOOD = {
    "wnids": b"n1\nn2\n",
    "val_annotations": b"val_0.png\tn1\t0\t0\t1\t1\nval_1.png\tn2\t0\t0\t1\t1\n",
    "classes": b"1 001.A\n2 002.B\n",
    "images": b"1 001.A/x.png\n2 001.A/y.png\n3 002.B/x.png\n4 002.B/y.png\n",
    "image_class_labels": b"1 1\n2 1\n3 2\n4 2\n",
    "train_test_split": b"1 1\n2 0\n3 1\n4 0\n",
}
CELLS = st.sampled_from(
    [b"1", b"0", b"-1", b"9" * 5000, "٣".encode(), b"n1", b"../../../etc/passwd", b"/dev/zero", b"\xff", b"x\0y", b""]
)


@st.composite
def tables(draw: st.DrawFn, content: bytes) -> bytes:
    """A table with other bytes, lines or cells."""
    lines = content.splitlines(keepends=True)
    kind = draw(st.sampled_from(["damaged", "cells", "again", "without", "order", "any"]))
    if kind == "damaged":
        return draw(damaged(content))
    if kind == "cells":
        row = draw(st.integers(0, len(lines) - 1))
        lines[row] = draw(st.sampled_from([b"\t", b" "])).join(draw(st.lists(CELLS, max_size=4))) + b"\n"
    elif kind == "again":
        lines.append(draw(st.sampled_from(lines)))
    elif kind == "without":
        del lines[draw(st.integers(0, len(lines) - 1))]
    elif kind == "order":
        lines = draw(st.permutations(lines))
    else:
        return draw(st.binary(max_size=60))
    return b"".join(lines)


@examples(150)
@given(data=st.data())
def test_tables_beside_images(root: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["tiny_imagenet", "cub200"]))
    files = published(root)[name]
    for file in files:
        file.write_bytes(GOOD[file.stem])
    changed = data.draw(st.sampled_from(files))
    changed.write_bytes(data.draw(tables(GOOD[changed.stem])))
    with watched(root):
        raw = refused_or(lambda: load_raw(name, root, image_size=8))
    if raw is not None:
        for images, labels in ((raw.train_images, raw.train_labels), (raw.test_images, raw.test_labels)):
            assert len(images) == len(labels) > 0 and 0 <= int(labels.min()) <= int(labels.max()) < len(raw.class_names)


@examples(60)
@given(name=WORDS, size=st.sampled_from([None, 8]))
def test_names_of_folders(root: Path, name: str, size: int | None) -> None:
    """Any path is a data set or a line, and what records call it can be printed."""
    request: Any = Request(methods=("frepo",), datasets=("digits",), image_size=size, device="cpu")
    with watched(root):
        raw = refused_or(lambda: load_data(f"folder:{root}/{name}", root, root / "cache", request))
    assert raw is None or raw.name.isprintable()


@examples(150)
@given(data=st.data())
def test_pickled_batches(root: Path, data: st.DataObject) -> None:
    """Those of the downsampled ImageNet."""
    path = root / "train_data_batch_1"
    batch = {"data": np.zeros((2, 3 * 64 * 64), np.uint8), "labels": [1, 1000]}
    good = pickle.dumps(batch, protocol=data.draw(st.integers(0, 5)))
    path.write_bytes(data.draw(st.one_of(STREAMS, damaged(good), damaged(good[:200]))))
    with watched(root), contextlib.suppress(MemoryError):  # which the command line says in a line
        refused_or(lambda: _read_batches([path]))


def test_a_script_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL would hand PostScript over to Ghostscript, also where the file has the name of a picture."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            (tmp_path / "set" / split / name / "0.png").write_bytes(IMAGES["PNG L"])
    (tmp_path / "set" / "train" / "a" / "1.eps").write_bytes(SCRIPT)
    with watched(tmp_path):
        raw = load_raw(f"folder:{tmp_path}/set", tmp_path)
    assert len(raw.train_images) == 2 and "1.eps" in raw.left_out
    (tmp_path / "set" / "train" / "a" / "1.png").write_bytes(SCRIPT)
    with watched(tmp_path), pytest.raises(Exception, match=r"1\.png cannot be decoded as an image"):
        load_raw(f"folder:{tmp_path}/set", tmp_path)
    assert not (tmp_path / "ran").exists()
