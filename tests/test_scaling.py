"""Fitted exponents: known ones are found, the intervals hold what they promise, and what cannot be fitted is not."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.records.record import Distilled
from harness.reports import scaling
from harness.reports.groups import grouped
from harness.reports.scaling import power_law
from tests.builders import MIB, made
from tests.test_report import cells

WIDTHS = (16, 32, 64, 128)


def sweep(exponent: float = 1.5, widths: tuple[int, ...] = WIDTHS, **changes: Any) -> list[Distilled]:
    """Cost cells whose seconds grow with the width to the power ``exponent`` and whose memory grows with its square."""
    records = []
    for width in widths:
        each = made((), width=width, budget="cost", peak=int(MIB * width**2), **changes)
        each.record["cost"]["step_seconds"] = [1e-3 * width**exponent] * 3
        each.record["cost"]["parameters"] = 10 * width**2
        records.append(each)
    return records


def test_a_known_exponent_is_found_exactly() -> None:
    fit = power_law(WIDTHS, [3.0 * x**1.7 for x in WIDTHS])
    assert fit is not None and fit.points == 4
    assert [fit.exponent, fit.low, fit.high] == pytest.approx([1.7] * 3, rel=1e-6)


def test_the_interval_is_that_of_students_t() -> None:
    """Against numbers worked out by hand: residuals (1, −2, 1)·r about a line through three equidistant points."""
    r = 0.01
    fit = power_law([1.0, math.e, math.e**2], [math.exp(v) for v in (r, 1 - 2 * r, 2 + r)])
    assert fit is not None
    error = math.sqrt(6 * r**2 / 1 / 2)  # squares over one degree of freedom, over Σ (x − mean)²
    assert fit.exponent == pytest.approx(1.0)
    assert fit.high - fit.exponent == pytest.approx(12.7062 * error, rel=1e-5)
    assert fit.exponent - fit.low == pytest.approx(12.7062 * error, rel=1e-5)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw = random.Random(0)
    trials, held = 1000, 0
    for _ in range(trials):
        fit = power_law(WIDTHS, [x**1.3 * math.exp(draw.gauss(0, 0.2)) for x in WIDTHS])
        assert fit is not None
        held += fit.low <= 1.3 <= fit.high
    assert held / trials == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("x", [(), (16,), (16, 32), (16, 16, 32)])
def test_fewer_than_three_sizes_are_no_fit(x: tuple[int, ...]) -> None:
    assert power_law(x, [1.0] * len(x)) is None


def test_the_files_tell_every_exponent(tmp_path: Path) -> None:
    records = [*sweep(), *sweep(2.5, method="mtt"), *sweep(widths=(16, 32), method="dm")]
    assert [path.name for path in scaling.write(records, tmp_path)] == ["scaling.md", "scaling.tex", "scaling.csv"]
    header, *rows = cells((tmp_path / "scaling.md").read_text())
    assert [row[header.index("method")] for row in rows] == ["frepo", "mtt"]
    assert [row[header.index("s/iteration with width")] for row in rows] == ["1.50 [1.50, 1.50]", "2.50 [2.50, 2.50]"]
    assert rows[0][header.index("s/iteration with parameters")] == "0.75 [0.75, 0.75]"
    assert rows[0][header.index("peak host RSS above baseline with width")] == "2.00 [2.00, 2.00]"
    table = pd.read_csv(tmp_path / "scaling.csv")
    row = table.query("method == 'mtt' and quantity == 's/iteration' and against == 'width'").iloc[0]
    assert row["exponent"] == pytest.approx(2.5) and row["widths"] == "16 32 64 128" and row["points"] == 4
    assert (tmp_path / "scaling.tex").read_text().count(r"\begin{tabular}") == 1


def test_only_what_went_well_is_a_point() -> None:
    records = sweep()
    records[0].record["status"] = "oom"
    (group,) = scaling.sweeps(grouped(records))
    assert scaling.fits(group)["s/iteration", "width"].points == 3
    records[1].record["status"] = "timeout"
    (group,) = scaling.sweeps(grouped(records))
    assert scaling.fits(group) == {}


def test_memory_that_was_not_measured_has_no_exponent() -> None:
    records = sweep()
    for each in records:
        each.record["cost"]["memory"]["host_rss_bytes"] = None
    (group,) = scaling.sweeps(grouped(records))
    assert {quantity for quantity, _ in scaling.fits(group)} == {"s/iteration"}


def test_devices_are_never_fitted_together(tmp_path: Path) -> None:
    records = [*sweep(widths=(16, 32)), *sweep(widths=(64, 128), device="Another")]
    assert scaling.write(records, tmp_path) == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["torch", "threads", "driver", "something"])
def test_what_was_measured_otherwise_is_never_fitted_together(name: str, tmp_path: Path) -> None:
    records = sweep(widths=(16, 32, 64, 128))
    for each, value in zip(records, ("1", "1", "2", "2"), strict=True):
        each.record["provenance"][name] = value
    assert scaling.write(records, tmp_path) == []


def test_a_killed_cell_is_no_sweep_of_its_own() -> None:
    records = sweep()
    for each in records:
        each.record["provenance"]["environment"] = {"A": "1"}
    killed = made((), width=256, budget="cost", status="oom", meter=None, peak=None)
    killed.record["cost"]["step_seconds"] = []
    (groups,) = scaling.sweeps(grouped([*records, killed]))
    assert [group.distillation["width"] for group in groups] == [*WIDTHS, 256]


def test_names_reach_the_files_as_they_are(tmp_path: Path) -> None:
    scaling.write(sweep(dataset="a|b\x1b[31m\n"), tmp_path)
    for path in tmp_path.iterdir():
        assert all(character.isprintable() or character == "\n" for character in path.read_text())
    assert r"a\|b\\x1b[31m\\n" in (tmp_path / "scaling.md").read_text()
