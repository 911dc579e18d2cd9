"""Figures: what is drawn, what is kept apart, how failures show, and that the same records give the same bytes."""

from __future__ import annotations

import itertools
import re
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from benchmarks.errors import UserError
from harness.evaluations.base import Quantity
from harness.figures import main, write
from harness.records.record import Distilled
from harness.reports import drawing as drawn_by
from harness.reports.drawing import Drawing, Panel, draw, look
from harness.reports.figures import OWN_NETWORKS, drawings
from tests import builders
from tests.builders import MIB, TURNED, Turned, evaluated, made, saved, turned

__all__ = ["turned"]  # a fixture


def cost(method: str = "frepo", width: int = 32, status: Any = "ok", **changes: Any) -> Distilled:
    """A cost cell; the peak of its live tensors is half of its memory."""
    provenance = {"threads": changes.pop("threads", 1), **changes.pop("provenance", {})}
    settings = {"budget": "cost", "seconds": 20.0, "peak": MIB * width, **changes}
    distilled = made((), status=status, method=method, width=width, **settings)
    distilled.record["provenance"] |= provenance
    numbers = distilled.record["cost"]
    numbers["step_seconds"] = [width * s for s in (0.1, 0.2, 0.3, 0.4, 0.5)] if status == "ok" else []
    numbers["parameters"], numbers["peak_live_bytes"] = width**2, MIB * width // 2
    return distilled


def curve(
    method: str = "frepo",
    prepare: float = 2.0,
    values: Sequence[Sequence[float]] = ((0.2, 0.4), (0.5, 0.7)),
    **changes: Any,
) -> Distilled:
    """A distillation with a curve of two points."""
    settings = {"seconds": 60.0, "evaluation": {"steps": 1000}, **changes}
    return builders.curve(method, list(zip((0.5, 60.0), values, strict=True)), prepare, at=(1, 100), **settings)


def random_real(values: Sequence[float] = (0.3, 0.5), **changes: Any) -> Distilled:
    settings = {"protocol": "common", "steps": None, "evaluation": {"steps": 1000}, **changes}
    distilled = made(values, method="random_real", meter=None, peak=None, **settings)
    distilled.record["cost"]["step_seconds"] = []
    return distilled


def only(records: Sequence[Distilled]) -> Drawing:
    (drawing,) = drawings(records)
    return drawing


def panels(drawing: Drawing) -> dict[tuple[str, str], Panel]:
    return {(panel.x_label, panel.y_label): panel for row in drawing.rows for panel in row}


# What is drawn


def test_cost_against_width_and_parameters() -> None:
    drawing = only([cost(width=width) for width in (64, 16, 32)])
    assert drawing.name == "cost-mnist-ipc1-convnet_doubling-native-host_rss-A-CPU"
    shown = panels(drawing)
    quantities = ["seconds per iteration", "peak host RSS above baseline (MiB)", "peak of live tensors (MiB)"]
    assert list(shown) == [(against, quantity) for against in ("width", "parameters") for quantity in quantities]
    (line,) = shown["width", quantities[0]].series
    assert line.x == (16, 32, 64) and line.y == (0.3 * 16, 0.3 * 32, 0.3 * 64)
    assert line.low == pytest.approx((3.2, 6.4, 12.8)) and line.high == pytest.approx((6.4, 12.8, 25.6))  # quartiles
    (line,) = shown["parameters", quantities[1]].series
    assert line.x == (256, 1024, 4096) and line.y == line.low == (16, 32, 64)
    assert [panel.ticks for panel in shown.values()] == [(16, 32, 64)] * 3 + [()] * 3
    for part in ("budget cost", "a cpu", "torch 2.13.0", "python 3.11.7", "native protocol", "convnet_doubling"):
        assert part in " ".join(drawing.footer).lower()


