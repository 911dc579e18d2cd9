"""Views of a data set: how they are written, what they show, and that nothing confuses them with the whole set."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import preprocess
from benchmarks.data.source import RawData
from benchmarks.data.views import (
    apply,
    base_name,
    class_order,
    classes_of_step,
    classes_seen,
    half_mask,
    parse,
    random_rows,
    split,
)
from benchmarks.datasets import Benchmark, Shape, blank, load, load_raw, stand_in
from benchmarks.errors import UserError
from benchmarks.preprocess import channel_statistics
from benchmarks.protocols import FREPO_RECIPE, PROTOCOLS
from benchmarks.task import generator_for
from harness import evaluate, run
from harness.measure.forecast import CPU, count_blank
from harness.plan.planning import plan, resolve
from harness.plan.request import Request
from harness.records import artifact
from harness.records.importers import doubts, fitted, read
from harness.records.record import PICTURE, SET
from harness.reports.images import started_as
from methods.base import Synthetic
from tests.builders import all_in, in_process, quick
from tests.dummies import Dummy, dummy
from tests.test_datasets import image_folder
from tests.test_importers import mtt

__all__ = ["dummy", "quick"]  # fixtures
NOWHERE = Path("nowhere")
STEP = "digits@step:1-of-5-order-0"
"""Classes 4 and 9, after 2 and 8."""


def raw(name: str) -> RawData:
    return load_raw(name, NOWHERE)


def benchmark(name: str, **settings: Any) -> Benchmark:
    defaults: dict[str, Any] = {
        **{"ipc": 2, "network": "convnet", "width": 4, "depth": 1, "norm": "instance", "preprocess": "standardise"},
        **{"generator": generator_for("test"), "root": NOWHERE},
    }
    return load(name, **{**defaults, **settings})


def shown(labels: Tensor) -> list[int]:
    return labels.unique().tolist()


# --- names


@pytest.mark.parametrize(
    ("source", "base", "suffix"),
    [
        ("mnist", "mnist", ""),
        ("mnist@images:0-2000", "mnist", "@images:0-2000"),
        ("mnist@half:3@images:10-20", "mnist", "@half:3@images:10-20"),
        ("mnist@fold:0-of-5", "mnist", "@fold:0-of-5"),
        ("cifar100@step:2-of-5-order-0-leak", "cifar100", "@step:2-of-5-order-0-leak"),
        ("folder:/home/a@b/@eaDir", "folder:/home/a@b/@eaDir", ""),
        ("folder:/a@half:1/b@half:2", "folder:/a@half:1/b", "@half:2"),
        ("folder:a@half:1@old", "folder:a@half:1@old", ""),
        ("mnist@images:00-20", "mnist@images:00-20", ""),  # one view has one name
    ],
)
def test_only_a_trailing_suffix_that_has_the_form_of_a_view_counts(source: str, base: str, suffix: str) -> None:
    assert split(source) == (base, suffix) and base_name(source) == base


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("digits@imags:0-5", "unknown view '@imags:0-5'; views are @images:A-B, @half:K, @fold:K-of-N, @step"),
        ("digits@half:1@half", "unknown view '@half'"),
        ("digits@half:1@new@half:2", "unknown view '@new'"),
        ("digits@images:0-1439", "digits@images:0-1439: the set has 1438 training images"),
        ("digits@half:1@images:0-720", "the set has 719 training images"),
        ("digits@images:5-5", "A must be below B"),
        ("digits@fold:3-of-3", "K must be below N"),
        ("digits@fold:0-of-1", "has 2 folds or more"),
        ("digits@images:0-5@fold:5-of-6", "5 images are too few for so many folds"),
        ("digits@step:5-of-5-order-0", "step 5 of 5 does not exist"),
        ("digits@step:0-of-0-order-0", "step 0 of 0 does not exist"),
        ("digits@step:0-of-3-order-0", "10 classes cannot be divided into 3 steps"),
        ("digits@images:0-1@half:0", "no training images"),
        (f"{STEP}@step:0-of-5-order-0", "no training images"),
        ("digist@half:1", "unknown data set 'digist': did you mean 'digits'"),
        ("folder:photos@halve:1", "there is no folder .* (views are"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(source: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        raw(source)
    message = str(error.value)
    assert all(part in message for part in said.split(" .* ")) and "\n" not in message
    if "of 5 does" in said or "unknown" in said:
        with pytest.raises(UserError) as early:
            Request(methods=("dm",), datasets=(source,))
        assert str(early.value) == message, "said before anything is read"


def test_published_settings_are_those_of_the_whole_set(dummy: type[Dummy]) -> None:
    for suffix in ("@images:0-20", "@half:1", "@fold:0-of-5", "@step:0-of-5-order-1"):
        (config, steps) = resolve({"dummy": Dummy}, f"digits{suffix}", 2, "paper", {})["dummy"]
        assert (steps, config.lr) == (9, 0.2)
        for dataset, ipc, protocol in (("mnist", 10, "frepo"), ("cifar10", 10, "mtt"), ("cifar10", 50, "mtt")):
            named = PROTOCOLS[protocol].preprocess
            assert named(f"{dataset}{suffix}", ipc) == named(dataset, ipc)
        assert not FREPO_RECIPE.flip(True, f"fashion_mnist{suffix}") and FREPO_RECIPE.flip(True, f"cifar10{suffix}")
        assert not raw(f"digits{suffix}").flip and stand_in(f"cifar10{suffix}").flip


# --- what they show


def test_images_keep_their_order_and_the_test_set() -> None:
    whole, part = raw("digits"), raw("digits@images:100-150")
    assert torch.equal(part.train_images, whole.train_images[100:150])
    assert torch.equal(part.train_labels, whole.train_labels[100:150])
    assert torch.equal(part.test_images, whole.test_images) and torch.equal(part.test_labels, whole.test_labels)
    assert (part.name, part.class_names) == ("digits@images:100-150", whole.class_names)


def test_a_half_is_a_half_and_every_number_another() -> None:
    mask = half_mask(1438, 3)
    assert mask.dtype == torch.bool and mask.shape == (1438,) and int(mask.sum()) == 719
    assert int((mask & half_mask(1438, 4)).sum()) not in (0, 719)
    assert torch.equal(raw("digits@half:3").train_images, raw("digits").train_images[mask])
    assert int(half_mask(7, 0).sum()) == 3


def test_folds_part_the_training_images_and_leave_the_test_images_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold is tested on by the others; images have a number of their own here, by which they are told apart."""
    monkeypatch.setitem(preprocess.CONSTANTS["standardise"], "digits", STATISTICS)
    numbers = torch.arange(1438)
    whole = dataclasses.replace(raw("digits"), train_images=numbers.view(-1, 1, 1, 1), train_labels=numbers % 10)
    tested = []
    for fold in range(5):
        view = apply(whole, parse(f"digits@fold:{fold}-of-5")[1])
        own, held_out = view.train_images.flatten(), view.test_images.flatten()
        assert sorted([*own.tolist(), *held_out.tolist()]) == numbers.tolist()
        assert torch.equal(view.train_labels, own % 10) and torch.equal(view.test_labels, held_out % 10)
        tested += held_out.tolist()
    assert sorted(tested) == numbers.tolist() and tested[:200] != list(range(0, 1000, 5)), "each once, at random"
    part = raw("digits@fold:1-of-5")
    (mean,), (std,) = channel_statistics(part.train_images)
    fitted = benchmark("digits@fold:1-of-5").preprocess
    assert (float(fitted.mean), float(fitted.std)) == pytest.approx((mean, std), rel=1e-6), "not of the images held out"


