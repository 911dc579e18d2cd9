"""Every loader on small files in the published layout."""

from __future__ import annotations

import builtins
import gzip
import hashlib
import itertools
import os
import pickle
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import DATASETS, folders, preprocess
from benchmarks._torchvision import datasets as torchvision_datasets
from benchmarks.data import image_files, source
from benchmarks.datasets import Benchmark, RawData, load, load_raw, wordnet_ids
from benchmarks.errors import UserError

RNG = np.random.default_rng(0)
COLOURS = ("red", "green", "blue")
WNIDS = sorted(wordnet_ids("imagenette").values())


def benchmark(name: str, root: Path, **settings: Any) -> Benchmark:
    defaults: dict[str, Any] = {
        "ipc": 1,
        "network": "convnet",
        "width": 4,
        "depth": 1,
        "norm": "instance",
        "preprocess": "standardise",
        "generator": torch.Generator(),
    }
    return load(name, root=root, **{**defaults, **settings})


def fails(message: str, action: Callable[[], object]) -> None:
    """``action`` raises a UserError of one line that matches ``message``."""
    with pytest.raises(UserError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)


def save_image(path: Path, colour: Any, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def image_folder(root: Path, *, test: str = "test", per_class: int = 3, **settings: Any) -> Path:
    """Classes blue, green and red: each image is its class's colour."""
    for split in ("train", test):
        for colour in COLOURS:
            for i in range(per_class):
                save_image(root / split / colour / f"{i}.png", colour, **settings)
    return root


def colours(images: Tensor) -> list[str]:
    """Which channel each image is brightest in."""
    return [COLOURS[int(image.float().mean((1, 2)).argmax())] for image in images]


def named(raw: RawData, labels: Tensor) -> list[str]:
    return [raw.class_names[int(label)] for label in labels]


# digits


def test_digits_is_the_real_set_with_a_fixed_stratified_split(tmp_path: Path) -> None:
    raw = load_raw("digits", tmp_path, cache=tmp_path / "cache")
    assert raw.train_images.shape == (1438, 1, 8, 8)
    assert raw.test_images.shape == (359, 1, 8, 8)
    assert torch.bincount(raw.train_labels).tolist() == [142, 146, 142, 146, 145, 146, 145, 143, 139, 144]
    assert torch.bincount(raw.test_labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert raw.train_images.dtype == torch.uint8
    assert int(raw.train_images.max()) == 255
    assert not raw.flip
    assert raw.fingerprint.startswith("a1c48ca7")
    assert not (tmp_path / "cache").exists()


def test_digits_import_no_library_but_torch_and_numpy() -> None:
    code = (
        "import sys; from pathlib import Path; from benchmarks.datasets import load_raw;"
        "load_raw('digits', Path('.'));"
        "heavy = {'torchvision', 'sklearn', 'scipy', 'pandas', 'torch._dynamo'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    raw, published = load_raw("digits", tmp_path), load_digits()

    def rows(images: Any, labels: Any) -> list[list[int]]:
        return sorted(
            [*np.rint(image.ravel()).astype(int), int(label)] for image, label in zip(images, labels, strict=True)
        )

    images = torch.cat([raw.train_images, raw.test_images]).numpy()
    labels = torch.cat([raw.train_labels, raw.test_labels]).numpy()
    assert rows(images * (16 / 255), labels) == rows(published.images, published.target)


# torchvision's


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + array.tobytes())


def mnist(root: Path, folder: str = "MNIST") -> tuple[np.ndarray, np.ndarray]:
    """30 training and 10 test images with the labels 0 … 9 in turn; returns the training images and labels."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("t10k", 10), ("train", 30)):
        images = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels)
    return images, labels


@pytest.mark.parametrize(
    ("name", "folder", "flip"), [("mnist", "MNIST", False), ("fashion_mnist", "FashionMNIST", True)]
)
def test_mnist_and_fashion_mnist(name: str, folder: str, flip: bool, tmp_path: Path) -> None:
    images, labels = mnist(tmp_path, folder)
    raw = load_raw(name, tmp_path)
    assert np.array_equal(raw.train_images[:, 0].numpy(), images)
    assert np.array_equal(raw.train_labels.numpy(), labels)
    assert raw.test_images.shape == (10, 1, 28, 28)
    assert raw.flip == flip
    assert raw.class_names[0] == ("T-shirt/top" if flip else "0")


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("keep", [0, 3, 12, -1])
def test_a_truncated_idx_file_is_damaged(file: str, keep: int, tmp_path: Path) -> None:
    mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / file
    path.write_bytes(path.read_bytes()[:keep])
    fails("mnist: .*MNIST/raw is damaged", lambda: load_raw("mnist", tmp_path))


def test_labels_that_do_not_go_with_the_images_are_refused(tmp_path: Path) -> None:
    mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    write_idx(path, np.zeros(29, dtype=np.uint8))
    fails("the train split has 30 images and 29 labels", lambda: load_raw("mnist", tmp_path))
    write_idx(path, np.full(30, 10, dtype=np.uint8))
    fails("labels that are not among its 10 classes", lambda: load_raw("mnist", tmp_path))


class OldDtype:
    """Pickles as the dtype of arrays in files of NumPy 1: `align` as a number, of which NumPy 2.4 warns."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.dtype, ("u1", 0, 1)


def cifar(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Batches of four images with torchvision's checksums for them; returns what is in the training batches."""
    loader = getattr(torchvision_datasets(), name.upper())
    folder = root / loader.base_folder
    folder.mkdir(parents=True)
    count = len(loader.meta and loader.train_list) and (10 if name == "cifar10" else 100)
    label_key = "labels" if name == "cifar10" else "fine_labels"

    def write(file: str, content: dict[str, Any]) -> str:
        data = pickle.dumps({**content, "dtype": OldDtype()}, protocol=2)
        (folder / file).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    batches: list[dict[str, Any]] = []
    lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    for kind, entries in lists.items():
        for i, (file, _) in enumerate(getattr(loader, kind)):
            data = RNG.integers(0, 256, (4, 3072), dtype=np.uint8)
            batch = {"data": data, label_key: [i, 1, 2, count - 1]}
            entries.append([file, write(file, batch)])
            if kind == "train_list":
                batches.append(batch)
        monkeypatch.setattr(loader, kind, entries)
    key = loader.meta["key"]
    md5 = write(loader.meta["filename"], {key: [f"class {c}" for c in range(count)]})
    monkeypatch.setattr(loader, "meta", {**loader.meta, "md5": md5})
    return batches


@pytest.mark.parametrize(("name", "batches", "label_key"), [("cifar10", 5, "labels"), ("cifar100", 1, "fine_labels")])
def test_cifar(name: str, batches: int, label_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = cifar(tmp_path, name, monkeypatch)
    raw = load_raw(name, tmp_path)
    images = np.concatenate([batch["data"] for batch in written]).reshape(-1, 3, 32, 32)
    assert len(written) == batches
    assert np.array_equal(raw.train_images.numpy(), images)
    assert raw.train_labels.tolist() == [label for batch in written for label in batch[label_key]]
    assert raw.test_images.shape == (4, 3, 32, 32)
    assert raw.class_names[3] == "class 3"
    assert raw.flip


def test_cifar_is_checked_against_its_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar(tmp_path, "cifar10", monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    fails("cifar10: .*cifar-10-batches-py is damaged", lambda: load_raw("cifar10", tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fine_labels": None}, "cifar-100-python is damaged"),
        ({"fine_labels": [0, 1, 2]}, "the train split has 4 images and 3 labels"),
        ({"fine_labels": [0, 1, 2, 100]}, "labels that are not among its 100 classes"),
        ({"data": np.zeros((4, 3071), dtype=np.uint8)}, "cifar-100-python is damaged"),
        ({"data": np.zeros((4, 3072), dtype=np.float32)}, "the train split has float32 images"),
    ],
)
def test_a_batch_of_cifar_that_is_wrong(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where its checksum is right."""
    [batch] = cifar(tmp_path, "cifar100", monkeypatch)
    content = pickle.dumps({key: value for key, value in {**batch, **change}.items() if value is not None})
    (tmp_path / "cifar-100-python" / "train").write_bytes(content)
    loader = torchvision_datasets().CIFAR100
    monkeypatch.setattr(loader, "train_list", [["train", hashlib.md5(content).hexdigest()]])
    fails(f"cifar100: .*{message}", lambda: load_raw("cifar100", tmp_path))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": (32, 32, 3, 4)}, "svhn: .* is damaged"),
        ({"y": (4, 1)}, "svhn: .* is damaged"),
        ({"X": (32, 32, 3, 4), "y": (3, 1)}, "svhn: the train split has 4 images and 3 labels"),
        ({"X": (32, 32, 4), "y": (4, 1)}, "svhn: .* is damaged"),
    ],
)
def test_a_file_of_svhn_that_is_wrong(
    arrays: dict[str, tuple[int, ...]], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scipy.io import savemat

    loader, splits = torchvision_datasets().SVHN, {}
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {name: np.ones(shape, dtype=np.uint8) for name, shape in arrays.items()})
        splits[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(loader, "split_list", splits)
    fails(message, lambda: load_raw("svhn", tmp_path))


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat  # type: ignore[import-untyped]

    loader = torchvision_datasets().SVHN
    images = RNG.integers(0, 256, (32, 32, 3, 10), dtype=np.uint8)
    labels = np.arange(1, 11, dtype=np.uint8)[:, None]  # 10 stands for the digit 0
    splits = dict(loader.split_list)
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": images, "y": labels})
        splits[split] = [*splits[split][:2], hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(loader, "split_list", splits)
    raw = load_raw("svhn", tmp_path)
    assert np.array_equal(raw.train_images.numpy(), images.transpose(3, 2, 0, 1))
    assert raw.test_labels.tolist() == [*range(1, 10), 0]
    assert not raw.flip


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"digits", "patches"}))
def test_missing_data_say_where_they_were_looked_for_and_how_to_get_them(name: str, tmp_path: Path) -> None:
    fails(f"{name} is not in {tmp_path}.*: name its folder with --data-root, or ", lambda: load_raw(name, tmp_path))


def test_download_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through torchvision, checksums included; a stand-in for the network serves the archives."""
    mnist(tmp_path / "served")
    archives = {
        f"{file.name}.gz": gzip.compress(file.read_bytes())
        for file in (tmp_path / "served" / "MNIST" / "raw").iterdir()
    }

    def fetch(url: str, filename: Path | str, *_: object) -> None:
        Path(filename).write_bytes(archives[url.rpartition("/")[2]])

    resources = [(file, hashlib.md5(data).hexdigest()) for file, data in archives.items()]
    monkeypatch.setattr(torchvision_datasets().MNIST, "resources", resources)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", fetch)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    root = tmp_path / "root"
    fails("add --download to fetch it", lambda: load_raw("mnist", root))
    assert not root.exists()
    raw = load_raw("mnist", root, download=True)
    assert raw.fingerprint == load_raw("mnist", tmp_path / "served").fingerprint


def test_a_download_that_fails_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_datasets().MNIST, "mirrors", [f"{(tmp_path / 'nowhere').as_uri()}/"])
    fails("mnist could not be downloaded to", lambda: load_raw("mnist", tmp_path, download=True))


# Image folders


@pytest.mark.parametrize("test", ["test", "val"])
def test_an_image_folder(test: str, tmp_path: Path) -> None:
    image_folder(tmp_path, test=test)
    raw = load_raw(f"folder:{tmp_path}", Path("unused"))
    assert raw.class_names == ("blue", "green", "red")
    assert raw.train_images.shape == (9, 3, 8, 8)
    assert named(raw, raw.train_labels) == ["blue"] * 3 + ["green"] * 3 + ["red"] * 3 == colours(raw.train_images)
    assert named(raw, raw.test_labels) == colours(raw.test_images)
    assert raw.flip


def test_an_image_folder_with_test_and_val_is_tested_on_test(tmp_path: Path) -> None:
    image_folder(tmp_path, test="val", per_class=1)
    image_folder(tmp_path, test="test", per_class=2)
    assert load_raw(f"folder:{tmp_path}", tmp_path).test_labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_every_format_and_mode_becomes_rgb_and_other_files_are_left_alone(tmp_path: Path) -> None:
    image_folder(tmp_path, per_class=1)
    train = tmp_path / "train" / "red"
    save_image(train / "deeper" / "a.JPEG", "red")
    save_image(train / "b.bmp", "red")
    save_image(train / "c.webp", "red")
    save_image(train / "d.png", (255, 0, 0, 128), mode="RGBA")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(train / "e.png", transparency=b"\x80\xff")
    save_image(train / "f.png", 200, mode="L")
    (train / "notes.txt").write_text("not an image")
    (train / ".hidden.png").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    raw = load_raw(f"folder:{tmp_path}", tmp_path)
    assert torch.bincount(raw.train_labels).tolist() == [1, 1, 7]
    images = raw.train_images[raw.train_labels == 2]
    grey = [image for image in images if bool((image == 200).all())]
    assert len(grey) == 1
    assert colours(images) == ["red"] * 7


@pytest.mark.parametrize(("large", "threads"), [(1, True), (1 << 20, False)])
def test_large_files_are_decoded_in_threads_in_their_order(
    large: int, threads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder(tmp_path, per_class=2)
    opened, elsewhere = Image.open, []

    def seen(file: Any, **how: Any) -> Image.Image:
        elsewhere.append(threading.current_thread() is not threading.main_thread())
        return opened(file, **how)

    monkeypatch.setattr(Image, "open", seen)
    monkeypatch.setattr(image_files, "LARGE_FILE", large)
    monkeypatch.setattr(image_files, "PART", 5)
    raw = load_raw(f"folder:{tmp_path}", Path("unused"))
    assert elsewhere == [threads] * 12
    assert named(raw, raw.train_labels) == colours(raw.train_images) == ["blue"] * 2 + ["green"] * 2 + ["red"] * 2


def test_grey_images_keep_one_channel(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for level in (10, 200):
            save_image(tmp_path / split / str(level) / "a.png", level, mode="L")
    raw = load_raw(f"folder:{tmp_path}", tmp_path)
    assert raw.train_images.shape == (2, 1, 8, 8)
    assert raw.train_images[:, 0, 0, 0].tolist() == [10, 200]


def test_image_size_resizes_the_shorter_side_and_cuts_the_centre(tmp_path: Path) -> None:
    image_folder(tmp_path)
    wide = np.zeros((12, 36, 3), dtype=np.uint8)
    wide[:, 12:24, 0] = 255  # the centre is red, the sides are black
    for side in ("train", "test"):
        Image.fromarray(wide).save(tmp_path / side / "red" / "wide.png")
        Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / side / "red" / "tall.png")
    raw = load_raw(f"folder:{tmp_path}", tmp_path, image_size=6)
    assert raw.train_images.shape == (11, 3, 6, 6)
    centre = raw.train_images[-5:, 0, :, 1:-1].min(-1).values[:, 1:-1]
    assert int(centre.min()) > 240
    fails(
        r"images differ in size \(.*0.png is 8×8, .*tall.png is 36×12\): give --image-size",
        lambda: load_raw(f"folder:{tmp_path}", tmp_path),
    )


@pytest.mark.parametrize(
    "name", [".Trash-1000", ".ipynb_checkpoints", "@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN"]
)
@pytest.mark.parametrize("place", ["", "train", "train/red", "train/red/deeper", "test/blue"])
def test_hidden_names_and_those_of_systems_are_passed_over_at_every_level(
    name: str, place: str, tmp_path: Path
) -> None:
    image_folder(tmp_path)
    plain = load_raw(f"folder:{tmp_path}", tmp_path)
    save_image(tmp_path / place / name / "0.png" / "SYNOPHOTO_THUMB_S.png", "black", (4, 4))
    (tmp_path / place / name / "._0.png").write_bytes(b"\0\5\26\7\0\2\0\0")
    raw = load_raw(f"folder:{tmp_path}", tmp_path)
    assert same(raw, plain)
    assert not raw.left_out


def test_hidden_folders_above_the_images_do_not_matter(tmp_path: Path) -> None:
    image_folder(tmp_path / ".cache" / "@eaDir" / "images")
    raw = load_raw(f"folder:{tmp_path / '.cache' / '@eaDir' / 'images'}", tmp_path)
    assert len(raw.train_labels) == 9


@pytest.mark.parametrize(
    "links",
    [
        {"train/red/again": "."},
        {"train/red/up": ".."},
        {"train/red/out": "../../.."},
        {"train/red/deeper/back": ".."},
        {"train/red/a": "../green"},
        {"train/green/a": "../blue", "train/blue/a": "../green"},
        {"train/red/a": "../green/deeper"},
        {"train/red/a": "../../test/red"},
        {"test/red/a": "../../train/red"},
        {"train/red/a": "../green/.hidden"},
    ],
)
def test_a_link_to_images_that_count_already_is_left_out(links: dict[str, str], tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images")
    for colour in ("red", "green"):
        save_image(root / "train" / colour / "deeper" / "0.png", colour)
    save_image(root / "train" / "green" / ".hidden" / "0.png", "black")
    plain = load_raw(f"folder:{root}", tmp_path)
    assert torch.bincount(plain.train_labels).tolist() == [3, 4, 4]
    for link, target in links.items():
        (root / link).symlink_to(target)
    raw = load_raw(f"folder:{root}", tmp_path)
    assert same(raw, plain)
    assert f"{len(links)} file" in raw.left_out and repr(min(links)) in raw.left_out


def test_links_to_images_elsewhere_are_followed_once(tmp_path: Path) -> None:
    """A class folder, a folder in it and an image may be links, and links may lead to folders with links."""
    root = image_folder(tmp_path / "images")
    plain = load_raw(f"folder:{root}", tmp_path)
    store = tmp_path / ".store"
    (root / "train" / "red").rename(tmp_path / "reds")
    (root / "train" / "red").symlink_to(tmp_path / "reds")
    store.mkdir()
    for i in range(2):
        (tmp_path / "reds" / f"{i}.png").rename(store / f"{i}.png")
    (store / "1.png").rename(tmp_path / "1.png")
    (tmp_path / "reds" / "1.png").symlink_to(tmp_path / "1.png")
    (tmp_path / "reds" / "more").symlink_to(store)
    (tmp_path / "reds" / "more again").symlink_to(store)
    (store / "loop").symlink_to(store)
    raw = load_raw(f"folder:{root}", tmp_path)
    assert raw.fingerprint == plain.fingerprint
    assert raw.left_out.startswith(f"folder:{root}: 2 files or links are left out")


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ({"train/rose": "red"}, "train/red and .*train/rose share a folder"),
        ({"train/rose": "red/deeper"}, "train/red and .*train/rose share a folder"),
        ({"train/all": "."}, "train/all and .*train/blue share a folder"),
        ({"train/zoo": "."}, "train/blue and .*train/zoo share a folder"),
        ({"test/rose": "../train/red"}, "train/red and .*test/rose share a folder"),
        (
            {"train/red/a": "../../../outside", "train/blue/a": "../../../outside"},
            "train/red/a leads to images of .*blue",
        ),
        (
            {"train/red/a": "../../../outside", "test/red/a": "../../../outside"},
            "test/red/a leads to images of .*train",
        ),
    ],
)
def test_images_of_two_classes_or_splits_are_refused(links: dict[str, str], message: str, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images")
    save_image(root / "train" / "red" / "deeper" / "0.png", "red")
    save_image(tmp_path / "outside" / "0.png", "black")
    for link, target in links.items():
        (root / link).symlink_to(target)
    fails(message, lambda: load_raw(f"folder:{root}", tmp_path))


def test_a_test_split_that_is_the_training_split_is_refused(tmp_path: Path) -> None:
    image_folder(tmp_path, test="unused")
    (tmp_path / "val").symlink_to("train")
    fails("train/blue and .*val/blue share a folder", lambda: load_raw(f"folder:{tmp_path}", tmp_path))


@pytest.mark.parametrize(
    "name", ["0.heic", "0", "0.jpg_large", "0.npy", "0.nef", "notes.txt", "pipe.png", "socket.png"]
)
@pytest.mark.parametrize("place", ["train", "train/red", "test/blue/deeper"])
def test_what_is_no_image_file_is_left_out_and_said(name: str, place: str, tmp_path: Path) -> None:
    """A pipe among the images never hangs the run."""
    image_folder(tmp_path)
    plain = load_raw(f"folder:{tmp_path}", tmp_path)
    assert plain.left_out == ""
    (tmp_path / place).mkdir(exist_ok=True)
    path = tmp_path / place / name
    if name == "pipe.png":
        os.mkfifo(path)
    elif name == "socket.png":
        os.mknod(path, stat.S_IFSOCK | 0o600)  # bind() takes names of at most 107 bytes
    else:
        path.write_bytes(b"anything")
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):  # a set from the cache says it as well
        raw = load_raw(f"folder:{tmp_path}", tmp_path, cache=cache)
        assert same(raw, plain)
        assert raw.left_out == (
            f"folder:{tmp_path}: 1 file or link is left out (no suffix of an image, no regular file, or a link to "
            f"images that count already), for example {f'{place}/{name}'!r}"
        )
    (tmp_path / place / "another").touch()
    assert "2 files or links are left out" in load_raw(f"folder:{tmp_path}", tmp_path).left_out


@pytest.mark.parametrize("dataset", ["folder", "tiny_imagenet image", "tiny_imagenet table", "cub200 table"])
def test_a_pipe_in_the_place_of_a_file_is_said_in_one_line(dataset: str, tmp_path: Path) -> None:
    path = {
        "folder": lambda: image_folder(tmp_path) / "train" / "red" / "link.png",
        "tiny_imagenet image": lambda: tiny_imagenet(tmp_path) / "val" / "images" / "val_0.JPEG",
        "tiny_imagenet table": lambda: tiny_imagenet(tmp_path) / "val" / "val_annotations.txt",
        "cub200 table": lambda: cub(tmp_path) / "classes.txt",
    }[dataset]()
    path.unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pipe")
    path.symlink_to(tmp_path / "pipe")
    name = dataset.split()[0].replace("folder", f"folder:{tmp_path}")
    for cache in (None, tmp_path / "cache"):
        fails(f"{path} is no regular file", lambda cache=cache: load_raw(name, tmp_path, cache=cache))


def test_a_link_to_an_image_that_is_gone_is_an_error(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "train" / "red" / "gone.png").symlink_to("nowhere")
    fails("train/red/gone.png cannot be read: No such file", lambda: load_raw(f"folder:{tmp_path}", tmp_path))


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    """Sky above, ground below, as a camera that was held upright stores it; then --image-size cuts that picture."""
    scene = np.zeros((16, 8), dtype=np.uint8)
    scene[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(np.rot90(scene).copy()).save(tmp_path / split / name / "0.png", exif=exif)
    images = load_raw(f"folder:{tmp_path}", tmp_path).train_images
    assert np.array_equal(images[0, 0].numpy(), scene)
    resized = load_raw(f"folder:{tmp_path}", tmp_path, image_size=8).test_images
    assert resized.shape == (2, 1, 8, 8)
    assert resized[0, 0, :, 4].tolist() == [255] * 4 + [0] * 4


def test_class_names_are_passed_on_as_they_are(tmp_path: Path) -> None:
    """Upper and lower case are two classes, and any bytes are a name."""
    names = ["A", "a", " ", "été", "line\nbreak", "\x1b[31m", os.fsdecode(b"\xff\xfe"), "x.png"]
    for split in ("train", "test"):
        for level, name in enumerate(names):
            save_image(tmp_path / split / name / "0.PNG", level, mode="L")
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        raw = load_raw(f"folder:{tmp_path}", tmp_path, cache=cache)
        assert raw.class_names == tuple(sorted(names))
        assert [names[level] for level in raw.train_images[:, 0, 0, 0].tolist()] == list(raw.class_names)


@pytest.mark.parametrize(("train", "test"), [("cat", "Cat"), ("caf\u00e9", "cafe\u0301")])
def test_classes_that_the_splits_spell_in_two_ways(train: str, test: str, tmp_path: Path) -> None:
    for split, name in (("train", train), ("test", test)):
        save_image(tmp_path / split / name / "0.png", "red")
        save_image(tmp_path / split / "dog" / "0.png", "red")
    odd, twin = sorted([train, test])
    message = rf"class {re.escape(ascii(odd))} is in only one of train/ and test/ \({re.escape(ascii(twin))} is written"
    fails(message, lambda: load_raw(f"folder:{tmp_path}", tmp_path))


def test_one_class_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save_image(tmp_path / split / "cat" / "a.png", "red")
    fails("has only the class 'cat': give at least two", lambda: load_raw(f"folder:{tmp_path}", tmp_path))


def test_what_is_wrong_with_an_image_folder_is_said_in_one_line(tmp_path: Path) -> None:
    def read(folder: Path) -> None:
        fails(message, lambda: load_raw(f"folder:{folder}", tmp_path))

    message = "there is no folder .*/nowhere"
    read(tmp_path / "nowhere")
    message = "folder:~nobody_/x: there is no such user"
    read(Path("~nobody_/x"))
    message = r"must hold train/ and test/ \(or val/\)"
    read(tmp_path)
    (tmp_path / "train").mkdir()
    read(tmp_path)
    (tmp_path / "test").mkdir()
    message = "there are no class folders in .*train"
    read(tmp_path)
    image_folder(tmp_path)
    (tmp_path / "train" / "white").mkdir()
    message = "there is no image in .*train/white"
    read(tmp_path)
    save_image(tmp_path / "train" / "white" / "a.png", "white")
    message = "class 'white' is in only one of train/ and test/"
    read(tmp_path)
    save_image(tmp_path / "test" / "white" / "a.png", "white")
    load_raw(f"folder:{tmp_path}", tmp_path)
    broken = tmp_path / "test" / "white" / "b.jpg"
    for content, reason in (
        (b"", "it is empty"),
        (b"not an image", "its content is in no known format"),
        (Path(save_jpeg(tmp_path / "whole.jpg")).read_bytes()[:200], ""),
    ):
        message = rf"{broken} cannot be decoded as an image \({reason}"
        broken.write_bytes(content)
        read(tmp_path)
    broken.unlink()
    deep = tmp_path / "test" / "white" / "deep.png"
    Image.fromarray(np.full((8, 8), 4000, dtype=np.uint16)).save(deep)
    message = f"{deep} is a picture of more than 8 bits per channel"
    read(tmp_path)


def save_jpeg(path: Path) -> Path:
    Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return path


def test_an_unreadable_file_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_folder(tmp_path)
    secret = str(tmp_path / "train" / "green" / "1.png")
    opened = builtins.open

    def guarded(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file) == secret:
            raise PermissionError(13, "Permission denied", secret)
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", guarded)
    fails(f"{secret} cannot be read: Permission denied", lambda: load_raw(f"folder:{tmp_path}", tmp_path))


def test_an_unreadable_folder_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_folder(tmp_path)
    secret = str(tmp_path / "train" / "green")
    scan = os.scandir

    def guarded(path: Any) -> Any:
        if str(path) == secret:
            raise PermissionError(13, "Permission denied", secret)
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    fails(f"{secret} cannot be read: Permission denied", lambda: load_raw(f"folder:{tmp_path}", tmp_path))


@pytest.mark.parametrize("name", ["digits", "mnist", "imagenet64"])
def test_image_size_is_for_sets_of_image_files(name: str, tmp_path: Path) -> None:
    fails("leave out --image-size", lambda: load_raw(name, tmp_path, image_size=16))
    fails("image size is 0", lambda: load_raw(f"folder:{tmp_path}", tmp_path, image_size=0))


# Published sets of image files


def tiny_imagenet(root: Path) -> Path:
    folder = root / "tiny-imagenet-200"
    for wnid, colour in (("n2", "red"), ("n1", "green")):
        for i in range(2):
            save_image(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", colour, (64, 64))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
    save_image(folder / "val" / "images" / "val_0.JPEG", "red", (64, 64))
    save_image(folder / "val" / "images" / "val_1.JPEG", "green", (64, 64))
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn2\t0\t0\t9\t9\nval_1.JPEG\tn1\t0\t0\t9\t9\n")
    (folder / "wnids.txt").write_text("n2\nn1\n")
    return folder


def test_tiny_imagenet(tmp_path: Path) -> None:
    tiny_imagenet(tmp_path)
    raw = load_raw("tiny_imagenet", tmp_path)
    assert raw.class_names == ("n1", "n2")
    assert raw.train_images.shape == (4, 3, 64, 64)
    assert raw.train_labels.tolist() == [0, 0, 1, 1]
    assert colours(raw.train_images) == ["green", "green", "red", "red"]
    assert raw.test_labels.tolist() == [1, 0]
    assert colours(raw.test_images) == ["red", "green"]
    assert raw.left_out == ""  # the tables of boxes are part of the set


def test_what_is_left_out_of_published_image_files_is_said(tmp_path: Path) -> None:
    (tiny_imagenet(tmp_path) / "train" / "n1" / "images" / "b.heic").touch()
    for split, wnid in itertools.product(("train", "val"), WNIDS):
        save_image(tmp_path / "imagenette2" / split / wnid / "a.JPEG", "red", (20, 16))
    (tmp_path / "imagenette2" / "val" / WNIDS[0] / "b.heic").touch()
    for name in ("tiny_imagenet", "imagenette"):
        line = load_raw(name, tmp_path).left_out
        assert line.startswith(f"{name}: 1 file or link is left out") and "b.heic" in line


def test_a_damaged_tiny_imagenet(tmp_path: Path) -> None:
    folder = tiny_imagenet(tmp_path)
    annotations = folder / "val" / "val_annotations.txt"
    whole = annotations.read_text()

    def read() -> RawData:
        return load_raw("tiny_imagenet", tmp_path)

    for table in (whole.replace("n2", "n3"), "val_0.JPEG\n"):
        annotations.write_text(table)
        fails("tiny_imagenet: .*tiny-imagenet-200 is damaged", read)
    annotations.write_text(whole)
    (folder / "val" / "images" / "val_1.JPEG").unlink()
    fails("val_1.JPEG cannot be read: No such file", read)
    annotations.write_text(f"\n{whole}\n")
    save_image(folder / "val" / "images" / "val_1.JPEG", "green", (64, 64))
    assert read().test_labels.tolist() == [1, 0]  # empty lines are none
    annotations.write_text(whole.splitlines()[0])
    fails("val_annotations.txt does not name the class of val_1.JPEG", read)
    annotations.write_text(whole + whole.splitlines()[1].replace("n1", "n2"))
    fails("val_1.JPEG is listed twice", read)
    annotations.unlink()
    fails("val_annotations.txt cannot be read: No such file", read)
    annotations.write_text(whole)
    (folder / "wnids.txt").write_text("n1\nn2\nn3\n")
    fails("not the published set: class n3", read)


def cub(root: Path) -> Path:
    folder = root / "CUB_200_2011"
    for name in ("001.Red_bird/b", "001.Red_bird/a", "002.Blue_bird/a", "002.Blue_bird/b"):
        save_image(folder / "images" / f"{name}.jpg", "red" if "Red" in name else "blue", (40, 50))
    (folder / "classes.txt").write_text("1 001.Red_bird\n2 002.Blue_bird\n")
    (folder / "images.txt").write_text(
        "1 001.Red_bird/a.jpg\n2 001.Red_bird/b.jpg\n3 002.Blue_bird/a.jpg\n4 002.Blue_bird/b.jpg\n"
    )
    (folder / "image_class_labels.txt").write_text("1 1\n2 1\n3 2\n4 2\n")
    (folder / "train_test_split.txt").write_text("1 1\n2 0\n3 0\n4 1\n")
    return folder


def test_cub200(tmp_path: Path) -> None:
    cub(tmp_path)
    raw = load_raw("cub200", tmp_path)
    assert raw.class_names == ("001.Red_bird", "002.Blue_bird")
    assert raw.train_images.shape == (2, 3, 32, 32)
    assert colours(raw.train_images) == colours(raw.test_images) == ["red", "blue"]
    assert raw.train_labels.tolist() == raw.test_labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        ("image_class_labels.txt", "1 1\n2 1\n3 2\n", "CUB_200_2011 is damaged"),
        (
            "image_class_labels.txt",
            "1 1\n2 1\n3 2\n4 2\n4 1\n",
            "damaged .*labels.txt has two rows with the same number",
        ),
        ("image_class_labels.txt", "1 1\n2 1\n3 2\n4 3\n", "CUB_200_2011 is damaged"),
        ("train_test_split.txt", "1 1\n2 0\n3 2\n4 1\n", "CUB_200_2011 is damaged"),
        ("classes.txt", "1 \xff\n", "CUB_200_2011 is damaged"),
        ("images.txt", "1 001.Red_bird/a.jpg\n2 001.Red_bird/a.jpg\n", "a.jpg is listed twice"),
        ("images.txt", "1 001.Red_bird/c.jpg\n2 001.Red_bird/a.jpg\n", "c.jpg cannot be read: No such file"),
        ("images.txt", "1 001.Red_bird/a.jpg\n", "the test split has no images"),
        ("images.txt", "", "the train split has no images"),
    ],
)
def test_a_damaged_cub200(table: str, content: str, message: str, tmp_path: Path) -> None:
    (cub(tmp_path) / table).write_text(content, encoding="latin-1")
    fails(f"cub200: .*{message}", lambda: load_raw("cub200", tmp_path))


@pytest.mark.parametrize("name", ["imagenette", "imagewoof"])
@pytest.mark.parametrize("suffix", ["", "-320", "-160"])
def test_imagenette_and_imagewoof(name: str, suffix: str, tmp_path: Path) -> None:
    classes = {wnid: class_name for class_name, wnid in wordnet_ids(name).items()}
    assert len(classes) == 10
    folder = tmp_path / f"{name}2{suffix}"
    for split in ("train", "val"):
        for i, wnid in enumerate(classes):
            save_image(folder / split / wnid / "a.JPEG", (20 * i, 0, 0), (20, 16))
    raw = load_raw(name, tmp_path)
    assert raw.train_images.shape == raw.test_images.shape == (10, 3, 128, 128)
    assert raw.train_images[:, 0].amax((1, 2)).sub(torch.arange(10) * 20).abs().max() < 5
    assert raw.class_names == tuple(classes[wnid] for wnid in sorted(classes))
    assert load_raw(name, tmp_path, image_size=8).train_images.shape == (10, 3, 8, 8)
    save_image(folder / "train" / ".n" / "a.JPEG", "red")
    assert len(load_raw(name, tmp_path).train_labels) == 10
    save_image(folder / "train" / "n00000000" / "a.JPEG", "red")
    fails("not the published set: class n00000000", lambda: load_raw(name, tmp_path))


@pytest.mark.parametrize("name", ["imagenette", "imagewoof", "cub200"])
def test_published_photographs_are_cut_and_averaged_as_published(name: str, tmp_path: Path) -> None:
    """The centre square of the shorter side, each pixel the mean over its area."""
    if name == "cub200":
        folder, side = cub(tmp_path), 32
        files = [folder / "images/001.Red_bird/a.jpg"]
    else:
        folder, side = tmp_path / f"{name}2-160", 128
        files = [folder / split / wnid / "a.JPEG" for split in ("train", "val") for wnid in wordnet_ids(name).values()]
    photograph = Image.fromarray(RNG.integers(0, 256, (160, 213, 3), dtype=np.uint8))
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        photograph.save(file, "JPEG")
    pixels = np.asarray(Image.open(files[0]))[:, 26 : 26 + 160].astype(float)
    expected = pixels.repeat(side // 32, 0).repeat(side // 32, 1).reshape(side, 5, side, 5, 3).mean((1, 3))
    raw = load_raw(name, tmp_path)
    assert np.abs(raw.train_images[0].permute(1, 2, 0).numpy() - expected).max() <= 0.5 + 1e-9


def test_imagewoof_is_whitened_by_a_checkerboard_of_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of 128×128 with blocks of 64×64, in small: 16×16 with blocks of 8×8, of more numbers than images."""
    monkeypatch.setattr(preprocess, "ZCA_BLOCK", 8)
    for split in ("train", "val"):
        for wnid in wordnet_ids("imagewoof").values():
            for i in range(3):
                file = tmp_path / "imagewoof2-160" / split / wnid / f"{i}.JPEG"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(file, "JPEG")
    raw = load_raw("imagewoof", tmp_path, image_size=16)
    loaded = benchmark("imagewoof", tmp_path, preprocess="zca_frepo", image_size=16, dtype=torch.float64)
    zca = loaded.preprocess.zca
    assert zca and (zca.block, zca.layout, zca.whiten.shape) == (8, "strided", (192, 192))
    assert loaded.preprocess.mean.tolist() == pytest.approx([0.4917, 0.4613, 0.3931])
    restored = loaded.preprocess.inverse(loaded.task.images)
    torch.testing.assert_close(restored, raw.train_images.double() / 255, rtol=0, atol=1e-9)
    eigenvalues = torch.linalg.eigvalsh(zca.whiten)
    assert int(((eigenvalues - 1).abs() < 1e-6).sum()) == 192 - 30, "factors after the number of images are 1"


def imagenet64(root: Path, *, npz: bool = False) -> list[np.ndarray]:
    """Batches of two images each, with the labels i and 1000; returns the images of the training batches."""
    folder = root / "imagenet64"
    folder.mkdir()
    batches = []
    for i, file in enumerate([*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"]):
        data = RNG.integers(0, 256, (2, 12288), dtype=np.uint8) // (16 if npz else 1)
        batches.append(data)
        if npz:
            save = np.savez_compressed if i % 2 else np.savez
            save(folder / f"{file}.npz", data=data, labels=np.array([i + 1, 1000]), mean=data.mean(0))
        else:
            batch = {"data": data, "labels": [i + 1, 1000], "mean": data.mean(0), "dtype": OldDtype()}
            (folder / file).write_bytes(pickle.dumps(batch, protocol=2 + i % 3))
    return batches[:10]


@pytest.mark.parametrize("npz", [False, True])
def test_imagenet64(npz: bool, tmp_path: Path) -> None:
    batches = imagenet64(tmp_path, npz=npz)
    raw = load_raw("imagenet64", tmp_path)
    assert np.array_equal(raw.train_images.numpy(), np.concatenate(batches).reshape(20, 3, 64, 64))
    assert raw.train_labels.tolist() == [label for i in range(10) for label in (i, 999)]
    assert raw.test_labels.tolist() == [10, 999]
    assert len(raw.class_names) == 1000
    if npz:
        (tmp_path / "imagenet64" / "train_data_batch_3.npz").write_bytes(b"PK")
        fails(r"train_data_batch_3.npz is damaged", lambda: load_raw("imagenet64", tmp_path))


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "EOFError"),
        (pickle.dumps({"data": np.zeros((2, 12288), dtype=np.uint8)}), "labels"),
        (pickle.dumps({"data": np.zeros((1, 12288), dtype=np.uint8), "labels": [1, 2]}), "2 labels and uint8 images"),
        (pickle.dumps(Malicious()), "it asks for posix.system"),
    ],
)
def test_a_batch_of_imagenet64_that_is_not_one(content: bytes, reason: str, tmp_path: Path) -> None:
    imagenet64(tmp_path)
    (tmp_path / "imagenet64" / "train_data_batch_3").write_bytes(content)
    fails(f"train_data_batch_3 is damaged .*{reason}", lambda: load_raw("imagenet64", tmp_path))


# The cache


def cached_files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def same(a: RawData, b: RawData) -> bool:
    tensors = all(torch.equal(getattr(a, name), getattr(b, name)) for name in source.TENSORS)
    return tensors and (a.class_names, a.flip, a.fingerprint) == (b.class_names, b.flip, b.fingerprint)


def test_decoded_images_come_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, cache = f"folder:{image_folder(tmp_path / 'images')}", tmp_path / "cache"
    first = load_raw(name, tmp_path, cache=cache)
    assert len(cached_files(cache)) == 1
    monkeypatch.setattr(Image, "open", None)
    assert same(load_raw(name, tmp_path, cache=cache), first)
    fails("cannot be decoded", lambda: load_raw(name, tmp_path, cache=cache, image_size=4))
    os.utime(tmp_path / "images" / "train" / "red" / "0.png", ns=(1, 1))  # a time says nothing
    assert same(load_raw(name, tmp_path, cache=cache), first)


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change what is in ``path``, but neither its size nor its time stamp."""
    old, content = path.stat(), path.read_bytes()
    changed = change(content)
    assert len(changed) == len(content) and changed != content
    path.write_bytes(changed)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))


def bitmaps(root: Path) -> Path:
    """An image folder whose files all have one size in bytes."""
    for split in ("train", "test"):
        for colour in COLOURS:
            save_image(root / split / colour / "0.bmp", colour)
    save_image(root / "train" / "red" / "1.bmp", "black")
    return root


def swap(root: Path, a: str, b: str) -> None:
    """Exchange the names of two files or folders; where there is no ``b``, give ``a`` that name."""
    (root / a).rename(root / "aside")
    if (root / b).exists():
        (root / b).rename(root / a)
    (root / "aside").rename(root / b)


MAKE: dict[str, Callable[[Path], object]] = {
    "folder": bitmaps,
    "tiny_imagenet": tiny_imagenet,
    "cub200": cub,
    "mnist": mnist,
    "imagenet64": imagenet64,
}
Change = tuple[str, bytes, bytes] | tuple[str, str]
CHANGES: list[tuple[str, list[Change]]] = [
    ("folder", [("train/red/0.bmp", b"\xff", b"\xfe")]),
    ("folder", [("train/red/0.bmp", "train/blue/0.bmp")]),
    ("folder", [("train/red", "train/blue"), ("test/red", "test/blue")]),
    ("folder", [("train/red", "train/rot"), ("test/red", "test/rot")]),
    ("folder", [("train/red/1.bmp", "test/blue/1.bmp")]),
    ("tiny_imagenet", [("tiny-imagenet-200/val/val_annotations.txt", b"n2", b"n1")]),
    ("cub200", [("CUB_200_2011/classes.txt", b"Red", b"Sad")]),
    ("cub200", [("CUB_200_2011/image_class_labels.txt", b"4 2", b"4 1")]),
    ("cub200", [("CUB_200_2011/train_test_split.txt", b"2 0\n3 0\n4 1", b"2 1\n3 0\n4 0")]),
    ("cub200", [("CUB_200_2011/images.txt", b"1 001", b"3 001"), ("CUB_200_2011/images.txt", b"3 002", b"1 002")]),
    ("mnist", [("MNIST/raw/train-images-idx3-ubyte", b"\x07", b"\x08")]),
    ("mnist", [("MNIST/raw/t10k-labels-idx1-ubyte", b"\1\2\3", b"\1\3\2")]),
    ("imagenet64", [("imagenet64/val_data", b"K\x0bM\xe8\x03", b"K\x0cM\xe8\x03")]),
]
"""Changes that leave the sizes and time stamps of all files alone: a file with old and new bytes, or two names."""


@pytest.mark.parametrize(("dataset", "changes"), CHANGES)
def test_a_cache_never_gives_old_data(dataset: str, changes: list[Change], tmp_path: Path) -> None:
    root, cache = tmp_path / "root", tmp_path / "cache"
    root.mkdir()
    MAKE[dataset](root)
    name = dataset.replace("folder", f"folder:{root}")
    first = load_raw(name, root, cache=cache)
    whitened = dataset == "folder"
    if whitened:
        benchmark(name, root, cache=cache, preprocess="zca_frepo")
    for file, *change in changes:
        match change:
            case [bytes(old), bytes(new)]:
                rewrite(root / file, lambda content, old=old, new=new: content.replace(old, new))
            case [str(other)]:
                swap(root, file, other)
    fresh = load_raw(name, root)
    assert not same(fresh, first)
    assert same(load_raw(name, root, cache=cache), fresh)
    if whitened:
        cached, made = (benchmark(name, root, cache=place, preprocess="zca_frepo") for place in (cache, None))
        assert (cached.raw_fingerprint, cached.class_names) == (fresh.fingerprint, fresh.class_names)
        assert torch.equal(cached.task.images, made.task.images)
        assert torch.equal(cached.test_labels, made.test_labels)


def test_files_that_change_while_they_are_decoded_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = bitmaps(tmp_path / "images"), tmp_path / "cache"
    opened, file = Image.open, root / "train" / "red" / "0.bmp"

    def altering(stream: Any, **how: Any) -> Image.Image:
        image = opened(stream, **how)
        image.load()
        if stream.name == str(file) and b"\xff" in file.read_bytes():
            rewrite(file, lambda content: content.replace(b"\xff", b"\xfe"))
        return image

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", altering)
        benchmark(f"folder:{root}", tmp_path, cache=cache, preprocess="zca_frepo")
    assert cached_files(cache) == []


@pytest.mark.parametrize("library", ["pillow", "torch"])
def test_another_version_of_a_library_makes_its_own_entries(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, cache = f"folder:{bitmaps(tmp_path / 'images')}", tmp_path / "cache"
    benchmark(name, tmp_path, cache=cache, preprocess="zca_frepo")
    before = len(cached_files(cache))
    if library == "torch":
        monkeypatch.setattr(torch, "__version__", "0.4.1")
    else:
        monkeypatch.setattr(source, "DECODERS", ["5.1"])
    benchmark(name, tmp_path, cache=cache, preprocess="zca_frepo")
    assert len(cached_files(cache)) == before + (1 if library == "torch" else 2)


def test_a_cache_that_cannot_be_written_is_gone_without(tmp_path: Path) -> None:
    name, cache = f"folder:{image_folder(tmp_path / 'images')}", tmp_path / "cache"
    cache.write_text("a file where the folder should be")
    assert same(load_raw(name, tmp_path, cache=cache), load_raw(name, tmp_path))
    cache.unlink()
    (cache / "datasets").mkdir(parents=True)
    load_raw(name, tmp_path, cache=cache)
    [path] = cached_files(cache)
    path.unlink()
    path.mkdir()  # it is put aside
    assert same(load_raw(name, tmp_path, cache=cache), load_raw(name, tmp_path))
    assert cached_files(cache) == [path] and path.is_file()


@pytest.mark.parametrize("preprocess", ["zca_frepo", "zca_kornia"])
def test_whitened_images_come_from_the_cache(preprocess: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"preprocess": preprocess, "cache": tmp_path / "cache"}
    first = benchmark("digits", tmp_path, **settings)
    [path] = cached_files(tmp_path / "cache")
    content = path.read_bytes()

    def check() -> None:
        again = benchmark("digits", tmp_path, **settings)
        assert torch.equal(again.task.images, first.task.images)
        assert torch.equal(again.test_images, first.test_images)
        assert torch.equal(again.preprocess.inverse(again.test_images), first.preprocess.inverse(first.test_images))
        assert again.raw_fingerprint == first.raw_fingerprint

    with monkeypatch.context() as patch:
        patch.setattr(np, "loadtxt", lambda *_, **__: pytest.fail("read again"))
        check()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    check()
    assert path.read_bytes() == content


def test_without_a_cache_nothing_is_written(tmp_path: Path) -> None:
    image_folder(tmp_path / "images")
    before = cached_files(tmp_path)
    benchmark(f"folder:{tmp_path / 'images'}", tmp_path, preprocess="zca_frepo")
    assert cached_files(tmp_path) == before


def test_default_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("FREPO_BENCH_DATA", "FREPO_BENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert folders.default_cache() == Path.home() / ".cache" / "frepo-bench"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    assert folders.default_cache() == Path.home() / ".cache" / "frepo-bench"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folders.default_cache() == tmp_path / "frepo-bench"
    assert folders.default_root() == tmp_path / "frepo-bench" / "data"
    monkeypatch.setenv("FREPO_BENCH_CACHE", str(tmp_path / "c"))
    monkeypatch.setenv("FREPO_BENCH_DATA", str(tmp_path / "d"))
    assert folders.default_cache() == tmp_path / "c"
    assert folders.default_root() == tmp_path / "d"


# The benchmark


def test_a_benchmark(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    loaded = benchmark("digits", tmp_path, ipc=2, generator=generator, dtype=torch.float64, depth=None)
    raw, task = load_raw("digits", tmp_path), loaded.task
    assert torch.equal(task.images, loaded.preprocess.forward(raw.train_images))
    assert torch.equal(loaded.test_images, loaded.preprocess.forward(raw.test_images))
    assert torch.equal(task.labels, raw.train_labels)
    assert torch.equal(loaded.test_labels, raw.test_labels)
    assert (task.dtype, loaded.test_images.dtype, loaded.preprocess.mean.dtype) == (torch.float64,) * 3
    assert (task.num_classes, task.ipc, task.flip, loaded.flip) == (10, 2, False, False)
    assert (loaded.name, loaded.raw_fingerprint) == ("digits", raw.fingerprint)
    assert (loaded.spec.in_channels, loaded.spec.image_size, loaded.spec.num_classes) == (1, (8, 8), 10)
    assert task.generator is generator
    assert torch.equal(generator.get_state(), state)
    network = task.network(generator)
    assert network(task.images[:2]).shape == (2, 10)
    assert network.head.weight.dtype == torch.float64


def test_published_constants_go_with_the_name(tmp_path: Path) -> None:
    mnist(tmp_path)
    assert benchmark("mnist", tmp_path).preprocess.mean.tolist() == pytest.approx([0.1307])
    assert benchmark("digits", tmp_path).task.images.double().mean().abs() < 1e-6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ipc": 0}, "ipc is 0"),
        ({"ipc": -1}, "ipc is -1"),
        ({"ipc": 140}, "ipc 140 is above the 139 training images of class '8'"),
        ({"width": 0}, "width is 0"),
        ({"depth": 0}, "depth is 0"),
        ({"network": "convnett"}, "unknown network 'convnett': did you mean 'convnet'"),
        ({"norm": "layer"}, "unknown norm 'layer'"),
        ({"preprocess": "zca_frep"}, "unknown preprocessing 'zca_frep': did you mean 'zca_frepo'"),
    ],
)
def test_a_request_that_cannot_be_met_is_said_in_one_line(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    fails(message, lambda: benchmark("digits", tmp_path, **settings))


@pytest.mark.parametrize("settings", [{"ipc": 1000}, {"width": 0}])
def test_a_bad_request_is_refused_before_the_whitening(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.preprocess.fit", lambda *_, **__: pytest.fail("whitened"))
    with pytest.raises(UserError):
        benchmark("digits", tmp_path, preprocess="zca_frepo", **settings)


def test_an_unknown_data_set_is_answered_with_the_nearest(tmp_path: Path) -> None:
    fails("unknown data set 'cifar11': did you mean 'cifar10", lambda: load_raw("cifar11", tmp_path))
    fails("folder:PATH", lambda: load_raw("/some/path", tmp_path))