def test_failures_stand_at_their_width_and_parameters() -> None:
    """A cell that was killed before it could count has the parameters of its own network, where these are known."""
    lost = cost("mtt", 64, "oom", meter=None, peak=None)
    lost.record["cost"]["parameters"] = None
    drawing = only([cost(width=32), cost(width=64), cost("mtt", 32), lost, cost("dm", 32, "timeout")])
    for (against, _), panel in panels(drawing).items():
        marks = {series.method: series.marks for series in panel.series}
        x = {"width": (32, 64), "parameters": (1024, 4096)}[against]
        assert marks == {"frepo": (), "mtt": ((x[1], "oom"),), "dm": ((x[0], "timeout"),)}
    assert "OOM: out of memory; time: time limit" in drawing.footer[-1]
    drawing = only([lost])
    assert [x for x, _ in panels(drawing)] == ["width"] and len(draw(drawing).axes) == 1
    other, lost.record["distillation"]["network"] = cost("dm", 64, network="convnet"), "convnet"
    other.record["cost"]["parameters"] = 777
    shown = panels(only([other, cost("frepo", 64), lost]))["parameters", "seconds per iteration"]
    assert {series.method: series.marks for series in shown.series}["mtt"] == ((777, "oom"),)


def test_what_was_not_measured_has_no_panel() -> None:
    each = cost(meter=None, peak=None)
    each.record["cost"]["peak_live_bytes"] = None
    assert {y for _, y in panels(only([each]))} == {"seconds per iteration"}
    every = only([cost(width=width, status="oom", meter=None) for width in (32, 64)])
    assert {y for _, y in panels(every)} == {"seconds per iteration"} and len(draw(every).axes) == 2
    assert [mark for panel in panels(every).values() for series in panel.series for mark in series.marks]


def test_accuracy_against_time_with_and_without_preparation_and_against_iterations() -> None:
    drawing = only([curve(), curve("mtt", prepare=30.0), curve("mtt", prepare=50.0, seed=1), random_real()])
    assert drawing.name == "accuracy-mnist-ipc1-convnet_doubling-w32-common-quick-A-CPU"
    shown = {panel.x_label: panel for panel in panels(drawing).values()}
    lines = {x: {series.method: series for series in panel.series} for x, panel in shown.items()}
    assert lines["seconds of distilling"]["mtt"].x == (0.5, 60.0)
    assert lines["seconds with preparation"]["mtt"].x == (40.5, 100.0)
    assert lines["seconds with preparation"]["frepo"].x == (2.5, 62.0)
    assert lines["iterations"]["frepo"].x == (1, 100)
    series = lines["iterations"]["frepo"]
    assert series.y == pytest.approx((30, 60)) and series.high == pytest.approx((30 + 200**0.5, 60 + 200**0.5))
    for panel in shown.values():
        (level,) = panel.levels
        assert level.method == "random_real" and (level.mean, level.std) == pytest.approx((40, 200**0.5))


@pytest.mark.parametrize(
    "records",
    [[random_real()], [made()], [], [evaluated(made(), {"leak": [0.5]}, "attack", config={})]],
    ids=["random", "no curve", "none", "not installed"],
)
def test_without_curves_and_sweeps_there_is_no_figure(records: Sequence[Distilled]) -> None:
    assert drawings(records) == []


def test_a_failed_method_is_named_and_its_recipe_is_no_line() -> None:
    empty = made((), method="mtt", status="diverged", protocol="common", seconds=60.0)
    drawing = only([curve(), empty])
    assert [series.method for series in drawing.rows[0][0].series] == ["frepo"]
    assert drawing.footer[-1] == "Did not end well: mtt (diverged)"