def test_views_apply_from_left_to_right() -> None:
    one, other = raw("digits@images:0-100@half:3"), raw("digits@half:3@images:0-100")
    assert torch.equal(one.train_images, raw("digits@images:0-100").train_images[half_mask(100, 3)])
    assert torch.equal(other.train_images, raw("digits@half:3").train_images[:100])


def test_every_view_has_a_fingerprint() -> None:
    names = [
        "digits",
        "digits@half:3",
        "digits@half:3@images:0-100",
        "digits@images:0-100@half:3",
        STEP,
        f"{STEP}-leak",
    ]
    prints = [raw(name).fingerprint for name in names]
    assert len(set(prints)) == len(names) and {len(text) for text in prints} == {64}
    assert prints == [raw(name).fingerprint for name in names]


def test_a_step_trains_on_its_classes_and_tests_on_those_seen() -> None:
    whole, step = raw("digits"), raw(STEP)
    assert shown(step.train_labels) == [4, 9] and shown(step.test_labels) == [2, 4, 8, 9]
    assert step.class_names == whole.class_names
    rows = torch.isin(whole.train_labels, torch.tensor([4, 9]))
    assert torch.equal(step.train_images, whole.train_images[rows])
    tested = torch.isin(whole.test_labels, torch.tensor([2, 4, 8, 9]))
    assert torch.equal(step.test_images, whole.test_images[tested])
    last = raw("digits@step:4-of-5-order-0")
    assert torch.equal(last.test_images, whole.test_images) and shown(last.train_labels) == [0, 5]


