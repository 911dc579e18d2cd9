"""Pictures of sets: which images, under which names, in which group; the same set gives the same bytes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib.text import Text

from benchmarks.errors import UserError
from harness.figures import main
from harness.records import artifact
from harness.records.record import Distilled
from harness.reports import images
from harness.reports.drawing import look
from harness.reports.images import LARGE, LOW, SMALL
from methods.base import Synthetic
from tests.builders import made, saved, small


def distilled(root: Path, *, learned: bool = True, ipc: int = 2, **changes: Any) -> Distilled:
    """A folder with a record and a set: real digits, where the first image took the label of an 8 if ``learned``."""
    benchmark = small(ipc=ipc, norm="none")
    shown, classes = benchmark.task.draw_per_class()
    labels = torch.nn.functional.one_hot(classes, 10).float()
    if learned:
        labels = labels * torch.linspace(0.5, 1, len(labels))[:, None]
        labels[0, 8] = 0.9
    written = made((0.5,), dataset="digits", ipc=ipc, **changes)
    folder = Path(saved(root / f"seed{changes.get('seed', 0)}", written)) / f"0-{written.folder}"
    artifact.save(
        folder / "set.safetensors",
        Synthetic(shown, labels, "probability"),
        benchmark,
        distillation=written.record["distillation"],
        config={},
    )
    return dataclasses.replace(written, folder=folder)


def texts(each: Distilled, name: str) -> list[str]:
    """All texts of the figure whose name begins with ``name``."""
    (draw,) = (draw for title, draw in images._figures([each]) if title.startswith(name))
    with matplotlib.rc_context(look()):
        return [text.get_text() for text in draw().findobj(Text) if isinstance(text, Text) and text.get_text()]


def test_the_groups_follow_the_rule() -> None:
    # Largest labels .9 .9 .9 .3 .2, margins .8 .05 .8 .2 .1: the lowest third ends at .5, and the median margin is .2.
    rows = [[0.9, 0.1, 0, 0], [0.9, 0.85, 0, 0], [0, 0, 0.1, 0.9], [0.3, 0.1, 0, 0], [0.1, 0.2, 0.1, 0.1]]
    groups = images.grouped_labels(torch.tensor(rows))
    assert groups == [LARGE, SMALL, LARGE, LOW, LOW]
    assert images.examples(torch.tensor(rows)) == {LARGE: [0, 2], SMALL: [1], LOW: [4, 3]}


@pytest.mark.parametrize(
    ("count", "ipc", "expected"),
    [
        (10, 1, list(range(10))),
        (500, 50, [50 * c + i for c in range(10) for i in range(10)]),
        (200, 1, list(range(100))),
        (2000, 10, [10 * c for c in range(100)]),
    ],
    ids=["all", "ten of each", "a hundred classes", "one of each of a hundred"],
)
def test_a_hundred_images_at_most_stand_in_a_figure(count: int, ipc: int, expected: list[int]) -> None:
    assert images.shown_images(count, ipc) == expected


def test_an_image_has_the_name_of_its_largest_label_and_of_the_class_it_started_from(tmp_path: Path) -> None:
    each = distilled(tmp_path)
    shown = texts(each, "images-")
    assert "8\nfrom 0" in shown and shown.count("0") == 1 and shown.count("9") == 2
    assert any("20 of 20 images" in text for text in shown)
    labelled = texts(each, "labels-")
    assert {LARGE, SMALL, LOW, "from 0"} <= set(labelled)
    assert any("lowest third" in text for text in labelled)


def test_labels_that_are_not_learned_are_not_drawn_and_of_several_seeds_the_lowest_is(tmp_path: Path) -> None:
    second, first = (distilled(tmp_path, learned=False, seed=seed) for seed in (1, 0))
    other = made((), seed=0, method="dm", status="oom", budget="cost")
    names = [name for name, _ in images._figures([second, first, other])]
    assert names == [f"images-{first.folder.name}"]


def test_the_command_draws_and_the_same_set_gives_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distilled(tmp_path / "in", ipc=1)
    for name in ("a", "b"):
        assert main([str(tmp_path / "in"), "--images", "--output", str(tmp_path / name)]) == 0
    written = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert [name.split("-")[0] for name in written] == ["images"] * 3 + ["labels"] * 3
    assert len(capsys.readouterr().out.splitlines()) == 12
    for name in written:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_folder_without_sets_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, made((), status="oom", budget="cost"))
    assert main([folder, "--images"]) == 2


def test_a_damaged_set_is_named(tmp_path: Path) -> None:
    each = distilled(tmp_path)
    each.set_path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"set\.safetensors is damaged"):
        images.write([each], tmp_path)
