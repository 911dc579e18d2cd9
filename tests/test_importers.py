"""Sets as others publish them: what is read, what is refused, and that evaluating them is evaluating them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from benchmarks import PREPROCESSINGS
from benchmarks.datasets import load_raw
from benchmarks.errors import UserError
from benchmarks.preprocess import fit
from benchmarks.task import generator_for
from harness import artifact, cell, record, run
from harness.evaluate_set import main
from harness.importers import USED_BY, fitted, read
from harness.measure import memory
from methods.base import Synthetic
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
    found = read([path])
    assert (found.experiment, found.experiments) == (0, 3)
    synthetic = fitted(found, NAMES, SHAPE)
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
        found = of(*mtt(tmp_path, images=IMAGES, labels=CLASSES.to(dtype)))
        assert torch.equal(found.labels, (CENTRED > 0).float())


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
        (mtt(tmp_path, sparse=IMAGES.to_sparse()), "sparse, quantised or complex"),
        ([text], "none of the known formats"),
        ([cut], "cut.pt"),
        ([other], "not a distilled set of this suite"),
        ([state], "neither a tensor nor the 'data'"),
        ([tmp_path / "missing.pt"], "no such file"),
        ([tmp_path], "no such file"),
        ([npz(tmp_path / "b.npz", image=CENTRED, label=CENTRED)], "cannot be the images"),
        ([npz(tmp_path / "c.npz", picture=CENTRED)], "holds picture, and images with labels are expected as image and"),
    ):
        assert said in refused(lambda paths=paths: of(*paths)), said  # type: ignore[misc]
    assert "--experiment means nothing" in refused(lambda: of(images, labels, experiment=0))
    torch.save(torch.tensor(-0.1), tmp_path / "lr.pt")
    assert "must be above 0" in refused(lambda: of(images, labels, tmp_path / "lr.pt"))


def test_the_papers_of_every_preprocessing_are_named() -> None:
    assert set(USED_BY) == set(PREPROCESSINGS)


# The command

FAST = "--dataset digits --budget smoke --width 4 --device cpu --evaluate-steps 3"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Real digits, whitened as MTT does, in the files of MTT: with the step size that was learned."""
    raw = load_raw("digits", tmp_path)
    rows = torch.cat([torch.nonzero(raw.train_labels == c).flatten()[:IPC] for c in range(10)])
    images = fit("zca_kornia", raw.train_images).to("cpu", torch.float32).forward(raw.train_images[rows])
    mtt(tmp_path, images=images, labels=CLASSES)
    return tmp_path


def command(folder: Path, *more: str) -> list[str]:
    files = [str(folder / "images_best.pt"), str(folder / "labels_best.pt")]
    return [*files, *FAST.split(), "--output", str(folder / "out"), *more]


def test_a_published_set_stands_beside_the_distilled_ones(
    published: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "release", lambda: None)
    before = torch.get_rng_state()
    options = ["--preprocess", "zca_kornia", "--protocol", "mtt", "--lr", "0.02", "--name", "mtt_released"]
    assert main(command(published, *options)) == 0
    assert torch.equal(torch.get_rng_state(), before), "global random numbers were drawn"
    shown = capsys.readouterr()
    assert "mtt_released: 20 images, 2 per class, probability labels" in shown.err
    assert "Networks are trained for 3 steps, the recipe's 1001 shortened by" in shown.err
    assert "Real images go through zca_kornia, the set's own, instead of the protocol's standardise_mtt" in shown.err
    (path,) = (published / "out").glob("*.json")
    found = record.load(path)
    assert found["status"] == "ok" and len(found["accuracy"]["values"]) == 1
    assert (found["cell"]["method"], found["cell"]["preprocess"], found["cell"]["ipc"]) == (
        "mtt_released",
        "zca_kornia",
        IPC,
    )
    cost = found["cost"]
    assert cost["step_seconds"] == [] and cost["prepare_seconds"] is cost["distill_seconds"] is None
    assert cost["memory"]["meter"] is None and cost["parameters_evaluated"]
    digests = [file["sha256"] for file in found["provenance"]["files"]]
    assert [file["name"] for file in found["provenance"]["files"]] == ["images_best.pt", "labels_best.pt"]
    assert found["config"]["sha256"] == digests and all(len(digest) == 64 for digest in digests)
    kept = artifact.load(path.with_suffix(".safetensors"))
    assert kept.preprocess.name == "zca_kornia" and kept.lr is not None and path.with_suffix(".png").exists()
    raw = load_raw("digits", published)
    natural = (kept.natural_images() * 255).round()
    assert torch.equal(natural[0].to(torch.uint8), raw.train_images[raw.train_labels == 0][0])
    table = (published / "out/table.md").read_text()
    assert "| mtt_released" in table and "read from images_best.pt" in table

    assert main(command(published, *options)) == 0
    assert f"done before on {record.cpu_name()}" in capsys.readouterr().err
    first = found["accuracy"]
    assert main(command(published, *options, "--force")) == 0
    assert record.load(path)["accuracy"] == first, "the same set, another accuracy"
    assert main(command(published, *options[:-4], "--lr", "0.5", *options[-2:])) == 0
    accuracies = [one["accuracy"]["values"] for one in record.load_all(published / "out")[0]]
    assert len(accuracies) == 2 and accuracies[0] != accuracies[1], "the learned step size is not used"


