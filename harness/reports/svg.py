"""Figures as SVG inside a page: they follow the colours of the page, and each line can be switched off.

They show the same `Drawing` that `harness.reports.drawing` draws with matplotlib, and need no library. Text comes from
records, so everything is escaped.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.reports.drawing import STATUSES, Drawing, Look, Panel, Series, looks

WIDTH, HEIGHT = 420.0, 270.0
"""Size of a panel in units of its viewBox, in which letters are 12 high."""
LEFT, RIGHT, TOP, BOTTOM = 50.0, 14.0, 30.0, 42.0
ROW = 26.0
"""Height of a row of a panel that has names instead of numbers on one axis."""
LETTER = 6.4
"""Mean width of a letter."""
MARKERS = (
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0",
    "M-3.1-3.1h6.2v6.2h-6.2z",
    "M0-4.3L4.3 0L0 4.3L-4.3 0z",
    "M0-4.2L4.1 3.2H-4.1z",
    "M0 4.2L4.1-3.2H-4.1z",
    "M-1.4-4h2.8v2.6h2.6v2.8h-2.6v2.6h-2.8v-2.6h-2.6v-2.8h2.6z",
    "M0-4.8L1.2-1.5L4.6-1.5L1.9.6L2.9 3.9L0 1.9L-2.9 3.9L-1.9.6L-4.6-1.5L-1.2-1.5z",
    "M-4.2 0L3.2-4.1V4.1z",
    "M4.2 0L-3.2-4.1V4.1z",
)
"""Outlines around the origin, in the order of matplotlib's that the other figures use."""
DASHES = ("", "7 3", "5 2 1.5 2", "1.5 2.5", "9 2 2 2 2 2")
CROSS = "M-4-4L4 4M4-4L-4 4"


@dataclass(frozen=True)
class Figure:
    """A figure of a page."""

    name: str
    title: str
    caption: str
    panels: tuple[str, ...]
    """An ``<svg>`` each. What belongs to a label is a group with its index as ``data-s``."""
    legend: tuple[tuple[str, str], ...]
    """Label, and an ``<svg>`` of its line; the index of a label is its place."""
    columns: int
    """Panels in a row."""


def figure(drawing: Drawing) -> Figure:
    """``drawing`` as a page shows it."""
    styles = looks(drawing)
    title, *caption = drawing.footer
    panels = [panel for row in drawing.rows for panel in row]
    legend = tuple((label, _key(look)) for label, look in styles.items())
    columns = max(len(row) for row in drawing.rows)
    return Figure(
        drawing.name,
        title,
        " ".join(f"{sentence}." for sentence in caption),
        tuple(_named(panel, styles) if panel.names else _panel(panel, styles) for panel in panels),
        legend,
        columns,
    )


# --- elements ---------------------------------------------------------------------------------------------------------


def element(name: str, content: str = "", **attributes: Any) -> str:
    """``<name …>content</name>``; ``content`` is markup, values are escaped, ``_`` in their names stands for ``-``."""
    shown = ((key.strip("_").replace("_", "-"), value) for key, value in attributes.items() if value not in (None, ""))
    texts = (f' {key}="{html.escape(_round(value))}"' for key, value in shown)
    return f"<{name}{''.join(texts)}>{content}</{name}>"


def text(words: str, x: float, y: float, anchor: str = "start", **attributes: Any) -> str:
    """A line of text at (x, y)."""
    return element("text", html.escape(words), x=x, y=y, text_anchor=anchor, **attributes)


def svg(content: str, width: float, height: float, label: str, **attributes: Any) -> str:
    """The drawing as a whole, with a ``label`` for those who do not see it."""
    return element("svg", content, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label, **attributes)


