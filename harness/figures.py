"""Records → figures, as PNG, PDF and SVG: accuracy against time, and cost against the size of the network.

A figure holds one device, budget, kind of protocol, data set, ipc and meter, and one network: either the same for every
method, or, under its own name, each method's own. The same records give the same bytes.

    python -m harness.figures results/local
"""

from __future__ import annotations

import hashlib
import math
import re
import statistics
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.errors import UserError, printable
from benchmarks.files import replacing
from benchmarks.protocols import PROTOCOLS
from harness.command_line import end, exit_status
from harness.records.record import Record, summarise
from harness.report import (
    METERS,
    NONE,
    OURS,
    Group,
    accuracy_words,
    grouped,
    measured_on,
    parted,
    quartiles,
    read_folder,
    variants,
)
from harness.reports import scaling
from harness.reports.scaling import AGAINST, sweeps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

PROGRAM = "python -m harness.figures"
OWN_NETWORKS = "own_networks"
"""In place of a network's name: every method on the one that its protocol names."""
STATUSES = {
    "oom": ("OOM", "out of memory"),
    "timeout": ("time", "time limit"),
    "diverged": ("NaN", "diverged"),
    "error": ("error", "the cell failed"),
}
"""Status → what stands beside the mark of a cell that did not end well, and what the footer says of it."""
FORMATS: Mapping[str, Mapping[str, None]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""Ending → the metadata that must not be written, because they are never twice the same."""


# --- what is to be drawn ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """The line of a method; ``low`` and ``high`` are the ends of its error bars, ``marks`` (x, status) of failures.

    ``expected``: (x, y) where the line would be if the ratio to ``OURS`` were that of the operations.
    """

    method: str
    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    marks: tuple[tuple[float, str], ...] = ()
    expected: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Level:
    """A method without steps: the same accuracy whatever the time."""

    method: str
    label: str
    mean: float
    std: float | None
    """None: of a single network."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes, with a logarithmic x."""

    x_label: str
    y_label: str
    series: tuple[Series, ...]
    levels: tuple[Level, ...] = ()
    log_y: bool = False
    ticks: tuple[int, ...] = ()
    """Where the x axis is labelled; empty: at powers of ten."""


@dataclass(frozen=True)
class Drawing:
    """A figure: ``rows`` of panels, and below them what the numbers are."""

    name: str
    rows: tuple[tuple[Panel, ...], ...]
    footer: tuple[str, ...]


def drawings(records: Sequence[Record]) -> list[Drawing]:
    """All figures that ``records`` give, in the order of their names."""
    groups = grouped(records)
    found = [*_costs(groups), *_accuracies(groups)]
    names = Counter(name for name, _, _ in found)
    made = []
    for name, key, drawing in found:
        # What differs is not worth a part of the name until two figures differ in nothing else.
        suffix = f"-{hashlib.sha256(repr(key).encode()).hexdigest()[:6]}" if names[name] > 1 else ""
        made.append(Drawing(name + suffix, drawing.rows, drawing.footer))
    return sorted(made, key=lambda drawing: drawing.name)


_Found = tuple[str, tuple[Any, ...], Drawing]


def _costs(groups: Sequence[Group]) -> Iterator[_Found]:
    """Figures of time and memory: of cost cells, and of others that were run at several widths."""
    for key, network, same in _comparable([g for g in groups if _attempted(g)], ("seconds",)):
        if same[0].evaluated and all(len(sweep) < 2 for sweep in sweeps(same)):
            continue
        records = [record for group in same for record in group.records]
        meters: list[str | None] = [*sorted({meter for group in same for meter in group.meters})]
        for meter in meters or [None]:
            of_meter = [r for r in records if r["cost"]["memory"]["meter"] in (meter, None)]
            yield _cost((*key, meter), network, sweeps(grouped(of_meter)), meter)


def _attempted(group: Group) -> bool:
    """Whether the group has iterations to show, or failed before it had any."""
    iterative = group.cell.get("steps") is not None or group.cell.get("seconds") is not None
    return iterative and (bool(group.step_seconds) or not group.ok)


_Value = Callable[[Group], tuple[float, float, float] | None]
"""What a panel shows of a group: the point and the ends of its error bar."""


def _cost(key: tuple[Any, ...], network: str, shown: Sequence[tuple[Group, ...]], meter: str | None) -> _Found:
    labels = _labels([sweep[0] for sweep in shown])
    groups = [group for sweep in shown for group in sweep]
    parameters = {_place(group): number for group in groups for number in group.costs("parameters")}

    def size(against: str, group: Group) -> float | None:
        # A cell that was killed before it could count has the parameters that its neighbours have.
        return AGAINST[against](group) or parameters.get(_place(group))

    bases = [sweep for sweep in shown if sweep[0].cell["method"] == OURS]
    ours = {g.cell["width"]: g for g in bases[0] if g.ok} if len(bases) == 1 else {}

    def expected(group: Group) -> float | None:
        """The seconds of an iteration if they were to those of ``OURS`` as the operations are."""
        own = ours.get(group.cell["width"])
        if own is None or not own.step_seconds or group.cell["method"] == OURS:
            return None
        operations, base = group.most("flops_per_step"), own.most("flops_per_step")
        return statistics.median(own.step_seconds) * operations / base if operations and base else None

    def line(label: str, sweep: Sequence[Group], against: str, value: _Value) -> Series:
        points = [(x, y) for g in sweep if g.ok and (x := size(against, g)) and (y := value(g))]
        marks = [(x, g.records[0]["status"]) for g in sweep if not g.ok and (x := size(against, g))]
        middle, low, high = (tuple(y[i] for _, y in points) for i in range(3))
        x_values = tuple(x for x, _ in points)
        in_proportion = [(size(against, g), expected(g)) for g in sweep if value is _seconds]
        by_operations = tuple((x, seconds) for x, seconds in in_proportion if x and seconds)
        return Series(sweep[0].cell["method"], label, x_values, middle, low, high, tuple(marks), by_operations)

    def panel(against: str, title: str, value: _Value) -> Panel:
        widths = tuple(sorted({int(group.cell["width"]) for group in groups})) if against == "width" else ()
        lines = tuple(line(label, sweep, against, value) for label, sweep in zip(labels, shown, strict=True))
        return Panel(against, title, lines, log_y=True, ticks=widths)

    quantities: list[tuple[str, _Value]] = [("seconds per iteration", _seconds)]
    if meter is not None:
        quantities.append((METERS[meter][1], lambda group: _mebibytes(group.peak(meter))))
    quantities.append(("peak of live tensors (MiB)", lambda group: _mebibytes(group.most("peak_live_bytes"))))
    measured = [(title, value) for title, value in quantities if any(value(group) for group in groups if group.ok)]
    rows = tuple(tuple(panel(against, *quantity) for quantity in measured or quantities[:1]) for against in AGAINST)
    # Where every cell was killed before it could count, nobody knows the parameters.
    rows = tuple(row for row in rows if any(line.x or line.marks for line in row[0].series))
    first = groups[0].cell
    footer = [
        f"{_task(first)}, {_network_words(network)}",
        *measured_on(groups),
        "Seconds: median and quartiles of one update of the synthetic images",
    ]
    if any(line.expected for line in rows[0][0].series):
        footer.append(f"Bars: the seconds of {OURS} times the ratio of the operations of an iteration")
    if statuses := sorted({group.records[0]["status"] for group in groups if not group.ok}):
        footer.append(f"✗: no measurement ({'; '.join(': '.join(STATUSES[status]) for status in statuses)})")
    budget = [] if first["budget"] == "cost" else [first["budget"]]
    name = _slug("cost", first["dataset"], f"ipc{first['ipc']}", network, groups[0].table[2], *budget, meter, key[0])
    return name, key, Drawing(name, rows, tuple(footer))


def _place(group: Group) -> tuple[str, int]:
    """What groups with as many parameters share."""
    return group.cell["network"], group.cell["width"]


def _seconds(group: Group) -> tuple[float, float, float] | None:
    """Median and quartiles."""
    samples = group.step_seconds
    if not samples:
        return None
    median = statistics.median(samples)
    return median, *(quartiles(samples) or (median, median))


def _mebibytes(number: float | None) -> tuple[float, float, float] | None:
    """As a point without error bars; None also for a peak of 0, which has no place on a logarithmic axis."""
    return (number / 2**20, number / 2**20, number / 2**20) if number else None


def _accuracies(groups: Sequence[Group]) -> Iterator[_Found]:
    """Figures of accuracy: of what has a curve, beside what was evaluated in the same way and has no steps."""
    names = ("width", "networks_evaluated", "evaluate_steps")
    for key, network, same in _comparable([g for g in groups if g.evaluated], names):
        curves = [group for group in same if group.curve]
        if curves:
            yield _accuracy(key, network, curves, [group for group in same if group not in curves])


def _accuracy(key: tuple[Any, ...], network: str, curves: Sequence[Group], others: Sequence[Group]) -> _Found:
    labels = _labels([*curves, *others])
    levels = tuple(
        Level(group.cell["method"], label, 100 * mean, None if std is None else 100 * std)
        for group, label in zip(others, labels[len(curves) :], strict=True)
        if group.ok and group.cell["steps"] is None
        for mean, std in [summarise(group.values)]
        if mean is not None
    )

    def line(label: str, group: Group, x: Sequence[float]) -> Series:
        spread = [summarise(point.values) for point in group.curve]
        y = [(100 * (mean or 0.0), 100 * (std or 0.0)) for mean, std in spread]
        middle, low, high = (tuple(mean + sign * std for mean, std in y) for sign in (0, -1, 1))
        return Series(group.cell["method"], label, tuple(x), middle, low, high)

    def prepare(group: Group) -> float:
        return statistics.fmean(group.costs("prepare_seconds") or [0.0])

    abscissae: list[tuple[str, Callable[[Group], list[float]]]] = [
        ("seconds of distilling", lambda group: [point.seconds for point in group.curve]),
        ("seconds with preparation", lambda group: [prepare(group) + point.seconds for point in group.curve]),
        ("iterations", lambda group: [point.step for point in group.curve]),
    ]
    row = tuple(
        Panel(
            title,
            "test accuracy (%)",
            tuple(line(label, group, x(group)) for label, group in zip(labels, curves, strict=False)),
            levels,
        )
        for title, x in abscissae
    )
    first, table = curves[0].cell, curves[0].table
    footer = [
        f"{_task(first)}, {_network_words(network)}, width {first['width']}",
        *measured_on([*curves, *others]),
        f"Accuracy: of the set as it stood then, {accuracy_words([*curves, *others])}",
    ]
    failed = [f"{group.cell['method']} ({group.records[0]['status']})" for group in (*curves, *others) if not group.ok]
    if failed:
        footer.append(f"Did not end well: {', '.join(failed)}")
    size = f"w{first['width']}"
    name = _slug("accuracy", first["dataset"], f"ipc{first['ipc']}", network, size, table[2], table[1], key[0])
    return name, key, Drawing(name, (row,), tuple(footer))


def _comparable(groups: Sequence[Group], names: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], str, list[Group]]]:
    """What may stand in one figure, with its key (device first) and its network; ``names``: settings that part too."""
    shared = ("dataset", "data_fingerprint", "ipc", "depth", "image_size", "dtype", "tf32", "memory_limit_bytes")

    def key(group: Group) -> tuple[Any, ...]:
        return *group.table, *(group.cell.get(name) for name in (*shared, *names))

    for asked in dict.fromkeys(map(key, groups)):
        for part in parted((group for group in groups if key(group) == asked), lambda group: group.circumstances):
            circumstances = tuple(sorted(part[0].circumstances.items()))
            for network, same in _by_network(part):
                yield (*asked, circumstances, network), network, same


