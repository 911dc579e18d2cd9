"""Sets in the files of others, whatever is in them: a set that fits, or one line; no code that runs, no memory lost."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from harness.records import artifact, importers
from methods.checks import check_synthetic
from tests.properties.support import JSON, TEXTS, as_text, damaged, examples, mutated, refused_or, watched
from tests.test_artifact import digits, some_set
from tests.test_importers import CENTRED, CLASSES, IMAGES, NAMES, SHAPE, dc, mtt, npz


def check(paths: list[Path], **options: Any) -> bool:
    """Whether ``paths`` hold a set for the digits; if not, a line has said so."""
    with watched(paths[0].parent):
        imported = refused_or(lambda: importers.read(paths))
        if imported is None:
            return False
        synthetic = refused_or(lambda: importers.fitted(imported, NAMES, SHAPE, most=1437, **options))
        if synthetic is None:
            return False
        importers.doubts(synthetic, NAMES)
        form: dict[str, Any] = {"classes": 10, "present": tuple(range(10)), "image": SHAPE}
        form |= {"ipc": max(1, len(synthetic.images) // 10), "dtype": torch.float32, "device": torch.device("cpu")}
        return refused_or(lambda: check_synthetic(synthetic, "a set", **form) or True) is not None


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of each kind that is read, as it should be."""
    folder = tmp_path_factory.mktemp("good")
    benchmark = digits(folder, "standardise")
    artifact.save(folder / "own.safetensors", some_set(benchmark), benchmark, distillation={}, config={})
    soft = {"image": IMAGES.permute(0, 2, 3, 1), "label": CENTRED}
    dc(folder / "archive.pt", 2)
    dc(folder / "legacy.pt", _use_new_zipfile_serialization=False)
    mtt(folder, images=IMAGES, labels=CLASSES)
    npz(folder / "plain.npz", **soft)
    np.savez_compressed(folder / "small.npz", **{name: value.numpy() for name, value in soft.items()})
    (folder / "own.png").unlink()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the files of one input after another."""
    return tmp_path_factory.mktemp("sets")


@examples(200)
@given(data=st.data())
def test_damaged_files(good: Path, folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(path.name for path in good.iterdir())))
    path = folder / "set"
    path.write_bytes(data.draw(damaged((good / name).read_bytes())))
    others = {"images_best.pt": "labels_best.pt", "labels_best.pt": "images_best.pt"}
    check([path, good / others[name]] if name in others else [path])


# Tensors


DTYPES = [dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)]
IMPOSSIBLE = (RuntimeError, NotImplementedError, TypeError, LookupError, ValueError)
EXTREMES = (0.0, -0.0, float("nan"), float("inf"), -float("inf"), 3e38, 1e-45, 1e300, 65504.0, -1.0, 0.1)


@st.composite
def tensors(draw: st.DrawFn, usual: Tensor) -> Tensor:
    """``usual`` with another dtype, shape, layout or values."""
    tensor = usual
    for change in draw(st.lists(st.sampled_from(["dtype", "values", "shape", "layout", "size"]), max_size=2)):
        if change == "values":
            tensor = tensor.clone()
            if tensor.numel() and tensor.layout == torch.strided and tensor.device.type == "cpu":
                with unless_impossible():
                    tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(st.sampled_from(EXTREMES))
        elif change == "size":
            with unless_impossible():
                tensor = tensor[: draw(st.sampled_from([0, 1, 7, 10]))]
        elif change == "shape":
            shape = draw(st.lists(st.sampled_from([0, 1, 2, 8, 10, 20, 10**9]), max_size=5))
            with unless_impossible():
                tensor = torch.zeros(1, dtype=usual.dtype).expand(shape)
        elif change == "dtype":
            with unless_impossible():
                tensor = tensor.to(draw(st.sampled_from(DTYPES)))
        else:
            with unless_impossible():
                tensor = draw(st.sampled_from(LAYOUTS))(tensor)
    return tensor


@contextlib.contextmanager
def unless_impossible() -> Iterator[None]:
    """Leaves a change out that torch does not make."""
    with warnings.catch_warnings(), contextlib.suppress(*IMPOSSIBLE):
        warnings.simplefilter("ignore")
        yield


LAYOUTS: list[Any] = [
    lambda t: t.to("meta"),
    lambda t: t.to_sparse(),
    lambda t: t.to_sparse_csr(),
    lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    lambda t: t.mT,
    lambda t: torch.nn.Parameter(t),
    lambda t: t.to_mkldnn(),
    lambda t: torch.view_as_complex(t.view(*t.shape[:-1], -1, 2)).conj(),
    lambda t: torch.complex(t, t).imag._neg_view(),
    lambda t: torch.nested.nested_tensor([t, t]),
    lambda t: t.view(torch.uint8),
    lambda t: t[::2],
]


@examples(80)
@given(data=st.data())
def test_tensors_of_every_kind(folder: Path, data: st.DataObject) -> None:
    parts = {"images": IMAGES, "labels": data.draw(st.sampled_from([CLASSES, CENTRED, (CENTRED > 0).float()]))}
    parts["lr"] = torch.tensor(0.1)
    parts = {name: data.draw(tensors(tensor)) for name, tensor in parts.items()}
    paths = []
    for name, tensor in parts.items():
        with unless_impossible():
            torch.save(tensor, folder / f"{name}.pt")
            paths.append(folder / f"{name}.pt")
    space = data.draw(st.sampled_from([None, "probability", "centred", "logits"]))
    if paths:
        check(paths[: data.draw(st.integers(1, 3))], label_space=space)
    content = [[parts["images"], parts["labels"]], *data.draw(st.lists(JSON, max_size=1))]
    accuracies = data.draw(st.sampled_from([{}, None, np.float64(1)]))
    path = folder / "dc.pt"
    path.unlink(missing_ok=True)
    with unless_impossible():
        torch.save({"data": content, "accs_all_exps": accuracies}, path)
    if path.exists():
        check([path], label_space=space)


# Pickles


class Calls:
    """Pickles as a call of any function that is there."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