def _round(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _lines(pieces: Iterable[tuple[float, float, float, float]]) -> str:
    """The data of a path of separate lines, each from (x, y) to (x, y)."""
    return "".join("M{:.1f} {:.1f}L{:.1f} {:.1f}".format(*piece) for piece in pieces)


# --- axes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """Numbers from ``low`` to ``high`` along pixels from ``begin`` to ``end``."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.begin + (self.end - self.begin) * ((at - low) / (high - low) if high > low else 0.5)

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers from end to end."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            few = len(decades) <= 3
            every = max(1, len(decades) // most)
            numbers = [f * 10.0**d for d in decades if d % every == 0 for f in ((1, 2, 5) if few else (1,))]
            inside = [number for number in numbers if self.low <= number <= self.high]
            if len(inside) > 1:
                return inside
        step = 10 ** math.floor(math.log10((self.high - self.low) / most))
        step *= next(factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (factor * step) <= most)
        return [step * place for place in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def axis(values: Iterable[float], begin: float, end: float, log: bool, margin: float = 0.06) -> Axis:
    """An axis that has room for all ``values`` and a ``margin`` on both sides, as a share of their span."""
    known = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
    low, high = min(known), max(known)
    if log:
        factor = max((high / low) ** margin, 1.15)
        return Axis(low / factor, high * factor, begin, end, True)
    room = margin * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low - room, high + room, begin, end)


def number(value: float) -> str:
    """As one writes it: 0.02, 50, 20k, 1e-5."""
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.0e}".replace("e-0", "e−").replace("e-", "e−").replace("e+0", "e").replace("e+", "e")
    for size, letter in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:.6g}"


# --- panels -----------------------------------------------------------------------------------------------------------


def _panel(panel: Panel, styles: Mapping[str, Look]) -> str:
    """Lines against numbers."""
    xs = [x for line in panel.series for x in (*line.x, *(x for x, _ in (*line.marks, *line.expected)))]
    ys = [y for line in panel.series for y in (*line.y, *line.low, *line.high, *(y for _, y in line.expected))]
    ys += [level.mean + sign * (level.std or 0.0) for level in panel.levels for sign in (-1, 1)]
    marks = max(Counter(x for line in panel.series for x, _ in line.marks).values(), default=0)
    top = TOP + 14.0 * marks
    across = axis([*xs, *map(float, panel.ticks)], LEFT, WIDTH - RIGHT, panel.log_x)
    up = axis(ys, HEIGHT - BOTTOM, top, panel.log_y)
    ticks = [float(tick) for tick in panel.ticks] or across.ticks()
    parts = [_frame(across, up, ticks, panel.x_label, panel.y_label)]
    for level in panel.levels:
        parts.append(_group(level.label, styles, _level(level.mean, level.std, across, up, styles[level.label])))
    seen: Counter[float] = Counter()
    for line in sorted(panel.series, key=lambda line: list(styles).index(line.label)):
        drawn = _series(line, across, up, styles[line.label], panel)
        for x, status in line.marks:
            y = TOP + 8.0 + 14.0 * seen[x]
            seen[x] += 1
            short, words = STATUSES.get(status, (status, status))
            title = element("title", html.escape(f"{line.label}: {words} at {number(x)}"))
            drawn += element("path", title, d=CROSS, transform=f"translate({across(x):.1f} {y:.1f})", class_="cross")
            drawn += text(short, across(x) - 8, y + 4, "end", class_="small")
        parts.append(_group(line.label, styles, drawn))
    return svg("".join(parts), WIDTH, HEIGHT, f"{panel.y_label} against {panel.x_label}")


def _named(panel: Panel, styles: Mapping[str, Look]) -> str:
    """A row for each name, the numbers across: names need no room below each other, and are not turned."""
    left = min(16 + LETTER * max(map(len, panel.names)), 0.45 * WIDTH)
    bottom = TOP + ROW * len(panel.names)
    values = [v for line in panel.series for v in (*line.y, *line.low, *line.high)]
    values += [level.mean + sign * (level.std or 0.0) for level in panel.levels for sign in (-1, 1)]
    across = axis(values, left, WIDTH - RIGHT, panel.log_y)
    ticks = across.ticks(5)
    grid = element("path", d=_lines((across(t), TOP, across(t), bottom) for t in ticks), class_="grid")
    parts = [grid, *(text(number(t), across(t), bottom + 16, "middle") for t in ticks)]
    parts.append(text(panel.y_label, 0, 14, class_="title"))
    for level in panel.levels:
        at = across(level.mean)
        mark = element("path", d=_lines([(at, TOP, at, bottom)]), class_="line", stroke_dasharray="4 3")
        title = element("title", html.escape(f"{level.label}: {level.mean:.4g}"))
        parts.append(_group(level.label, styles, title + mark + text(level.label, at, TOP - 3, "middle")))
    for line in panel.series:
        drawn = ""
        for x, y, low, high in zip(line.x, line.y, line.low, line.high, strict=True):
            at = TOP + ROW * (x + 0.5)
            drawn += element("path", d=_lines([(across(low), at, across(high), at)]), class_="bar")
            drawn += _marker(across(y), at, styles[line.label], _told(line.label, "", y, low, high))
            drawn += text(_fit(panel.names[round(x)], left - 12), left - 12, at + 4, "end", class_="ink")
        parts.append(_group(line.label, styles, drawn))
    return svg("".join(parts), WIDTH, bottom + 26, panel.y_label)


