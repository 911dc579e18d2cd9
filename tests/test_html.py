"""The page of a report: the same numbers as the tables, nothing that runs or loads, and small enough to send."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.datasets import Benchmark
from harness import report
from harness.records import artifact, record
from harness.records.record import Distilled
from harness.reports import html, html_images, svg
from harness.reports.drawing import Drawing, Level, Panel, Series
from harness.reports.groups import grouped
from harness.reports.tables import tables
from harness.reports.verdicts import verdicts
from methods.base import Synthetic
from tests import builders
from tests.builders import cost, curve, made, saved
from tests.test_artifact import digits, some_set

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{7*7}}"


class Page(HTMLParser):
    """Elements and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    return digits(tmp_path_factory.mktemp("digits"), "standardise")


def stored(root: Path, small: Benchmark, *distilled: Distilled) -> list[Distilled]:
    """Folders of ``distilled`` in ``root``, each that ended well with a set of ten real images per class."""
    for place, each in enumerate(distilled):
        if not each.record["artifact"]:
            continue
        folder = root / f"{place}-{each.folder}"
        folder.mkdir(parents=True)
        asked = each.record["distillation"]
        digest = artifact.save(folder / record.SET, some_set(small), small, distillation=asked, config={})
        each.record["artifact"]["sha256"] = digest
        for evaluation in each.evaluations:
            for part in evaluation["sets"]:
                part["sha256"] = digest if part["step"] is None else part["sha256"]
    saved(root, *distilled)
    return record.read_all(root)[0]


def decoded(address: str) -> Any:
    head, _, data = address.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


# --- the page as a whole ----------------------------------------------------------------------------------------------


def some_records() -> list[Distilled]:
    return [
        *(made((0.90, 0.92), seed=seed, ipc=ipc) for seed in (0, 1) for ipc in (1, 10)),
        *(made((0.80 + seed / 50, 0.83), seed=seed, method="mtt", network="convnet") for seed in (0, 1)),
        made((), method="mtt", network="convnet", ipc=10, status="oom", message="5 GiB are not enough"),
        made((0.5, 0.6), method="random_real", steps=None),
        cost("frepo", 0.1, width=16),
        cost("mtt", 1.2, width=16),
    ]


def test_the_page_has_the_cells_of_the_tables() -> None:
    records = some_records()
    page = Page(html.page(records))
    texts = {re.sub(r"\s+", " ", text) for text in page.texts}
    cells = [cell for table in tables(grouped(records)) for row in table.rows for cell in row]
    assert len(cells) > 50
    for cell in cells:
        head, sign, spread = cell.partition(" ± ")
        assert head in texts and (not sign or f" ± {spread}" in texts), cell


def test_tables_of_experiments_come_next_with_the_numbers_of_the_paper() -> None:
    def shown(records: list[Distilled]) -> list[html.TableData]:
        return html.tables(records, html.measured(grouped(records)))

    first, second = shown([made((0.5,))])
    assert first.title.startswith("Accuracy and cost") and second.title == "table1"
    assert dict(zip(second.columns, second.rows[0], strict=True))["frepo, paper"] == "93.0 ± 0.4 (92.6 ± 0.4)"
    assert len(shown([made((0.5,), dataset="digits")])) == 1, "no paper has numbers for it"


def test_parts_of_the_data_without_an_accuracy_are_not_in_the_glance() -> None:
    parts = [made((), method=method, dataset="mnist@images:0-2000") for method in ("frepo", "mtt")]
    groups = grouped([*some_records(), *parts])
    (glance,) = (html._glance(same, table, ["frepo", "mtt"]) for same, table in html.measured(groups)[:1])
    assert {row[0] for row in glance.rows} == {"mnist"}
    assert not any("@" in dataset for _, dataset, _, _ in html._holes(groups)), "random_real has none, and needs none"


def test_the_page_loads_nothing_and_says_so() -> None:
    page = Page(html.page(some_records()))
    policies = [each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:",
    ]
    assert page.elements.index(("meta", {"http-equiv": "Content-Security-Policy", "content": policies[0]})) < next(
        place for place, (tag, _) in enumerate(page.elements) if tag in ("style", "script", "link")
    )
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)


def test_the_same_records_give_the_same_bytes() -> None:
    assert html.page(some_records()) == html.page(some_records())


