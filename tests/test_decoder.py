"""Images that hold several: decoded in one place, stored as they are, and told of in records and tables."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import decoder
from benchmarks.datasets import Benchmark
from benchmarks.errors import UserError
from harness import evaluate, report
from harness.evaluations.continual_learning import union
from harness.records import artifact, importers, record
from harness.reports.groups import grouped
from harness.reports.tables import rows as csv_rows
from harness.reports.tables import tables
from methods.base import Synthetic
from methods.checks import check_synthetic
from tests.builders import all_in, made, probe, quick
from tests.builders import saved as folders
from tests.dummies import Dummy, dummy
from tests.test_artifact import digits, saved, some_set
from tests.test_cell import job, run

__all__ = ["dummy", "probe", "quick"]  # fixtures


def halves(images: Tensor) -> list[Tensor]:
    """The four quarters of each of ``images``, in reading order."""
    height, width = (side // 2 for side in images.shape[2:])
    return [images[:, :, i : i + height, j : j + width] for i in (0, height) for j in (0, width)]


def test_a_decoded_set_is_class_major_with_the_label_of_its_stored_image() -> None:
    images, labels = torch.rand(6, 1, 8, 8), torch.rand(6, 3).softmax(1)
    synthetic = Synthetic(images, labels, "probability", torch.tensor(0.1), factor=2)
    decoded = synthetic.decoded()
    for place, quarter in enumerate(halves(images)):
        enlarged = F.interpolate(quarter, size=(8, 8), mode="bilinear", align_corners=False)
        torch.testing.assert_close(decoded.images[place::4], enlarged, rtol=0, atol=1e-6)
        assert torch.equal(decoded.labels[place::4], labels)
    assert (decoded.factor, decoded.lr, decoded.label_space) == (1, synthetic.lr, "probability")
    assert decoded.stored_bytes == synthetic.stored_bytes == 6 * (64 + 3) * 4
    again = decoded.decoded()
    assert again.images is decoded.images and torch.equal(again.labels, decoded.labels)


@pytest.mark.parametrize(("side", "factor"), [(8, 1), (8, 2), (9, 3), (9, 9)])
def test_images_that_are_encoded_can_be_made_out_again(side: int, factor: int) -> None:
    """Images of one level each survive being shrunk and enlarged."""
    images = torch.arange(2.0 * factor**2).view(-1, 1, 1, 1).expand(-1, 3, side, side)
    stored = decoder.encode(images, factor)
    assert stored.shape == (2, 3, side, side)
    torch.testing.assert_close(decoder.decode(stored, factor), images, rtol=0, atol=1e-4)


@pytest.mark.parametrize("factor", [0, -1, 5, 9, 2.0, True, None])
def test_a_factor_that_no_decoder_has_is_refused(factor: Any) -> None:
    synthetic = Synthetic(torch.rand(4, 1, 8, 8), torch.eye(2).repeat_interleave(2, 0), "probability", factor=factor)
    form: dict[str, Any] = {"classes": 2, "ipc": 2, "image": (1, 8, 8), "dtype": torch.float32}
    with pytest.raises(UserError, match=r"the set: factor is .*; expected a whole number from 1 that cuts 8×8 pixels"):
        check_synthetic(synthetic, "the set", **form, device=torch.device("cpu"))
    check_synthetic(dataclasses.replace(synthetic, factor=8), "the set", **form, device=torch.device("cpu"))


# On disk


def header(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="pt") as file:
        return dict(json.loads(file.metadata()["frepo_bench"]))


def test_the_artefact_carries_the_decoder(tmp_path: Path) -> None:
    benchmark, path = digits(tmp_path, "standardise"), tmp_path / "set.safetensors"
    plain = some_set(benchmark)
    loaded = saved(path, benchmark, plain)
    assert (header(path)["schema"], loaded.factor) == (2, 1) and "decoder" not in header(path)
    picture = path.with_suffix(".png").read_bytes()

    loaded = saved(path, benchmark, dataclasses.replace(plain, factor=2))
    assert (header(path)["schema"], header(path)["decoder"]) == (3, {"name": "idc", "factor": 2})
    assert torch.equal(loaded.images, plain.images) and len(loaded.hard_labels) == 100
    assert path.with_suffix(".png").read_bytes() == picture, "the stored images"
    images, labels = loaded.dataset.tensors
    assert torch.equal(images, decoder.decode(plain.images, 2)), "to train on"
    assert torch.equal(labels, plain.labels.repeat_interleave(4, 0))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"decoder": {"name": "idc", "factor": factor}} for factor in (0, 9, 2.0, "2", True, None)),
        *({"decoder": wrong} for wrong in ({"name": "other", "factor": 2}, {"name": "idc"}, 2, None)),
        {"schema": 4},
        {"schema": 1},
    ],
)
def test_a_decoder_that_is_not_one_is_one_line(wrong: dict[str, Any], tmp_path: Path) -> None:
    benchmark, path = digits(tmp_path, "standardise"), tmp_path / "set.safetensors"
    saved(path, benchmark, dataclasses.replace(some_set(benchmark), factor=2))
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    safetensors.torch.save_file(tensors, path, {"frepo_bench": json.dumps(header(path) | wrong)})
    with pytest.raises(UserError) as caught:
        artifact.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_snapshot_keeps_the_decoder(tmp_path: Path) -> None:
    path = tmp_path / "step-3.safetensors"
    synthetic = Synthetic(torch.rand(4, 1, 8, 8), torch.eye(4), "centred", factor=2)
    artifact.save_snapshot(path, synthetic)
    loaded = artifact.load_snapshot(path)
    assert (loaded.factor, loaded.label_space) == (2, "centred") and torch.equal(loaded.images, synthetic.images)
    tensors = {"images": synthetic.images, "labels": synthetic.labels}
    safetensors.torch.save_file(tensors, path, {"frepo_bench": "centred factor two"})
    with pytest.raises(UserError, match="the factor of its decoder is 'two'"):
        artifact.load_snapshot(path)


def test_an_imported_set_keeps_the_decoder(tmp_path: Path) -> None:
    benchmark, path = digits(tmp_path, "standardise"), tmp_path / "set.safetensors"
    plain = some_set(benchmark)
    saved(path, benchmark, dataclasses.replace(plain, factor=2))
    fitted = importers.fitted(importers.read([path]), benchmark.class_names, (1, 8, 8))
    assert fitted.factor == 2 and torch.equal(fitted.images, plain.images)


# In cells, evaluations and reports


@pytest.fixture
def coded(dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch) -> None:
    """The method ``dummy`` makes sets with a decoder."""
    own = dummy.synthetic
    monkeypatch.setattr(dummy, "synthetic", lambda self: dataclasses.replace(own(self), factor=2))


@pytest.mark.usefixtures("quick", "coded", "default_signals")
def test_every_evaluation_is_given_decoded_images(
    tmp_path: Path, probe: list[tuple[Synthetic, Benchmark]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"evaluations": ("accuracy", "probe"), "curve_points": 2, "networks_evaluated": 1}
    distilled = run(job(tmp_path, request=asked, steps=4))
    ((synthetic, _),) = probe
    stored = artifact.load(distilled.set_path)
    assert (stored.factor, len(stored.images)) == (2, 10)
    assert (synthetic.factor, len(synthetic.images), len(synthetic.labels)) == (1, 40, 40)
    assert torch.equal(synthetic.images, stored.synthetic.decoded().images)
    assert distilled.record["decoder"] == {"factor": 2, "stored_pixels": 640, "decoded_images": 40}
    snapshot = artifact.load_snapshot(distilled.folder / distilled.record["snapshots"][0]["name"])
    assert snapshot.factor == 2 and len(distilled.evaluations) == 3, "the curve, too"
    (row,) = (row for row in csv_rows(grouped(all_in(tmp_path))))
    assert (row["stored_pixels"], row["decoded_images"]) == (640, 40)

    # From a file: in a folder of its own, with the decoder
    monkeypatch.setenv("FREPO_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(evaluate, "carry_out", lambda jobs, *_, **__: [run(each) for each in jobs] and 0)
    elsewhere = tmp_path / "alone.safetensors"
    elsewhere.write_bytes(distilled.set_path.read_bytes())
    copies = tmp_path / "copies"
    command = [str(elsewhere), "--name", "again", "--evaluations", "probe", "--device", "cpu", "--output", str(copies)]
    assert evaluate.main([*command, "--protocol", "vico"]) == 0
    (copy,) = all_in(copies)
    assert copy.record["decoder"] == distilled.record["decoder"]
    assert torch.equal(probe[-1][0].images, synthetic.images)


def test_a_buffer_is_as_large_as_what_is_stored(tmp_path: Path) -> None:
    benchmark = digits(tmp_path, "standardise")
    stored = dataclasses.replace(some_set(benchmark), factor=2)
    own = stored.decoded()
    earlier = dataclasses.replace(own, images=benchmark.preprocess.inverse(own.images))
    buffer = union([earlier], own, benchmark.preprocess)
    assert len(buffer.images) == 2 * 400
    assert buffer.stored_bytes == 2 * stored.stored_bytes == 2 * 100 * (64 + 10) * 4


def test_tables_tell_stored_pixels_beside_decoded_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    title = "stored pixels → decoded images"
    plain, other = made((0.9, 0.91), method="dm"), made((0.5, 0.51), method="ncfm", config={"factor": 1})
    (table,) = tables(grouped([plain, other]))
    assert title not in table.columns and title not in " ".join(table.notes)
    coded = made((0.7, 0.71), method="ncfm", config={"factor": 2})
    coded.record["decoder"] = {"factor": 2, "stored_pixels": 7840, "decoded_images": 40}
    (table,) = tables(grouped([plain, other, coded]))
    shown = pd.DataFrame(table.rows, columns=table.columns)
    assert len(shown) == 3, "sets with and without a decoder share no row"
    assert sorted(shown[title]) == ["7,840 → 40", "–", "–"]
    assert list(shown[shown[title] != "–"]["method"]) == ["ncfm"]
    (one,), (two,), (four,) = (grouped([each]) for each in (plain, other, coded))
    assert one.test == two.test != four.test, "four images in the pixels of one have an advantage"
    assert "Stored pixels → decoded images: " in " ".join(table.notes)
    assert report.main([folders(tmp_path / "results", plain, other, coded)]) == 0
    assert "7,840 →" in capsys.readouterr().out


@pytest.mark.parametrize("decoder", [None, {}, {"factor": 2}, {"factor": "2", "stored_pixels": 1, "decoded_images": 4}])
def test_a_record_with_half_a_decoder_is_damaged(decoder: Any, tmp_path: Path) -> None:
    folders(tmp_path, made())
    (folder,) = record.folders(tmp_path)
    content = json.loads((folder / record.RECORD).read_text())
    (folder / record.RECORD).write_text(json.dumps(content | {"decoder": decoder}))
    with pytest.raises(UserError, match="decoder"):
        record.load(folder / record.RECORD)
