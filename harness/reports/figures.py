"""Records → figures: accuracy against time, cost against the size of the network, and what evaluations measure.

A figure holds one device, budget, kind of protocol, data set, ipc and meter, and one network: either the same for every
method, or, under its own name, each method's own.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.plan.jobs import ACCURACY
from harness.records.record import Distilled, summarise
from harness.reports import drawing
from harness.reports.drawing import STATUSES, Drawing, Level, Panel, Series
from harness.reports.groups import (
    EVALUATED,
    METERS,
    NONE,
    OURS,
    Group,
    costs_only,
    grouped,
    parted,
    quartiles,
    variants,
)
from harness.reports.measures import Measure, measures
from harness.reports.ratios import size_ratio
from harness.reports.scaling import AGAINST, sweeps
from harness.reports.tables import accuracy_words, measured_on

OWN_NETWORKS = "own_networks"
"""In place of a network's name: every method on the one that its protocol names."""
MANY = 10
"""Places on an axis that are too many to label each."""
LONGEST = 200
"""Characters of the name of a file, its ending apart."""


def write(distilled: Sequence[Distilled], folder: Path) -> list[Path]:
    """Draw all figures of ``distilled`` into ``folder``, three files each. Returns the paths.

    Raises UserError where matplotlib or seaborn is missing, and where the files cannot be written.
    """
    return drawing.write(((each.name, functools.partial(drawing.draw, each)) for each in drawings(distilled)), folder)


def drawings(distilled: Sequence[Distilled]) -> list[Drawing]:
    """All figures that ``distilled`` give, in the order of their names."""
    groups = grouped(distilled)
    sketches = [*_costs(costs_only(distilled)), *_accuracies(groups), *_measured(groups)]
    names = Counter(figure.name for _, figure in sketches)
    made = []
    for key, figure in sketches:
        # What differs is not worth a part of the name until two figures differ in nothing else.
        suffix = f"-{hashlib.sha256(repr(key).encode()).hexdigest()[:6]}" if names[figure.name] > 1 else ""
        made.append(Drawing(figure.name + suffix, figure.rows, figure.footer))
    return sorted(made, key=lambda figure: figure.name)


_Key = tuple[Any, ...]
"""Settings that tell a figure from others of its name."""
_Value = Callable[[Group], tuple[float, float, float] | None]
"""Shows a group in a panel: the point and the ends of its error bar."""


# --- cost -------------------------------------------------------------------------------------------------------------


def _costs(groups: Sequence[Group]) -> Iterator[tuple[_Key, Drawing]]:
    """Figures of time and memory: of cost cells, and of others that were run at several widths."""
    attempted = [group for group in groups if _iterative(group) and (group.step_seconds or not group.ok)]
    for key, network, same in _comparable(attempted, ("seconds", "interleaved")):
        if same[0].evaluated and all(len(sweep) < 2 for sweep in sweeps(same)):
            continue
        meters: list[str | None] = [*sorted({meter for group in same for meter in group.meters})]
        for meter in meters or [None]:
            yield (*key, meter), _cost(network, sweeps([g for g in same if g.meters <= {meter}]), meter)


def _iterative(group: Group) -> bool:
    return any(group.distillation.get(name) is not None for name in ("steps", "seconds"))