@pytest.mark.parametrize("protocol", ["common", "vico"])
def test_test_images_go_through_the_sets_own_preprocessing(
    published: Path, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(synthetic: Any, benchmark: Any, protocol: Any, **rest: Any) -> tuple[list[float], list[float]]:
        seen.append((benchmark.test_images, protocol.name))
        return [0.5], []

    monkeypatch.setattr(cell, "evaluate", spy)
    assert main(command(published, "--name", "a", "--preprocess", "zca_kornia", "--protocol", protocol)) == 0
    raw = load_raw("digits", published)
    ((test_images, name),) = seen
    expected = fit("zca_kornia", raw.train_images).to("cpu", torch.float32).forward(raw.test_images)
    assert torch.equal(test_images, expected) and name == protocol


@pytest.mark.parametrize("method", ["random_real", "frepo"])
def test_a_set_of_this_suite_gives_the_accuracy_of_its_record(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "release", lambda: None)
    made = f"--methods {method} --no-random --ipc 2 --seed 3 --networks-evaluated 2 {FAST} --output {tmp_path}"
    assert run.main(made.split(), launch=cell.run) == 0
    (path,) = tmp_path.glob("*.safetensors")
    again = [str(path), "--device", "cpu", "--output", str(tmp_path / "again")]
    assert main(again) == 0
    (evaluated,), (distilled,) = record.load_all(tmp_path / "again")[0], record.load_all(tmp_path)[0]
    assert evaluated["accuracy"] == distilled["accuracy"] and len(evaluated["accuracy"]["values"]) == 2
    assert evaluated["cell"]["method"] == f"{method}_reevaluated"
    assert main([*again, "--protocol", "common", "--name", "elsewhere"]) == 0
    (other,) = (one for one in record.load_all(tmp_path / "again")[0] if one["cell"]["method"] == "elsewhere")
    assert (other["cell"]["protocol"], other["cell"]["network"]) == ("common", "convnet")
    assert other["cell"]["preprocess"] == distilled["cell"]["preprocess"]
    capsys.readouterr()
    assert main([*again, "--preprocess", "zca_kornia"]) == 2
    assert "leave out --preprocess" in capsys.readouterr().err
    fingerprint = distilled["cell"]["data_fingerprint"].encode()
    path.write_bytes(path.read_bytes().replace(fingerprint, fingerprint[::-1]))
    assert main(again) == 2
    assert "was made from other images than those of digits" in capsys.readouterr().err


def test_a_set_of_this_suite_that_knows_little_about_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Saved by somebody else through `artifact.save`, whose cell may hold anything."""
    benchmark = digits(tmp_path, "standardise")
    path = tmp_path / "a.safetensors"
    artifact.save(path, some_set(benchmark), benchmark, network=benchmark.spec, cell={}, config={})
    words = [str(path), "--output", str(tmp_path / "out")]
    for missing, given in (("--dataset", []), ("--name", ["--dataset", "digits"])):
        assert main([*words, *given]) == 2
        shown = capsys.readouterr().err
        assert shown.startswith(f"error: {missing} is missing") and shown.count("\n") == 1
    fast = "--dataset digits --name by_hand --budget smoke --width 4 --evaluate-steps 2 --device cpu"
    assert main([*words, *fast.split()]) == 0


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
    benchmark = digits(tmp_path, "standardise")
    path = tmp_path / "a.safetensors"
    cells = {} if claimed is None else {"ipc": claimed}
    artifact.save(path, change(some_set(benchmark)), benchmark, network=benchmark.spec, cell=cells, config={})
    words = "--dataset digits --name by_hand --budget smoke --width 4 --evaluate-steps 2 --device cpu"
    assert main([str(path), *words.split(), "--output", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {path}: ") and shown.count("\n") == 1 and said in shown
    assert not list((tmp_path / "out").glob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "no file is given"),
        ("a.pt --dateset digits", "did you mean --dataset?"),
        ("a.pt --dataset digits --name a --preprocess zca", "did you mean 'zca_"),
        ("a.pt --dataset digits --name a --protocol native", "unknown protocol 'native'"),
        ("a.pt --network convnt", "did you mean 'convnet'?"),
        ("a.pt --budget cost", "evaluates nothing"),
        ("a.pt --name mtt", "is a method of this suite"),
        ("a.pt --lr 0", "--lr must be a positive number"),
        ("a.pt --label-space soft", "unknown label space"),
        ("a.pt", "no such file"),
        ("SET --dataset digits --name a", "--preprocess is missing"),
        ("SET --preprocess standardise --name a", "--dataset is missing"),
        ("SET --preprocess standardise --dataset digits", "--name is missing"),
        ("SET --preprocess standardise --dataset digit --name a", "did you mean 'digits'?"),
        ("SET --preprocess standardise --dataset digits --name a --lr 1", "--lr means nothing under --protocol common"),
        ("SET --preprocess standardise --dataset digits --name a --width 0", "--widths must be at least 1"),
        ("SET --preprocess standardise --dataset digits --name a --experiment 7", "--experiment 7 is not in"),
        ("SET --preprocess standardise --dataset cifar10 --name a", "cifar10 is not in"),
    ],
)
def test_a_bad_command_is_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, said: str
) -> None:
    path = dc(tmp_path / "res.pt")
    words = arguments.replace("SET", str(path)).split()
    assert main([*words, "--output", str(tmp_path / "out")] if words else []) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert said in shown.err and not list((tmp_path / "out").glob("*"))
    if "--preprocess is missing" in said:
        assert all(name in shown.err for name in PREPROCESSINGS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom harness.evaluate_set import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'pandas'} & set(sys.modules)\nassert not heavy, heavy"
    )
    root = Path(__file__).parents[1]
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
    assert "images_best.pt" in shown and "zca_kornia" in shown
