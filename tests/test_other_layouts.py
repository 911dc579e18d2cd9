"""Sets in the layouts of Hugging Face, MedMNIST and STL-10, and the demo of two photographs, on files made here."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.data import hugging_face
from benchmarks.data.names import check, flips, recorded
from benchmarks.data.source import Source
from benchmarks.datasets import find_source, load_raw
from benchmarks.errors import UserError
from harness import data, evaluate, run
from tests.builders import all_in, in_process, quick
from tests.test_datasets import colours, fails, image_folder, named, same, save_image

__all__ = ["quick"]  # a fixture
RNG = np.random.default_rng(0)
COLOURS = ("red", "green")


def png(colour: str, size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def parquet(path: Path, images: Sequence[Any], labels: Sequence[Any], names: Sequence[str] | None = None) -> None:
    """A file as the library ``datasets`` writes it: images with their bytes, and the names of classes in the header."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pictures = pa.array(
        [{"bytes": image, "path": None} for image in images], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    table = pa.table({"image": pictures, "id": pa.array(range(len(labels))), "label": pa.array(labels)})
    if names is not None:
        features = {
            "image": {"_type": "Image"},
            "id": {"_type": "Value"},
            "label": {"names": names, "_type": "ClassLabel"},
        }
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def sixteen(root: Path, **changes: Any) -> Path:
    """Sixteen images: twelve for training in two files, four for testing. Green is class 1 and, by name, the first."""
    labels = [i % 2 for i in range(6)]
    how = {"names": ["red", "green"], **changes}
    for place, count in (("train-00000-of-00002", 6), ("train-00001-of-00002", 6), ("test-00000-of-00001", 4)):
        parquet(root / "data" / f"{place}.parquet", [png(COLOURS[c]) for c in labels[:count]], labels[:count], **how)
    return root


def raw(place: Path | str, **how: Any) -> Any:
    return load_raw(f"hf:{place}", Path("nowhere"), **how)


def test_parquet_files_keep_the_classes_in_the_order_of_their_header(tmp_path: Path) -> None:
    loaded = raw(sixteen(tmp_path))
    assert (len(loaded.train_images), len(loaded.test_images)) == (12, 4)
    assert loaded.class_names == ("red", "green") and loaded.class_order == "the names in the parquet files"
    assert named(loaded, loaded.train_labels) == colours(loaded.train_images)
    assert named(loaded, loaded.test_labels) == colours(loaded.test_images)
    assert raw(tmp_path, image_size=4).train_images.shape == (12, 3, 4, 4)


def test_parquet_files_come_from_the_cache_until_they_change(tmp_path: Path) -> None:
    first = raw(sixteen(tmp_path / "set"), cache=tmp_path / "cache")
    assert same(raw(tmp_path / "set", cache=tmp_path / "cache"), first)
    parquet(tmp_path / "set/data/test-00000-of-00001.parquet", [png("blue")] * 2, [0, 1], COLOURS)
    assert len(raw(tmp_path / "set", cache=tmp_path / "cache").test_labels) == 2


def test_without_names_numbers_stay_and_words_are_sorted(tmp_path: Path) -> None:
    for place, labels in (("numbers", [0, 2]), ("words", ["zebra", "ant"])):
        for split in ("train", "validation"):
            parquet(tmp_path / place / f"{split}.parquet", [png("red"), png("green")], labels)
    assert raw(tmp_path / "numbers").class_names == ("0", "1", "2")
    assert raw(tmp_path / "words").class_names == ("ant", "zebra")
    assert raw(tmp_path / "words").train_labels.tolist() == [1, 0]


def missing_part(root: Path) -> None:
    (root / "data/train-00001-of-00002.parquet").unlink()


def only_training(root: Path) -> None:
    (root / "data/test-00000-of-00001.parquet").unlink()


def two_sets(root: Path) -> None:
    parquet(root / "other/train.parquet", [png("red")], [0])


def damaged(root: Path) -> None:
    (root / "data/test-00000-of-00001.parquet").write_bytes(b"PAR1")