def test_class_orders_are_the_published_ones() -> None:
    assert class_order(10, 0) == (2, 8, 4, 9, 1, 6, 7, 3, 0, 5)
    assert class_order(10, 4) == (3, 8, 4, 9, 2, 6, 0, 1, 5, 7)
    assert class_order(100, 0)[:6] == (26, 86, 2, 55, 75, 93) and class_order(100, 1)[:3] == (80, 84, 33)
    assert classes_of_step(10, 5, 1, 0) == (4, 9) and classes_seen(10, 5, 1, 0) == (2, 8, 4, 9)
    assert classes_seen(100, 10, 9, 2) == class_order(100, 2)


def test_the_published_random_baseline_is_drawn_after_the_order() -> None:
    digits = "126198877899605511740328562245055007713133422129064783439486950764667451298200658919433387"
    labels = torch.tensor([int(digit) for digit in digits])
    assert random_rows(labels, 10, 4, 0)[:8].tolist() == [27, 22, 26, 75, 58, 9, 23, 52]


# --- preprocessing


STATISTICS = ((0.5,), (0.25,))


def test_preprocessing_of_a_step_knows_the_classes_seen_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(preprocess.CONSTANTS["standardise"], "digits", STATISTICS)
    whole = raw("digits")
    seen = whole.train_images[torch.isin(whole.train_labels, torch.tensor([2, 4, 8, 9]))]
    part = whole.train_images[torch.isin(whole.train_labels, torch.tensor([4, 9]))][:50]

    def statistics(name: str) -> tuple[float, float]:
        fitted = benchmark(name).preprocess
        return float(fitted.mean), float(fitted.std)

    def own(images: Tensor) -> Any:
        (mean,), (std,) = channel_statistics(images)
        return pytest.approx((mean, std), rel=1e-6)

    assert statistics("digits@images:0-100") == statistics("digits@half:0") == (0.5, 0.25)
    assert statistics(f"{STEP}-leak") == (0.5, 0.25)
    assert statistics(STEP) == own(seen)
    assert statistics(f"{STEP}@images:0-50") == own(part), "not of the images left out, nor of the whole set"
    assert statistics(f"{STEP}-leak@images:0-50") == (0.5, 0.25)


def test_the_leak_is_whitening_by_all_classes() -> None:
    whole, own, leak = (benchmark(name, preprocess="zca_frepo") for name in ("digits", STEP, f"{STEP}-leak"))
    rows = torch.isin(whole.task.labels, torch.tensor([4, 9]))
    assert torch.equal(leak.task.images, whole.task.images[rows])
    assert not torch.allclose(own.task.images, leak.task.images, atol=0.1)


