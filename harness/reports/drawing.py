"""Drawing figures: what a figure holds, and how matplotlib shows it. The same figure gives the same bytes."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.errors import UserError, printable
from benchmarks.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

STATUSES = {
    "oom": ("OOM", "out of memory"),
    "timeout": ("time", "time limit"),
    "diverged": ("NaN", "diverged"),
    "error": ("error", "the cell failed"),
}
"""Status → what stands beside the mark of a cell that did not end well, and what the footer says of it."""
FORMATS: Mapping[str, Mapping[str, None]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""Ending → the metadata that must not be written, because they are never twice the same."""
WIDTH_INCHES = 6.75
"""Width of the text of a two-column page."""
PANEL_INCHES, LINE_INCHES, LEGEND_INCHES = 1.6, 0.1, 0.24
"""Heights of a row of panels, of a line of the footer, and of a row of the legend."""
FOOTER_CHARACTERS = 150
"""Characters in a line of the footer."""
LEGEND_CHARACTERS, HANDLE_CHARACTERS = 115, 9
"""Characters in a row of the legend, and those that the line before a label takes."""
DOTS_PER_INCH = 300
ORDER = ("frepo", "mtt", "dsa", "dm", "bptt", "dc", "kip", "herding", "random_real", "whole_data")
"""Order of the legend; a method looks the same in every figure. Others come after them."""
COLOURS = (0, 3, 2, 1, 4, 9, 5, 6, 7, 7)
"""Indices into seaborn's palette for all eyes, one for each of ``ORDER``."""
MARKERS = "osD^vP*<>"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (3, 1.2, 1, 1.2)), (0, (1, 1.2)), (0, (7, 1.5, 1, 1.5, 1, 1.5)))
"""So that lines and points can be told apart without colour: as many markers as go round apart from the dashes."""

BAR: Mapping[str, Any] = {"marker": "_", "markersize": 8, "linestyle": "none"}
EDGE: Mapping[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.5}
POINT: Mapping[str, Any] = {"markersize": 4, "elinewidth": 0.7, "capsize": 1.5, "capthick": 0.7, **EDGE}
CROSS: Mapping[str, Any] = {"marker": "X", "markersize": 5, "linestyle": "none", **EDGE}
BESIDE: Mapping[str, Any] = {"ha": "right", "va": "center", "size": 5, "color": "0.25", "textcoords": "offset points"}
BARS = "in proportion to operations"
"""Name of a ``BAR`` in the legend."""
MARGIN = 0.08
"""Between the outermost points and the axes, as a fraction of what the points span."""
TICKS = {"major.width": 0.6, "major.size": 3.0, "minor.width": 0.4, "minor.size": 1.5, "major.pad": 2.0}


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
    """One pair of axes."""

    x_label: str
    y_label: str
    series: tuple[Series, ...]
    levels: tuple[Level, ...] = ()
    log_x: bool = True
    log_y: bool = False
    ticks: tuple[int, ...] = ()
    """Labels of a logarithmic x axis; empty: powers of ten."""
    names: tuple[str, ...] = ()
    """Labels at 0, 1, 2, … of an x axis without numbers."""


@dataclass(frozen=True)
class Drawing:
    """A figure: ``rows`` of panels, and below them what the numbers are."""

    name: str
    rows: tuple[tuple[Panel, ...], ...]
    footer: tuple[str, ...]


def write(figures: Iterable[tuple[str, Callable[[], Figure]]], folder: Path) -> list[Path]:
    """Save ``figures``, each with its name and a function that draws it, in three files each. Returns the paths.

    Raises UserError where matplotlib or seaborn is missing, and where the files cannot be written.
    """
    try:
        import matplotlib
        import seaborn  # noqa: F401  (what draws needs it)
    except ImportError as error:
        raise UserError(f"no figures, because {error.name} is missing: pip install seaborn matplotlib") from error
    written = []
    with matplotlib.rc_context(look()):
        for name, drawn_by in figures:
            figure = drawn_by()
            for ending, metadata in FORMATS.items():
                path = folder / f"{name}.{ending}"
                try:
                    with replacing(path) as temporary:
                        figure.savefig(temporary, format=ending, dpi=DOTS_PER_INCH, metadata=dict(metadata))
                except OSError as error:
                    raise UserError(f"the figures cannot be written into {folder}: {error.strerror}") from error
                written.append(path)
    return written