def test_every_link_leads_to_its_record() -> None:
    page = Page(html.page(some_records()))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [each["href"] for each in page.all("a")]
    assert {link.removeprefix("#") for link in links if link} <= set(ids)
    assert sum(each.get("class") == "record" for each in page.all("a")) >= len(some_records())


def hostile_records() -> list[Distilled]:
    records = [
        made((0.9, 0.8), dataset=HOSTILE, device=HOSTILE, budget=HOSTILE, config={HOSTILE: HOSTILE}),
        made((0.7, 0.8), dataset=HOSTILE, method=HOSTILE, network=HOSTILE),
        made((), dataset=HOSTILE, status="error", message=HOSTILE, seed=1),
        curve(HOSTILE, [(1.0, 0.2), (2.0, 0.4)], dataset=HOSTILE),
        cost(HOSTILE, width=16),
        cost("frepo", width=8),
    ]
    for each in records:
        each.record["provenance"]["command"] = HOSTILE
    return records


def test_what_records_say_is_text_and_never_markup() -> None:
    usual, page = Page(html.page(some_records())), Page(html.page(hostile_records(), [HOSTILE]))
    assert len(page.all("script")) == len(usual.all("script")) == 1
    assert {tag for tag, _ in page.elements} - {tag for tag, _ in usual.elements} <= {"rect"}
    assert not page.all("img")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert sum(HOSTILE in text for text in page.texts) > 5
    assert "49" not in "".join(text for text in page.texts if "7*7" in text).replace("{{7*7}}", "")


def test_names_in_sets_are_text_as_well(tmp_path: Path, small: Benchmark) -> None:
    named = dataclasses.replace(small, class_names=(HOSTILE,) * 10)
    page = Page(html.page(stored(tmp_path, named, made((0.9,), dataset=HOSTILE, ipc=10))))
    assert len(page.all("script")) == 1 and len(page.all("img")) == 1
    (labels,) = [attributes["data-labels"] for _, attributes in page.elements if "data-labels" in attributes]
    assert labels and json.loads(labels)[0] == f"{HOSTILE}, image 1 of 10: label {HOSTILE}"
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_a_page_of_table_1_is_below_five_megabytes() -> None:
    sets = ("mnist", "fashion_mnist", "cifar10", "cifar100", "tiny_imagenet", "svhn", "cub200")
    names = ("frepo", "mtt", "dsa", "dm", "kip", "random_real")
    records = [
        made((0.5,) * 5, krr=(0.5,) * 5, dataset=dataset, ipc=ipc, method=method)
        for dataset in sets
        for ipc in (1, 10, 50)
        for method in names
    ]
    for each in records:
        each.record["cost"]["step_seconds"] = [0.1 + place / 1e7 for place in range(500)]
    text = html.page(records)
    assert text.count('<details class="entry"') == 126
    assert (
        3 * len(text.encode()) + html_images.LETTERS < 5_000_000
    )  # three seeds, and pictures in all the room they have


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("93.5 ± 1.4", 93.5),
        ("24,650", 24650.0),
        ("11.8×", 11.8),
        ("0.0406", 0.0406),
        ("2 × 3", 2.0),
        ("1.5e-05", 1.5e-5),
        ("-3.5 ± 2", -3.5),
        ("4.5 (reduced)", 4.5),
        ("93.0 ± 0.4, KRR 92.6 [1]", 93.0),
        ("–", None),
        ("oom 1 of 3", None),
        ("3d_set", None),
        ("2.13.0+cpu", None),
        ("convnet", None),
    ],
)
def test_cells_are_sorted_by_the_number_they_begin_with(text: str, number: float | None) -> None:
    assert html.leading(text) == number


def test_a_column_that_says_the_same_everywhere_is_told_once() -> None:
    table = html.TableData("", "", ("a", "b", "c"), (("1", "x", "–"), ("2", "x", "5"), ("3", "x", "6")))
    assert table.common == (1,) and table.numeric == (True, False, True)
    assert html.TableData("", "", ("a", "b"), (("1", "x"),)).common == ()


def test_the_glance_has_every_method_of_every_task_and_no_other_number() -> None:
    page = html.page(some_records())
    glance = page[page.index('id="glance1"') : page.index("Claims of the paper")]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", glance, re.S)[1:]]
    shown = [[re.sub(r"<[^>]+>", "", cell) for cell in row] for row in rows]
    assert shown == [
        ["mnist", "1", "91.0 ± 1.2", "82.0 ± 1.4", "55.0 ± 7.1"],
        ["mnist", "10", "91.0 ± 1.2", "oom", "–"],
    ]