def _cost(network: str, shown: Sequence[tuple[Group, ...]], meter: str | None) -> Drawing:
    labels = _labels([sweep[0] for sweep in shown])
    groups = [group for sweep in shown for group in sweep]
    parameters = {_place(group): number for group in groups for number in group.costs("parameters")}
    bases = [sweep for sweep in shown if sweep[0].method == OURS]
    ours = {g.distillation["width"]: g for g in bases[0] if g.ok} if len(bases) == 1 else {}

    def size(against: str, group: Group) -> float | None:
        # A cell that was killed before it could count has the parameters that its neighbours have.
        return AGAINST[against](group) or parameters.get(_place(group))

    def expected(group: Group) -> float | None:
        """The seconds of an iteration if they were to those of ``OURS`` as the operations are."""
        own = ours.get(group.distillation["width"])
        ratio = None if group.method == OURS else size_ratio(group, own, "flops_per_step")
        return own.median * ratio if own and own.median and ratio else None

    def line(label: str, sweep: Sequence[Group], against: str, value: _Value) -> Series:
        places = [(x, group) for group in sweep if (x := size(against, group))]
        points = [(x, y) for x, group in places if group.ok and (y := value(group))]
        middle, low, high = (tuple(y[i] for _, y in points) for i in range(3))
        marks = tuple((x, group.records[0]["status"]) for x, group in places if not group.ok)
        bars = tuple((x, seconds) for x, group in places if value is _seconds and (seconds := expected(group)))
        return Series(sweep[0].method, label, tuple(x for x, _ in points), middle, low, high, marks, bars)

    def panel(against: str, title: str, value: _Value) -> Panel:
        widths = tuple(sorted({int(group.distillation["width"]) for group in groups})) if against == "width" else ()
        lines = tuple(line(label, sweep, against, value) for label, sweep in zip(labels, shown, strict=True))
        return Panel(against, title, lines, log_y=True, ticks=widths)

    quantities: list[tuple[str, _Value]] = [("seconds per iteration", _seconds)]
    if meter is not None:
        quantities.append((METERS[meter][1], lambda group: _mebibytes(group.headline(meter))))
    quantities.append(("peak of live tensors (MiB)", lambda group: _mebibytes(group.most("peak_live_bytes"))))
    measured = [(title, value) for title, value in quantities if any(value(group) for group in groups if group.ok)]
    rows = tuple(tuple(panel(against, *quantity) for quantity in measured or quantities[:1]) for against in AGAINST)
    # Where every cell was killed before it could count, nobody knows the parameters.
    rows = tuple(row for row in rows if any(line.x or line.marks for line in row[0].series))
    footer = [_task(groups[0], network), *measured_on(groups)]
    footer.append("Seconds: median and quartiles of one update of the synthetic images")
    if turns := groups[0].distillation["interleaved"]:
        footer.append(f"Steps taken by turns in one process: {turns}")
    if any(line.expected for line in rows[0][0].series):
        footer.append(f"Bars: the seconds of {OURS} times the ratio of the operations of an iteration")
    if statuses := sorted({group.records[0]["status"] for group in groups if not group.ok}):
        footer.append(f"✗: no measurement ({'; '.join(': '.join(STATUSES[status]) for status in statuses)})")
    device, budget, kind, _ = groups[0].table
    return Drawing(
        _slug("cost", groups[0], network, kind, "" if budget == "cost" else budget, meter, device), rows, tuple(footer)
    )


def _place(group: Group) -> tuple[str, int]:
    """Settings that groups with as many parameters share."""
    return group.distillation["network"], group.distillation["width"]


def _seconds(group: Group) -> tuple[float, float, float] | None:
    """Median and quartiles; None also for a median of 0, which has no place on a logarithmic axis."""
    median = group.median
    return (median, *(quartiles(group.step_seconds) or (median, median))) if median else None


def _mebibytes(number: float | None) -> tuple[float, float, float] | None:
    """As a point without error bars; None also for a peak of 0."""
    return (number / 2**20, number / 2**20, number / 2**20) if number else None


# --- evaluations ------------------------------------------------------------------------------------------------------


def _accuracies(groups: Sequence[Group]) -> Iterator[tuple[_Key, Drawing]]:
    """Figures of accuracy: of what has a curve, beside what was evaluated in the same way and has no steps."""
    for key, network, same in _tested_alike(groups):
        curves = [group for group in same if group.curve]
        if curves:
            yield key, _accuracy(network, curves, [group for group in same if group not in curves])