def _by_network(groups: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    """The groups of every network; those on their protocol's own, where these are several, as ``OWN_NETWORKS``."""
    own = [g for g in groups if g.table[2] == "native" and g.cell["network"] == PROTOCOLS[g.cell["protocol"]].network]
    names = sorted({group.cell["network"] for group in groups})
    found = [(name, [group for group in groups if group.cell["network"] == name]) for name in names]
    if len({group.cell["network"] for group in own}) < 2:
        return found
    return [(name, same) for name, same in found if any(group not in own for group in same)] + [(OWN_NETWORKS, own)]


def _labels(groups: Sequence[Group]) -> list[str]:
    """The methods, and where that does not tell two lines apart, what sets them apart."""
    methods = [group.cell["method"] for group in groups]
    apart = ["" if settings == NONE else f" ({textwrap.shorten(settings, 40)})" for settings in variants(groups)]
    return [method + settings for method, settings in zip(methods, apart, strict=True)]


def _task(cell: Mapping[str, Any]) -> str:
    size = "" if cell.get("image_size") is None else f" at {cell['image_size']}×{cell['image_size']}"
    return f"{cell['dataset']}{size}, {cell['ipc']} synthetic image{'s' if cell['ipc'] > 1 else ''} per class"


def _network_words(network: str) -> str:
    return "every method on its own network" if network == OWN_NETWORKS else f"all on {network}"


def _slug(*parts: str | None) -> str:
    return "-".join(re.sub(r"[^A-Za-z0-9_]+", "-", part).strip("-") for part in parts if part)


# --- drawing ----------------------------------------------------------------------------------------------------------

WIDTH_INCHES = 6.75
"""Of the text of a two-column page."""
PANEL_INCHES, LINE_INCHES, LEGEND_INCHES = 1.6, 0.1, 0.24
"""Heights of a row of panels, of a line of the footer, and of a row of the legend."""
FOOTER_CHARACTERS = 150
"""In a line of the footer."""
LEGEND_CHARACTERS, HANDLE_CHARACTERS = 115, 9
"""In a row of the legend, and of these what the line before a label takes."""
DOTS_PER_INCH = 300
ORDER = ("frepo", "mtt", "dsa", "dm", "bptt", "dc", "kip", "herding", "random_real")
"""Of the legend; a method looks the same in every figure. Others come after them."""
COLOURS = (0, 3, 2, 1, 4, 9, 5, 6, 7)
"""Of ``ORDER``, in seaborn's palette for all eyes."""
MARKERS = "osD^vP*<>"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (3, 1.2, 1, 1.2)), (0, (1, 1.2)), (0, (7, 1.5, 1, 1.5, 1, 1.5)))
"""So that lines and points can be told apart without colour: as many markers as go round apart from the dashes."""