def test_bars_show_what_the_operations_let_expect() -> None:
    """mtt has three times the operations of frepo, so three times its median of 0.3 s per unit of width."""
    records = [cost(method, width) for method in ("frepo", "mtt", "dm") for width in (16, 32)]
    for each in records:
        asked = each.record["distillation"]
        share = {"frepo": 1, "mtt": 3, "dm": None}[asked["method"]]
        each.record["cost"]["flops_per_step"] = share and 7e9 * share * asked["width"]
    drawing = only(records)
    for (against, quantity), panel in panels(drawing).items():
        expected = {series.method: series.expected for series in panel.series}
        heights = () if quantity != "seconds per iteration" else ((16, 0.9 * 16), (32, 0.9 * 32))
        at = tuple((x if against == "width" else x**2, pytest.approx(y)) for x, y in heights)
        assert expected == {"frepo": (), "mtt": at, "dm": ()}
    assert "Bars: the seconds of frepo times the ratio of the operations of an iteration" in drawing.footer
    for lacking in ("frepo", "mtt"):
        without = [each for each in records if each.record["distillation"]["method"] != lacking]
        assert not any("Bars" in line for line in only(without).footer)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            (0.2,),
            "of n = 1 evaluated network, without a deviation; evaluation shortened to at most 1000 training steps",
        ),
        ((0.2, 0.4, 0.6), "mean ± sample standard deviation over n = 3 (evaluated networks × seeds); evaluation short"),
    ],
    ids=["one", "three"],
)
def test_the_caption_of_accuracies_says_of_how_many_networks(values: tuple[float, ...], said: str) -> None:
    drawing = only([curve(values=[values, values]), random_real(values)])
    assert f"Accuracy: of the set as it stood then, {said}" in " ".join(drawing.footer)
    assert [level.std is None for level in drawing.rows[0][0].levels] == [len(values) == 1]
    bands = draw(drawing).axes[0].containers
    assert [container.has_yerr for container in bands] == [len(values) > 1]  # type: ignore[attr-defined]
    whole = only([curve(evaluation={})])
    assert "shortened to" not in " ".join(whole.footer)


# What is kept apart


@pytest.mark.parametrize(
    "other",
    [
        {"device": "Another CPU"},
        {"meter": "nvml"},
        {"network": "convnet"},
        {"protocol": "common"},
        {"dataset": "digits"},
        {"ipc": 10},
        {"data_fingerprint": "fedcba"},
        {"tf32": True},
        {"threads": 2},
        {"provenance": {"environment": {"OMP_WAIT_POLICY": "passive"}}},
        {"provenance": {"torch": "2.12.0"}},
        {"provenance": {"driver": "580"}},
        {"provenance": {"something": "new"}},
        {"interleaved": "dm, frepo"},
        {"memory_limit_bytes": ["odd"]},
    ],
    ids=str,
)
def test_no_figure_mixes(other: dict[str, Any]) -> None:
    records = [cost("dm", width, **changes) for changes in ({}, {**other, "seed": 1}) for width in (16, 32)]
    shown = drawings(records)
    assert len(shown) == 2 and len({drawing.name for drawing in shown}) == 2
    for drawing in shown:
        for panel in panels(drawing).values():
            assert [series.x for series in panel.series] in ([(16, 32)], [(256, 1024)])


def test_seeds_of_two_meters_are_not_pooled() -> None:
    slow = cost(meter="nvml", seed=1)
    slow.record["cost"]["step_seconds"] = [50.0] * 3
    shown = [panels(drawing)["width", "seconds per iteration"].series[0].y for drawing in drawings([cost(), slow])]
    assert shown == [(0.3 * 32,), (50.0,)]


def test_a_killed_cell_stands_with_those_that_it_does_not_contradict() -> None:
    """Whoever writes the record of a killed process does not know all that the process would have noted."""
    lost = cost("mtt", 64, "oom", meter=None, peak=None)
    others = [cost(m, w, provenance={"environment": {"A": "1"}}) for m in ("frepo", "mtt") for w in (32, 64)][:3]
    assert {s.method: s.marks for s in only([*others, lost]).rows[0][0].series} == {"frepo": (), "mtt": ((64, "oom"),)}
    lost.record["provenance"]["threads"] = 2
    assert len(drawings([*others, lost])) == 2


