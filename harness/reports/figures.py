"""Records → figures: accuracy against time, cost against the size of the network, and what evaluations measure.

A figure holds one device, budget, kind of protocol, data set, ipc and meter, and one network: either the same for every
method, or, under its own name, each method's own.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.protocols import PROTOCOLS
from harness.records.record import Distilled, summarise
from harness.reports import drawing
from harness.reports.drawing import STATUSES, Drawing, Level, Panel, Series
from harness.reports.groups import ACCURACY, METERS, NONE, OURS, Group, costs_only, grouped, parted, quartiles, variants
from harness.reports.measures import Measure, measures
from harness.reports.scaling import AGAINST, sweeps
from harness.reports.tables import accuracy_words, measured_on

OWN_NETWORKS = "own_networks"
"""In place of a network's name: every method on the one that its protocol names."""


def write(distilled: Sequence[Distilled], folder: Path) -> list[Path]:
    """Draw all figures of ``distilled`` into ``folder``, three files each. Returns the paths.

    Raises UserError where matplotlib or seaborn is missing, and where the files cannot be written.
    """
    return drawing.write(drawings(distilled), folder)


def drawings(distilled: Sequence[Distilled]) -> list[Drawing]:
    """All figures that ``distilled`` give, in the order of their names."""
    groups = grouped(distilled)
    sketches = [*_costs(costs_only(distilled)), *_accuracies(groups), *_measured(groups)]
    names = Counter(name for name, _, _ in sketches)
    made = []
    for name, key, figure in sketches:
        # What differs is not worth a part of the name until two figures differ in nothing else.
        suffix = f"-{hashlib.sha256(repr(key).encode()).hexdigest()[:6]}" if names[name] > 1 else ""
        made.append(Drawing(name + suffix, figure.rows, figure.footer))
    return sorted(made, key=lambda figure: figure.name)


_Sketch = tuple[str, tuple[Any, ...], Drawing]
"""Name, what tells it from others of that name, and the figure."""


def _costs(groups: Sequence[Group]) -> Iterator[_Sketch]:
    """Figures of time and memory: of cost cells, and of others that were run at several widths."""
    attempted = [group for group in groups if _attempted(group)]
    for key, network, same in _comparable(attempted, ("seconds",)):
        if same[0].evaluated and all(len(sweep) < 2 for sweep in sweeps(same)):
            continue
        meters: list[str | None] = [*sorted({meter for group in same for meter in group.meters})]
        for meter in meters or [None]:
            yield _cost((*key, meter), network, sweeps([g for g in same if g.meters <= {meter}]), meter)


def _attempted(group: Group) -> bool:
    """Whether the group has iterations to show, or failed before it had any."""
    return _iterative(group) and (bool(group.step_seconds) or not group.ok)


def _iterative(group: Group) -> bool:
    return any(group.distillation.get(name) is not None for name in ("steps", "seconds"))


_Value = Callable[[Group], tuple[float, float, float] | None]
"""What a panel shows of a group: the point and the ends of its error bar."""


def _cost(key: tuple[Any, ...], network: str, shown: Sequence[tuple[Group, ...]], meter: str | None) -> _Sketch:
    labels = _labels([sweep[0] for sweep in shown])
    groups = [group for sweep in shown for group in sweep]
    parameters = {_place(group): number for group in groups for number in group.costs("parameters")}

    def size(against: str, group: Group) -> float | None:
        # A cell that was killed before it could count has the parameters that its neighbours have.
        return AGAINST[against](group) or parameters.get(_place(group))

    bases = [sweep for sweep in shown if sweep[0].method == OURS]
    ours = {g.distillation["width"]: g for g in bases[0] if g.ok} if len(bases) == 1 else {}

    def expected(group: Group) -> float | None:
        """The seconds of an iteration if they were to those of ``OURS`` as the operations are."""
        own = ours.get(group.distillation["width"])
        if own is None or own.median is None or group.method == OURS:
            return None
        operations, base = group.most("flops_per_step"), own.most("flops_per_step")
        return own.median * operations / base if operations and base else None

    def line(label: str, sweep: Sequence[Group], against: str, value: _Value) -> Series:
        points = [(x, y) for g in sweep if g.ok and (x := size(against, g)) and (y := value(g))]
        marks = [(x, g.records[0]["status"]) for g in sweep if not g.ok and (x := size(against, g))]
        middle, low, high = (tuple(y[i] for _, y in points) for i in range(3))
        x_values = tuple(x for x, _ in points)
        in_proportion = [(size(against, g), expected(g)) for g in sweep if value is _seconds]
        by_operations = tuple((x, seconds) for x, seconds in in_proportion if x and seconds)
        return Series(sweep[0].method, label, x_values, middle, low, high, tuple(marks), by_operations)

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
    first = groups[0]
    footer = [
        f"{_task(first)}, {_network_words(network)}",
        *measured_on(groups),
        "Seconds: median and quartiles of one update of the synthetic images",
    ]
    if any(line.expected for line in rows[0][0].series):
        footer.append(f"Bars: the seconds of {OURS} times the ratio of the operations of an iteration")
    if statuses := sorted({group.records[0]["status"] for group in groups if not group.ok}):
        footer.append(f"✗: no measurement ({'; '.join(': '.join(STATUSES[status]) for status in statuses)})")
    budget = [] if first.budget == "cost" else [first.budget]
    name = _slug("cost", *_task_parts(first), network, first.table[2], *budget, meter, first.device)
    return name, key, Drawing(name, rows, tuple(footer))