def test_every_claim_is_told_with_its_verdict() -> None:
    records = some_records()
    page = html.page(records)
    text = " ".join(" ".join(Page(page).texts).split())
    judged = verdicts(grouped(records))
    for verdict in judged:
        assert verdict.claimed in text and verdict.decided_by in text and verdict.measured in text
    told = re.findall(r'<p class="verdict">(.*?)</p>', page)
    assert sorted(told) == sorted(verdict.word for verdict in judged) and len(set(told)) > 1


# --- what was not measured --------------------------------------------------------------------------------------------


def test_what_was_not_measured_is_told_with_its_reason() -> None:
    records = some_records()
    table = html.unmeasured(records, grouped(records), ["damaged record a/record.json: it ends"])
    told = {(row[0], row[2], row[3], row[4]): row[6] for row in table.rows}
    assert told["oom", "mtt", "mnist", "10"] == "5 GiB are not enough"
    assert "not asked for, or has not run yet" in told["left out", "random_real", "mnist", "10"]
    assert told["damaged", "–", "–", "–"] == "damaged record a/record.json: it ends"
    assert len(table.rows) == 3


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_record_is_json_and_long_lists_are_cut() -> None:
    value = {"a": [1, 2], "b": {"c": None, "d": [{"e": 'x"<'}]}, "empty": {}, "none": []}
    assert json.loads(html.pretty(value)) == value
    assert html.pretty([*range(30)]).endswith("18, 19, … 30 in all]")


def test_evaluations_that_have_no_room_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    records = some_records()
    whole = html._records(records)
    assert not any(each.left_out for each in whole) and all('"status"' in each.record for each in whole)
    monkeypatch.setattr(html, "RECORD_LETTERS", 0)
    for each, folder in zip(html._records(records), records, strict=True):
        assert "no room" in each.record and each.left_out == len(folder.evaluations) and not each.evaluations


# --- images -----------------------------------------------------------------------------------------------------------


def shown_images(records: Sequence[Distilled]) -> html_images.Images:
    return html_images.images(grouped(records), records, lambda group: group.method)


def test_pictures_are_the_natural_images_of_the_first_seed(tmp_path: Path, small: Benchmark) -> None:
    records = stored(tmp_path, small, *(made((0.9,), ipc=10, seed=seed) for seed in (0, 1)))
    found = shown_images(records)
    (block,) = found.blocks
    (sheet,) = block.sheets
    (first,) = [each for each in records if each.record["distillation"]["seed"] == 0]
    natural = artifact.load(first.set_path).natural_images()
    expected = (natural.reshape(10, 10, 8, 8).permute(0, 2, 1, 3).reshape(80, 80) * 255).round().byte().numpy()
    assert np.array_equal(decoded(sheet.picture), expected)
    assert (block.shown, block.classes) == ("all 10 classes, all images", tuple(map(str, range(10))))
    labels = json.loads(sheet.labels)
    assert len(labels) == 100 and labels[34] == "3, image 5 of 10: label 3"
    assert not found.missing and not found.coarse and not found.left_out


def test_a_set_that_is_not_as_it_was_written_is_not_shown(tmp_path: Path, small: Benchmark) -> None:
    records = stored(tmp_path, small, *(made((0.9,), ipc=10, seed=seed) for seed in (0, 1)))
    for seed, content in ((0, b"altered"), (1, None)):
        (path,) = [each.set_path for each in records if each.record["distillation"]["seed"] == seed]
        path.write_bytes(content) if content else path.unlink()
        found = shown_images(records)
        assert len(found.blocks) == (seed == 0)  # the other seed takes its place
        assert [why for _, why in found.missing] == ["its set set.safetensors is not as it was written"]