def _accuracy(network: str, curves: Sequence[Group], others: Sequence[Group]) -> Drawing:
    groups = [*curves, *others]
    labels = _labels(groups)
    (accuracy,) = (m for m in measures(groups) if m.name == m.evaluation == ACCURACY)
    pairs = zip(others, labels[len(curves) :], strict=True)
    levels = _levels(accuracy, [(group, label) for group, label in pairs if group.ceiling or not _iterative(group)])

    def panel(title: str, x: Callable[[Group], list[float]]) -> Panel:
        pairs = zip(labels, curves, strict=False)
        lines = (_series(group, label, x(group), [point.values for point in group.curve]) for label, group in pairs)
        return Panel(title, "test accuracy (%)", tuple(lines), levels)

    def prepare(group: Group) -> float:
        return statistics.fmean(group.costs("prepare_seconds") or [0.0])

    row = (
        panel("seconds of distilling", lambda group: [point.seconds for point in group.curve]),
        panel("seconds with preparation", lambda group: [prepare(group) + point.seconds for point in group.curve]),
        panel("iterations", lambda group: [point.step for point in group.curve]),
    )
    words = f"Accuracy: of the set as it stood then, {accuracy_words(groups)}"
    return _evaluation_figure("accuracy", network, groups, row, words)


def _measured(groups: Sequence[Group]) -> Iterator[tuple[_Key, Drawing]]:
    """A figure of every quantity of an evaluation that is to be drawn: method beside method, or a line for each."""
    for key, network, same in _tested_alike(groups):
        for measure in measures(same):
            shown = [group for group in same if measure.values(group)]
            if not measure.quantity.drawn or all(group.ceiling for group in shown):
                continue
            pairs = list(zip(shown, _labels(shown), strict=True))
            if measure.quantity.against is None:
                points = [(group, label) for group, label in pairs if not group.ceiling]
                lines = tuple(
                    _series(group, label, [place], [measure.values(group)], measure.scale)
                    for place, (group, label) in enumerate(points)
                )
                ceilings = _levels(measure, [(group, label) for group, label in pairs if group.ceiling])
                names = tuple(label for _, label in points)
                panel = Panel("", measure.title, lines, ceilings, log_x=False, names=names)
            else:
                lines = tuple(_line(measure, *pair) for pair in pairs)
                places = sorted({x for line in lines for x in line.x})
                panel = Panel(measure.quantity.against, measure.title, lines, **_axis(places))
            words = f"{measure.title}: mean ± sample standard deviation, no deviation of a single value"
            yield (*key, measure.label), _evaluation_figure(measure.label, network, shown, (panel,), words)


def _line(measure: Measure, group: Group, label: str) -> Series:
    points = list(zip(*measure.series(group), strict=False))
    return _series(group, label, measure.places(group)[: len(points)], points, measure.scale)


def _axis(places: Sequence[float]) -> dict[str, Any]:
    """The x axis of a series: by logarithms, with a label at each place, where the places span a power of ten."""
    wide = 0 < 10 * places[0] <= places[-1]
    return {"log_x": wide, "ticks": tuple(map(int, places)) if wide and len(places) < MANY else ()}


def _levels(measure: Measure, pairs: Sequence[tuple[Group, str]]) -> tuple[Level, ...]:
    """The same value whatever stands on the x axis."""
    values = [(group, label, summarise(measure.values(group))) for group, label in pairs]
    return tuple(
        Level(group.method, label, measure.scale * mean, None if std is None else measure.scale * std)
        for group, label, (mean, std) in values
        if mean is not None
    )


def _series(
    group: Group, label: str, x: Sequence[float], points: Sequence[Sequence[float]], scale: float = 100.0
) -> Series:
    """Mean ± sample standard deviation of the values of every point."""
    y = [(scale * (mean or 0.0), scale * (std or 0.0)) for mean, std in map(summarise, points)]
    middle, low, high = (tuple(mean + sign * std for mean, std in y) for sign in (0, -1, 1))
    return Series(group.method, label, tuple(x), middle, low, high)


def _evaluation_figure(
    begin: str, network: str, groups: Sequence[Group], row: tuple[Panel, ...], words: str
) -> Drawing:
    first = next(group for group in groups if not group.ceiling)
    device, budget, kind, _ = first.table
    width = first.distillation["width"]
    recipes = ", ".join(sorted({f"{group.method}: {group.protocol}" for group in groups}))
    failed = [(group.method, status) for group in groups if not group.values for status, _ in group.statuses]
    names = [f"{method} ({status})" for method, status in failed if status != "ok"]
    footer = [
        f"{_task(first, network)}, width {width}",
        *([f"Evaluated on {first.evaluated_on}"] if first.evaluated_on else []),
        *measured_on(groups),
        *([f"Recipes: {recipes}"] if kind == "native" else []),
        words,
        *([f"Did not end well: {', '.join(names)}"] if names else []),
    ]
    return Drawing(_slug(begin, first, network, f"w{width}", kind, budget, device), (row,), tuple(footer))


