"""How cost grows with the network: fitted exponents, into ``scaling.md``, ``scaling.tex`` and ``scaling.csv``.

Time and memory are taken as a power of the width or of the number of parameters, y = a·x^b; b is the slope of ordinary
least squares of log y on log x, one point per width: the median over the samples of an iteration, the largest peak over
the seeds. Where a fixed cost bends the line at small widths, b is an average over the range that was measured. The
interval is of how the widths scatter about the line, such bends included, and not of how runs differ.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.records.files import write_texts
from harness.records.record import Distilled
from harness.reports.groups import METERS, NONE, Group, costs_only, parted, variants
from harness.reports.render import TEX_HEAD, Table, csv, latex, markdown
from harness.reports.tables import measured_on

LEVEL = 0.95
"""Level of the confidence intervals."""
LEAST = 3
"""Points of a fit; through two every line goes exactly."""


@dataclass(frozen=True)
class Fit:
    """The exponent b of y = a·x^b, and the limits of its confidence interval."""

    exponent: float
    low: float
    high: float
    points: int


_Fits = Mapping[tuple[str, str], Fit]


def power_law(x: Sequence[float], y: Sequence[float], level: float = LEVEL) -> Fit | None:
    """Least squares of log y on log x; the interval is that of Student's t with n − 2 degrees of freedom.

    None for fewer than three different ``x``. Raises ValueError where a number is not positive.
    """
    if len(set(x)) < LEAST:
        return None
    from scipy.stats import t

    log_x, log_y = [math.log(value) for value in x], [math.log(value) for value in y]
    slope, intercept = statistics.linear_regression(log_x, log_y)
    squares = sum((v - intercept - slope * u) ** 2 for u, v in zip(log_x, log_y, strict=True))
    mean = statistics.fmean(log_x)
    freedom = len(log_x) - 2
    error = math.sqrt(squares / freedom / sum((u - mean) ** 2 for u in log_x))
    margin = float(t.ppf((1 + level) / 2, freedom)) * error
    return Fit(slope, slope - margin, slope + margin, len(log_x))


def sweeps(groups: Sequence[Group]) -> list[tuple[Group, ...]]:
    """Groups that differ in nothing but the width, together, in the order of the width."""
    together: dict[str, list[Group]] = {}
    for group in groups:
        settings = {name: value for name, value in group.settings.items() if name != "width"}
        together.setdefault(json.dumps([group.table, settings], sort_keys=True), []).append(group)
    return [
        tuple(sorted(part, key=lambda group: group.distillation["width"]))
        for same in together.values()
        for part in parted(same, lambda group: group.conditions)
    ]


QUANTITIES: Mapping[str, Callable[[Group], float | None]] = {
    "s/iteration": lambda group: group.median,
    **{
        title.removesuffix(" (MiB)"): lambda group, meter=meter: group.headline(meter)  # type: ignore[misc]
        for meter, (_, title) in METERS.items()
    },
    "peak of live tensors": lambda group: group.most("peak_live_bytes"),
}
"""Quantities that grow: name → value for one width; None where it was not measured."""
AGAINST: Mapping[str, Callable[[Group], float | None]] = {
    "width": lambda group: float(group.distillation["width"]),
    "parameters": lambda group: group.most("parameters"),
}


def fits(sweep: Sequence[Group]) -> dict[tuple[str, str], Fit]:
    """(quantity, what it grows with) → its exponent, for those with enough widths that went well."""
    fitted = {}
    for quantity, value in QUANTITIES.items():
        for against, size in AGAINST.items():
            known = [(x, y) for group in sweep if group.ok and (x := size(group)) and (y := value(group))]
            if fit := power_law([x for x, _ in known], [y for _, y in known]):
                fitted[quantity, against] = fit
    return fitted


def write(distilled: Sequence[Distilled], folder: Path) -> list[Path]:
    """Write the three files into ``folder``; none where no sweep has enough widths. Returns what was written.

    Raises UserError where the files cannot be written.
    """
    pairs = _pairs(distilled)
    if not pairs:
        return []
    made = _tables(pairs)
    contents = {
        "scaling.md": "\n\n".join(markdown(table) for table in made) + "\n",
        "scaling.tex": TEX_HEAD + "\n".join(latex(table) for table in made),
        "scaling.csv": csv(row for pair in pairs for row in _rows(*pair)),
    }
    write_texts(contents, folder, "the exponents")
    return [folder / name for name in contents]


def tables(distilled: Sequence[Distilled]) -> list[Table]:
    """The tables of exponents, one for each device, budget, kind of protocol and version; none without a fit."""
    return _tables(_pairs(distilled))


def _pairs(distilled: Sequence[Distilled]) -> list[tuple[tuple[Group, ...], _Fits]]:
    return [(sweep, fitted) for sweep in sweeps(costs_only(distilled)) if (fitted := fits(sweep))]


def _tables(pairs: Sequence[tuple[tuple[Group, ...], _Fits]]) -> list[Table]:
    keys = dict.fromkeys(sweep[0].table for sweep, _ in pairs)
    return [_table([pair for pair in pairs if pair[0][0].table == key]) for key in keys]


def _rows(sweep: Sequence[Group], fitted: _Fits) -> list[dict[str, Any]]:
    """Rows of ``scaling.csv``, one for each fit: nothing rounded."""
    names = ("device", "budget", "protocol_kind", "protocol_version")
    settings = {
        name: value for name, value in {**sweep[0].circumstances, **sweep[0].settings}.items() if name != "width"
    }
    return [
        {
            **dict(zip(names, sweep[0].table, strict=True)),
            **settings,
            "quantity": quantity,
            "against": against,
            "exponent": fit.exponent,
            "confidence_low": fit.low,
            "confidence_high": fit.high,
            "confidence_level": LEVEL,
            "points": fit.points,
            "widths": " ".join(str(group.distillation["width"]) for group in sweep if group.ok),
        }
        for (quantity, against), fit in fitted.items()
    ]


def _table(pairs: Sequence[tuple[tuple[Group, ...], _Fits]]) -> Table:
    first = [sweep[0] for sweep, _ in pairs]

    def words(quantity: str, against: str) -> list[str]:
        exponents = [fitted.get((quantity, against)) for _, fitted in pairs]
        return [NONE if fit is None else f"{fit.exponent:.2f} [{fit.low:.2f}, {fit.high:.2f}]" for fit in exponents]

    columns = {
        "method": [group.method for group in first],
        "setting": variants(first),
        "data set": [group.distillation["dataset"] for group in first],
        "ipc": [group.ipc for group in first],
        "network": [group.distillation["network"] for group in first],
        "widths": [", ".join(str(g.distillation["width"]) for g in sweep if g.ok) for sweep, _ in pairs],
        **{f"{quantity} with {against}": words(quantity, against) for quantity in QUANTITIES for against in AGAINST},
    }
    filled = {title: cells for title, cells in columns.items() if set(cells) - {NONE}}
    where, *versions = measured_on([group for sweep, _ in pairs for group in sweep])
    caption = f"Exponents b of y = a x^b with {LEVEL:.0%} confidence intervals, one point for each width. {where}."
    method = (
        "Least squares in the logarithms. The intervals are of the scatter of the widths about the power law, not of "
        "repeated runs."
    )
    notes = (method, " ".join(f"{sentence}." for sentence in versions))
    return Table(caption, tuple(filled), tuple(zip(*filled.values(), strict=True)), frozenset(), notes)
