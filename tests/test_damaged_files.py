"""Every kind of file that is read, damaged in every way: a run makes it again or a line says what is wrong, and nothing
else is lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from harness import choose_recipe, evaluate, figures, regress, report, run
from harness.records import artifact, record
from harness.records.record import CHECKPOINT, EVALUATIONS, EVENTS, PICTURE, RECORD, SET, SNAPSHOTS
from harness.stopping import NOT_DONE
from tests.builders import in_process, made, probe, quick, saved
from tests.dummies import dummy
from tests.test_checkpoint import asked_to_stop_in
from tests.test_evaluate_command import FAST
from tests.test_importers import CENTRED, CLASSES, IMAGES, dc, mtt, npz

__all__ = ["dummy", "probe", "quick"]  # fixtures
pytestmark = pytest.mark.usefixtures("quick", "dummy", "probe", "default_signals")


# Damages


def changed(at: float) -> Callable[[Path], None]:
    """A bit is another one, at so large a part of the file."""

    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(at * len(content))] ^= 0x10
        path.write_bytes(content)

    return change


def cut(at: float) -> Callable[[Path], None]:
    """The file ends early, after so large a part."""

    def change(path: Path) -> None:
        os.truncate(path, int(at * path.stat().st_size))

    return change


def another(path: Path) -> None:
    """Another kind of file has the name."""
    content = b"\x89PNG\r\n\x1a\n" + bytes(100) if path.suffix != ".png" else b'{"schema": 2}'
    path.write_bytes(content)


def folder(path: Path) -> None:
    """A folder has the name."""
    path.unlink()
    (path / "something").mkdir(parents=True)


def pipe(path: Path) -> None:
    """Whoever opens it for reading waits for ever."""
    path.unlink()
    os.mkfifo(path)


def unreadable(path: Path) -> None:
    """It cannot be opened, also not by root: a link that leads to itself."""
    path.unlink()
    path.symlink_to(path.name)


DAMAGES = {
    "empty": cut(0),
    **{f"cut at {at}": cut(at) for at in (0.02, 0.5, 0.999)},
    **{f"a bit at {at}": changed(at) for at in (0.01, 0.3, 0.6, 0.999)},
    "another": another,
    "folder": folder,
    "pipe": pipe,
    "unreadable": unreadable,
}
SOME = ("empty", "cut at 0.5", "a bit at 0.3", "another", "folder", "pipe", "unreadable")
FEW = ("empty", "folder", "unreadable")


def cases(kinds: Mapping[str, Iterable[str]]) -> pytest.MarkDecorator:
    """Runs a test for each kind of file with each of its damages."""
    pairs = [(kind, name) for kind, names in kinds.items() for name in names]
    values = [(kind, DAMAGES[name]) for kind, name in pairs]
    return pytest.mark.parametrize(("kind", "damage"), values, ids=[" ".join(pair) for pair in pairs])


some_damages = pytest.mark.parametrize("damage", [DAMAGES[name] for name in SOME], ids=SOME)


# The files of a run


def command(place: Path, *more: str) -> list[str]:
    words = "--methods dummy --no-random --budget smoke --device cpu --width 4 --seeds 0,1 --steps 9 --curve-points 3"
    fixed = [*words.split(), "--evaluations", "probe", "--dummy.entry", "True", "--dataset", f"folder:{place / 'own'}"]
    return [*fixed, "--output", str(place / "out"), "--cache", str(place / "cache"), *more]


def main(*words: str) -> int:
    return run.main(words, launcher=in_process)


@dataclass
class Places:
    """Folders with everything that a run leaves, made when they are first asked for."""

    root: Path

    def done(self) -> Path:
        return self._made("done", lambda place: main(*command(place)) == 0)

    def stopped(self) -> Path:
        """The first of two cells was stopped after seven steps."""
        return self._made("stopped", self._stop)

    def _stop(self, place: Path) -> bool:
        with asked_to_stop_in(7):
            return main(*command(place)) == NOT_DONE

    def _made(self, name: str, work: Callable[[Path], bool]) -> Path:
        place = self.root / name
        if not place.exists():
            for split in ("train", "test"):
                for value, class_name in enumerate("ab"):
                    (place / "own" / split / class_name).mkdir(parents=True)
                    for index in range(3):
                        pixels = np.full((8, 8), 90 * value + 20 * index, np.uint8)
                        Image.fromarray(pixels).save(place / "own" / split / class_name / f"{index}.png")
            assert work(place)
        return place


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return Places(tmp_path_factory.mktemp("places"))


def copy(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place, tmp_path / "place", symlinks=True))


def contents(place: Path) -> dict[Path, bytes]:
    """Path below ``place`` → bytes, of regular files; tables tell of records and are left out."""
    files = (path for path in place.rglob("*") if path.is_file() and not path.name.startswith("table."))
    return {path.relative_to(place): path.read_bytes() for path in files}


def is_json(content: bytes) -> bool:
    """Whether a damage left a record readable: a bit of a number or of a text is another one, which nothing tells."""
    with contextlib.suppress(ValueError):
        json.loads(content)
        return True
    return False


def steps(events: Path) -> list[int]:
    """The steps that ``events`` tells of."""
    return [json.loads(line)["step"] for line in events.read_bytes().splitlines()]


FILES = {
    "record": f"out/*seed0*/{RECORD}",
    "answer": f"out/*seed0*/{EVALUATIONS}/*.json",
    "set": f"out/*seed0*/{SET}",
    "snapshot": f"out/*seed0*/{SNAPSHOTS}/*.safetensors",
    "picture": f"out/*seed0*/{PICTURE}",
    "events": f"out/*seed0*/{EVENTS}",
    "table": "out/table.md",
    "decoded images": "cache/datasets/*.safetensors",
    "entry of the store": "cache/store/*/*.safetensors",
}
REMADE = {"record", "answer", "set", "snapshot", "decoded images"}
"""Kinds that a run looks at and makes again where they are damaged."""


@cases({kind: DAMAGES if kind in ("record", "set") else SOME if kind in REMADE else FEW for kind in FILES})
def test_a_run_makes_again_what_is_damaged(
    kind: str, damage: Callable[[Path], None], places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = copy(places.done(), tmp_path)
    path = sorted(place.glob(FILES[kind]))[0]
    before = contents(place)
    damage(path)
    damaged = path.read_bytes() if path.is_file() else None
    capsys.readouterr()
    status = main(*command(place))
    shown = capsys.readouterr().err
    if kind == "table" and damage is folder:  # in the way of the table alone
        assert status == 1 and "error: the tables cannot be written into" in shown and (path / "something").is_dir()
        path.rename(path.with_name("moved"))
        assert main(*command(place)) == 0 and path.is_file()
        return
    assert status == 0 and "Traceback" not in shown and "error" not in shown
    after = contents(place)
    own = path.relative_to(place)
    for other in before.keys() - {own}:
        assert other in after, other
        same_cell = other.parts[:2] == own.parts[:2] and own.parts[0] == "out"
        if not same_cell or (kind not in REMADE and other.name != EVENTS):
            assert after[other] == before[other], other
    for each, problems in [record.read_all(place / "out")]:
        assert problems == [] and [len(distilled.evaluations) for distilled in each] == [1, 1]
        for distilled in each:
            assert distilled.record["status"] == "ok" and distilled.record["artifact"] is not None
            for file in (distilled.record["artifact"], *distilled.record["snapshots"]):
                assert artifact.lost(distilled.folder / file["name"], file["sha256"]) is None
    if own.name in (SET,) or kind == "snapshot":
        assert after[own] == before[own]
    if damaged is not None and kind in ("record", "answer") and not is_json(damaged):
        assert damaged in [after[other] for other in after if ".damaged" in other.name]
    assert main(*command(place)) == 0 and "done before" in capsys.readouterr().err


@cases({CHECKPOINT: DAMAGES, EVENTS: SOME, "store": FEW})
def test_a_cell_that_was_stopped_goes_on_or_begins_again(
    kind: str, damage: Callable[[Path], None], places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, done = copy(places.stopped(), tmp_path), places.done()
    (cell,) = (place / "out").glob("*seed0*")
    path = {
        CHECKPOINT: max(cell.glob(f"{CHECKPOINT}/*.safetensors"), key=lambda path: path.stat().st_mtime_ns),
        EVENTS: cell / EVENTS,
        "store": next((place / "cache" / "store").rglob("*.safetensors")),
    }[kind]
    damage(path)
    capsys.readouterr()
    assert main(*command(place)) == 0, capsys.readouterr().err
    assert "Traceback" not in capsys.readouterr().err
    for other in (done / "out").rglob("*.safetensors"):
        (mine,) = (place / "out").glob(f"*{'seed0' if 'seed0' in str(other) else 'seed1'}*/**/{other.name}")
        assert mine.read_bytes() == other.read_bytes()
    told, expected = (steps(place / "out" / cell.name / EVENTS) for place in (place, done))
    if kind == EVENTS:  # what was damaged is lost, and what is written afterwards is whole
        assert told == [step for step in expected if step in told] and told[-1] == expected[-1]
    else:
        assert told == expected


@pytest.mark.parametrize("command_name", ["report", "figures", "regress", "evaluate"])
@cases({"record": SOME, "answer": FEW, "set": FEW})
def test_other_commands_say_what_is_damaged(
    kind: str,
    command_name: str,
    damage: Callable[[Path], None],
    places: Places,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **how: path.touch())  # which takes seconds
    place = copy(places.done(), tmp_path)
    path = sorted(place.glob(FILES[kind]))[0]
    before = contents(place)
    damage(path)
    out = str(place / "out")
    status = {
        "report": lambda: report.main([out, "--format", "markdown,html"]),
        "figures": lambda: figures.main([out, "--images"]),
        "regress": lambda: regress.main([str(places.done() / "out"), out]),
        "evaluate": lambda: evaluate.main([out, "--device", "cpu", "--evaluations", "probe"], launcher=in_process),
    }[command_name]()
    shown = capsys.readouterr().err
    assert status in (0, 1, 2, 3) and "Traceback" not in shown
    after = contents(place)
    for other in before.keys() - {path.relative_to(place)}:
        assert other in after and (after[other] == before[other] or command_name == "evaluate"), other
    if command_name != "evaluate" and kind == "record" and damage in (DAMAGES["empty"], folder, pipe, another):
        assert f"damaged record {path}" in shown


# Files that are named on the command line


def inputs(root: Path) -> dict[str, tuple[Path, list[str]]]:
    """Kind → its file, and the command line that reads it."""
    order = root / "order.txt"
    order.write_text("\n".join("0123456789"))
    fixed = ["--dataset", "digits", "--preprocess", "standardise", "--name", "x", *FAST, "--output", str(root / "out")]
    images, labels = mtt(root, images=IMAGES, labels=CLASSES)
    lone = dc(root / "dc.pt")
    arrays = npz(root / "a.npz", image=IMAGES.permute(0, 2, 3, 1), label=CENTRED)
    return {
        "images": (images, [str(images), str(labels), *fixed]),
        "labels": (labels, [str(images), str(labels), *fixed]),
        "results of DC": (lone, [str(lone), *fixed]),
        "arrays": (arrays, [str(arrays), *fixed]),
        "class order": (order, [str(lone), *fixed, "--class-order", str(order)]),
    }


@cases(dict.fromkeys(["images", "labels", "results of DC", "arrays", "class order"], SOME))
def test_a_file_that_is_named_is_read_or_a_line(
    kind: str, damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, words = inputs(tmp_path)[kind]
    damage(path)
    status = evaluate.main([*words, "--evaluations", "probe"], launcher=in_process)
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    if damage in (DAMAGES["empty"], DAMAGES["cut at 0.5"], another, folder, pipe, unreadable):
        assert status == 2
    if status == 2:
        assert [line.startswith("error: ") for line in shown.splitlines()].count(True) == 1
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob(RECORD))
    else:  # a bit of a number is another one, which nothing tells
        assert status == 0


@some_damages
def test_an_image_is_read_or_a_line(
    damage: Callable[[Path], None], places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = copy(places.done(), tmp_path)
    shutil.rmtree(place / "out")
    damage(place / "own" / "train" / "a" / "1.png")
    status = main(*command(place))
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and status in (0, 2)
    if status == 2:
        assert "1.png" in shown and not list((place / "out").glob("*/*"))
    else:
        assert "1.png" in shown or damage is not pipe


@some_damages
def test_scores_of_recipes_are_read_or_a_line(
    damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choose_recipe.Bench, "score", lambda self, trial: 0.5)
    monkeypatch.setattr(choose_recipe, "RUNGS", choose_recipe.RUNGS[:1])
    words = ["--datasets", "digits", "--output", str(tmp_path), "--held-out", "10", "--width", "4"]
    assert choose_recipe.main(words) == 0
    damage(tmp_path / "scores.csv")
    capsys.readouterr()
    status = choose_recipe.main(words)
    shown = capsys.readouterr().err
    assert status in (0, 2) and "Traceback" not in shown
    assert status == 0 or "scores.csv" in shown


@some_damages
def test_notes_are_in_the_page_or_a_line(
    damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, made())
    (tmp_path / "notes.md").write_text("Measured by Zoë, é " * 20, encoding="utf-8")
    damage(tmp_path / "notes.md")
    status = report.main([str(tmp_path), "--page", str(tmp_path / "page.md")])
    shown = capsys.readouterr().err
    assert status in (0, 2) and "Traceback" not in shown
    assert status == 0 or "notes.md" in shown