def test_soft_labels_name_their_largest_classes(small: Benchmark, tmp_path: Path) -> None:
    synthetic = some_set(small)
    labels = synthetic.labels.clone()
    labels[0, :4] = torch.tensor([0.8, 0.1, -0.2, 0.4])
    digest = artifact.save(
        tmp_path / record.SET,
        Synthetic(synthetic.images, labels, "centred"),
        small,
        distillation={},
        config={},
    )
    distilled = made((0.9,), ipc=10)
    distilled.record["artifact"] = {"name": record.SET, "sha256": digest}
    found = shown_images([Distilled(tmp_path, distilled.record)])
    told = json.loads(found.blocks[0].sheets[0].labels)[0]
    assert told == "0, image 1 of 10: learned label (centred) 0: 0.80, 3: 0.40, 1: 0.10, …"


def test_the_rows_of_a_part_of_the_data_are_the_classes_that_it_shows(tmp_path: Path) -> None:
    part = builders.small("digits@step:1-of-5-order-0", ipc=10, norm="none")
    synthetic = some_set(part)
    labels = synthetic.labels.clone()
    labels[0] = torch.tensor([0.0] * 9 + [1.0])  # learned: largest at a class that this part does not show
    distilled = made((), ipc=10, dataset="digits@step:1-of-5-order-0")
    asked = distilled.record["distillation"]
    digest = artifact.save(
        tmp_path / record.SET,
        dataclasses.replace(synthetic, labels=labels),
        part,
        distillation=asked,
        config={},
    )
    distilled.record["artifact"] = {"name": record.SET, "sha256": digest}
    (block,) = shown_images([Distilled(tmp_path, distilled.record)]).blocks
    assert part.task.classes == (4, 9) and block.classes == ("4", "9") and block.shown == "all 2 classes, all images"


def a_set(classes: int, ipc: int, side: int, channels: int) -> html_images._Set:
    rows, columns = min(10, classes), min(10, ipc)
    generator = np.random.default_rng(classes + ipc + side)
    pixels = generator.integers(0, 256, (rows, columns, side, side, channels), dtype=np.uint8)
    (group,) = grouped([made((0.9,), ipc=ipc)])
    names = tuple(f"class {i}" for i in range(rows))
    return html_images._Set(group, 0, pixels, names, (("a label",) * columns,) * rows, classes, ipc)


def test_pictures_of_noise_take_the_room_that_was_reckoned() -> None:
    for channels in (1, 3):
        for coarse in (False, True):
            each = a_set(10, 5, 32, channels)
            picture = html_images._png(each.pixels, coarse)
            reckoned = html_images._letters(each, (10, 5), coarse)
            assert 0.8 * reckoned < len(picture) < 1.05 * reckoned, (channels, coarse)


def test_as_many_images_are_shown_as_there_is_room_for() -> None:
    few = [a_set(10, 50, 32, 3)] * 2
    many = [a_set(100, ipc, 32, 3) for ipc in (1, 10, 50) for _ in range(6 * 7)]
    huge = [a_set(2, 1, 64, 3)] * 2000
    assert html_images._room(few) == ((10, 10), False)
    level, coarse = html_images._room(many)
    assert coarse and level[0] == 10
    assert sum(html_images._letters(each, level, coarse) for each in many) <= html_images.LETTERS
    assert html_images._room(huge) == ((1, 1), True)


def test_colours_are_those_of_the_images() -> None:
    pixels = a_set(2, 3, 32, 3).pixels
    joined = pixels.transpose(0, 2, 1, 3, 4).reshape(64, 96, 3)
    assert np.array_equal(decoded(html_images._png(pixels, False)), joined)


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [
        (0.3, 98.6, False),
        (92.1, 92.4, False),
        (1e-6, 3e4, True),
        (3.1, 3.9, True),
        (0.5, 40.0, True),
        (-4.0, 4.0, False),
    ],
)
def test_ticks_are_round_and_on_the_axis(low: float, high: float, log: bool) -> None:
    drawn = svg.axis([low, high], 0.0, 100.0, log)
    ticks = drawn.ticks()
    assert 2 <= len(ticks) <= 12
    assert all(drawn.low <= tick <= drawn.high for tick in ticks)
    assert all(0 <= drawn(tick) <= 100 for tick in ticks)
    assert len({svg.number(tick) for tick in ticks}) == len(ticks)
    mantissas = (
        {f"{tick:.6e}".split("e")[0].rstrip("0") for tick in ticks if tick} if not log or high / low > 10 else set()
    )
    assert not log or mantissas <= {"1.", "2.", "5."}