def _place(group: Group) -> tuple[str, int]:
    """What groups with as many parameters share."""
    return group.distillation["network"], group.distillation["width"]


def _seconds(group: Group) -> tuple[float, float, float] | None:
    """Median and quartiles."""
    median = group.median
    return None if median is None else (median, *(quartiles(group.step_seconds) or (median, median)))


def _mebibytes(number: float | None) -> tuple[float, float, float] | None:
    """As a point without error bars; None also for a peak of 0, which has no place on a logarithmic axis."""
    return (number / 2**20, number / 2**20, number / 2**20) if number else None


def _accuracies(groups: Sequence[Group]) -> Iterator[_Sketch]:
    """Figures of accuracy: of what has a curve, beside what was evaluated in the same way and has no steps."""
    for key, network, same in _tested_alike(groups):
        curves = [group for group in same if group.curve]
        if curves:
            yield _accuracy(key, network, curves, [group for group in same if group not in curves])


def _accuracy(key: tuple[Any, ...], network: str, curves: Sequence[Group], others: Sequence[Group]) -> _Sketch:
    labels = _labels([*curves, *others])
    (accuracy,) = (m for m in measures([*curves, *others]) if m.name == m.evaluation == ACCURACY)
    pairs = zip(others, labels[len(curves) :], strict=True)
    levels = _levels(accuracy, [(group, label) for group, label in pairs if group.ceiling or not _iterative(group)])

    def line(label: str, group: Group, x: Sequence[float]) -> Series:
        return _series(group, label, x, [point.values for point in group.curve])

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
    words = f"Accuracy: of the set as it stood then, {accuracy_words([*curves, *others])}"
    return _evaluation_figure("accuracy", key, network, [*curves, *others], row, words)


def _measured(groups: Sequence[Group]) -> Iterator[_Sketch]:
    """A figure of every quantity of an evaluation that is to be drawn: method beside method, or a line for each."""
    for key, network, same in _tested_alike(groups):
        for measure in measures(same):
            shown = [group for group in same if measure.values(group)]
            if not measure.quantity.drawn or all(group.ceiling for group in shown):
                continue
            labels = _labels(shown)
            pairs = list(zip(shown, labels, strict=True))
            if measure.quantity.against is None:
                points = [(group, label) for group, label in pairs if not group.ceiling]
                ceilings = _levels(measure, [(group, label) for group, label in pairs if group.ceiling])
                lines = tuple(
                    _series(group, label, [place], [measure.values(group)], measure.scale)
                    for place, (group, label) in enumerate(points)
                )
                names = tuple(label for _, label in points)
                panel = Panel("", measure.title, lines, ceilings, log_x=False, names=names)
            else:
                lines = tuple(_line(measure, group, label) for group, label in pairs)
                panel = Panel(measure.quantity.against, measure.title, lines, log_x=False)
            words = f"{measure.title}: mean ± sample standard deviation, no deviation of a single value"
            yield _evaluation_figure(measure.label, (*key, measure.label), network, shown, (panel,), words)


def _line(measure: Measure, group: Group, label: str) -> Series:
    points = list(zip(*measure.series(group), strict=False))
    return _series(group, label, range(1, len(points) + 1), points, measure.scale)


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
    spread = [summarise(values) for values in points]
    y = [(scale * (mean or 0.0), scale * (std or 0.0)) for mean, std in spread]
    middle, low, high = (tuple(mean + sign * std for mean, std in y) for sign in (0, -1, 1))
    return Series(group.method, label, tuple(x), middle, low, high)