def test_widths_and_recipes_never_share_a_figure_of_accuracies() -> None:
    """The same sets tested on another network are another figure, which says so."""
    names = [drawing.name.split("-") for drawing in drawings([curve(width=16), curve(width=32)])]
    assert [name[4] for name in names if name[0] == "accuracy"] == ["w16", "w32"]
    twice = [curve(), curve(evaluation={"steps": 1000, "network": "resnet18"})]
    named = [" ".join(drawing.footer) for drawing in drawings(twice)]
    assert sorted("Evaluated on network resnet18" in text for text in named) == [False, True]


def test_every_method_on_its_own_network_is_a_figure_of_its_own() -> None:
    own = [cost(), cost("dm", network="convnet"), cost("mtt", network="convnet")]
    assert f"-{OWN_NETWORKS}-" in only(own).name and "its own network" in only(own).footer[0]
    both = {drawing.name: drawing for drawing in drawings([*own, cost("dm"), cost("mtt")])}
    shown = {name.split("-")[3]: {s.method for s in drawing.rows[0][0].series} for name, drawing in both.items()}
    assert shown == {name: {"frepo", "dm", "mtt"} for name in (OWN_NETWORKS, "convnet_doubling")}


# What evaluations measure


@pytest.mark.usefixtures("turned")
def test_every_quantity_of_an_evaluation_is_a_figure() -> None:
    """Method beside method, the ceiling as a level, of whatever ipc; a series as a line over 1 … n."""
    values = {"turned": [0.25, 0.75], "loss": [2.0, 4.0], "kept": [0.9, 0.5, 0.1]}
    records = [made(method="dm"), made(), made(seed=1), made((0.9,), method="whole_data", ipc=0, steps=None)]
    settings = {**TURNED, "quarter_turns": 1}
    each = {
        drawing.name: drawing
        for drawing in drawings([evaluated(r, values, "turned", config=settings) for r in records])
    }
    end = "mnist-ipc1-convnet_doubling-w32-native-quick-A-CPU"
    assert list(each) == [f"turned-{name}-{end}" for name in ("kept", "loss", "turned")]
    (panel,) = each[f"turned-turned-{end}"].rows[0]
    assert panel.y_label == "accuracy on turned images (%)" and panel.names == ("dm", "frepo") and not panel.log_x
    assert [(series.method, series.x, series.y) for series in panel.series] == [
        ("dm", (0,), (50,)),
        ("frepo", (1,), (50,)),
    ]
    assert panel.series[1].high == pytest.approx((50 + 100 * (4 * 0.25**2 / 3) ** 0.5,))
    assert [(level.method, level.mean) for level in panel.levels] == [("whole_data", 50)]
    assert each[f"turned-loss-{end}"].rows[0][0].series[0].y == (3,)
    (panel,) = each[f"turned-kept-{end}"].rows[0]
    assert panel.x_label == "class" and panel.series[1].x == (1, 2, 3)
    assert panel.series[1].y == pytest.approx((90, 50, 10)) and len(panel.series) == 3
    for drawing in each.values():
        assert "A CPU" in " ".join(drawing.footer) and len(draw(drawing).axes) == 1


@pytest.mark.usefixtures("turned")
def test_a_series_is_drawn_at_its_places_with_the_networks_of_an_evaluation_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leak = Quantity("leak", percent=False, against="training steps", at="lengths")
    hidden = Quantity("hidden", at="lengths", against="training steps", drawn=False)
    monkeypatch.setattr(Turned, "quantities", {"leak": leak, "hidden": hidden})
    values = {"leak": [0.5, 0.6, 0.7, 0.8], "hidden": [0.1, 0.1, 0.1, 0.1]}

    def panel(lengths: list[int]) -> Panel:
        each = evaluated(made(()), values, "turned", config={"quarter_turns": 1, "lengths": lengths})
        ((drawn,),) = only([each]).rows
        return drawn

    near, wide = panel([2, 4]), panel([100, 4000])
    assert near.series[0].x == (2, 4) and not near.log_x
    assert wide.series[0].x == (100, 4000) and wide.log_x and wide.ticks == (100, 4000)
    assert wide.series[0].y == pytest.approx((0.6, 0.7)), "means over two networks"
    assert wide.series[0].high[0] == pytest.approx(0.6 + 0.1 * 2**0.5)


