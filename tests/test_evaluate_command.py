"""``python -m harness.evaluate``: sets in folders, and in the files of others, are asked what they were not yet."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import PREPROCESSINGS
from benchmarks.datasets import load_raw
from benchmarks.decoder import decode
from benchmarks.preprocess import fit
from harness import evaluate, run
from harness.evaluations import training
from harness.plan.jobs import Job
from harness.records import artifact, record
from harness.records.lease import path_of, take
from harness.records.record import RECORD, SET
from methods.base import Synthetic
from tests.builders import all_in, in_process, probe, quick, small
from tests.test_artifact import digits, some_set
from tests.test_importers import CENTRED, CLASSES, IMAGES, IPC, NAMES, SHAPE, dc, mtt, pictures
from tests.test_run import waiting

__all__ = ["probe", "quick"]  # fixtures
pytestmark = pytest.mark.usefixtures("quick")
FAST = ["--budget", "smoke", "--evaluate-steps", "2", "--networks-evaluated", "1", "--device", "cpu"]
DISTIL = ["--methods", "random_real", "--width", "4", *FAST]


def main(*words: object) -> int:
    return evaluate.main([str(word) for word in words], launcher=in_process)


@pytest.fixture(scope="module")
def distilled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets distilled by the common protocol, and deeper one distilled natively, preprocessed otherwise."""
    root = tmp_path_factory.mktemp("results")
    common = ["--protocol", "common", "--seeds", "0,1"]
    for output, more in ((root / "common", common), (root / "deep/er/native", [])):
        assert run.main([*DISTIL, "--dataset", "digits", *more, "--output", str(output)], launcher=in_process) == 0
    return root


@pytest.fixture
def results(distilled_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(distilled_once, tmp_path / "results"))


def contents(root: Path, pattern: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob(pattern)}


# --- folders ----------------------------------------------------------------------------------------------------------


