"""Sets for other programs: every format keeps what it can, says what it loses, and writes nowhere else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.datasets import Benchmark
from benchmarks.decoder import decode
from benchmarks.errors import UserError
from benchmarks.task import generator_for
from harness import export, exports
from harness.exports.base import Source, class_folders
from harness.records import artifact, importers, picture_folders
from harness.records.artifact import Artifact
from harness.records.lease import FOLDER, take
from harness.records.record import RECORD, SET, load, write
from methods.base import Synthetic
from tests.builders import made, saved, small
from tests.test_artifact import digits
from tests.test_importers import NAMES, SHAPE

IPC = 2
CLASSES = torch.arange(10).repeat_interleave(IPC)
ONE_HOT = torch.nn.functional.one_hot(CLASSES, 10).float()


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator_for("export"))


def learned(**changes: Any) -> Synthetic:
    """A set with pixels far outside [0, 1] and learned labels, some of which are largest at another class."""
    labels = ONE_HOT - 0.1 + 0.2 * random(20, 10)
    labels[0] = ONE_HOT[5] - 0.1
    return replace(Synthetic(2 * random(20, *SHAPE), labels, "centred", torch.tensor(0.02)), **changes)


def set_of(folder: Path, synthetic: Synthetic, benchmark: Benchmark | None = None) -> Path:
    path = folder / "mine.safetensors"
    known = {"method": "frepo", "dataset": "digits", "ipc": IPC}
    artifact.save(path, synthetic, benchmark or small(ipc=IPC), distillation=known, config={"pool_size": 10})
    return path


def main(*words: object) -> int:
    return export.main([str(word) for word in words])


def written(folder: Path, synthetic: Synthetic, to: str, *words: str) -> Path:
    target = folder / to
    assert main(set_of(folder, synthetic), "--to", to, "--output", target, *words) == 0
    return target


def read_back(*paths: Path) -> Synthetic:
    return importers.fitted(importers.read(list(paths)), NAMES, SHAPE, "centred")


def test_tensors_and_arrays_come_back_to_the_bit(tmp_path: Path) -> None:
    for synthetic in (learned(), learned(lr=torch.tensor([0.1, 0.2])), learned(lr=None)):
        lone = written(tmp_path, synthetic, "torch", "--force")
        parts = sorted(lone.glob("*_best.pt"))
        for back in (read_back(*parts), read_back(written(tmp_path, synthetic, "npz", "--force") / "set.npz")):
            assert torch.equal(back.images, synthetic.images) and torch.equal(back.labels, synthetic.labels)
            assert back.lr is None if synthetic.lr is None else torch.equal(back.lr, synthetic.lr)  # type: ignore[arg-type]
    means = torch.load(lone / "preprocess.pt", weights_only=True)
    with np.load(tmp_path / "npz" / "set.npz") as arrays:
        assert means["mean"].tolist() == arrays["preprocess_mean"].tolist() == small().preprocess.mean.tolist()


@pytest.mark.parametrize("pixels", ["clip", "fit"])
@pytest.mark.parametrize("space", ["centred", "weighted"])
def test_pictures_come_back_but_for_what_the_command_says(
    pixels: str, space: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic = learned() if space == "centred" else learned(labels=3 * ONE_HOT, label_space="weighted")
    target = written(tmp_path, synthetic, "imagefolder", "--range", pixels)
    said = capsys.readouterr().out
    preprocess = small().preprocess.to(dtype=torch.float32)
    natural = preprocess.inverse(synthetic.images)
    outside = f"{float(((natural - 0.5).abs() > 0.5 + 1 / 510).double().mean()):.1%} of the pixels"
    assert outside in said and ("are clipped" in said) == (pixels == "clip")
    imported = importers.read([target])
    assert imported.natural and imported.class_names == NAMES and imported.lr == pytest.approx(0.02)
    back = importers.fitted(imported, NAMES, SHAPE)
    assert torch.equal(back.labels, synthetic.labels) and back.label_space == space, "images stay in their classes"
    kept = natural.clamp(0, 1) if pixels == "clip" else natural
    steps = 1 if pixels == "clip" else natural.flatten(1).amax(1) - natural.flatten(1).amin(1)
    bound = torch.as_tensor(steps).view(-1, 1, 1, 1) / 510 + 1e-5
    assert bool(((back.images - kept).abs() <= bound).all())
    assert sorted(path.name for path in target.iterdir() if path.is_dir()) == [f"{i}_{i}" for i in range(10)]


def test_folders_of_classes_sort_as_the_classes_do() -> None:
    names = ["zebra", "a/b", "..", "Ω", "con", *"fghijk"]
    folders = class_folders(names)
    assert folders == sorted(folders) and len(set(folders)) == len(names)
    assert folders[:3] == ["00_zebra", "01_a_b", "02__"]


def test_a_decoder_is_carried_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic = learned(labels=ONE_HOT, label_space="probability", factor=2)
    target = written(tmp_path, synthetic, "npz")
    assert "Decoded: 20 stored images are 80" in capsys.readouterr().out
    back = importers.fitted(importers.read([target / "set.npz"]), NAMES, SHAPE)
    assert torch.equal(back.images, decode(synthetic.images, 2))
    assert json.loads((target / "export.json").read_text())["image_shape"] == [80, *SHAPE]


def test_parquet_has_every_number(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    synthetic = learned()
    target = written(tmp_path, synthetic, "hf")
    table = pq.read_table(target / "data" / "train-00000-of-00001.parquet")
    for name, tensor in (("pixels", synthetic.images), ("soft_label", synthetic.labels)):
        values = table[name].combine_chunks().flatten().to_numpy()
        assert np.array_equal(values, tensor.flatten().numpy())
    assert table["label"].to_pylist() == CLASSES.tolist()
    assert table["image"][0].as_py()["bytes"][:4] == b"\x89PNG"
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == table.column_names and features["label"]["names"] == list(NAMES)
    assert (target / "set.safetensors").read_bytes() == (tmp_path / "mine.safetensors").read_bytes()
    described = json.loads((target / "croissant.json").read_text())
    assert [field["@id"] for field in described["recordSet"][0]["field"]] == [f"default/{name}" for name in features]
    assert "1×8×8" in (target / "README.md").read_text()


def test_croissant_is_valid(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    croissant = pytest.importorskip("mlcroissant")
    described = croissant.Dataset(written(tmp_path, learned(), "hf") / "croissant.json")
    assert not described.metadata.ctx.issues.errors
    first = next(iter(described.records("default")))
    assert first["default/label"] == 0


def coloured(name: str, dataset: str, synthetic: Synthetic) -> Source:
    """A set of three channels, as of ``dataset``, whose images lie in the space of the preprocessing ``name``."""
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    applied = replace(small().preprocess.to(dtype=torch.float32), name=name, mean=mean, std=std)
    own = Artifact(
        **{"images": synthetic.images, "labels": synthetic.labels, "label_space": synthetic.label_space},
        **{"lr": synthetic.lr, "class_names": NAMES, "classes": tuple(range(10)), "preprocess": applied},
        **{"network": small().spec, "distillation": {"dataset": dataset}, "config": {}},
    )
    return Source(Path("nowhere"), "mine", own, None)


def colours(**changes: Any) -> Synthetic:
    soft = (ONE_HOT * 4 + random(20, 10)).softmax(1)
    return replace(Synthetic(random(20, 3, 32, 32), soft, "probability", torch.tensor(0.02)), **changes)


def test_what_dd_ranking_reads(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    soft, hard = colours(), colours(labels=ONE_HOT, lr=None)
    for name, synthetic in (("soft", soft), ("hard", hard)):
        folder = tmp_path / name
        folder.mkdir()
        source = coloured("standardise", "cifar10", synthetic)
        exports.get("ddranking")().write(source, folder)
        images = torch.load(folder / "images.pt", weights_only=True)
        mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2023, 0.1994, 0.2010])
        natural = images * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
        torch.testing.assert_close(natural, source.natural)
        labels = torch.load(folder / "labels.pt", weights_only=True)
        if name == "hard":
            assert torch.equal(labels, CLASSES) and not (folder / "lr.pt").exists()
        else:
            torch.testing.assert_close(labels.softmax(1), soft.labels)
            assert float(torch.load(folder / "lr.pt", weights_only=True)) == pytest.approx(0.02)
        settings = yaml.safe_load((folder / "ddranking.yaml").read_text())
        assert settings["custom_train_trans"] is None and settings["custom_val_trans"] is None
        assert (settings["dataset"], settings["ipc"], settings["im_size"]) == ("CIFAR10", IPC, [32, 32])
        assert ("soft_label_mode" in settings) == (name == "soft") and settings["use_zca"] is False
        assert len(list((folder / "images").glob("0000?/0000?.png"))) == 20


@pytest.mark.parametrize(
    ("preprocess", "dataset", "changes", "said"),
    [
        ("standardise", "mnist", {}, "no data set 'mnist'"),
        ("standardise", "cifar10@half:1", {}, "no data set"),
        ("standardise", "cifar10", {"images": random(20, *SHAPE)}, "three channels, and these images have one"),
        ("zca_frepo", "cifar10", {}, "whitened by zca_frepo"),
        ("standardise", "cifar10", {"label_space": "centred"}, "these are centred"),
        ("standardise", "cifar10", {"label_space": "weighted"}, "these are weighted"),
        ("standardise", "cifar10", {"lr": torch.tensor([0.1, 0.2])}, "one for each step"),
    ],
)
def test_what_dd_ranking_cannot_be_told(
    preprocess: str, dataset: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        exports.get("ddranking")().write(coloured(preprocess, dataset, colours(**changes)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_elsewhere_and_nothing_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = set_of(tmp_path, learned())
    out = tmp_path / "out"
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def refused(*words: object) -> str:
        assert main(*words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    assert "has no data set 'digits'" in refused(path, "--to", "ddranking", "--output", out)
    assert not out.exists() and set(tmp_path.iterdir()) == set(before)
    assert main(path, "--to", "torch", "--output", out) == 0
    assert "--force" in refused(path, "--to", "npz", "--output", out)
    assert (out / "images_best.pt").is_file()
    assert main(path, "--to", "npz", "--output", out, "--force") == 0
    assert sorted(file.name for file in out.iterdir()) == ["export.json", "set.npz"]
    assert "has no data set" in refused(path, "--to", "ddranking", "--output", out, "--force")
    assert (out / "set.npz").is_file()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").touch()
    for target, said in (("photos", "no export"), ("mine.png", "is no folder")):
        assert said in refused(path, "--to", "npz", "--output", tmp_path / target, "--force")
    (tmp_path / "empty").mkdir()
    assert main(path, "--to", "npz", "--output", tmp_path / "empty") == 0
    assert {file: file.read_bytes() for file in before} == before
    assert {each.name for each in tmp_path.iterdir()} == {"empty", "mine.png", "mine.safetensors", "out", "photos"}
    copy = out / path.name
    copy.write_bytes(path.read_bytes())
    for words, said in (
        (("--to", "torch"), "no set is named"),
        ((path,), "--to is missing"),
        ((path, "--to", "imagefoldr"), "did you mean 'imagefolder'?"),
        ((path, "--to", "npz", "--range", "fit"), "--range means nothing for npz"),
        ((path, "--to", "imagefolder", "--range", "wrap"), "unknown range 'wrap'"),
        ((tmp_path / "photos", "--to", "npz"), "no distilled set in"),
        ((tmp_path / "mine.png", "--to", "npz"), "no .safetensors file"),
        ((path, copy, "--to", "npz"), "have one name"),
        ((out / "set.npz", "--to", "npz"), "is no set of this suite"),
    ):
        assert said in refused(*words)
    del before[tmp_path / "mine.png"]


def test_sets_of_a_folder_get_folders_of_their_names_also_a_single_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And of one that somebody else writes at the same time nothing is touched."""
    saved(tmp_path / "results", made())
    (folder,) = (tmp_path / "results").iterdir()
    path = set_of(folder, learned()).rename(folder / SET)
    written = load(folder / RECORD)
    written["artifact"] = {"name": SET, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    write(written, folder / RECORD)
    out = tmp_path / "out"
    saved(tmp_path / "results", made(seed=1))  # whose set is missing
    (other,) = (each for each in (tmp_path / "results").iterdir() if each != folder)
    assert main(tmp_path / "results", "--to", "npz", "--output", out) == 1
    assert f"{other.name}: left out, its set set.safetensors is missing" in capsys.readouterr().err
    assert [each.name for each in out.iterdir()] == [folder.name] and (out / folder.name / "set.npz").is_file()
    alone = tmp_path / "alone"
    with take(alone.parent / FOLDER / ".alone", "another export"):
        partial = tmp_path / ".alone.partial" / "set.npz"
        partial.parent.mkdir()
        partial.touch()
        with pytest.raises(
            UserError, match=r"alone is being written by process \d+ on .*: another export; wait for it"
        ):
            export.write(*export.sources_of(folder, "clip", []), "npz", alone)
        assert partial.is_file() and not alone.exists()
    assert main(folder, "--to", "npz", "--output", alone) == 0 and (alone / "set.npz").is_file()
    assert {each.name for each in tmp_path.iterdir()} == {"results", "out", "alone"}


def test_a_view_keeps_its_classes(tmp_path: Path) -> None:
    benchmark = digits(tmp_path, "standardise")
    task = replace(benchmark.task, images=benchmark.task.images[benchmark.task.labels > 6])
    task = replace(task, labels=benchmark.task.labels[benchmark.task.labels > 6])
    synthetic = Synthetic(random(6, *SHAPE), ONE_HOT[14:], "probability")
    path = set_of(tmp_path, synthetic, replace(benchmark, task=task))
    assert main(path, "--to", "imagefolder", "--range", "fit", "--output", tmp_path / "out") == 0
    found = picture_folders.read(tmp_path / "out")
    assert sorted(each.name for each in (tmp_path / "out").iterdir() if each.is_dir()) == ["7_7", "8_8", "9_9"]
    assert torch.equal(found.labels, synthetic.labels) and found.class_names == NAMES