@pytest.mark.usefixtures("turned")
def test_settings_of_an_evaluation_are_figures_apart_and_the_name_says_them() -> None:
    each = made()
    for turns in (1, 2):
        each = evaluated(each, {"turned": [0.5]}, "turned", config={**TURNED, "quarter_turns": turns})
    names = [drawing.name.partition("-mnist")[0] for drawing in drawings([each])]
    assert names == ["turned-quarter_turns-1-turned", "turned-quarter_turns-2-turned"]


def test_networks_trained_on_all_real_images_are_a_level_of_every_ipc() -> None:
    ceiling = made((0.9,), method="whole_data", ipc=0, steps=None, protocol="common", evaluation={"steps": 1000})
    figures = drawings([curve(), curve(ipc=10), ceiling])
    assert len(figures) == 2
    for drawing in figures:
        assert [(level.method, level.mean) for level in drawing.rows[0][0].levels] == [("whole_data", 90)]
    other = made((0.9,), method="whole_data", ipc=0, steps=None, protocol="common")
    assert only([curve(), other]).rows[0][0].levels == (), "another recipe"


# How it looks


def test_no_two_methods_look_the_same() -> None:
    drawing = only([cost(method) for method in (*drawn_by.ORDER, "new", "newer")])
    styles = drawn_by._styles(drawing)
    assert next(iter(styles)) == "frepo" and list(styles)[-2:] == ["new", "newer"]
    looks = [(style["marker"], style["linestyle"]) for style in styles.values()]  # without colour
    assert len(set(map(str, looks))) == len(looks)
    alone = drawn_by._styles(only([cost("dm")]))["dm"]
    assert alone == styles["dm"]


def test_marks_stand_above_all_lines() -> None:
    records = [cost(m, w, "oom" if w == 64 and m != "dm" else "ok") for m in ("frepo", "dm", "mtt") for w in (16, 64)]
    figure = draw(only(records))
    for axes in figure.axes:
        marks = [line for line in axes.lines if line.get_marker() == "X"]
        assert [line.get_xdata()[0] for line in marks] in ([64, 64], [4096, 4096])
        heights = sorted(line.get_ydata()[0] for line in marks)
        assert heights[0] < heights[1] < 1
        to_axes = axes.transData + axes.transAxes.inverted()
        top = max(to_axes.transform((1, y))[1] for line in axes.lines if line not in marks for y in line.get_ydata())
        assert top < heights[0] - 0.04


@pytest.mark.parametrize(
    "records",
    [
        [cost(method, width) for method in ("frepo", "mtt") for width in (4, 8, 512)],
        [cost(width=32)],
        [cost(width=32), cost(width=40)],
        [curve(), curve("mtt"), random_real()],
    ],
    ids=["wide", "one", "narrow", "accuracy"],
)
def test_no_point_touches_an_axis(records: Sequence[Distilled]) -> None:
    """From the edge of every mark to the edge of the axes there are at least two points of an inch."""
    for each in records:
        operations = {"frepo": 1e9}.get(each.record["distillation"]["method"], 9e11)
        each.record["cost"]["flops_per_step"] = operations
    with matplotlib.rc_context(look()):
        figure = draw(only(records))
    for axes in figure.axes:
        box = axes.get_window_extent()
        for line in (line for line in axes.lines if line.get_marker() not in ("None", None)):
            room = (line.get_markersize() / 2 + 2) * figure.dpi / 72
            for x, y in axes.transData.transform(line.get_xydata()):
                assert box.x0 + room < x < box.x1 - room and box.y0 + room < y < box.y1 - room


