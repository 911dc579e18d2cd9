"""A distilled set on disk: nothing is lost, nothing foreign is in it, and it is of use in somebody else's hands."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image, ImageFont
from torch import Tensor

from benchmarks.datasets import Benchmark, load_raw
from benchmarks.datasets import load as load_benchmark
from benchmarks.errors import UserError
from benchmarks.preprocess import fit
from benchmarks.task import generator_for
from harness.records import artifact
from methods.base import Synthetic

DISTILLATION = {"method": "frepo", "dataset": "digits", "ipc": 10, "seed": 0, "steps": 100, "data_fingerprint": "abc"}
CONFIG = {"lr": 3e-4, "pool_size": 10, "flip": None}


def digits(tmp_path: Path, preprocess: str = "zca_frepo", **settings: Any) -> Benchmark:
    return load_benchmark(
        "digits",
        ipc=10,
        network="convnet",
        width=16,
        depth=None,
        norm="instance",
        preprocess=preprocess,
        generator=generator_for("test"),
        root=tmp_path,
        **settings,
    )


def some_set(benchmark: Benchmark, *, lr: Tensor | None = None) -> Synthetic:
    """Real images with centred labels, in the place of distilled ones."""
    images, labels = benchmark.task.draw_per_class()
    targets = (
        torch.nn.functional.one_hot(labels, benchmark.task.num_classes).to(images) - 1 / benchmark.task.num_classes
    )
    return Synthetic(images, targets, "centred", lr)


def saved(path: Path, benchmark: Benchmark, synthetic: Synthetic) -> artifact.Artifact:
    digest = artifact.save(path, synthetic, benchmark, distillation=DISTILLATION, config=CONFIG)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    return artifact.load(path)


@pytest.mark.parametrize("preprocess", ["standardise", "zca_frepo", "zca_kornia"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_what_was_saved_is_what_is_loaded(preprocess: str, dtype: torch.dtype, tmp_path: Path) -> None:
    benchmark = digits(tmp_path, preprocess, dtype=dtype)
    synthetic = some_set(benchmark, lr=torch.tensor(0.02, dtype=dtype))
    loaded = saved(tmp_path / "set.safetensors", benchmark, synthetic)
    images, labels = loaded.dataset.tensors
    assert torch.equal(images, synthetic.images)
    assert torch.equal(labels, synthetic.labels)
    assert loaded.lr is not None and torch.equal(loaded.lr, torch.tensor(0.02, dtype=dtype))
    assert torch.equal(loaded.hard_labels, torch.arange(10).repeat_interleave(10))
    assert (loaded.label_space, loaded.class_names) == ("centred", benchmark.class_names)
    assert loaded.network == benchmark.spec
    assert (loaded.distillation, loaded.config) == (DISTILLATION, CONFIG)
    test_images = load_raw("digits", tmp_path).test_images
    assert torch.equal(loaded.transform(test_images), benchmark.test_images)
    assert torch.equal(loaded.preprocess.inverse(images), benchmark.preprocess.inverse(images))


def test_natural_images_are_the_real_ones(tmp_path: Path) -> None:
    benchmark = digits(tmp_path)
    loaded = saved(tmp_path / "set.safetensors", benchmark, some_set(benchmark))
    natural = loaded.natural_images()
    again = loaded.transform(natural)
    assert natural.min() >= 0 and natural.max() <= 1
    torch.testing.assert_close(again, loaded.images, rtol=0, atol=1e-4)
    with Image.open(tmp_path / "set.png") as picture:
        pixels = torch.from_numpy(np.array(picture))
    scale, gap = 8, 2
    side = 10 * (8 * scale + gap)
    left = pixels.shape[1] - side  # the names of the classes
    assert pixels.shape[0] == side + gap and 3 * gap < left < 20
    corner = pixels[gap : gap + 8 * scale : scale, left : left + 8 * scale : scale]
    assert torch.equal(corner, (natural[0, 0] * 255).round().to(torch.uint8))
    assert (pixels[:gap] == 255).all() and (pixels[:, -gap:] == 255).all()


RED = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(6, 3, 32, 32)


def test_a_picture_has_a_row_for_every_class_and_its_name_before_it() -> None:
    wide = artifact.picture(RED, ["cat", ""])
    left = wide.width - 3 * 66
    assert (wide.height, wide.mode) == (2 * 66 + 2, "RGB") and left > 15
    assert wide.getpixel((left, 2)) == (255, 0, 0)
    labels = np.array(wide.convert("L"))[:, : left - 1]
    assert (labels[2:66] < 100).any() and (labels[68:] == 255).all(), (
        "a name beside the first row, none beside the second"
    )


def test_with_an_image_per_class_the_names_stand_below() -> None:
    square = artifact.picture(RED, ["cat", "dog", "horse", "", "frog", "ship"])  # in reading order
    assert square.size == (3 * 66 + 2, 2 * (66 + artifact.LINE) + 2)
    pixels = np.array(square.convert("L"))
    below = pixels[68 : 66 + artifact.LINE]
    assert all((below[:, x : x + 64] < 100).any() for x in (2, 68, 134))
    assert (pixels[149:, 2:66] == 255).all() and (pixels[149:, 68:132] < 100).any()
    assert square.getpixel((2, 2)) == square.getpixel((65, 83)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("sweet_pepper", "sweet_pepper"),
        ("Füchse, café", "Fuchse, cafe"),
        ("猫", "class 7"),
        ("Жук (bug)", "class 7"),
        ("a\nb\x1b[1m", r"a\nb\x1b[1m"),
        ("not UTF-8 \udcff", r"not UTF-8 \udcff"),
        ("n02105641 Old English sheepdog, bobtail", "n02105641 Old English sheep…"),
    ],
)
def test_a_label_is_readable_and_fits(name: str, shown: str) -> None:
    font = ImageFont.load_default(artifact.FONT_SIZE)
    label = artifact._label(7, name, font, artifact.LABEL_WIDTH)
    assert label == shown and font.getlength(label) <= artifact.LABEL_WIDTH
    assert artifact._label(7, name, font, 1) == ""


def test_a_hundred_classes_have_a_hundred_names() -> None:
    names = [f"class number {i}" for i in range(100)]
    pixels = np.array(artifact.picture(torch.zeros(100, 1, 8, 8), names))
    assert pixels.shape == (10 * (66 + artifact.LINE) + 2, 10 * 66 + 2)
    for i in range(100):
        top, left = 2 + i // 10 * (66 + artifact.LINE) + 64, 2 + i % 10 * 66
        assert (pixels[top : top + artifact.LINE, left : left + 64] < 100).any()


def test_the_same_set_gives_the_same_bytes(tmp_path: Path) -> None:
    benchmark = digits(tmp_path)
    synthetic = some_set(benchmark)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        saved(tmp_path / folder / f"{folder}.safetensors", benchmark, synthetic)
    for ending in ("safetensors", "png"):
        assert (tmp_path / f"a/a.{ending}").read_bytes() == (tmp_path / f"b/b.{ending}").read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["a.png", "a.safetensors"]  # nothing temporary
    # Another process hashes strings differently: the order of the header must not depend on it.
    script = "import sys; from tests.test_artifact import resave; resave(*sys.argv[1:])"
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path / "a/a.safetensors"), str(tmp_path / "c")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    assert (tmp_path / "c").read_bytes() == (tmp_path / "a/a.safetensors").read_bytes()


def resave(source: str, target: str) -> None:
    """Write the set in ``source`` to ``target``, as another process would."""
    loaded = artifact.load(source)
    benchmark = digits(Path(target).parent)
    synthetic = Synthetic(loaded.images, loaded.labels, "centred")
    artifact.save(Path(target), synthetic, benchmark, distillation=loaded.distillation, config=loaded.config)


def test_the_header_is_one_sorted_entry_without_time_host_or_path(tmp_path: Path) -> None:
    benchmark = digits(tmp_path)
    path = tmp_path / "set.safetensors"
    saved(path, benchmark, some_set(benchmark))
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == ["frepo_bench"]
    entry = json.loads(header["__metadata__"]["frepo_bench"])
    assert header["__metadata__"]["frepo_bench"] == json.dumps(entry, sort_keys=True, ensure_ascii=False)
    assert set(entry) == {"schema", "label_space", "class_names", "preprocess", "network", "distillation", "config"}
    assert str(tmp_path).encode() not in content


def test_the_transform_takes_what_people_have(tmp_path: Path) -> None:
    benchmark = digits(tmp_path)
    transform = saved(tmp_path / "set.safetensors", benchmark, some_set(benchmark)).transform
    batch = load_raw("digits", tmp_path).test_images[:4]
    expected = benchmark.test_images[:4]
    torch.testing.assert_close(transform(batch), expected)  # of four images, and of all the test images at once
    assert torch.equal(transform(batch[0]), transform(batch[:1])[0])
    torch.testing.assert_close(transform(batch.float() / 255), expected, rtol=0, atol=1e-5)
    picture = Image.fromarray(batch[0, 0].numpy())
    assert torch.equal(transform(picture), transform(batch[0]))
    assert torch.equal(transform(picture.convert("RGB")), transform(batch[0]))
    assert transform(picture.resize((20, 20))).shape == (1, 8, 8)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(batch), transform(batch))  # workers of a DataLoader
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        rounding = max(torch.finfo(dtype).eps, 1e-6)
        torch.testing.assert_close(transform((batch / 255).to(dtype)), expected, rtol=0, atol=8 * rounding)
    for empty in (batch[:0], batch[:0].float()):
        assert transform(empty).shape == (0, 1, 8, 8) and transform(empty).dtype == expected.dtype


def test_colour_images_fit_too(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (20, 3, 8, 6), dtype=torch.uint8, generator=generator_for("colour"))
    transform = artifact.Transform(fit("zca_frepo", images), 3, (8, 6))
    assert torch.equal(transform(Image.fromarray(images[0].permute(1, 2, 0).numpy())), transform(images[0]))
    assert transform(Image.new("L", (6, 8))).shape == (3, 8, 6)


@pytest.mark.parametrize("size", [(40, 31), (9, 30), (12, 12), (5, 7)])
def test_pictures_are_resized_as_the_data_set_was(size: tuple[int, int], tmp_path: Path) -> None:
    width, height = size
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator_for("picture"))
    picture = Image.fromarray(pixels.numpy())
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / folder).mkdir(parents=True)
        picture.save(tmp_path / folder / "picture.png")
    raw = load_raw(f"folder:{tmp_path}", tmp_path, image_size=12)
    transform = artifact.Transform(fit("standardise", raw.train_images), 3, (12, 12))
    assert torch.equal(transform(picture), transform(raw.test_images[0]))


GREY = torch.linspace(0, 255, 64).round().view(1, 8, 8)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.zeros(3, 8, 8), "it takes (1, 8, 8)"),
        (torch.zeros(1, 28, 28), "it takes (1, 8, 8)"),
        (torch.zeros(8, 8), "it takes (1, 8, 8)"),
        (torch.zeros(1, 1, 1, 8, 8), "it takes (1, 8, 8)"),
        (GREY, "go from 0 to 255"),
        (GREY / 127.5 - 1, "go from -1 to 1"),
        (torch.full((1, 8, 8), float("nan")), "go from nan to nan"),
        (torch.full((2, 1, 8, 8), float("inf")), "go from inf to inf"),
        *((GREY.to(dtype), str(dtype)[6:]) for dtype in (torch.int8, torch.int16, torch.int32, torch.int64)),
        *((GREY.to(dtype), str(dtype)[6:]) for dtype in (torch.uint16, torch.uint32, torch.bool, torch.complex64)),
        ((GREY / 255).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (GREY.to(torch.uint8).to_sparse(), "not: torch.sparse_coo tensor"),
        (GREY[0].to(torch.uint8).numpy(), "not: ndarray"),
        ("digit.png", "not: str"),
        (None, "not: NoneType"),
        (Image.fromarray(GREY[0].numpy().astype(np.uint16) * 257), "more than 8 bits"),
        (Image.fromarray(GREY[0].numpy().astype(np.int32)), "more than 8 bits"),
        (Image.fromarray(GREY[0].numpy() / 255), "more than 8 bits"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_transform_refuses_by_name_what_it_does_not_take(wrong: Any, said: str) -> None:
    transform = artifact.Transform(fit("standardise", GREY.to(torch.uint8)[None]), 1, (8, 8))
    with pytest.raises(UserError) as error:
        transform(wrong)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("tag", [1, 2, 3, 4, 5, 6, 7, 8])
def test_pictures_are_turned_and_made_opaque_as_the_data_set_was(tag: int, tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4, :, 1] = pixels[:, :4, 0] = 200
    pixels[:, :, 3] = np.linspace(0, 255, 8).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = tag
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / folder / "picture.png", exif=exif)
    raw = load_raw(f"folder:{tmp_path}", tmp_path)
    transform = artifact.Transform(fit("standardise", raw.train_images), 3, (8, 8))
    with Image.open(tmp_path / "test/a/picture.png") as picture:
        assert torch.equal(transform(picture), transform(raw.test_images[0]))


HEADERS: dict[str, dict[str, Any]] = {
    "network": {"network": "convnet"},
    "names": {"class_names": list(range(10))},
    "name": {"class_names": "0123456789"},
    "distillation": {"distillation": None},
    "config": {"config": []},
    "preprocessing": {"preprocess": {"name": 7}},
    "no mapping": {"preprocess": None},
}


TENSORS = {
    "images of no size": ("images", torch.zeros(0, 1, 8, 8)),
    "images of two channels": ("images", torch.zeros(100, 2, 8, 8)),
    "whole numbers": ("images", torch.zeros(100, 1, 8, 8, dtype=torch.int64)),
    "fewer labels": ("labels", torch.zeros(99, 10)),
    "labels of another number of classes": ("labels", torch.zeros(100, 9)),
    "preprocessing of other images": ("preprocess.mean", torch.zeros(3)),
    "no step size": ("lr", torch.zeros(0)),
}


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "text":
        path.write_text("no tensors")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "foreign":
        from safetensors.torch import save_file

        save_file({"images": torch.zeros(1)}, path)
    elif kind == "schema":
        path.write_bytes(content.replace(b'\\"schema\\": 2', b'\\"schema\\": 9'))
    elif kind in HEADERS or kind.startswith("deep"):
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["frepo_bench"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        deep = {"deep list": "[", "deep mapping": '{"schema":'}
        entry = deep[kind] * 200_000 if kind in deep else json.dumps(header | HEADERS[kind])
        safetensors.torch.save_file(tensors, path, {"frepo_bench": entry})
    elif kind == "lr":
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()} | {"lr": torch.tensor(1)}  # noqa: SIM118
            safetensors.torch.save_file(tensors, path, file.metadata())
    elif kind in TENSORS:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            name, tensor = TENSORS[kind]
            safetensors.torch.save_file({**tensors, name: tensor}, path, file.metadata())
    elif kind == "field":
        path.write_bytes(content.replace(b"label_space", b"label_spice"))
    elif kind == "labels":
        path.write_bytes(content.replace(b"centred", b"centric").replace(b"probability", b"improbables"))
    assert not path.exists() or path.read_bytes() != content


@pytest.mark.parametrize(
    "kind",
    [
        *("missing", "cut", "text", "empty", "foreign", "schema", "field", "labels", "lr"),
        *HEADERS,
        *TENSORS,
        *("deep list", "deep mapping"),
    ],
)
def test_a_damaged_file_is_one_line(kind: str, tmp_path: Path) -> None:
    benchmark = digits(tmp_path, "standardise")
    path = tmp_path / "set.safetensors"
    saved(path, benchmark, some_set(benchmark))
    damage(path, kind)
    with pytest.raises(UserError) as error:
        artifact.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_set_of_a_newer_version_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = digits(tmp_path, "standardise")
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "SCHEMA", artifact.SCHEMA + 4)
        artifact.save(tmp_path / "set.safetensors", some_set(benchmark), benchmark, distillation={}, config={})
    with pytest.raises(UserError, match=rf"written by a newer version of this suite \(schema {artifact.SCHEMA + 4}\)"):
        artifact.load(tmp_path / "set.safetensors")


def test_a_snapshot_is_the_tensors_alone(tmp_path: Path) -> None:
    path, images = tmp_path / "step-3.safetensors", torch.rand(20, 1, 8, 8)
    labels = torch.nn.functional.one_hot(torch.arange(10).repeat_interleave(2)) - 0.1
    for lr in (None, torch.tensor(0.02)):
        digest = artifact.save_snapshot(path, Synthetic(images, labels, "centred", lr))
        assert artifact.lost(path, digest) is None
        loaded = artifact.load_snapshot(path)
        assert torch.equal(loaded.images, images) and torch.equal(loaded.labels, labels)
        assert loaded.label_space == "centred" and loaded.lr == lr
    path.write_bytes(path.read_bytes()[:100])
    assert artifact.lost(path, digest) == "its set step-3.safetensors is not as it was written"
    for words in (r"step-3\.safetensors is damaged", r"no such file: .*step-3\.safetensors"):
        with pytest.raises(UserError, match=words):
            artifact.load_snapshot(path)
        path.unlink(missing_ok=True)
    assert artifact.lost(path, digest) == "its set step-3.safetensors is missing"
