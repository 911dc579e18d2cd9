"""Sets as others publish them: what is read, what is refused, and what is doubted."""

from __future__ import annotations

import functools
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from benchmarks import PREPROCESSINGS
from benchmarks.errors import UserError
from benchmarks.preprocess import Preprocess, fit
from benchmarks.task import generator_for
from harness.records import artifact
from harness.records.importers import LARGEST_HEADER, TOLERANCE, USED_BY, doubts, fitted, pixel_doubts, read
from tests.test_artifact import digits, some_set

NAMES = tuple("0123456789")
SHAPE = (1, 8, 8)
IPC = 2
IMAGES = torch.randn(10 * IPC, *SHAPE, generator=generator_for("images"))
CLASSES = torch.arange(10).repeat_interleave(IPC)
CENTRED = torch.nn.functional.one_hot(CLASSES, 10) - 0.1


def dc(path: Path, experiments: int = 1, images: Tensor = IMAGES, labels: Tensor = CLASSES, **how: Any) -> Path:
    """A result as DC, DSA and DM save it: their accuracies are numpy scalars."""
    accuracies = {"ConvNet": [np.float64(0.283), np.float32(0.28)], "AlexNet": [np.float64(0.2)]}
    data = [[images + index, labels] for index in range(experiments)]
    torch.save({"data": data, "accs_all_exps": accuracies}, path, **how)
    return path


def mtt(folder: Path, **parts: Tensor) -> list[Path]:
    """Files as MTT saves them, a tensor in each."""
    for name, tensor in parts.items():
        torch.save(tensor, folder / f"{name}_best.pt")
    return [folder / f"{name}_best.pt" for name in parts]


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})
    return path


def of(*paths: Path, **options: Any) -> Any:
    return fitted(read(paths, **options), NAMES, SHAPE)


def refused(work: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The formats


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "before torch 1.6"])
@pytest.mark.parametrize("numpy_1", [False, True], ids=["numpy 2", "numpy 1"])
def test_results_of_dc_dsa_and_dm(tmp_path: Path, zipped: bool, numpy_1: bool) -> None:
    path = dc(tmp_path / "res_DC_CIFAR10_ConvNet_1ipc.pt", 3, _use_new_zipfile_serialization=zipped)
    if numpy_1:
        renamed(path, b"numpy._core.multiarray", b"numpy.core.multiarray")
    imported = read([path])
    assert (imported.experiment, imported.experiments) == (0, 3)
    synthetic = fitted(imported, NAMES, SHAPE)
    assert torch.equal(synthetic.images, IMAGES) and torch.equal(synthetic.labels.argmax(1), CLASSES)
    assert synthetic.label_space == "probability" and synthetic.lr is None
    assert torch.equal(of(path, experiment=2).images, IMAGES + 2)
    assert "--experiment 3 is not in" in refused(lambda: of(path, experiment=3))


def renamed(path: Path, old: bytes, new: bytes) -> None:
    """Replace ``old`` in the pickle of a file of torch."""
    if not zipfile.is_zipfile(path):
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new))
        return
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in members if name.endswith("data.pkl"))
    assert old in members[name]
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content.replace(old, new) if member == name else content)


def test_files_of_mtt_in_any_order(tmp_path: Path) -> None:
    step_size = torch.tensor(0.02, requires_grad=True)
    paths = mtt(tmp_path, images=torch.nn.Parameter(IMAGES), labels=CLASSES, lr=step_size)
    for order in (paths, paths[::-1], paths[:2]):
        synthetic = of(*order)
        assert torch.equal(synthetic.images, IMAGES) and not synthetic.images.requires_grad
        assert torch.equal(synthetic.labels, (CENTRED > 0).float())
        assert synthetic.lr is None if len(order) == 2 else float(synthetic.lr) == pytest.approx(0.02)


def test_class_indices_of_any_integers(tmp_path: Path) -> None:
    for dtype in (torch.uint8, torch.int32, torch.uint16):
        imported = of(*mtt(tmp_path, images=IMAGES, labels=CLASSES.to(dtype)))
        assert torch.equal(imported.labels, (CENTRED > 0).float())