MARK = "a_file_that_must_not_be"
CALLS = [
    Calls(os.system, f"touch {MARK}"),
    Calls(os.mkdir, MARK),
    Calls(eval, f"open({MARK!r}, 'w')"),
    Calls(exec, f"open({MARK!r}, 'w')"),
    Calls(open, MARK, "w"),
    Calls(print, MARK),
    Calls(getattr, MARK, "upper"),
    Calls(torch.load, MARK),
    Calls(np.load, MARK),
    Calls(np.empty, 10**12),
    Calls(bytearray, 10**12),
    Calls(torch.empty, 10**12),
    Calls(torch.hub.load, MARK, MARK),
    Calls(np.dtype, "O"),
    Calls(type(np.dtype("f8")), 10**9),
    Calls(pickle.loads, pickle.dumps(0)),
    Calls(np.float64(0).__reduce__()[0], np.dtype("O"), b"x"),
    Calls(np.float64(0).__reduce__()[0], np.dtype("f8"), b""),
    Calls(np.float64(0).__reduce__()[0], np.dtype("V1000"), b"x"),
]


@examples(60)
@given(data=st.data())
def test_pickles_that_call(folder: Path, data: st.DataObject) -> None:
    call = data.draw(st.sampled_from(CALLS))
    whole = data.draw(
        st.sampled_from(
            [
                call,
                {"data": call},
                {"data": [[IMAGES, call]]},
                [call],
                {"data": [[IMAGES, CLASSES]], call.call[0].__name__: call},
            ]
        )
    )
    path = folder / "calls"
    how = data.draw(st.sampled_from(["archive", "legacy", *range(6)]))
    if isinstance(how, int):
        path.write_bytes(pickle.dumps(_without_tensors(whole), protocol=how))
    else:
        torch.save(whole, path, _use_new_zipfile_serialization=how == "archive")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        check([path])
    assert not (folder / MARK).exists()


def _without_tensors(content: Any) -> Any:
    if isinstance(content, (dict, list)):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        made = {key: _without_tensors(part) for key, part in items}
        return made if isinstance(content, dict) else list(made.values())
    return None if isinstance(content, Tensor) else content


NAMED = [b"cos\nsystem\n", b"ctorch\nload\n", b"ccollections\nOrderedDict\n", b"\x8c\x02os\x8c\x06system\x93"]
LARGE = [b"(I1000000000\n", b"X\xff\xff\xff\x7f", b"Nr\xff\xff\xff\xff", b"\x95" + b"\x7f" * 8, b"\x8e" + b"\x7f" * 8]
STREAMS = st.lists(
    st.one_of(
        st.integers(0, 255).map(lambda opcode: bytes([opcode])),
        st.binary(max_size=8),
        st.sampled_from([*NAMED, *LARGE, b"R", b"b", b"t", b"]", b"}", b"("]),
    ),
    max_size=20,
).map(lambda parts: b"\x80\x02" + b"".join(parts) + b".")
"""Pickles of any opcodes."""


@examples(150)
@given(stream=STREAMS)
def test_streams_of_opcodes(folder: Path, stream: bytes) -> None:
    path = folder / "opcodes"
    path.write_bytes(stream)
    assert not check([path])


# Archives