def test_every_set_that_fits_is_asked_and_what_is_there_is_skipped(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = (results, "--protocol", "common", "--evaluate-steps", 3)
    distilled = contents(results, RECORD) | contents(results, SET)
    assert main(*ask) == 0
    shown = capsys.readouterr().err
    (native,) = (results / "deep/er/native").glob("*/")
    assert f"{native.name}: left out, its images are preprocessed by standardise_vico, and those of protocol" in shown
    assert shown.count("asked for accuracy") == 2
    for each in all_in(results):
        steps = [answer["config"]["steps"] for answer in each.evaluations]
        assert sorted(steps) == ([2] if each.folder == native else [2, 3])
    table = (results / "table.md").read_text()
    assert table.count("| random_real") == 3, "a row for each of two recipes, and one for the set that was left out"
    answers = contents(results, "accuracy-*.json")
    assert main(*ask) == 0
    assert capsys.readouterr().err.count("ok, done before on") == 2
    assert contents(results, "accuracy-*.json") == answers
    assert contents(results, RECORD) | contents(results, SET) == distilled


def test_more_networks_train_those_that_are_missing(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    original = training.trained_networks

    def spy(config: Any, synthetic: Any, benchmark: Any, seed: Any, indices: Any, progress: Any) -> Any:
        trained.extend(indices)
        return original(config, synthetic, benchmark, seed, indices, progress)

    monkeypatch.setattr(training, "trained_networks", spy)
    first = {each.folder: each.evaluations[0]["values"]["accuracy"] for each in all_in(results)}
    for networks, indices in ((3, [1, 2]), (5, [3, 4]), (4, [])):
        trained.clear()
        assert main(results, "--evaluate-steps", 2, "--networks-evaluated", networks) == 0
        assert trained == 3 * indices
    grown = all_in(results)
    assert all(each.evaluations[0]["values"]["accuracy"][:1] == first[each.folder] for each in grown)
    assert all(len(each.evaluations) == 1 for each in grown)
    assert main(results, "--evaluate-steps", 2, "--networks-evaluated", 5, "--force") == 0
    again = [each.evaluations[0]["values"] for each in all_in(results)]
    assert again == [each.evaluations[0]["values"] for each in grown], "other networks than all at once"


def test_force_answers_again(results: Path) -> None:
    ask = (results, "--evaluate-steps", 2)
    before = contents(results, "accuracy-*.json")
    for path, content in before.items():
        answer = json.loads(content)
        path.write_text(json.dumps({**answer, "values": {"accuracy": [0.123]}}))
    assert main(*ask) == 0
    assert all(json.loads(path.read_text())["values"] == {"accuracy": [0.123]} for path in before)
    assert main(*ask, "--force") == 0
    assert all(json.loads(path.read_text())["values"] == json.loads(old)["values"] for path, old in before.items())


def test_sets_that_cannot_be_asked_are_named(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = sorted((results / "common").glob("*/"))
    (native,) = (results / "deep/er/native").glob("*/")
    shutil.copytree(native, results / "failed")
    failed = record.load(results / "failed" / RECORD)
    record.write({**failed, "status": "oom"}, results / "failed" / RECORD)
    cost = shutil.copytree(native, results / "cost") / RECORD
    record.write({**failed, "distillation": {**failed["distillation"], "cost_only": True}}, cost)
    older = shutil.copytree(native, results / "older") / RECORD
    del failed["distillation"]["tf32"]
    record.write(failed, older)
    (results / "torn").mkdir()
    (results / "torn" / RECORD).write_text("{")
    (first / SET).unlink()
    (second / SET).write_bytes((second / SET).read_bytes()[:-1])
    assert main(results, "--evaluate-steps", 3) == 0
    shown = capsys.readouterr().err
    for line in (
        f"{first.name}: left out, its set {SET} is missing",
        f"{second.name}: left out, its set {SET} is not as it was written",
        "failed: left out, its status is oom",
        "cost: left out, only the cost of its steps was asked for",
        f"damaged record {older}: distillation.tf32 is missing",
        f"damaged record {results / 'torn' / RECORD}",
        "[1/1] random_real on digits, ipc 1, width 4, seed 0",
    ):
        assert line in shown
    (native / SET).unlink()
    assert main(results, "--evaluate-steps", 4) == 2
    assert "no set in" in capsys.readouterr().err


def test_an_answer_of_a_newer_version_is_refused_and_stays(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next((results / "common").rglob("accuracy-*.json"))
    newer = json.dumps({**json.loads(path.read_text()), "schema": 99})
    path.write_text(newer)
    assert main(results, "--evaluate-steps", 2) == 2
    assert f"{path} was written by a newer version" in capsys.readouterr().err.splitlines()[-1]
    assert path.read_text() == newer and not list(results.rglob("*.damaged*"))


def test_a_set_in_a_folder_below_that_another_run_works_on_is_awaited(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = take(path_of(min((results / "common").glob("*/"))), "a run")
    waiting(monkeypatch, other.release)
    assert main(results, "--evaluate-steps", 3) == 0
    assert f"left for now to process {os.getpid()} on" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", SET])
def test_one_distillation_alone(name: str, results: Path) -> None:
    first, second = sorted((results / "common").glob("*/"))
    assert main(first / name, "--evaluate-steps", 3) == 0
    assert len(record.read(first).evaluations) == 2 and len(record.read(second).evaluations) == 1
    assert (results / "common/table.md").exists() and not (first / "table.md").exists()


def test_the_protocol_of_a_method_that_is_not_here(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (results / "common").glob("*/"):
        written = record.load(folder / RECORD)
        record.write({**written, "distillation": {**written["distillation"], "method": "theirs"}}, folder / RECORD)
    ask = (results / "common", "--evaluate-steps", 3)
    assert main(*ask, "--protocol", "native") == 2
    assert capsys.readouterr().err.count("left out, theirs has no native protocol here: name a --protocol") == 2
    assert main(*ask) == 0, "they were asked by the common one"


def images(folder: Path, colour: int) -> str:
    """An image folder with two classes, as ``--dataset`` takes it."""
    for part in ("train/a", "train/b", "test/a", "test/b"):
        (folder / part).mkdir(parents=True)
        pixels = np.full((8, 8, 3), colour + (part[-1] == "b"), np.uint8)
        pixels[:4] = 9
        Image.fromarray(pixels).save(folder / part / "picture.png")
    return f"folder:{folder}"


def test_an_image_folder_may_have_moved_but_not_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = images(tmp_path / "here/pets", 50), tmp_path / "out"
    assert run.main([*DISTIL, "--dataset", source, "--output", str(output)], launcher=in_process) == 0
    ask = (output, "--evaluate-steps", 3)
    assert main(*ask) == 0  # where they were
    (tmp_path / "here/pets").rename(tmp_path / "cats")
    ask = (output, "--evaluate-steps", 4)
    assert main(*ask) == 2
    assert "left out, its images are those of folder:pets: say --dataset folder:PATH" in capsys.readouterr().err
    assert main(*ask, "--dataset", images(tmp_path / "changed/pets", 70)) == 2
    assert "left out, it was made from other images than those of folder:" in capsys.readouterr().err
    assert main(*ask, "--dataset", f"folder:{tmp_path / 'cats'}") == 0
    assert len(all_in(output)[0].evaluations) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("RESULTS --name a --width 4", "--name, --width: that is for files of others"),
        ("RESULTS --output a", "--output: that is for files of others"),
        ("RESULTS RESULTS", "name one folder, or the files of one set"),
        ("RESULTS a.pt", "name one folder, or the files of one set"),
        ("RESULTS/../empty", "no distilled set in"),
        ("RESULTS --dataset cifar10", "no set in"),
        ("RESULTS --image-size 16", "no set in"),
        ("RESULTS --evaluations acuracy", "did you mean 'accuracy'?"),
        ("RESULTS --accuracy.netwrks 3", "did you mean --accuracy.networks?"),
        ("RESULTS --accuracy.networks many", "--accuracy.networks takes a whole number"),
        ("RESULTS --frepo.lr 3", "unknown method or evaluation 'frepo'"),
        ("RESULTS --tf32 --device cpu", "--tf32 needs a CUDA device"),
    ],
)
def test_a_bad_request_about_a_folder(
    arguments: str, said: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results.parent / "empty").mkdir()
    before = contents(results, "*.json")
    assert main(*arguments.replace("RESULTS", str(results)).split()) == 2
    *left_out, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ") and said in last
    assert all(": left out, " in line for line in left_out) and contents(results, "*.json") == before


def test_a_question_without_a_protocol_is_asked_of_every_set(
    results: Path, probe: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    ask = (results, "--evaluations", "probe", "--probe.rate", 0.25)
    assert main(*ask) == main(*ask) == 0
    assert len(probe) == 3, "asked twice"
    assert "rate 0.25, n = 1" in capsys.readouterr().err
    for each in all_in(results):
        assert [answer["values"] for answer in each.evaluations][1:] == [{"rate": [0.25]}]
    assert main(results, "--probe.rate", 0.5) == 2
    assert "probe is not among the evaluations: name it in --evaluations" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--probe.name other", "probe returned other; its quantities are rate, accuracy_of_it"),
        ("--probe.name accuracy_of_it --probe.rate 75", "values.accuracy_of_it is out of range"),
        ("--probe.rate 1e301", "values.rate.0 is not a number"),
    ],
)
def test_values_that_cannot_be_shown_are_an_error(
    options: str, said: str, results: Path, probe: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(results / "common", "--evaluations", "probe", *options.split()) == 1
    assert said in capsys.readouterr().err
    for each in all_in(results / "common"):
        statuses = {answer["evaluation"]: (answer["status"], answer["values"] == {}) for answer in each.evaluations}
        assert statuses == {"accuracy": ("ok", False), "probe": ("error", True)}


# --- files ------------------------------------------------------------------------------------------------------------

FILES = ["--dataset", "digits", "--width", "4", *FAST]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Real digits, whitened as MTT does, in the files of MTT."""
    raw = load_raw("digits", tmp_path)
    rows = torch.cat([torch.nonzero(raw.train_labels == c).flatten()[:IPC] for c in range(10)])
    pixels = fit("zca_kornia", raw.train_images).to("cpu", torch.float32).forward(raw.train_images[rows])
    mtt(tmp_path, images=pixels, labels=CLASSES)
    return tmp_path


def command(folder: Path, *more: object) -> list[object]:
    return [folder / "images_best.pt", folder / "labels_best.pt", *FILES, "--output", folder / "out", *more]


def test_a_published_set_stands_beside_the_distilled_ones(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_rng_state()
    ask = command(published, "--name", "mtt_released", "--preprocess", "zca_kornia")
    options = ("--protocol", "mtt", "--lr", 0.02)
    assert main(*ask, *options) == 0
    assert torch.equal(torch.get_rng_state(), before), "global random numbers were drawn"
    shown = capsys.readouterr().err
    assert "mtt_released: 20 images, 2 per class, probability labels\n" in shown
    assert "Protocol mtt: networks convnet, width 4." in shown
    assert "Networks are trained for 2 steps, the recipe's 1001 shortened by" in shown
    assert "Real images go through zca_kornia, the set's own, instead of its standardise_mtt" in shown
    (each,) = all_in(published / "out")
    distillation, cost = each.record["distillation"], each.record["cost"]
    assert (distillation["method"], distillation["preprocess"], distillation["ipc"]) == (
        "mtt_released",
        "zca_kornia",
        IPC,
    )
    assert cost["step_seconds"] == [] and cost["prepare_seconds"] is cost["memory"]["meter"] is None
    files = each.record["provenance"]["files"]
    assert [file["name"] for file in files] == ["images_best.pt", "labels_best.pt"]
    assert each.record["config"]["sha256"] == [file["sha256"] for file in files]
    kept = artifact.load(each.set_path)
    assert kept.lr is not None and kept.network.name == "convnet" and each.set_path.with_suffix(".png").exists()
    raw = load_raw("digits", published)
    natural = (kept.natural_images() * 255).round().to(torch.uint8)
    assert torch.equal(natural[0], raw.train_images[raw.train_labels == 0][0])
    table = (published / "out/table.md").read_text()
    assert "| mtt_released" in table and "read from images_best.pt" in table

    assert main(*ask, *options) == 0
    assert "ok, done before on" in capsys.readouterr().err
    assert main(*ask, *options, "--force") == 0
    assert all_in(published / "out")[0].evaluations[0]["values"] == each.evaluations[0]["values"]
    assert main(*ask, *options[:-1], 0.5) == 0
    accuracies = [each.evaluations[0]["values"]["accuracy"] for each in all_in(published / "out")]
    assert len(accuracies) == 2 and accuracies[0] != accuracies[1], "the learned step size is not used"


def test_limits_hold_for_files_too(published: Path) -> None:
    jobs = list[Job]()

    def launch(asked: Iterable[Job]) -> Iterator[Job]:
        for each in asked:
            jobs.append(each)
            yield from in_process([each])

    limits = ("--cell-timeout", "2min", "--time-limit", "1h")
    words = command(published, "--name", "released", "--preprocess", "zca_kornia", "--protocol", "mtt", *limits)
    assert evaluate.main([str(word) for word in words], launcher=launch) == 0
    assert [(job.cell_timeout_seconds, job.time_limit_seconds) for job in jobs] == [(120.0, 3600.0)]


def test_another_recipe_is_another_question_of_the_same_set(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = command(published, "--name", "a", "--preprocess", "zca_kornia")
    assert main(*ask, "--protocol", "vico") == main(*ask, "--protocol", "frepo") == main(*ask) == 0
    (each,) = all_in(published / "out")
    networks = {answer["config"]["protocol"]: answer["config"]["network"] for answer in each.evaluations}
    assert networks == {"vico": "convnet", "frepo": "convnet_doubling", "common": "convnet_doubling"}
    capsys.readouterr()
    assert main(published / "out", "--evaluate-steps", 2, "--networks-evaluated", 2) == 0
    assert "asked for accuracy" in capsys.readouterr().err, "by the protocol that was named for its files"
    assert main(published / "out", "--protocol", "common") == 2
    assert "left out, its images are preprocessed by zca_kornia" in capsys.readouterr().err


def test_a_damaged_copy_is_made_again(published: Path) -> None:
    ask = command(published, "--name", "a", "--preprocess", "zca_kornia")
    assert main(*ask) == 0
    for damaged in (SET, RECORD):
        (path,) = (published / "out").glob(f"*/{damaged}")
        content = path.read_bytes()
        path.write_bytes(content[:100])
        assert main(*ask) == 0
        assert damaged == RECORD or path.read_bytes() == content
    assert len(all_in(published / "out")[0].evaluations) == 1


def test_test_images_go_through_the_sets_own_preprocessing(published: Path, probe: list[Any]) -> None:
    ask = command(published, "--name", "a", "--preprocess", "zca_kornia", "--evaluations", "probe")
    assert main(*ask) == 0
    raw = load_raw("digits", published)
    expected = fit("zca_kornia", raw.train_images).to("cpu", torch.float32).forward(raw.test_images)
    assert torch.equal(probe[0][1].test_images, expected)


def test_the_order_of_the_classes_and_doubts_are_told_and_recorded(
    published: Path, probe: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    order = published / "order.txt"
    order.write_text("\n".join(reversed(NAMES)))
    ask = command(published, "--name", "a", "--preprocess", "zca_kornia", "--evaluations", "probe")
    assert main(*ask) == 0
    ours = capsys.readouterr().err
    assert (
        "Class order: the numbers in the published files, as in the code of mtt; 0 is '0', 1 is '1', 9 is '9'.\n"
        in ours
    )
    assert "warning" not in ours
    assert main(*ask, "--class-order", order) == 0
    assert "order.txt; 0 is '9', 1 is '8', 9 is '0'." in capsys.readouterr().err
    (plain, _), (reordered, _) = probe
    assert torch.equal(plain.labels, reordered.labels)
    assert torch.equal(plain.images.view(10, IPC, *SHAPE).flip(0), reordered.images.view(10, IPC, *SHAPE))
    records = [each.record for each in all_in(published / "out")]
    first, second = sorted(records, key=lambda written: "class_order" in written["config"])
    assert second["config"]["class_order"] == list(range(9, -1, -1)), "another order is another set"
    assert first["provenance"]["class_order"].startswith("the numbers in the published files")
    assert "order.txt" in second["provenance"]["class_order"] and second["provenance"]["doubts"] == []

    mtt(published, images=load_raw("digits", published).train_images[:20].float() / 255, labels=CLASSES)
    assert main(*command(published, "--name", "raw", "--preprocess", "standardise", "--evaluations", "probe")) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    (raw,) = (e.record for e in all_in(published / "out") if e.record["distillation"]["method"] == "raw")
    assert len(told) == 1 and "pixels in [0, 1]" in told[0]
    assert raw["provenance"]["doubts"] == [told[0].removeprefix("warning: ")]
    assert told[0].removeprefix("warning: ") in (published / "out/table.md").read_text()


def test_logits_are_another_set(published: Path, probe: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(CENTRED * 12 + 1, published / "labels_best.pt")
    ask = command(published, "--name", "a", "--preprocess", "zca_kornia", "--evaluations", "probe", "--label-space")
    assert main(*ask, "probability") == 2
    assert "--label-space logits" in capsys.readouterr().err
    assert main(*ask, "logits") == 0
    assert "probability labels" in capsys.readouterr().err
    (each,) = all_in(published / "out")
    assert each.record["config"]["label_space"] == "logits"


def test_all_experiments_of_a_file_share_a_row(tmp_path: Path) -> None:
    ask = [dc(tmp_path / "res.pt", 3), *FILES, "--output", tmp_path / "out", "--preprocess", "standardise"]
    assert main(*ask, "--name", "released", "--experiment", "all") == 0
    assert main(*ask, "--name", "released", "--experiment", "all", "--seed", 4) == 2
    found = all_in(tmp_path / "out")
    assert [each.record["distillation"]["seed"] for each in found] == [0, 1, 2]
    first = [float(artifact.load(each.set_path).images[0, 0, 0, 0]) for each in found]
    assert np.diff(first) == pytest.approx([1, 1]), "every seed has an experiment of its own"
    rows = [line for line in (tmp_path / "out/table.md").read_text().splitlines() if line.startswith("| released")]
    assert len(rows) == 1
    assert main(mtt(tmp_path, images=IMAGES, labels=CLASSES)[0], *ask[1:], "--experiment", "all", "--name", "b") == 2


def test_a_folder_of_sets(tmp_path: Path, probe: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    sets = tmp_path / "sets"
    for name in ("parts", "broken", "deep"):
        (sets / name).mkdir(parents=True)
    mtt(sets / "parts", images=IMAGES, labels=CLASSES)
    dc(sets / "theirs.pt")
    (sets / "broken" / "torn.npz").write_bytes(b"PK")
    pictures(sets / "photos", *NAMES)
    (sets / "frepo").mkdir()  # a name that is taken
    mtt(sets / "frepo", images=IMAGES, labels=CLASSES)
    ask = (sets, *FILES, "--output", tmp_path / "out", "--evaluations", "probe")
    assert main(*ask, "--preprocess", "standardise") == 0
    said = capsys.readouterr().err
    assert "torn.npz: left out, " in said and "/frepo: left out, --name 'frepo' is empty or taken" in said
    names = [each.record["distillation"]["method"] for each in all_in(tmp_path / "out")]
    assert sorted(names) == ["parts", "photos", "theirs"] and len(probe) == 3


def test_sets_of_this_suite_that_have_lost_their_records_are_no_pictures(tmp_path: Path, probe: list[Any]) -> None:
    for folder in ("one", "two"):
        (tmp_path / "sets" / folder).mkdir(parents=True)
        artifact.save(
            tmp_path / "sets" / folder / SET,
            Synthetic(IMAGES, CENTRED, "centred"),
            small(ipc=IPC),
            distillation={"method": "frepo", "dataset": "digits", "ipc": IPC},
            config={},
        )
        assert (tmp_path / "sets" / folder / "set.png").is_file()
    ask = (*FAST, "--output", tmp_path / "out", "--evaluations", "probe")
    assert main(tmp_path / "sets", *ask) == 0
    assert main(tmp_path / "sets" / "one", *ask) == 0
    names = [each.record["distillation"]["method"] for each in all_in(tmp_path / "out")]
    assert sorted(names) == ["frepo_reevaluated", "one", "two"] and len(probe) == 3


def test_pixels_are_preprocessed_and_decoded_where_the_command_says_so(
    tmp_path: Path, probe: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(0))
    torch.save([pixels, CLASSES], tmp_path / "data.pt")
    ask = [tmp_path / "data.pt", *FILES, "--output", tmp_path / "out", "--evaluations", "probe", "--name", "idc"]
    assert main(*ask, "--factor", 2) == 0
    assert "pixels in [0, 1], and go through standardise." in capsys.readouterr().err
    ((synthetic, benchmark),) = probe
    expected = benchmark.preprocess.forward(decode(pixels, 2))
    torch.testing.assert_close(synthetic.decoded().images, expected, atol=1e-5, rtol=0)
    assert main(*ask, "--factor", 2, "--preprocess", "zca_kornia") == 2
    assert "IDC decodes them before it preprocesses them" in capsys.readouterr().err
    assert main(*ask, "--factor", 3, "--preprocess", "standardise") == 2


@pytest.mark.parametrize("method", ["random_real", "frepo"])
def test_the_file_of_a_set_of_this_suite_gives_the_accuracy_of_its_record(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = f"--methods {method} --no-random --dataset digits --ipc 2 --seed 3 --width 4 --output {tmp_path / 'made'}"
    assert run.main([*made.split(), *FAST], launcher=in_process) == 0
    (distilled,) = all_in(tmp_path / "made")
    path = Path(shutil.copy(distilled.set_path, tmp_path / "copy.safetensors"))
    protocol = distilled.evaluations[0]["config"]["protocol"]
    ask = (path, *FAST, "--output", tmp_path / "again")
    assert main(*ask, "--protocol", protocol) == 0
    (again,) = all_in(tmp_path / "again")
    assert again.evaluations[0]["values"] == distilled.evaluations[0]["values"]
    assert again.record["distillation"]["method"] == f"{method}_reevaluated"
    assert main(*ask, "--name", "elsewhere") == 0
    (other,) = (e for e in all_in(tmp_path / "again") if e.record["distillation"]["method"] == "elsewhere")
    assert (other.evaluations[0]["config"]["protocol"], other.evaluations[0]["config"]["width"]) == ("common", 4)
    capsys.readouterr()
    fingerprint = distilled.record["distillation"]["data_fingerprint"].encode()
    for more, said in (
        (("--preprocess", "zca_kornia"), "leave out --preprocess"),
        (("--class-order", "sorted"), "--class-order means nothing for a set of this suite"),
        (("--protocol", "native"), "--protocol native is that of a method of this suite"),
        ((), "was made from other images than those of digits"),
    ):
        if not more:
            path.write_bytes(path.read_bytes().replace(fingerprint, fingerprint[::-1]))
        assert main(*ask, *more) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"dataset": 5}, "its dataset is 5"),
        ({"dataset": "folder:pets"}, "say where the images of folder:pets lie"),
        ({"seed": "a"}, "its seed is 'a'"),
        ({"seed": 1.5}, "its seed is 1.5"),
        ({"image_size": True}, "its image_size is True"),
        ({"method": "\x1b"}, "cannot be printed"),
    ],
)
def test_a_set_of_this_suite_that_says_nonsense_about_itself(
    values: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark, path = digits(tmp_path, "standardise"), tmp_path / "a.safetensors"
    about = {"dataset": "digits", "method": "frepo", **values}
    artifact.save(path, some_set(benchmark), benchmark, distillation=about, config={})
    assert main(path, "--output", tmp_path / "out", "--device", "cpu") == 2
    shown = capsys.readouterr().err
    assert said in shown and shown.startswith("error: ") and shown.count("\n") == 1


def test_a_set_of_this_suite_that_knows_little_about_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Saved by somebody else through `artifact.save`, whose distillation may hold anything."""
    benchmark, path = digits(tmp_path, "standardise"), tmp_path / "a.safetensors"
    artifact.save(path, some_set(benchmark), benchmark, distillation={}, config={})
    ask = (path, "--output", tmp_path / "out")
    for missing, more in (("--dataset", []), ("--name", ["--dataset", "digits"])):
        assert main(*ask, *more) == 2
        shown = capsys.readouterr().err
        assert shown.startswith(f"error: {missing} is missing") and shown.count("\n") == 1
    assert main(*ask, *FILES, "--name", "by_hand") == 0


@pytest.mark.parametrize(
    ("claimed", "change", "said"),
    [
        (1, lambda s: s, "images are float32 (100, 1, 8, 8) on cpu; expected detached float32 (10, 1, 8, 8) on cpu"),
        (None, lambda s: replace(s, images=s.images[:3], labels=s.labels[:3]), "images are float32 (3, 1, 8, 8) on cp"),
        (
            None,
            lambda s: replace(s, images=s.images[:99], labels=s.labels[:99]),
            "expected detached float32 (90, 1, 8,",
        ),
        (10, lambda s: replace(s, labels=s.labels.roll(1, 0)), "the labels of image 0 name class 9; expected class 0"),
        (10, lambda s: replace(s, labels=torch.zeros_like(s.labels)), "the same for every class; expected labels"),
        (10, lambda s: replace(s, label_space="probability"), "expected values from 0 to 1 with sums of 1"),
        (10, lambda s: replace(s, images=s.images.double(), labels=s.labels.double()), "images are float64 (100, 1, 8"),
    ],
    ids=["ipc", "few", "odd", "order", "labels", "space", "dtype"],
)
def test_a_set_of_this_suite_that_is_not_whole_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    claimed: int | None,
    change: Callable[[Synthetic], Synthetic],
    said: str,
) -> None:
    benchmark, path = digits(tmp_path, "standardise"), tmp_path / "a.safetensors"
    about = {} if claimed is None else {"ipc": claimed}
    artifact.save(path, change(some_set(benchmark)), benchmark, distillation=about, config={})
    assert main(path, *FILES, "--name", "by_hand", "--output", tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {path}: ") and shown.count("\n") == 1 and said in shown
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "no folder or file is named"),
        ("a.pt --dateset digits", "did you mean --dataset?"),
        ("a.pt --dataset digits --name a --preprocess zca", "did you mean 'zca_"),
        ("a.pt --network convnt", "did you mean 'convnet'?"),
        ("a.pt --budget cost", "evaluates nothing"),
        ("a.pt --name mtt", "--name 'mtt' is empty or taken"),
        ("a.pt --name whole_data", "--name 'whole_data' is empty or taken"),
        ("a.pt --lr 0", "--lr must be a positive number"),
        ("a.pt --width 0", "--width must be at least 1"),
        ("a.pt --seed -1", "--seed must be at least 0"),
        ("a.pt --label-space soft", "unknown label space"),
        ("a.pt", "no such file"),
        (
            "PNG --dataset digits --preprocess standardise --name a",
            "one.png is a picture: a set of pictures is a folder",
        ),
        ("SET --dataset digits --name a", "--preprocess is missing"),
        ("SET --preprocess standardise --name a", "--dataset is missing"),
        ("SET --preprocess standardise --dataset digits", "--name is missing"),
        ("SET --preprocess standardise --dataset digits --name a --protocol native", "name one for the set of others"),
        ("SET --preprocess standardise --dataset digit --name a", "did you mean 'digits'?"),
        ("SET --preprocess standardise --dataset digits --name a --lr 1", "--lr means nothing under --protocol common"),
        ("SET --preprocess standardise --dataset digits --name a --accuracy.width 0", "--accuracy.width is 0"),
        ("SET --preprocess standardise --dataset digits --name a --experiment 7", "--experiment 7 is not in"),
        ("SET --preprocess standardise --dataset cifar10 --name a", "cifar10 is not in"),
        ("SET --preprocess standardise --dataset digits --name a --image-size 1000000", "the images alone would take"),
        ("SET --preprocess standardise --dataset digits --name a --class-order a.txt", "a.txt: no such file"),
    ],
)
def test_a_bad_command_about_files_is_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, said: str
) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    arguments = arguments.replace("PNG", str(tmp_path / "one.png"))
    words = arguments.replace("SET", str(dc(tmp_path / "res.pt"))).split()
    assert main(*words, *(("--output", tmp_path / "out") if words else ())) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert said in shown.err and not list((tmp_path / "out").glob("*"))
    if "--preprocess is missing" in said:
        assert all(name in shown.err for name in PREPROCESSINGS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom harness.evaluate import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'pandas'} & set(sys.modules)\nassert not heavy, heavy"
    )
    root = Path(__file__).parents[1]
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
    assert "images_best.pt" in shown and "zca_kornia" in shown


def test_help_shows_the_options_of_evaluations(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--evaluations", "accuracy", "--help") == 0
    assert "--accuracy.networks INT" in capsys.readouterr().out