def test_the_cache_confuses_no_view(tmp_path: Path) -> None:
    names = ["digits", "digits@images:0-100", "digits@images:0-101", STEP, f"{STEP}-leak", "digits"]
    for name in names:
        cached = benchmark(name, preprocess="zca_frepo", cache=tmp_path)
        made = benchmark(name, preprocess="zca_frepo")
        assert cached.raw_fingerprint == made.raw_fingerprint == raw(name).fingerprint and cached.name == name
        for field in ("images", "labels"):
            assert torch.equal(getattr(cached.task, field), getattr(made.task, field))
        assert torch.equal(cached.test_images, made.test_images)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == len(set(names))


def test_image_folders_have_views_and_their_paths_may_have_an_at_sign(tmp_path: Path) -> None:
    place, cache = image_folder(tmp_path / "a@half:1" / "photos@home"), tmp_path / "cache"
    whole, part = (load_raw(f"folder:{place}{view}", tmp_path, cache=cache) for view in ("", "@images:2-5"))
    assert torch.equal(part.train_images, whole.train_images[2:5]) and part.name == f"folder:{place}@images:2-5"
    step = load_raw(f"folder:{place}@step:0-of-3-order-0", tmp_path, cache=cache)
    assert shown(step.train_labels) == [2], "the order of three classes is 2, 1, 0"
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 1, "images are decoded once"


# --- tasks where some classes have images


def test_a_task_knows_its_classes() -> None:
    task = benchmark(STEP, ipc=3).task
    assert (task.classes, task.num_classes) == ((4, 9), 10)
    images, labels = task.draw_per_class()
    assert images.shape == (6, 1, 8, 8) and labels.tolist() == [4, 4, 4, 9, 9, 9]
    assert [shown(task.labels[rows]) for rows in task.rows_of_classes()] == [[4], [9]]
    with pytest.raises(UserError, match="ipc 146 is above the 144 training images of class '9'"):
        benchmark(STEP, ipc=146)


def test_a_set_on_disk_says_which_classes_it_has(tmp_path: Path) -> None:
    made = benchmark(STEP)
    images, classes = made.task.draw_per_class()
    labels = torch.nn.functional.one_hot(classes, 10).float()
    artifact.save(tmp_path / SET, Synthetic(images, labels, "probability"), made, distillation={"ipc": 2}, config={})
    loaded = artifact.load(tmp_path / SET)
    assert loaded.classes == (4, 9) and started_as(loaded) == [4, 4, 9, 9]
    with Image.open(tmp_path / PICTURE) as drawn:
        pixels = np.array(drawn)
    left = pixels.shape[1] - 2 * 66
    named = pixels[:, : left - 1]
    assert pixels.shape[0] == 2 * 66 + 2 and (named[2:66] < 100).any() and (named[68:] < 100).any()
    whole = benchmark("digits")
    images, classes = whole.task.draw_per_class()
    labels = torch.nn.functional.one_hot(classes, 10).float()
    artifact.save(tmp_path / SET, Synthetic(images, labels, "probability"), whole, distillation={}, config={})
    assert artifact.load(tmp_path / SET).classes == tuple(range(10))