def test_soft_labels_are_what_their_values_say(tmp_path: Path) -> None:
    soft = (CENTRED * 5).softmax(1)
    for labels, space in ((soft, "probability"), (CENTRED, "centred"), (soft.double(), "probability")):
        synthetic = of(*mtt(tmp_path, images=IMAGES, labels=labels))
        assert synthetic.label_space == space and torch.equal(synthetic.labels, labels.float())
    paths = mtt(tmp_path, images=IMAGES, labels=CENTRED * 5 + 1)
    assert "--label-space" in refused(lambda: of(*paths))
    assert fitted(read(paths), NAMES, SHAPE, "centred").label_space == "centred"
    hard = read(mtt(tmp_path, images=IMAGES, labels=CLASSES))
    assert "--label-space means nothing" in refused(lambda: fitted(hard, NAMES, SHAPE, "centred"))


LOGITS = CENTRED * 12 + 1


@pytest.mark.parametrize("said", [None, "probability"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rounded_probabilities_are_probabilities(said: str | None, dtype: torch.dtype, tmp_path: Path) -> None:
    soft = LOGITS.softmax(1).to(dtype)
    synthetic = fitted(read(mtt(tmp_path, images=IMAGES.to(dtype), labels=soft)), NAMES, SHAPE, said)
    assert synthetic.label_space == "probability" and torch.equal(synthetic.labels, soft.float())
    assert synthetic.images.dtype == torch.float32 and torch.equal(synthetic.images, IMAGES.to(dtype).float())


def test_probabilities_in_bfloat16_have_sums_of_1_in_the_end(tmp_path: Path) -> None:
    soft = (CENTRED * 2 + torch.linspace(0, 1, 10)).softmax(1)
    rounded = soft.bfloat16()
    assert float((rounded.float().sum(1) - 1).abs().max()) > TOLERANCE
    synthetic = of(*mtt(tmp_path, images=IMAGES, labels=rounded))
    assert synthetic.label_space == "probability"
    torch.testing.assert_close(synthetic.labels.sum(1), torch.ones(20), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(synthetic.labels, soft, atol=0, rtol=2 * torch.finfo(torch.bfloat16).eps)


def test_the_softmax_of_logits_is_taken(tmp_path: Path) -> None:
    synthetic = fitted(read(mtt(tmp_path, images=IMAGES, labels=LOGITS)), NAMES, SHAPE, "logits")
    assert synthetic.label_space == "probability"
    torch.testing.assert_close(synthetic.labels, LOGITS.exp() / LOGITS.exp().sum(1, keepdim=True))


ONE_ROW_ZERO = CENTRED * (torch.arange(20) != 7)[:, None]


@pytest.mark.parametrize(
    ("labels", "said", "answer"),
    [
        (LOGITS, "probability", "--label-space logits"),
        (CENTRED, "probability", "they are no probabilities"),
        (LOGITS.softmax(1) * 0.99, "probability", "they are no probabilities"),
        (LOGITS.softmax(1) + 0.1 * CENTRED.roll(1, 1), "probability", "they are no probabilities"),  # sums of 1
        (LOGITS.softmax(1), "centred", "they are probabilities"),
        (LOGITS.softmax(1), "logits", "they are probabilities"),
        (LOGITS, None, "may be logits or regression targets"),
        (LOGITS - LOGITS.mean(1, keepdim=True), None, "may be logits or regression targets"),  # sums of 0
        *((torch.zeros(20, 10), said, "all labels of image 0 are 0") for said in (None, "centred", "probability")),
        *((ONE_ROW_ZERO, said, "all labels of image 7 are 0") for said in (None, "centred", "logits")),
        (torch.full((20, 10), 0.1), None, "all labels of image 0 are 0.1"),
    ],
)
def test_labels_that_are_not_of_their_space(labels: Tensor, said: str | None, answer: str, tmp_path: Path) -> None:
    learned = npz(tmp_path / "a.npz", image=IMAGES.permute(0, 2, 3, 1), label=labels)
    for paths in (mtt(tmp_path, images=IMAGES, labels=labels), [learned]):
        assert answer in refused(lambda paths=paths: fitted(read(paths), NAMES, SHAPE, said))  # type: ignore[misc]


def test_what_is_odd_in_labels_is_told(tmp_path: Path) -> None:
    def told(labels: Tensor, said: str | None = None) -> str:
        imported = read([npz(tmp_path / "a.npz", image=IMAGES.permute(0, 2, 3, 1), label=labels)])
        return " ".join(doubts(fitted(imported, NAMES, SHAPE, said), NAMES))

    noise = torch.randn(CENTRED.shape, generator=generator_for("learned"))
    for usual in (CENTRED, CENTRED + 0.05 * noise, CENTRED / 10**0.5, LOGITS.softmax(1), (CENTRED > 0).float()):
        assert told(usual) == ""
    assert "sum of a row is up to 1.5" in told(CENTRED + 0.15)
    assert "here up to 10.8" in told(CENTRED * 12, "centred")
    assert told(CENTRED.roll(2, 0)[:, [0, 0, *range(2, 10)]] + 1e-3 * noise) != ""
    moved = CENTRED.clone()
    moved[:2] = CENTRED[2:4] + 1e-3
    assert "No image has its largest label at the class '0'" in told(moved)


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("fortran", [False, True])
def test_arrays_of_any_floating_type_and_byte_order(dtype: str, fortran: bool, tmp_path: Path) -> None:
    images = IMAGES.permute(0, 2, 3, 1).numpy().astype(dtype)
    images = np.asfortranarray(images) if fortran else images
    path = npz(tmp_path / "a.npz", image=images, label=CLASSES.numpy().astype(">i4"))
    synthetic = of(path)
    assert torch.equal(synthetic.images, torch.from_numpy(images.astype("f4")).permute(0, 3, 1, 2))
    assert torch.equal(synthetic.labels.argmax(1), CLASSES)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_arrays_in_bfloat16_which_numpy_keeps_as_bytes(version: tuple[int, int], tmp_path: Path) -> None:
    images = IMAGES.bfloat16()
    array = images.permute(0, 2, 3, 1).contiguous().view(torch.int16).numpy().view("V2")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, content in (("images", array), ("labels", CENTRED.numpy())):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, content, version)
    assert torch.equal(of(tmp_path / "a.npz").images, images.float())


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([None] * 20, dtype=object), "holds Python objects"),
        (np.array(["0"] * 20), "holds <U1"),
        (CLASSES.numpy().astype("c8"), "holds complex64"),
        (CLASSES.numpy().astype("m8[s]"), "holds timedelta64"),
        (np.zeros(20, [("a", "f4")]), "holds [("),
        (CLASSES.numpy().astype(np.longdouble), "holds float128"),
    ],
)
def test_arrays_that_are_no_numbers_for_torch(array: Any, said: str, tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", image=IMAGES.permute(0, 2, 3, 1), label=array)
    assert said in (message := refused(lambda: of(path))) and "damaged" not in message


def bomb(path: Path, images: tuple[int, ...], labels: tuple[int, ...]) -> Path:
    """An ``.npz`` whose headers promise arrays of these shapes, with nothing behind them."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, shape in (("image", images), ("label", labels)):
            with archive.open(f"{name}.npy", "w") as file:
                dtype = "<i8" if len(shape) == 1 else "<f4"
                np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return path


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        ((10**12, 8, 8, 1), (10**12, 10), "1000000000000 images, more than the 100 of the data set"),
        ((20, 10**6, 10**6, 1), (20, 10), "the images are 1×1000000×1000000"),
        ((20, 8, 8, 1), (20, 10**12), "the labels are for 1000000000000 classes"),
        ((20, 8, 8, 1), (10**12,), "20 images and 1000000000000 labels"),
    ],
)
def test_shapes_are_looked_at_before_arrays_are_read(
    images: tuple[int, ...], labels: tuple[int, ...], said: str, tmp_path: Path
) -> None:
    imported = read([bomb(tmp_path / "a.npz", images, labels)])
    assert said in refused(lambda: fitted(imported, NAMES, SHAPE, most=100))
    if said.startswith("10"):  # a tensor that repeats one number takes no room in a file either
        torch.save(torch.zeros(1).expand(10**12, 1, 8, 8), tmp_path / "images.pt")
        torch.save(torch.zeros(1).expand(10**12, 10), tmp_path / "labels.pt")
        imported = read([tmp_path / "images.pt", tmp_path / "labels.pt"])
        assert said in refused(lambda: fitted(imported, NAMES, SHAPE, most=100))


def test_no_more_is_read_of_an_array_than_a_header_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header may claim any length, and what comes then be compressed a thousand times."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", b"\x93NUMPY\x02\0\xff\xff\xff\xff" + bytes(1 << 20))
    read_bytes, sizes = zipfile.ZipExtFile.read, list[int]()

    def noted(file: Any, size: int = -1) -> bytes:
        sizes.append(size)
        return read_bytes(file, size)

    monkeypatch.setattr(zipfile.ZipExtFile, "read", noted)
    assert "a.npz is damaged" in refused(lambda: read([tmp_path / "a.npz"]))
    assert sizes == [LARGEST_HEADER]


def test_a_shape_of_no_array_and_an_array_that_ends_early_are_damage(tmp_path: Path) -> None:
    for shape in ((2**40, 2**40, 2**40, 1), (-20, 8, 8, 1)):
        assert "a.npz is damaged" in refused(lambda shape=shape: read([bomb(tmp_path / "a.npz", shape, (20,))]))  # type: ignore[misc]
    imported = read([bomb(tmp_path / "a.npz", (20, 8, 8, 1), (20, 10))])
    assert "a.npz is damaged" in refused(lambda: fitted(imported, NAMES, SHAPE))


@pytest.mark.parametrize("keys", [("image", "label"), ("images", "labels")], ids="-".join)
def test_arrays_of_frepo_and_kip_have_their_channels_last(tmp_path: Path, keys: tuple[str, str]) -> None:
    colour = torch.randn(10 * IPC, 3, 8, 4, generator=generator_for("colour"))
    learned = CENTRED + 0.3 * torch.rand(CENTRED.shape, generator=generator_for("labels"))  # no longer of sum 0
    path = npz(tmp_path / "step500000.npz", **dict(zip(keys, (colour.permute(0, 2, 3, 1), learned), strict=True)))
    synthetic = fitted(read([path]), NAMES, (3, 8, 4))
    assert torch.equal(synthetic.images, colour) and synthetic.images.is_contiguous()
    assert torch.equal(synthetic.labels, learned) and synthetic.label_space == "centred"


def test_arrays_with_one_hot_labels_are_probabilities(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", images=IMAGES.permute(0, 2, 3, 1).double(), labels=(CENTRED > 0).double())
    synthetic = of(path)
    assert synthetic.label_space == "probability" and synthetic.images.dtype == synthetic.labels.dtype == torch.float32


def test_the_content_tells_the_format(tmp_path: Path) -> None:
    path = dc(tmp_path / "results.npz")
    assert torch.equal(of(path).images, IMAGES)
    other = npz(tmp_path / "a.npz", image=IMAGES.permute(0, 2, 3, 1), label=CENTRED).rename(tmp_path / "results.pt")
    assert torch.equal(of(other).images, IMAGES)


def test_images_are_brought_into_the_order_of_the_classes(tmp_path: Path) -> None:
    mixed = torch.randperm(20, generator=generator_for("order"))
    for labels in (CLASSES, CENTRED):
        synthetic = of(*mtt(tmp_path, images=IMAGES[mixed], labels=labels[mixed]))
        assert torch.equal(synthetic.labels.argmax(1), CLASSES)
        for image, label in zip(IMAGES, CLASSES, strict=True):
            own = synthetic.images[IPC * label : IPC * (label + 1)]
            assert any(torch.equal(image, other) for other in own)
    moved = CENTRED.clone()
    moved[0] = CENTRED[-1]  # the learned label of one image of class 0 has its largest value at 9
    assert torch.equal(of(*mtt(tmp_path, images=IMAGES, labels=moved)).labels, moved)


ORDER = (3, 1, 2, 0, 4, 5, 6, 9, 7, 8)


@pytest.mark.parametrize("kind", ["indices", "one-hot", "centred", "learned"])
def test_label_numbers_of_another_order(kind: str, tmp_path: Path) -> None:
    """Images of class ``ORDER[j]`` have the label number j; what comes out has them in the place of their class."""
    theirs = {
        "indices": CLASSES,
        "one-hot": (CENTRED > 0).float(),
        "centred": CENTRED,
        "learned": torch.where(torch.arange(20)[:, None] == 5, CENTRED[[0]], CENTRED),  # one image looks like a 0
    }[kind]
    synthetic = fitted(read(mtt(tmp_path, images=IMAGES, labels=theirs)), NAMES, SHAPE, order=ORDER)
    for number, own in enumerate(ORDER):
        rows = slice(IPC * own, IPC * (own + 1))
        assert torch.equal(synthetic.images[rows], IMAGES[IPC * number : IPC * (number + 1)])
        named = [ORDER[0] if kind == "learned" and number * IPC + i == 5 else own for i in range(IPC)]
        assert synthetic.labels[rows].argmax(1).tolist() == named


def test_a_set_of_this_suite_with_its_classes_in_another_order(tmp_path: Path) -> None:
    benchmark = digits(tmp_path, "standardise")
    synthetic = some_set(benchmark)
    reordered = replace(benchmark, class_names=tuple(NAMES[index] for index in ORDER))
    path = tmp_path / "a.safetensors"
    artifact.save(path, synthetic, reordered, distillation={}, config={})
    imported = fitted(read([path]), NAMES, SHAPE, order=ORDER)
    assert torch.equal(imported.labels.argmax(1), torch.arange(10).repeat_interleave(10))
    for number, own in enumerate(ORDER):
        assert torch.equal(
            imported.images[10 * own : 10 * (own + 1)], synthetic.images[10 * number : 10 * (number + 1)]
        )


def compressed(path: Path) -> Path:
    """A copy of an archive of torch, of which a few bytes could become as much as the memory holds."""
    copy = path.with_name("compressed.pt")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w", zipfile.ZIP_DEFLATED) as made:
        for name in archive.namelist():
            made.writestr(name, archive.read(name))
    return copy


def test_pairs_of_idc_hold_pixels_or_preprocessed_images(tmp_path: Path) -> None:
    pixels = torch.rand(IMAGES.shape, generator=generator_for("pixels"))
    for images, natural in ((pixels, True), (IMAGES, False)):
        torch.save([images, CLASSES], tmp_path / "data.pt")
        imported = read([tmp_path / "data.pt"])
        assert (imported.source, imported.natural) == ("idc", natural)
        assert torch.equal(fitted(imported, NAMES, SHAPE).images, images)


def test_checkpoints_of_flax(tmp_path: Path) -> None:
    msgpack = pytest.importorskip("msgpack")

    def packed(array: Any) -> Any:
        content = msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True)
        return msgpack.ExtType(1, content)

    arrays = {"x_proto": IMAGES.permute(0, 2, 3, 1).numpy(), "y_proto": CENTRED.numpy()}
    state = {"step": 5, "params": {name: packed(array) for name, array in arrays.items()}, "opt_state": {"0": None}}
    path = tmp_path / "checkpoint_500000"
    path.write_bytes(msgpack.packb(state))
    synthetic = of(path)
    assert torch.equal(synthetic.images, IMAGES) and torch.equal(synthetic.labels, CENTRED)
    assert synthetic.label_space == "centred" and read([path]).source == "frepo"
    for content, said in (
        (msgpack.packb({"params": {"x_proto": state["params"]["x_proto"]}}), "no array params/y_proto"),  # type: ignore[index]
        (msgpack.packb({"params": {"x_proto": msgpack.ExtType(1, b"\x93")}}), "is damaged"),
        (path.read_bytes()[:-9], "is damaged"),
    ):
        path.write_bytes(content)
        assert said in refused(lambda: read([path]))


def pictures(root: Path, *names: str) -> Path:
    """A folder of two grey pictures for each class, whose level is the place of its name."""
    for level, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(IPC):
            Image.new("L", (8, 8), level).save(root / name / f"{number}.png")
    return root


def test_pictures_in_a_folder_for_each_class(tmp_path: Path) -> None:
    numbered = read([pictures(tmp_path / "a", *(f"new{i}" for i in range(12)))])
    assert numbered.natural and numbered.class_names is None and numbered.images.shape == (24, *SHAPE)
    levels = (numbered.images[:, 0, 0, 0] * 255).round()
    assert torch.equal(levels, numbered.labels.float()), "10 comes after 9, and not after 1"
    named = read([pictures(tmp_path / "b", "zebra", "ant")])
    assert named.class_names == ("ant", "zebra") and named.labels.tolist() == [0, 0, 1, 1]
    (digest,) = (sha for _, sha in named.files)
    Image.new("L", (8, 8), 9).save(tmp_path / "b" / "ant" / "0.png")
    assert read([tmp_path / "b"]).files[0][1] != digest
    (tmp_path / "b" / "labels.csv").write_text("file,class,low,high,label_0\nant/0.png,0,0,1,1\n")
    assert "no row for ant/1.png" in refused(lambda: read([tmp_path / "b"]))
    head = "file,class,low,high,label_0\n"
    (tmp_path / "b" / "labels.csv").write_text(f"{head}ant/0.png,0,0\n")
    assert "more or fewer columns than the first" in refused(lambda: read([tmp_path / "b"]))
    rows = [f"{name}/{number}.png,0,0,1,1\n" for name in ("ant", "zebra") for number in range(IPC)]
    (tmp_path / "b" / "labels.csv").write_text(f"{head}{''.join(rows)}\n")
    assert read([tmp_path / "b"]).labels.shape == (4, 1), "an empty line at the end is none"
    for content, said in (
        (f'{{"lr": {10**400}}}', ""),
        ('{"lr": true}', "lr is neither a number nor a list of numbers"),
        ('{"lr": [0.1, "x"]}', "lr is neither"),
        ('{"lr": []}', "lr is neither"),
        ('{"class_names": "ab"}', "class_names is no list of texts"),
        ('{"class_names": ["a", 1]}', "class_names is no list of texts"),
        ('{"label_space": ["centred"]}', "label_space is none of probability"),
    ):
        (tmp_path / "b" / "export.json").write_text(content)
        assert f"export.json is damaged ({said}" in refused(lambda: read([tmp_path / "b"]))
    (tmp_path / "b" / "export.json").unlink()
    (tmp_path / "b" / "labels.csv").write_text("name\n")
    assert "the first columns must be file" in refused(lambda: read([tmp_path / "b"]))


# What is refused


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.system, ("touch a_file_that_must_not_be",)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save({"data": [[IMAGES, CLASSES]], "accs_all_exps": Evil()}, "archive.pt")
    torch.save({"data": Evil()}, "legacy.pt", _use_new_zipfile_serialization=False)
    npz(tmp_path / "a.npz", image=np.array([Evil()], dtype=object), label=CENTRED)
    for name in ("plain.pt", "archive.pt", "legacy.pt"):
        message = refused(lambda name=name: read([Path(name)]))  # type: ignore[misc]
        assert name in message and ("holds posix.system" in message or name == "plain.pt")
    assert "a.npz" in refused(lambda: read([Path("a.npz")]))
    assert not Path("a_file_that_must_not_be").exists()


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (IMAGES[:, :, :4], CLASSES, "the images are 1×4×8, and those of the data set 1×8×8"),
        (IMAGES.expand(-1, 3, -1, -1), CLASSES, "the images are 3×8×8"),
        (IMAGES.to(torch.uint8), CLASSES, "the images are uint8"),
        (IMAGES * float("nan"), CLASSES, "a value of the images is not finite"),
        (IMAGES[:5], CLASSES, "there are 5 images and 20 labels"),
        (IMAGES, CLASSES + 1, "the labels go from 1 to 10: the data set has 10 classes"),
        (IMAGES, CENTRED[:, :7], "the labels are for 7 classes, and the data set has 10"),
        (IMAGES[:-1], CLASSES[:-1], "class '9' has 1 images and '0' 2"),
        (IMAGES[:-1], CENTRED[:-1], "class '9' has 1 images and '0' 2"),
        (IMAGES, torch.where(CLASSES == 4, 3, CLASSES), "class '4' has 0 images and '3' 4"),
        (IMAGES, CLASSES - 1, "the labels go from -1 to 8"),
        (IMAGES, (CENTRED > 0).float().repeat(1, 2), "the labels are for 20 classes"),
        (IMAGES, torch.where(CENTRED > 0, torch.inf, 0.0), "a value of the labels is not finite"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, images: Tensor, labels: Tensor, said: str) -> None:
    assert said in refused(lambda: of(*mtt(tmp_path, images=images, labels=labels)))


def test_parts_and_files_that_do_not_make_a_set(tmp_path: Path) -> None:
    images, labels = mtt(tmp_path, images=IMAGES, labels=CLASSES)
    whole = dc(tmp_path / "res.pt")
    odd = tmp_path / "odd.pt"
    torch.save(torch.zeros(3, 3, 3), odd)
    text = tmp_path / "text.pt"
    text.write_text("images, honestly")
    cut = tmp_path / "cut.pt"
    cut.write_bytes(whole.read_bytes()[:-100])
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"images": IMAGES}, other)
    state = tmp_path / "state.pt"
    torch.save({"weight": IMAGES}, state)
    for paths, said in (
        ([images], "no labels in"),
        ([labels], "no images in"),
        ([images, images], "the second file with images"),
        ([images, whole], "a whole set"),
        ([odd], "neither images, labels nor a step size"),
        (mtt(tmp_path, sparse=IMAGES.to_sparse()), "sparse, quantised, complex"),
        (mtt(tmp_path, without=IMAGES.to("meta")), "empty or of a rare type"),
        (mtt(tmp_path, rare=IMAGES.to(torch.float8_e5m2)), "of a rare type (float8_e5m2)"),
        ([compressed(dc(tmp_path / "zeros.pt", images=0 * IMAGES))], "its content is compressed"),
        ([text], "none of the known formats"),
        ([cut], "cut.pt"),
        ([other], "not a distilled set of this suite"),
        ([state], "neither a tensor nor the 'data'"),
        ([tmp_path / "missing.pt"], "no such file"),
        ([tmp_path], "neither records of this suite nor pictures"),
        ([npz(tmp_path / "b.npz", image=CENTRED, label=CENTRED)], "cannot be the images"),
        ([npz(tmp_path / "c.npz", picture=CENTRED)], "holds picture, and images with labels are expected as image and"),
    ):
        assert said in refused(lambda paths=paths: of(*paths)), said  # type: ignore[misc]
    assert "--experiment means nothing" in refused(lambda: of(images, labels, experiment=0))
    torch.save(torch.tensor(-0.1), tmp_path / "lr.pt")
    assert "must be above 0" in refused(lambda: of(images, labels, tmp_path / "lr.pt"))


# Pixels


@functools.cache
def scenery() -> Tensor:
    """(1000, 3, 16, 16) uint8: blurred noise, in which neighbouring pixels are alike, as in photographs."""
    generator = generator_for("scenery")
    noise = torch.randn(1000, 3, 16, 16, generator=generator) + torch.randn(1000, 1, 16, 16, generator=generator)
    rate = torch.fft.fftfreq(16).square()
    amplitude = (rate[:, None] + rate + 1 / 16**2).pow(-0.75)
    smooth = torch.fft.ifft2(torch.fft.fft2(noise) * amplitude).real
    return (smooth / smooth.std() * 60 + 120).clamp(0, 255).round().to(torch.uint8)


@functools.cache
def of_scenery(name: str) -> Preprocess:
    return fit(name, scenery()).to(dtype=torch.float32)


def told_of_pixels(images: Tensor, claimed: str) -> str:
    applied = of_scenery(claimed)
    lines = pixel_doubts(images, applied.forward(scenery()), applied)
    assert len(lines) <= 1 and all(claimed in line and "\n" not in line for line in lines)
    return "".join(lines)


ZCAS = ["zca_frepo", "zca_kornia"]


@pytest.mark.parametrize("claimed", ["standardise", *ZCAS])
@pytest.mark.parametrize("ipc", [1, 10])
def test_pixels_that_are_as_claimed_raise_no_doubt(claimed: str, ipc: int) -> None:
    real = of_scenery(claimed).forward(scenery()[: 10 * ipc])
    noise = torch.randn(real.shape, generator=generator_for("noise"))
    for odd in (real, real + 0.5 * noise * real.std(), 3 * real, 0.3 * real, noise * of_scenery(claimed).mean.numel()):
        assert told_of_pixels(odd, claimed) == ""


@pytest.mark.parametrize("ipc", [1, 10])
@pytest.mark.parametrize(
    ("made", "claimed", "said"),
    [
        *(("[0, 1]", claimed, "they may be pixels in [0, 1]") for claimed in ("standardise", *ZCAS)),
        *(("0 to 255", claimed, "they may be pixels in 0 to 255") for claimed in ("standardise", *ZCAS)),
        *(("standardise", claimed, "they may not be whitened") for claimed in ZCAS),
        *((made, "standardise", "they may be whitened") for made in ZCAS),
        ("tiny", "standardise", "times as far as in real images"),
        ("huge", "zca_frepo", "times as far as in real images"),
    ],
)
def test_pixels_that_are_not_as_claimed(made: str, claimed: str, said: str, ipc: int) -> None:
    pixels = scenery()[: 10 * ipc]
    if made in PREPROCESSINGS:
        images = of_scenery(made).forward(pixels)
    elif made in ("tiny", "huge"):
        images = of_scenery(claimed).forward(pixels) * {"tiny": 1 / 255, "huge": 255}[made]
    else:
        images = pixels.float() / {"[0, 1]": 255, "0 to 255": 1}[made]
    assert said in told_of_pixels(images, claimed)


def test_the_papers_of_every_preprocessing_are_named() -> None:
    assert set(USED_BY) == set(PREPROCESSINGS)