def look() -> dict[Any, Any]:
    """Settings of matplotlib under which to draw and to save."""
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

    footer = textwrap.wrap(drawn(" ".join(f"{text}." for text in drawing.footer)), FOOTER_CHARACTERS)
    styles = _styles(drawing)
    bars = any(line.expected for row in drawing.rows for panel in row for line in panel.series)
    named = {name for row in drawing.rows for panel in row for name in panel.names}
    labels = [label for label in styles if label not in named] + [BARS] * bars
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
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles[label] = handle[0] if isinstance(handle, tuple) else handle  # without error bars
    labels = [label for label in labels if label in handles]
    if labels:
        figure.legend(
            [handles[label] for label in labels],
            [drawn(label) for label in labels],
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


def drawn(text: str) -> str:
    """``text`` as matplotlib draws it as it is: without control characters, and without formulas."""
    return printable(text).replace("$", r"\$")


@dataclass(frozen=True)
class Look:
    """How the line of a label looks, as numbers that count round: variants of a method share its colour."""

    colour: int
    """Index into a palette of ten."""
    variant: int
    """Index into ``MARKERS`` and ``DASHES``."""
    first: bool
    """Whether it is the method that the others are compared with."""


def looks(drawing: Drawing) -> dict[str, Look]:
    """Label → how its line looks, in the order of the legend."""
    panels = [panel for row in drawing.rows for panel in row]
    pairs = {(line.method, line.label) for panel in panels for line in panel.series}
    pairs |= {(level.method, level.label) for panel in panels for level in panel.levels}
    order = [*ORDER, *sorted({method for method, _ in pairs} - set(ORDER))]
    found = {}
    seen: Counter[str] = Counter()
    for method, label in sorted(pairs, key=lambda pair: (order.index(pair[0]), pair[1])):
        place = order.index(method)
        colour = COLOURS[place] if place < len(COLOURS) else place
        found[label] = Look(colour % 10, place + seen[method] * 3, place == 0)
        seen[method] += 1
    return found


def _styles(drawing: Drawing) -> dict[str, dict[str, Any]]:
    """Label → how matplotlib draws its line, in the order of the legend."""
    import seaborn

    palette = seaborn.color_palette("colorblind")
    return {
        label: {
            "color": palette[look.colour],
            "marker": MARKERS[look.variant % len(MARKERS)],
            "linestyle": DASHES[look.variant % len(DASHES)],
            "linewidth": 1.5 if look.first else 1.1,
        }
        for label, look in looks(drawing).items()
    }


def _draw_panel(axes: Axes, panel: Panel, styles: Mapping[str, Mapping[str, Any]]) -> None:
    import seaborn
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    for level in panel.levels:
        style = {name: value for name, value in styles[level.label].items() if name != "marker"}
        if level.std is not None:
            axes.axhspan(level.mean - level.std, level.mean + level.std, color=style["color"], alpha=0.15, linewidth=0)
        axes.axhline(level.mean, label=level.label, **style)
    if panel.log_x:
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
        bars = errors if any(map(any, errors)) else None
        axes.errorbar(series.x, series.y, yerr=bars, label=series.label, **POINT, **styles[series.label])
    # Marks count as points here; a single one stands in the middle.
    places = [x for series in panel.series for x in (*series.x, *(x for x, _ in series.marks))]
    if panel.log_x:
        span = max(places) / min(places)
        margin = max(span**MARGIN, 2 / span**0.5)
        axes.set_xlim(min(places) / margin, max(places) * margin)
    else:
        axes.set_xlim(min(places) - 0.5, max(places) + 0.5)
    _draw_marks(axes, panel, styles)
    if panel.names:
        axes.set_xticks(range(len(panel.names)), [textwrap.fill(drawn(name), 14) for name in panel.names])
    elif not panel.log_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif panel.ticks:
        axes.set_xticks(panel.ticks)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        _label_powers(axes.xaxis, axes.get_xlim())
    if panel.log_y:
        _label_powers(axes.yaxis, axes.get_ylim())
    axes.set_xlabel(drawn(panel.x_label))
    axes.set_ylabel(textwrap.fill(drawn(panel.y_label), 20))
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
    step, across = 0.09, axes.get_xaxis_transform()
    seen: Counter[float] = Counter()
    for series in sorted(panel.series, key=lambda series: list(styles).index(series.label)):
        for x, status in series.marks:
            height = 1 - step * (seen[x] + 0.5)
            seen[x] += 1
            axes.plot([x], [height], transform=across, color=styles[series.label]["color"], **CROSS)
            axes.annotate(STATUSES[status][0], (x, height), xycoords=across, xytext=(-4, 0), **BESIDE)
    if seen:
        low, high = axes.get_ylim()
        axes.set_ylim(low, low * (high / low) ** (1 / (1 - step * (max(seen.values()) + 0.5))))