@examples(50)
@given(data=st.data())
def test_archives_of_any_arrays(folder: Path, data: st.DataObject) -> None:
    """Headers that lie about shape, type and their own length, with content that compresses a thousand times."""
    path = folder / "arrays"
    names = data.draw(
        st.sampled_from(
            [("image", "label"), ("images", "labels"), ("image", "image"), ("", "../label"), ("data", "label")]
        )
    )
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # of two members with one name
        for name, usual in zip(names, ((20, 8, 8, 1), (20, 10)), strict=True):
            header = {
                "descr": data.draw(
                    st.one_of(
                        st.sampled_from(
                            [
                                "<f4",
                                ">f8",
                                "<f2",
                                "|V2",
                                "<i8",
                                "|O",
                                "<U5",
                                "|u1",
                                "<f16",
                                "<c8",
                                [("a", "<f4")],
                                "<M8[s]",
                                ",".join(["f4"] * 3),
                            ]
                        ),
                        TEXTS,
                    )
                ),
                "fortran_order": data.draw(st.booleans()),
                "shape": data.draw(
                    st.one_of(
                        st.just(usual),
                        st.lists(st.sampled_from([0, 1, 8, 10, 20, -1, 2**31, 2**62, 10**30]), max_size=5).map(tuple),
                    )
                ),
            }
            text = (
                repr(header)
                if data.draw(st.booleans())
                else data.draw(st.one_of(TEXTS, st.just("(" * 5000), st.just("[" * 90 + "]" * 90)))
            )
            encoded = text.encode("utf-8", "replace")
            version = data.draw(st.sampled_from([1, 2, 3, 4, 0, 255]))
            length = data.draw(st.sampled_from([len(encoded), 0, 2**16 - 1, 2**31, 2**32 - 1]))
            size = struct.pack("<H", min(length, 2**16 - 1)) if version == 1 else struct.pack("<I", length)
            content = b"\x93NUMPY" + bytes([version, 0]) + size + encoded
            body = data.draw(st.sampled_from([0, 100, 20 * 64 * 4, 20 * 10 * 8, 1 << 22]))
            archive.writestr(f"{name}.npy", content + bytes(body))
    check([path])


@examples(60)
@given(data=st.data())
def test_archives_of_torch_with_other_members(good: Path, folder: Path, data: st.DataObject) -> None:
    path = folder / "archive"
    with zipfile.ZipFile(good / "archive.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = sorted(members)
    changed = data.draw(st.sampled_from(names))
    content = data.draw(st.one_of(damaged(members[changed]), st.just(bytes(1 << 22)), st.none()))
    method = data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            part = content if name == changed else members[name]
            if part is not None:
                archive.writestr(name, part)
    check([path])


# Sets of this suite


@examples(60)
@given(data=st.data())
def test_own_files_that_say_nonsense(good: Path, folder: Path, data: st.DataObject) -> None:
    """The file is well formed, and header and tensors are not those of a set."""
    path = folder / "own.safetensors"
    path.write_bytes((good / "own.safetensors").read_bytes())
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["frepo_bench"])
        parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    if data.draw(st.booleans()):
        header = data.draw(mutated(header))
    changed = data.draw(st.sampled_from(sorted(parts)))
    if data.draw(st.booleans()):
        parts[changed] = data.draw(tensors(parts[changed]))
    elif data.draw(st.booleans()):
        del parts[changed]
    with unless_impossible():
        if sum(part.numel() for part in parts.values()) < 10**6:
            plain = {name: part.detach().contiguous().clone() for name, part in parts.items()}
            safetensors.torch.save_file(plain, path, {"frepo_bench": as_text(header).decode()})
    with watched(path.parent):
        loaded = refused_or(lambda: artifact.load(path))
        if loaded is not None:
            _ = loaded.hard_labels, loaded.natural_images(), loaded.dataset, loaded.transform, loaded.network
            artifact.picture(loaded.natural_images(), loaded.class_names, loaded.classes)
        snapshot = refused_or(lambda: artifact.load_snapshot(path))
        assert snapshot is None or isinstance(snapshot.images, Tensor)
    check([path])


MODES = [
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "LA",
    "PA",
    "RGBX",
    "RGBa",
    "La",
    "I;16",
]


@examples(80)
@given(data=st.data())
def test_any_image_through_the_transform_of_a_set(good: Path, data: st.DataObject) -> None:
    transform = artifact.load(good / "own.safetensors").transform
    size = data.draw(st.tuples(*[st.sampled_from([1, 2, 8, 9, 300])] * 2))
    image: Any = Image.new(data.draw(st.sampled_from(MODES)), size)
    if data.draw(st.booleans()):
        image = data.draw(tensors(data.draw(st.sampled_from([IMAGES[0].sigmoid(), IMAGES.sigmoid()]))))
    made = refused_or(lambda: transform(image))
    if made is not None:
        assert made.shape[-3:] == SHAPE and made.dtype == torch.float32 and bool(made.isfinite().all())