BAR: Mapping[str, Any] = {"marker": "_", "markersize": 8, "linestyle": "none"}
BARS = "in proportion to operations"
"""How that is drawn, and what the legend calls it."""
MARGIN = 0.08
"""Between the outermost points and the axes, as a fraction of what the points span."""
TICKS = {"major.width": 0.6, "major.size": 3.0, "minor.width": 0.4, "minor.size": 1.5, "major.pad": 2.0}


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw all figures of ``records`` into ``folder``, three files each. Returns the paths.

    Raises UserError where matplotlib or seaborn is missing, and where the files cannot be written.
    """
    try:
        import matplotlib
        import seaborn  # noqa: F401  (what draws needs it)
    except ImportError as error:
        raise UserError(f"no figures, because {error.name} is missing: pip install seaborn matplotlib") from error
    written = []
    with matplotlib.rc_context(look()):
        for drawing in drawings(records):
            figure = draw(drawing)
            for ending, metadata in FORMATS.items():
                path = folder / f"{drawing.name}.{ending}"
                try:
                    with replacing(path) as temporary:
                        figure.savefig(temporary, format=ending, dpi=DOTS_PER_INCH, metadata=dict(metadata))
                except OSError as error:
                    raise UserError(f"the figures cannot be written into {folder}: {error.strerror}") from error
                written.append(path)
    return written


def look() -> dict[Any, Any]:
    """The settings of matplotlib under which to ``draw`` and to save."""
    import seaborn

    return {
        **seaborn.plotting_context("paper", font_scale=0.75),
        **seaborn.axes_style("ticks"),
        **{f"{axis}tick.{size}": value for axis in "xy" for size, value in TICKS.items()},
        "axes.linewidth": 0.6,
        "axes.labelpad": 2.0,
        "axes.grid": True,
        "axes.ymargin": MARGIN,
        "grid.linewidth": 0.4,
        "grid.color": "0.9",
        "pdf.fonttype": 42,  # text that can be searched
        "svg.hashsalt": "frepo-bench",
    }


def draw(drawing: Drawing) -> Figure:
    """The figure, not yet on disk; to be called, and saved, under the settings of ``look``."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    footer = textwrap.wrap(_drawn(" ".join(f"{text}." for text in drawing.footer)), FOOTER_CHARACTERS)
    styles = _styles(drawing)
    bars = any(line.expected for row in drawing.rows for panel in row for line in panel.series)
    labels = [*styles, *([BARS] if bars else [])]
    legend_rows = math.ceil(sum(len(label) + HANDLE_CHARACTERS for label in labels) / LEGEND_CHARACTERS)
    legend_inches, footer_inches = LEGEND_INCHES * legend_rows, LINE_INCHES * len(footer) + 0.05
    height = PANEL_INCHES * len(drawing.rows) + legend_inches + footer_inches
    below = (legend_inches + footer_inches) / height
    layout = ConstrainedLayoutEngine(rect=(0, below, 1, 1 - below), w_pad=0.05, h_pad=0.04)
    figure = Figure(figsize=(WIDTH_INCHES, height), layout=layout)
    shared = len({panel.y_label for row in drawing.rows for panel in row}) == 1
    grid = figure.subplots(len(drawing.rows), len(drawing.rows[0]), squeeze=False, sharey=shared)
    for row, panels in zip(grid, drawing.rows, strict=True):
        for axes, panel in zip(row, panels, strict=True):
            _draw_panel(axes, panel, styles)
            if shared:
                axes.label_outer()
    handles: dict[str, Any] = {BARS: Line2D([], [], color="0.35", **BAR)}
    for axes in grid.flat:
        handles |= {label: _plain(handle) for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = [label for label in labels if label in handles]
    figure.legend(
        [handles[label] for label in labels],
        [_drawn(label) for label in labels],
        loc="lower center",
        bbox_to_anchor=(0.5, footer_inches / height),
        ncols=math.ceil(len(labels) / legend_rows),
        frameon=False,
        handlelength=3.2,
        borderaxespad=0,
    )
    figure.text(0.008, 0.04 / height, "\n".join(footer), size=5.5, color="0.35", linespacing=1.3)
    # The solver behind the layout orders by addresses in memory, so its last digits differ from run to run.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position(tuple(round(value, 6) for value in axes.get_position().bounds))
    return figure


def _drawn(text: str) -> str:
    """``text`` as matplotlib draws it as it is: without control characters, and without formulas."""
    return printable(text).replace("$", r"\$")


def _plain(handle: Any) -> Any:
    """What stands for a line in the legend: without its error bars."""
    return handle[0] if isinstance(handle, tuple) else handle


def _styles(drawing: Drawing) -> dict[str, dict[str, Any]]:
    """Label → how its line looks, in the order of the legend. Variants of a method share its colour."""
    import seaborn

    panels = [panel for row in drawing.rows for panel in row]
    pairs = {(line.method, line.label) for panel in panels for line in panel.series}
    pairs |= {(level.method, level.label) for panel in panels for level in panel.levels}
    others = sorted({method for method, _ in pairs} - set(ORDER))
    order = [*ORDER, *others]
    palette = seaborn.color_palette("colorblind")
    found = {}
    seen: Counter[str] = Counter()
    for method, label in sorted(pairs, key=lambda pair: (order.index(pair[0]), pair[1])):
        place = order.index(method)
        colour = COLOURS[place] if place < len(COLOURS) else place
        variant = place + seen[method] * 3
        seen[method] += 1
        found[label] = {
            "color": palette[colour % len(palette)],
            "marker": MARKERS[variant % len(MARKERS)],
            "linestyle": DASHES[variant % len(DASHES)],
            "linewidth": 1.5 if place == 0 else 1.1,
        }
    return found


def _draw_panel(axes: Axes, panel: Panel, styles: Mapping[str, Mapping[str, Any]]) -> None:
    import seaborn
    from matplotlib.ticker import FuncFormatter, NullLocator

    for level in panel.levels:
        style = {name: value for name, value in styles[level.label].items() if name != "marker"}
        if level.std is not None:
            axes.axhspan(level.mean - level.std, level.mean + level.std, color=style["color"], alpha=0.15, linewidth=0)
        axes.axhline(level.mean, label=level.label, **style)
    axes.set_xscale("log", base=2 if panel.ticks else 10)
    if panel.log_y:
        axes.set_yscale("log")
    for series in panel.series:
        errors = [
            [y - low for y, low in zip(series.y, series.low, strict=True)],
            [high - y for y, high in zip(series.y, series.high, strict=True)],
        ]
        if series.expected:
            axes.plot(*zip(*series.expected, strict=True), color=styles[series.label]["color"], **BAR)
        axes.errorbar(
            series.x,
            series.y,
            yerr=errors if any(map(any, errors)) else None,
            label=series.label,
            markersize=4,
            markeredgecolor="white",
            markeredgewidth=0.5,
            elinewidth=0.7,
            capsize=1.5,
            capthick=0.7,
            **styles[series.label],
        )
    # Marks count as points here; a single one stands in the middle.
    found = [x for series in panel.series for x in (*series.x, *(x for x, _ in series.marks))]
    span = max(found) / min(found)
    margin = max(span**MARGIN, 2 / span**0.5)
    axes.set_xlim(min(found) / margin, max(found) * margin)
    _draw_marks(axes, panel, styles)
    if panel.ticks:
        axes.set_xticks(panel.ticks)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        _label_powers(axes.xaxis, axes.get_xlim())
    if panel.log_y:
        _label_powers(axes.yaxis, axes.get_ylim())
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(textwrap.fill(panel.y_label, 20))
    seaborn.despine(ax=axes)


def _label_powers(axis: Axis, limits: tuple[float, float]) -> None:
    """Label powers of ten, and where there are few of them twice and five times these, and nothing else."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    few = math.log10(limits[1] / limits[0]) < 1.5
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    axis.set_minor_formatter(NullFormatter())


def _number(value: float) -> str:
    """As one writes it, with a power of ten where it is long."""
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    factor, exponent = f"{value:.0e}".split("e")
    power = f"10^{{{int(exponent)}}}"
    return f"${power}$" if factor == "1" else rf"${factor}\!\times\!{power}$"


def _draw_marks(axes: Axes, panel: Panel, styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Failures, along the upper edge, one below the other where several share an x; the lines leave room for them."""
    marks: dict[float, list[tuple[str, str]]] = {}
    for series in sorted(panel.series, key=lambda series: list(styles).index(series.label)):
        for x, status in series.marks:
            marks.setdefault(x, []).append((series.label, status))
    if not marks:
        return
    step = 0.09
    room = step * (max(map(len, marks.values())) + 0.5)
    low, high = axes.get_ylim()
    axes.set_ylim(low, low * (high / low) ** (1 / (1 - room)))
    for x, failures in marks.items():
        for place, (label, status) in enumerate(failures):
            height = 1 - step * (place + 0.5)
            axes.plot(
                [x],
                [height],
                transform=axes.get_xaxis_transform(),
                marker="X",
                markersize=5,
                markeredgecolor="white",
                markeredgewidth=0.4,
                color=styles[label]["color"],
                linestyle="none",
            )
            axes.annotate(
                STATUSES[status][0],
                (x, height),
                xycoords=axes.get_xaxis_transform(),
                xytext=(-4, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                size=5,
                color="0.25",
            )


def main(arguments: Sequence[str] | None = None, *, program: str = PROGRAM) -> int:
    """``python -m harness.figures FOLDER``: exponents and figures from the records. Returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_status(lambda: _main(arguments, program))


def _main(arguments: Sequence[str], program: str) -> int:
    folder, records, whole = read_folder(program, "Draw the figures of a folder, and fit exponents.", arguments)
    written = [*scaling.write(records, folder), *write(records, folder)]
    if not written:
        raise UserError(f"nothing in {folder} to draw: no curves, and no iterations at several widths")
    print("\n".join(printable(str(path)) for path in written))
    return 0 if whole else 1


if __name__ == "__main__":
    end(main())