def _frame(across: Axis, up: Axis, ticks: Iterable[float], x_label: str, y_label: str) -> str:
    """Grid, numbers and labels of the axes."""
    shown = [tick for tick in ticks if across.low <= tick <= across.high]
    levels = up.ticks(5)
    lines = [(across(x), up.begin, across(x), up.end) for x in shown]
    lines += [(across.begin, up(y), across.end, up(y)) for y in levels]
    texts = [text(number(x), across(x), up.begin + 16, "middle") for x in shown]
    texts += [text(number(y), across.begin - 6, up(y) + 4, "end") for y in levels]
    middle = (across.begin + across.end) / 2
    labels = text(x_label, middle, up.begin + 36, "middle", class_="title") + text(y_label, 0, 14, class_="title")
    base = element("path", d=_lines([(across.begin, up.begin, across.end, up.begin)]), class_="base")
    return element("path", d=_lines(lines), class_="grid") + base + "".join(texts) + labels


def _group(label: str, styles: Mapping[str, Look], content: str) -> str:
    """What is switched on and off with ``label``, in its colour."""
    return element("g", content, class_=f"c{styles[label].colour}", data_s=list(styles).index(label))


def _level(mean: float, std: float | None, across: Axis, up: Axis, look: Look) -> str:
    band = ""
    if std:
        top, bottom = up(mean + std), up(mean - std)
        band = element("rect", x=across.begin, y=top, width=across.end - across.begin, height=bottom - top)
    line = element(
        "path",
        element("title", html.escape(f"{mean:.4g}" + ("" if std is None else f" ± {std:.2g}"))),
        d=_lines([(across.begin, up(mean), across.end, up(mean))]),
        class_="line",
        stroke_dasharray=DASHES[look.variant % len(DASHES)],
    )
    return band.replace("<rect", '<rect class="band"') + line


def _series(line: Series, across: Axis, up: Axis, look: Look, panel: Panel) -> str:
    points = list(zip(line.x, line.y, line.low, line.high, strict=True))
    shown = [point for point in points if _drawable(point, panel)]
    steps = "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y, _, _ in shown)
    dash = DASHES[look.variant % len(DASHES)]
    parts = [
        element("path", d=steps and f"M{steps}", class_="line first" if look.first else "line", stroke_dasharray=dash)
    ]
    bars = [(across(x), up(low), across(x), up(high)) for x, _, low, high in shown if low < high]
    if bars:
        parts.append(element("path", d=_lines(bars), class_="bar"))
    dashes = [(across(x) - 7, up(y), across(x) + 7, up(y)) for x, y in line.expected]
    if dashes:
        parts.append(element("path", d=_lines(dashes), class_="expected"))
    for x, y, low, high in shown:
        parts.append(_marker(across(x), up(y), look, _told(line.label, f"{panel.x_label} {number(x)}: ", y, low, high)))
    return "".join(parts)


def _drawable(point: tuple[float, float, float, float], panel: Panel) -> bool:
    x, y, low, _ = point
    return (x > 0 or not panel.log_x) and ((low > 0 and y > 0) or not panel.log_y)


def _told(label: str, place: str, y: float, low: float, high: float) -> str:
    spread = f" ({low:.4g} to {high:.4g})" if low < high else ""
    return f"{label}, {place}{y:.4g}{spread}" if place else f"{label}: {y:.4g}{spread}"


def _marker(x: float, y: float, look: Look, told: str) -> str:
    title = element("title", html.escape(told))
    outline = MARKERS[look.variant % len(MARKERS)]
    return element("path", title, d=outline, transform=f"translate({x:.1f} {y:.1f})", class_="point")


def _key(look: Look) -> str:
    """The line of a legend."""
    dash = DASHES[look.variant % len(DASHES)]
    line = element("path", d="M0 7H28", class_="line first" if look.first else "line", stroke_dasharray=dash)
    point = element("path", d=MARKERS[look.variant % len(MARKERS)], transform="translate(14 7)", class_="point")
    return element("svg", line + point, viewBox="0 0 28 14", class_=f"key c{look.colour}", aria_hidden="true")


def _fit(words: str, width: float) -> str:
    letters = max(4, int(width / LETTER))
    return words if len(words) <= letters else words[: letters - 1] + "…"