def _evaluation_figure(
    begin: str, key: tuple[Any, ...], network: str, groups: Sequence[Group], row: tuple[Panel, ...], words: str
) -> _Sketch:
    first = next(group for group in groups if not group.ceiling)
    width = first.distillation["width"]
    apart = ", ".join(f"{name} {value}" for name, value in _elsewhere(first).items())
    failed = [(group.method, status) for group in groups if not group.values for status, _ in group.statuses]
    names = [f"{method} ({status})" for method, status in failed if status != "ok"]
    footer = [
        f"{_task(first)}, {_network_words(network)}, width {width}",
        *([f"Evaluated on {apart}"] if apart else []),
        *measured_on(groups),
        words,
        *([f"Did not end well: {', '.join(names)}"] if names else []),
    ]
    name = _slug(begin, *_task_parts(first), network, f"w{width}", first.table[2], first.budget, first.device)
    return name, key, Drawing(name, (row,), tuple(footer))


def _tested_alike(groups: Sequence[Group]) -> Iterator[tuple[tuple[Any, ...], str, list[Group]]]:
    """As `_comparable`, of sets that were evaluated alike, the recipes of their methods' papers apart."""

    def recipe(group: Group) -> str | None:
        if not any(member.results for member in group.members):
            return None
        trained = {k: v for k, v in group.recipe.items() if k not in ("protocol", "network", "width", "depth")}
        return json.dumps([trained, _elsewhere(group)], sort_keys=True)

    yield from _comparable([group for group in groups if group.evaluated], ("width",), recipe)


def _elsewhere(group: Group) -> dict[str, Any]:
    """The size and kind of the evaluated network, where they are not those of the network that distilled."""
    asked, recipe = group.distillation, group.recipe
    return {k: recipe[k] for k in ("network", "width", "depth") if k in recipe and recipe[k] != asked[k]}


def _comparable(
    groups: Sequence[Group], names: Sequence[str], recipe: Callable[[Group], str | None] = lambda group: ""
) -> Iterator[tuple[tuple[Any, ...], str, list[Group]]]:
    """What may stand in one figure, with its key and its network; ``names``: settings that part it too.

    Networks trained on all real images stand in the figures of every ipc, and sets without a ``recipe`` in those of
    every recipe.
    """
    shared = ("dataset", "data_fingerprint", "depth", "image_size", "dtype", "tf32", "memory_limit_bytes", *names)

    def key(group: Group) -> tuple[Any, ...]:
        return *group.table, *(group.distillation.get(name) for name in shared)

    keys = [(key(group), group.distillation["ipc"], recipe(group)) for group in groups]
    asked = [known for group, known in zip(groups, keys, strict=True) if not group.ceiling and known[2] is not None]
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
    own = [g for g in groups if g.table[2] == "native" and g.distillation["network"] == _own_network(g)]
    names = sorted({group.distillation["network"] for group in groups})
    figures = [(name, [group for group in groups if group.distillation["network"] == name]) for name in names]
    if len({group.distillation["network"] for group in own}) < 2:
        return figures
    return [(name, same) for name, same in figures if any(g not in own for g in same)] + [(OWN_NETWORKS, own)]


def _own_network(group: Group) -> str | None:
    protocol = PROTOCOLS.get(group.protocol)
    return protocol.network if protocol else None


def _labels(groups: Sequence[Group]) -> list[str]:
    """The methods, and where that does not tell two lines apart, what sets them apart."""
    methods = [group.method for group in groups]
    apart = ["" if settings == NONE else f" ({textwrap.shorten(settings, 40)})" for settings in variants(groups)]
    return [method + settings for method, settings in zip(methods, apart, strict=True)]


def _task(group: Group) -> str:
    asked = group.distillation
    size = "" if asked.get("image_size") is None else f" at {asked['image_size']}×{asked['image_size']}"
    return f"{asked['dataset']}{size}, {asked['ipc']} synthetic image{'s' if asked['ipc'] > 1 else ''} per class"


def _task_parts(group: Group) -> tuple[str, str]:
    return group.distillation["dataset"], f"ipc{group.distillation['ipc']}"


def _network_words(network: str) -> str:
    return "every method on its own network" if network == OWN_NETWORKS else f"all on {network}"


def _slug(*parts: str | None) -> str:
    return "-".join(re.sub(r"[^A-Za-z0-9_]+", "-", part).strip("-") for part in parts if part)