def test_a_place_on_a_logarithmic_axis_is_that_of_the_logarithm() -> None:
    drawn = svg.Axis(1.0, 100.0, 10.0, 30.0, True)
    assert math.isclose(drawn(10.0), 20.0) and math.isclose(drawn(100.0), 30.0)


def a_drawing(**panel: Any) -> Drawing:
    lines = (
        Series("frepo", "frepo", (1.0, 10.0), (50.0, 60.0), (49.0, 58.0), (51.0, 62.0), expected=((1.0, 55.0),)),
        Series("mtt", "mtt (a<b)", (1.0,), (40.0,), (40.0,), (40.0,), marks=((10.0, "oom"),)),
        Series("dm", "dm", (), (), (), (), marks=((1.0, "timeout"),)),
    )
    shown = Panel("seconds", "accuracy (%)", lines, (Level("random_real", "random_real", 20.0, 2.0),), **panel)
    return Drawing("a", ((shown,),), ("mnist, 1 image", "measured"))


def test_every_line_can_be_switched_off_and_tells_its_numbers() -> None:
    figure = svg.figure(a_drawing())
    assert [label for label, _ in figure.legend] == ["frepo", "mtt (a<b)", "dm", "random_real"]
    (drawn,) = figure.panels
    assert sorted(re.findall(r'<g class="c\d" data-s="(\d)">', drawn)) == ["0", "1", "2", "3"]
    assert "<title>frepo, seconds 10: 60 (58 to 62)</title>" in drawn
    assert "<title>mtt (a&lt;b): out of memory at 10</title>" in drawn
    assert drawn.count('class="point"') == 3 and drawn.count('class="bar"') == 1 and drawn.count('class="band"') == 1
    assert drawn.count('class="cross"') == 2 and '<path d="M"' not in drawn  # dm has marks alone
    assert (figure.title, figure.caption) == ("mnist, 1 image", "measured.")


def test_points_lie_where_their_numbers_are() -> None:
    (drawn,) = svg.figure(a_drawing()).panels
    points = re.findall(r'translate\(([\d.]+) ([\d.]+)\)" class="point"', drawn)
    (x0, y0), (x1, y1), (x2, y2) = [(float(x), float(y)) for x, y in points]
    assert x0 == x2 < x1 and y1 < y0 < y2  # y grows downwards
    assert math.isclose((y2 - y0) / (y0 - y1), 1.0, rel_tol=0.02)  # 40, 50, 60


def test_a_panel_of_names_has_a_row_for_each() -> None:
    lines = tuple(
        Series(name, name, (place,), (50.0 + place,), (49.0,), (53.0,)) for place, name in enumerate(("a", "b"))
    )
    panel = Panel("", "turned (%)", lines, log_x=False, names=("a", "b"))
    (drawn,) = svg.figure(Drawing("n", ((panel,),), ("task",))).panels
    rows = [float(y) for _, y in re.findall(r'translate\(([\d.]+) ([\d.]+)\)" class="point"', drawn)]
    assert rows[1] - rows[0] == svg.ROW


# --- the command ------------------------------------------------------------------------------------------------------


def test_formats_are_those_that_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, *some_records())

    def files(*options: str) -> set[str]:
        for path in (path for path in tmp_path.iterdir() if path.is_file()):
            path.unlink()
        assert report.main([str(tmp_path), *options]) == 0
        return {path.name for path in tmp_path.iterdir() if path.is_file()}

    assert files() == {"table.md", "table.tex", "table.csv"}
    assert "report.html" not in capsys.readouterr().out
    assert files("--format", "markdown,latex,html") == {"table.md", "table.tex", "report.html"}
    assert f"The page: {tmp_path / 'report.html'}" in capsys.readouterr().out
    assert files("--format", "csv") == {"table.csv"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--format", "htm"],
            "error: --format: unknown format 'htm': did you mean 'html'? Known: csv, html, latex, markdown",
        ),
        (
            ["--format", "html", "--page", "x.md"],
            "error: --page shows the tables in Markdown: name markdown in --format",
        ),
    ],
)
def test_a_wrong_format_is_a_line(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(tmp_path), *options]) == 2
    assert capsys.readouterr().err == f"{said}\n"


def test_a_damaged_file_is_told_in_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "good", made())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "record.json").write_text("{")
    assert report.main([str(tmp_path), "--format", "html"]) == 1
    assert "bad/record.json" in (tmp_path / "report.html").read_text()