@pytest.mark.parametrize("methods", [drawn_by.ORDER[:7], ("a_method_with_a_rather_long_name", *drawn_by.ORDER[:5])])
def test_the_legend_fits_however_many_methods_there_are(methods: tuple[str, ...]) -> None:
    records = [cost(method) for method in methods] + [cost("dm", config={"iterations": 7})]
    for each in records:
        each.record["cost"]["flops_per_step"] = 1e9
    with matplotlib.rc_context(look()):
        figure = draw(only(records))
        (legend,) = figure.legends
        box, lowest = legend.get_window_extent(), min(axes.get_tightbbox().y0 for axes in figure.axes)
    texts = [text.get_text() for text in legend.texts]
    assert texts[-1] == drawn_by.BARS and "dm (iterations=7)" in texts
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= lowest


def test_names_are_drawn_as_they_are() -> None:
    """No formula, no escape code, no line break of a name, and no file name that is too long."""
    hostile = "folder:$x_{$\x1b[31m\n" + "../x" * 99
    drawing = only([cost(method, dataset=hostile, config={"a": 1}) for method in ("frepo", "$\\bad$")])
    assert re.fullmatch(r"[\w-]{1,200}", drawing.name)
    with matplotlib.rc_context(look()):
        figure = draw(drawing)
        FigureCanvasAgg(figure).draw()
    assert r"folder:\$x_{\$\x1b[31m\n" in figure.texts[0].get_text()
    assert r"\$\bad\$" in [text.get_text() for text in figure.legends[0].texts]


@pytest.mark.parametrize("widths", [(16, 64), (16, 32, 64, 128, 256, 512)], ids=len)
def test_no_text_covers_another(widths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Text] = []
    original = Text.draw
    monkeypatch.setattr(Text, "draw", lambda text, renderer: drawn.append(text) or original(text, renderer))  # type: ignore[func-returns-value]
    methods = ("frepo", "dm", "mtt", "dsa", "bptt")
    costs = [cost(m, w, "oom" if w == 512 and m != "dm" else "ok", meter="nvml") for m in methods for w in widths]
    for records in (costs, [*(curve(method) for method in methods), random_real()]):
        drawn.clear()
        with matplotlib.rc_context(look()):
            canvas = FigureCanvasAgg(draw(only(records)))
            canvas.draw()
        boxes = {text: text.get_window_extent() for text in drawn if text.get_text() and text.get_visible()}
        assert len(boxes) >= 20
        for text, other in itertools.combinations(boxes, 2):
            assert not boxes[text].overlaps(boxes[other]), (text.get_text(), other.get_text())


def test_the_same_records_give_the_same_bytes_without_dates(tmp_path: Path) -> None:
    records = [cost("dm", 16), cost("mtt", 16, "oom", meter=None)]
    records[0].record["cost"]["peak_live_bytes"] = None
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    written = write(records, tmp_path / "a")
    write(records[::-1], tmp_path / "b")
    assert len(written) == 3 and {path.suffix for path in written} == {".png", ".pdf", ".svg"}
    for path in written:
        content = path.read_bytes()
        assert content == (tmp_path / "b" / path.name).read_bytes()
        assert b"CreationDate" not in content and b"<dc:date>" not in content
        if path.suffix == ".png":
            place = content.index(b"pHYs") + 4
            assert struct.unpack(">I", content[place : place + 4])[0] / 39.37 >= 200  # dots per metre


# The command


def test_missing_packages_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seaborn", None)
    with pytest.raises(UserError, match="no figures, because seaborn is missing: pip install"):
        write([cost()], tmp_path)


@pytest.mark.parametrize("folder", ["missing", "."])
def test_nothing_to_draw_is_a_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    saved(tmp_path, made())
    assert main([str(tmp_path / folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_draws_a_folder_and_names_what_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawn_by, "FORMATS", {"svg": {"Date": None}})
    saved(tmp_path / "deep", *(cost(width=width) for width in (16, 32, 64)))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "record.json").write_text("{")
    assert main([str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "x/record.json" in shown.err
    assert [Path(line).suffix for line in shown.out.splitlines()] == [".md", ".tex", ".csv", ".svg"]