# --- what may stand in one figure, and what it is called --------------------------------------------------------------


def _tested_alike(groups: Sequence[Group]) -> Iterator[tuple[_Key, str, list[Group]]]:
    """As `_comparable`, of sets that were evaluated alike, the recipes of their methods' papers apart."""

    def recipe(group: Group) -> str | None:
        if not any(member.results for member in group.members):
            return None
        trained = {k: v for k, v in group.recipe.items() if k not in ("protocol", *EVALUATED)}
        return json.dumps([trained, group.evaluated_on], sort_keys=True)

    yield from _comparable([group for group in groups if group.evaluated], ("width",), recipe)


def _comparable(
    groups: Sequence[Group], names: Sequence[str], recipe: Callable[[Group], str | None] = lambda group: ""
) -> Iterator[tuple[_Key, str, list[Group]]]:
    """Groups that may stand in one figure, with its key and its network; ``names``: settings that part them too.

    Networks trained on all real images stand in the figures of every ipc, and sets without a ``recipe`` in those of
    every recipe.
    """
    shared = ("dataset", "data_fingerprint", "depth", "image_size", "dtype", "tf32", "memory_limit_bytes", *names)
    keys = [
        (
            (*group.table, *(repr(group.distillation.get(name)) for name in shared)),
            group.distillation["ipc"],
            recipe(group),
        )
        for group in groups
    ]
    asked = [key for group, key in zip(groups, keys, strict=True) if not group.ceiling and key[2] is not None]
    for settings, ipc, by in dict.fromkeys(asked):
        same = [
            group
            for group, (own, per_class, own_by) in zip(groups, keys, strict=True)
            if own == settings and (group.ceiling or per_class == ipc) and own_by in (by, None)
        ]
        for part in parted(same, lambda group: group.circumstances):
            circumstances = tuple(sorted(part[0].circumstances.items()))
            for network, figure in _by_network(part):
                if any(not group.ceiling for group in figure):
                    yield (*settings, ipc, by, circumstances, network), network, figure


def _by_network(groups: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    """The groups of every network; those on their protocol's own, where these are several, as ``OWN_NETWORKS``."""
    names = sorted({group.distillation["network"] for group in groups})
    figures = [(name, [group for group in groups if group.distillation["network"] == name]) for name in names]
    own = [group for group in groups if group.on_own_network]
    if len({group.distillation["network"] for group in own}) < 2:
        return figures
    return [(name, same) for name, same in figures if not all(g.on_own_network for g in same)] + [(OWN_NETWORKS, own)]


def _labels(groups: Sequence[Group]) -> list[str]:
    """The methods, and where that does not tell two lines apart, what sets them apart."""
    pairs = zip(groups, variants(groups), strict=True)
    return [g.method + ("" if apart == NONE else f" ({textwrap.shorten(apart, 40)})") for g, apart in pairs]


def _task(group: Group, network: str) -> str:
    asked = group.distillation
    size = "" if asked.get("image_size") is None else f" at {asked['image_size']}×{asked['image_size']}"
    images = f"{asked['ipc']} synthetic image{'s' if asked['ipc'] > 1 else ''} per class"
    words = "every method on its own network" if network == OWN_NETWORKS else f"all on {network}"
    return f"{asked['dataset']}{size}, {images}, {words}"


def _slug(begin: str, group: Group, *parts: str | None) -> str:
    every = (begin, group.distillation["dataset"], f"ipc{group.distillation['ipc']}", *parts)
    return "-".join(re.sub(r"[^A-Za-z0-9_]+", "-", part).strip("-") for part in every if part)[:LONGEST]