def test_a_set_of_others_may_have_the_classes_of_a_view_alone(tmp_path: Path) -> None:
    names, shape, images = tuple("0123456789"), (1, 8, 8), torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    hard = read(mtt(tmp_path, images=images, labels=torch.tensor([9, 4, 9, 4])))
    made = fitted(hard, names, shape, present=(4, 9))
    assert made.images[:, 0, 0, 0].tolist() == [1, 3, 0, 2] and made.labels.argmax(1).tolist() == [4, 4, 9, 9]
    assert doubts(made, names, (4, 9)) == [] and "8 of the classes" in doubts(made, names)[0]
    with pytest.raises(UserError, match="class '0' has 0 images and '4' 2"):
        fitted(hard, names, shape)
    with pytest.raises(UserError, match="class '9' has images, and in the training data it has none"):
        fitted(hard, names, shape, present=(4, 8))
    # Their label 0 is our class 9, and so on: the file's classes 0 and 5 are ours 9 and 4.
    learned = torch.tensor([[0.6, *[0.0] * 8, 0.4], [*[0.0] * 5, 1.0, *[0.0] * 4]]).repeat_interleave(2, 0)
    learned[1] = learned[1].flip(0)
    made = fitted(
        read(mtt(tmp_path, images=images, labels=learned)), names, shape, order=range(9, -1, -1), present=(4, 9)
    )
    assert made.images[:, 0, 0, 0].tolist() == [2, 3, 0, 1], "blocks of the file, though a label names another class"


# --- the command line

FAST = ["--budget", "smoke", "--width", "4", "--device", "cpu", "--evaluate-steps", "2", "--networks-evaluated", "1"]


def test_forecasts_are_of_the_view() -> None:
    request = Request(methods=("dm",), datasets=("mnist@images:0-2000", "mnist"), forecast=True, device="cpu")
    part, whole = (job.distillation for job in plan(request) if job.distillation.method == "dm")
    assert part.dataset == "mnist@images:0-2000" and part.data_fingerprint != whole.data_fingerprint
    large = stand_in("tiny_imagenet@half:3@step:1-of-10-order-0")
    assert large.train_images.shape[1:] == (3, 64, 64) and len(shown(large.train_labels)) == 20
    assert large.train_images.untyped_storage().nbytes() == 1, "no memory is taken"
    small, (_, step) = dataclasses.replace(part, width=4, depth=1), parse(STEP)
    data = blank("blank", Shape(1, 8, 10, 60, 20))
    few, many = (count_blank(small, {"batch_real": 4}, raw, CPU) for raw in (apply(data, step), data))
    assert few.flops == pytest.approx(many.flops / 5)


def test_a_view_is_distilled_evaluated_and_shown(tmp_path: Path, quick: None) -> None:
    output, places = tmp_path / "out", image_folder(tmp_path / "photos", per_class=4)
    names = [STEP, f"folder:{places}@half:1"]
    asked = ["--methods", "dm", "--dataset", ",".join(names), "--ceiling", *FAST, "--output", str(output)]
    assert run.main(asked, launcher=in_process) == 0
    assert {each.record["status"] for each in all_in(output)} == {"ok"}
    datasets = {each.record["distillation"]["dataset"] for each in all_in(output)}
    assert datasets == {STEP, "folder:photos@half:1"}
    table = (output / "table.md").read_text()
    assert all(name in table for name in datasets) and "whole_data" in table
    before = {each.folder: len(each.evaluations) for each in all_in(output)}
    assert evaluate.main([str(output), "--evaluate-steps", "3"], launcher=in_process) == 0
    asked_again = {each.folder for each in all_in(output) if len(each.evaluations) == before[each.folder] + 1}
    assert asked_again == {folder for folder in before if "whole_data" not in folder.name}
    # The folder was moved, and the user says where it is now; the records know the view.
    moved = Path(places.rename(tmp_path / "moved"))
    (place,) = output.glob("folder_photos_half_1-ipc1-dm-*")
    assert (
        evaluate.main([str(place), "--evaluate-steps", "4", "--dataset", f"folder:{moved}"], launcher=in_process) == 0
    )
    # So does the set alone, taken out of its folder.
    copy = Path(shutil.copy(place / SET, tmp_path / "copy.safetensors"))
    words = [str(copy), "--dataset", f"folder:{moved}", "--output", str(tmp_path / "files"), *FAST]
    assert evaluate.main(words, launcher=in_process) == 0
    (again,) = all_in(tmp_path / "files")
    assert again.record["distillation"]["dataset"] == "folder:moved@half:1" and again.evaluations[0]["status"] == "ok"