def all_replaced(labels: Sequence[Any], names: Sequence[str] | None = COLOURS) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for path in (root / "data").iterdir():
            parquet(path, [png("red")] * len(labels), labels, names)

    return change


no_images, another_type = all_replaced([]), all_replaced([0.0, 1.0], None)
a_word_that_is_no_class = all_replaced(["red", ""])


def a_pipe(root: Path) -> None:
    path = root / "data/train-00000-of-00002.parquet"
    path.unlink()
    os.mkfifo(path)


def replaced(*content: Any) -> Callable[[Path], None]:
    return lambda root: parquet(root / "data/test-00000-of-00001.parquet", *content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing_part, r"1 of 2 files .*/data/train-… are there"),
        (only_training, "must hold a train and a test .* split; there is train"),
        (two_sets, r"several sets in it \(data, other\): name one of these folders"),
        (damaged, "test-00000-of-00001.parquet is damaged"),
        (replaced([None, None], [0, 1], COLOURS), "image 0 of .* is not in the file"),
        (replaced([b"no image"] * 2, [0, 1], COLOURS), "image 0 of .* cannot be decoded as an image"),
        (replaced([png("red", (4, 4))] * 2, [0, 1], COLOURS), "images differ in size .*: give --image-size"),
        (replaced([png("red")] * 2, [0, -1], COLOURS), "labels that are not among its 2 classes"),
        (replaced([png("red")] * 2, [0, None], COLOURS), "an image has the label None"),
        (no_images, "there is no image in it"),
        (another_type, "which of the columns image, id, label has the labels is not clear"),
        (a_word_that_is_no_class, "the label '' is not among its classes"),
        (a_pipe, "is no regular file"),
    ],
)
def test_what_is_no_whole_set_is_told_in_one_line(change: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    change(sixteen(tmp_path))
    fails(message, lambda: raw(tmp_path))


def test_columns_that_could_all_be_meant_are_asked_for(tmp_path: Path) -> None:
    sixteen(tmp_path)
    pa = pytest.importorskip("pyarrow.parquet")
    for path in (tmp_path / "data").iterdir():
        table = pa.read_table(path).rename_columns(["image", "id", "species"]).replace_schema_metadata({})
        pa.write_table(table, path)
    fails("which of the columns image, id, species has the labels is not clear: call it label", lambda: raw(tmp_path))


def test_an_image_folder_of_the_hub(tmp_path: Path) -> None:
    plain = load_raw(f"folder:{image_folder(tmp_path / 'a')}", tmp_path)
    renamed = image_folder(tmp_path / "b" / "data")
    (renamed / "test").rename(renamed / "validation")
    loaded = raw(tmp_path / "b")
    assert torch.equal(loaded.train_images, plain.train_images) and loaded.class_names == plain.class_names


@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv"])
def test_an_image_folder_with_a_table(table: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = [{"file_name": f"{i}.png", "label": COLOURS[i % 2]} for i in range(4)]
        for row in rows:
            save_image(tmp_path / split / row["file_name"], row["label"])
        lines = [json.dumps(row) for row in rows]
        if table.endswith("csv"):
            lines = ["file_name,label", *(",".join(row.values()) for row in rows)]
        (tmp_path / split / table).write_text("\n".join(lines))
    loaded = raw(tmp_path)
    assert loaded.class_names == ("green", "red") and len(loaded.test_labels) == 4
    assert named(loaded, loaded.train_labels) == colours(loaded.train_images)
    with (tmp_path / "test" / table).open("a") as file:
        file.write("\n../../x.png,red" if table.endswith("csv") else '\n{"file_name": "../../x.png", "label": "red"}')
    fails("names '../../x.png', which is outside of", lambda: raw(tmp_path))
    for extra, said in (("0.png", "gives '0.png' two labels"), ("9.png", "names 'test/9.png', and there is no such")):
        row = {"file_name": extra, "label": "green"}
        added = f"{extra},green" if table.endswith("csv") else json.dumps(row)
        (tmp_path / "test" / table).write_text("\n".join([*lines, added]))
        fails(said, lambda: raw(tmp_path))


def test_the_hub_is_asked_only_with_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the hub: its cache is empty until it may fetch."""
    hub = pytest.importorskip("huggingface_hub")
    asked: list[tuple[str, Any]] = []

    def snapshot(name: str, *, repo_type: str, allow_patterns: Any, local_files_only: bool) -> str:
        assert repo_type == "dataset"
        asked.append((name, allow_patterns))
        if local_files_only and not (tmp_path / "hub").exists():
            raise hub.errors.LocalEntryNotFoundError("not in the cache")
        sixteen(tmp_path / "hub" / "plain")
        return str(tmp_path / "hub")

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    fails("the hub's cache does not have it: .*--download", lambda: raw("owner/name/plain"))
    assert len(raw("owner/name/plain", download=True).train_labels) == 12
    assert len(raw("owner/name@images:0-3").train_labels) == 3
    assert asked == [("owner/name", ["plain/*"])] * 2 + [("owner/name", None)]
    fails("there is no folder .*, and it is no name on the hub", lambda: raw("/no/where"))


def test_a_missing_package_is_a_line_that_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sixteen(tmp_path)
    monkeypatch.setattr(hugging_face, "find_spec", lambda name: None)
    fails(r'needs the package pyarrow: pip install "frepo-bench\[hub\]"', lambda: raw(tmp_path))
    fails("needs the package huggingface_hub", lambda: raw("owner/name"))


def test_a_run_on_classes_of_unequal_size(tmp_path: Path, quick: None) -> None:
    """Its set is found again when more is asked, and an answer of before there were accuracies per class grows."""
    parquet(sixteen(tmp_path / "set") / "data/test-00000-of-00001.parquet", [png("red")] * 4, [0, 0, 0, 1], COLOURS)
    out = tmp_path / "out"
    words = ["--methods", "random_real", "--dataset", f"hf:{tmp_path / 'set'}", "--budget", "smoke", "--no-random"]
    assert run.main([*words, "--output", str(out)], launcher=in_process) == 0
    ((answer,),) = (each.evaluations for each in all_in(out))
    ((first, second),) = answer["class_accuracies"]
    assert first is not None and second is not None
    assert answer["values"]["accuracy"] == [(3 * first + second) / 4]
    assert answer["values"]["balanced_accuracy"] == [(first + second) / 2]
    assert "balanced accuracy (%)" in (out / "table.md").read_text()
    (path,) = out.glob("hf_set-*/evaluations/*.json")
    older = {name: value for name, value in answer.items() if name != "class_accuracies"}
    path.write_text(json.dumps({**older, "values": {"accuracy": answer["values"]["accuracy"]}}))
    assert evaluate.main([str(out), "--networks-evaluated", "3"], launcher=in_process) == 0
    ((answer,),) = (each.evaluations for each in all_in(out))
    assert {name: len(values) for name, values in answer["values"].items()} == {"accuracy": 3, "balanced_accuracy": 2}
    assert len(answer["class_accuracies"]) == 2
    with (out / "table.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["n"], row["balanced_accuracy_n"]) == ("3", "2") and ", n = 2" in (out / "table.md").read_text()
    assert float(row["balanced_accuracy_mean"]) == pytest.approx(sum(answer["values"]["balanced_accuracy"]) / 2)


# MedMNIST


def medmnist(path: Path, **changes: Any) -> dict[str, np.ndarray]:
    """A file as MedMNIST publishes it, of small grey images and labels (N, 1)."""
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 6), ("val", 3), ("test", 4)):
        arrays[f"{split}_images"] = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 3).astype(np.uint8)[:, None]
    arrays |= changes
    np.savez_compressed(path, **arrays)
    return arrays


def test_medmnist(tmp_path: Path) -> None:
    written = medmnist(tmp_path / "pneumoniamnist.npz")
    loaded = load_raw("medmnist:pneumoniamnist.npz", tmp_path)
    assert np.array_equal(loaded.train_images[:, 0].numpy(), written["train_images"])
    assert loaded.test_labels.tolist() == [0, 1, 2, 0] and loaded.class_names == ("0", "1", "2")
    assert "validation images are left out" in loaded.left_out
    assert loaded.fingerprint == load_raw(f"medmnist:{tmp_path}/pneumoniamnist.npz", Path("nowhere")).fingerprint
    fails("leave out --image-size", lambda: load_raw("medmnist:pneumoniamnist.npz", tmp_path, image_size=8))
    (tmp_path / "torn.npz").write_bytes(b"torn")
    fails("torn.npz is no .npz file", lambda: load_raw("medmnist:torn.npz", tmp_path))
    np.savez(tmp_path / "mine.npz", train_images=written["train_images"])
    fails(
        "mine.npz has no train_labels, which every file of MedMNIST has",
        lambda: load_raw("medmnist:mine.npz", tmp_path),
    )
    fails("name its folder with --data-root, or fetch it", lambda: load_raw("medmnist:pathmnist.npz", tmp_path))


def test_medmnist_in_colour(tmp_path: Path) -> None:
    colour = {
        f"{split}_images": RNG.integers(0, 256, (n, 28, 28, 3), np.uint8) for split, n in (("train", 6), ("test", 4))
    }
    medmnist(tmp_path / "pathmnist.npz", **colour)
    loaded = load_raw("medmnist:pathmnist.npz", tmp_path)
    assert np.array_equal(loaded.train_images.numpy(), colour["train_images"].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.zeros((6, 14), np.uint8)}, "an image has 14 labels, and a class is a single one"),
        ({"test_images": np.zeros((4, 28, 28, 28), np.uint8)}, "its images are 28×28×28; only flat ones are taken"),
        ({"test_labels": np.full((4, 1), 2**40)}, "an image has the label 1099511627776, and there are only 10 images"),
        ({"test_labels": np.array([None] * 4)}, "nodulemnist.npz is damaged .*allow_pickle=False"),
    ],
)
def test_what_has_no_single_class_or_no_flat_images_is_refused(
    changes: Mapping[str, Any], message: str, tmp_path: Path
) -> None:
    medmnist(tmp_path / "nodulemnist.npz", **changes)
    fails(message, lambda: load_raw("medmnist:nodulemnist.npz", tmp_path))


# STL-10, the demo


def stl10(root: Path) -> np.ndarray:
    """Four training images and two test images, which are returned; pixels lie column by column, labels begin at 1."""
    folder = root / "stl10_binary"
    folder.mkdir()
    images = RNG.integers(0, 256, (6, 3, 96, 96), dtype=np.uint8)
    for split, part in (("train", images[:4]), ("test", images[4:])):
        part.transpose(0, 1, 3, 2).tofile(folder / f"{split}_X.bin")
        (np.arange(len(part), dtype=np.uint8) + 1).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(["airplane", "bird", *"cdefghij"]))
    return images


def test_stl10(tmp_path: Path) -> None:
    images, loaded = stl10(tmp_path), load_raw("stl10", tmp_path)
    assert np.array_equal(loaded.train_images.numpy(), images[:4])
    assert named(loaded, loaded.test_labels) == ["airplane", "bird"]
    (tmp_path / "stl10_binary" / "test_X.bin").write_bytes(b"12345")
    fails("stl10_binary is damaged", lambda: load_raw("stl10", tmp_path))


def test_patches_are_the_halves_of_two_photographs(tmp_path: Path) -> None:
    package = find_spec("sklearn")
    assert package is not None and package.origin is not None
    loaded = load_raw("patches", tmp_path)
    assert loaded.train_images.shape == loaded.test_images.shape == (260, 3, 32, 32)
    assert loaded.class_names == ("china", "flower")
    for c, name in enumerate(loaded.class_names):
        file = Path(package.origin).parent / "datasets" / "images" / f"{name}.jpg"
        photograph = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        train, test = (
            images[labels == c].view(13, 10, 3, 32, 32)
            for images, labels in ((loaded.train_images, loaded.train_labels), (loaded.test_images, loaded.test_labels))
        )
        assert torch.equal(train[12, 9], photograph[:, 384:416, 288:320])
        assert torch.equal(test[3, 0], photograph[:, 96:128, 320:352])


# Names


def test_names_for_records_hold_no_path(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    places = {
        "digits": "digits",
        f"folder:{tmp_path}/photos": "folder:photos",
        f"hf:{tmp_path}/photos/../photos": "hf:photos",
        "hf:owner/name": "hf:owner/name",
        f"medmnist:{tmp_path}/pathmnist_64.npz": "medmnist:pathmnist_64.npz",
    }
    assert {name: recorded(name) for name in places} == places


def test_mirrored_organs_leave_their_class() -> None:
    kept = ["fashion_mnist", "folder:mnist", "medmnist:pathmnist.npz"]
    assert [
        n for n in (*kept, "mnist", "medmnist:/a/organamnist_64.npz", "medmnist:organcmnist.npz") if flips(n)
    ] == kept


@pytest.mark.parametrize("name", ["hf:", "medmnist: ", "hub:x", "cifar"])
def test_a_name_that_nothing_can_have_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"write hf:NAME_OR_PATH|write medmnist:NAME|unknown data set"):
        check(name)


def test_sizes_are_those_of_the_files_turned_upright(tmp_path: Path) -> None:
    image_folder(tmp_path, size=(8, 6))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (5, 4), "red").save(tmp_path / "train" / "red" / "turned.jpg", exif=exif)
    source = find_source(f"folder:{tmp_path}", tmp_path, None, False)
    assert source.sizes is not None and source.sizes() == {(6, 8): 18, (5, 4): 1}
    assert dataclasses.replace(source, name="x").class_order == "sorted names of the class folders"


# The report before a run


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert data.main([*words, "--device", "cpu"]) == 0
    return capsys.readouterr().out


def test_a_report_tells_of_what_makes_a_result_doubtful(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, read = [0], Source.read

    def counted(self: Source, cache: Path | None) -> Any:
        reads[0] += 1
        return read(self, cache)

    monkeypatch.setattr(Source, "read", counted)
    image_folder(tmp_path / "set", per_class=1, size=(40, 50))
    for place, colour, size in (
        ("train/red/b", "red", (40, 50)),
        ("train/red/c", "blue", (40, 50)),
        ("test/red/b", "blue", (60, 30)),
    ):
        save_image(tmp_path / "set" / f"{place}.png", colour, size)
    (tmp_path / "set" / "train" / "red" / "notes.txt").touch()
    shown = told(
        capsys, f"folder:{tmp_path}/set", "--ipc", "1,2", "--methods", "random_real", "--cache", str(tmp_path / "cache")
    )
    for line in (
        "3 classes, 5 training and 4 test images of 3×32×32",
        "order of the classes: sorted names of the class folders",
        "files: 2 sizes from 30×60 to 50×40; median of the shorter sides: 40 pixels",
        "a run needs --image-size N; this report is for --image-size 32",
        "1 file or link is left out",
        "train: from 1 images ('blue') to 3, 3 times as many",
        "evaluations report balanced accuracy",
        "training images that equal an earlier one: 2, 1 of them in another class; for example "
        f"{tmp_path}/set/train/red/b.png and {tmp_path}/set/train/red/0.png",
        "test images that equal an earlier one: 1, 1 of them in another class",
        "test images that are training images as well: 4, 1 of them in another class",
        "zca_kornia       fitted to the images",
        "--ipc can be at most 1",
        "--methods random_real --dataset",
    ):
        assert line in shown, line
    assert re.search(r"^\| red +\| 3 +\| 2 +\|$", shown, re.M)
    (row,) = [line.split("|") for line in shown.splitlines() if line.startswith("| random_real")]
    assert row[3].strip() == "1" and reads == [1], "the forecast needs no second reading"


def test_a_report_on_a_view_of_published_data_that_are_too_large_for_a_whitening(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stl10(tmp_path)
    shown = told(capsys, "stl10@images:0-3", "--data-root", str(tmp_path), "--ipc", "9", "--methods", "random_real")
    assert "3 training and 2 test images of 3×96×96" in shown
    assert "zca_kornia cannot whiten 96×96 images" in shown
    assert "7 classes have none" in shown
    assert "random_real has no steps to forecast" in shown
