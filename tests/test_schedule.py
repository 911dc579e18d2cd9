"""Schedules that can be worked out by hand, and the durations that they are made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from benchmarks.datasets import PUBLISHED, Shape
from benchmarks.errors import UserError
from harness import schedule
from harness.measure.forecast import forecast
from harness.plan import durations
from harness.plan.budgets import BUDGETS, COST
from harness.plan.planning import plan
from harness.plan.request import Request
from harness.plan.schedule import Cells, faster, simulate
from tests.builders import cost, saved

MIXED = [Cells("long", 1, 5.0), Cells("middle", 1, 4.0), Cells("short", 3, 3.0)]


def test_the_longest_goes_first() -> None:
    run = simulate(MIXED, 2)  # 5 and 3 on one device, 4, 3 and 3 on the other
    assert (run.seconds, run.busy, run.bound) == (10.0, 0.9, "all work together")
    assert simulate(MIXED, 1).seconds == 18.0
    assert simulate(faster(MIXED, 2.0), 2).seconds == 5.0


def test_one_long_cell_bounds_the_rest() -> None:
    run = simulate([Cells("short", 4, 1.0), Cells("long", 1, 10.0)], 3)
    assert (run.seconds, run.bound) == (10.0, "the longest cell, long")
    assert run.busy == pytest.approx(14 / 30)


def test_what_others_wait_for_comes_first() -> None:
    cells = [Cells("other", 1, 4.0), Cells("student", 1, 3.0, after="experts"), Cells("experts", 4, 2.0)]
    two, four = simulate(cells, 2), simulate(cells, 4)
    # 0 to 4 the experts, two at a time; then the longer first
    assert (two.seconds, two.bound) == (8.0, "all work together")
    assert (four.seconds, four.bound) == (6.0, "experts, then student")


def test_cells_of_costs_are_alone_on_their_device() -> None:
    cells = [Cells("beside", 2, 2.0), Cells("cost", 1, 3.0, alone=True)]
    run = simulate(cells, 1, per_device=2)
    assert (run.seconds, run.busy) == (5.0, 1.0)
    assert simulate([dataclasses.replace(each, alone=False) for each in cells], 1, per_device=2).seconds == 4.0


def test_a_restart_takes_what_was_done_since_the_last_checkpoint() -> None:
    # 3 s are kept at 4, 3 s more at 8, and the last 4 s end at 12
    assert simulate([Cells("cell", 1, 10.0)], 1, restart_seconds=4.0, checkpoint_seconds=1.0).seconds == 12.0
    # The second expert begins at 3, is lost at 4, and is there at 7; nothing is lost of the student
    cells = [Cells("expert", 2, 3.0), Cells("student", 1, 1.0, after="expert")]
    assert simulate(cells, 1, restart_seconds=4.0, checkpoint_seconds=1.0).seconds == 8.0


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([Cells("a", 1, 1.0, after="b")], "a comes after 'b', which is not among the cells"),
        ([Cells("a", 1, 1.0, after="b"), Cells("b", 1, 1.0, after="a")], "comes after itself"),
        ([Cells("a", 1, 1.0), Cells("a", 1, 1.0)], "same name"),
        ([Cells("a", 1, 9.0)], "never ends"),
    ],
)
def test_what_cannot_end_is_told(cells: list[Cells], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        simulate(cells, 2, restart_seconds=5.0, checkpoint_seconds=5.0)


def test_a_file_becomes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cells.csv"
    schedule.write([Cells("a cell, ipc 1", 3, 3600.0, disk_bytes=2**20)], path)
    assert schedule.main([str(path), "--devices", "1,2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| devices | hours | busy | what bounds it    |",
        "|--------:|------:|-----:|:------------------|",
        "|       1 |     3 | 100% | all work together |",
        "|       2 |     2 |  75% | all work together |",
        "",
        "3 parts, 3 hours of work, 3 MiB on the disk.",
    ]
    assert schedule.read(path)[0].name == "a cell, ipc 1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name,seconds\n", "has no rows"),
        ("name,seconds,speed\na,1,2\n", "no column is called 'speed'; there are name, count, seconds"),
        ("name,count\na,1\n", "row 1 cannot be understood"),
        ("name,seconds\na,soon\n", "row 1 cannot be understood"),
        ("name,count,seconds\na,-3,1\n", "row 1: count must be at least 1, and seconds a number from 0"),
        ("name,seconds\na,-10\n", "row 1: count must be at least 1, and seconds a number from 0"),
        ("name,seconds\na,nan\n", "row 1: count must be at least 1, and seconds a number from 0"),
        ("name,seconds\ncafé,1\n", "is no table as CSV in UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cells.csv"
    path.write_bytes(text.encode("latin-1"))
    assert schedule.main([str(path)]) == 2
    assert expected in capsys.readouterr().err


def test_rates_are_medians_by_method_and_network() -> None:
    records = [cost("dm", seconds) for seconds in (1.0, 2.0, 4.0)]
    for each in records:
        each.record["cost"]["flops_per_step"] = 8e9
    records.append(cost("mtt"))  # nothing was counted
    assert durations.rates_of(records) == {("dm", "convnet_doubling"): 4e9}


def test_durations_are_operations_over_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MTT on CIFAR-10 with two seeds: steps, experts once, evaluations."""
    monkeypatch.setattr(durations, "forecast_flops", lambda job: 7e9)
    request = Request(
        methods=("mtt", "random_real"), datasets=("cifar10",), seeds=(0, 1), budget="paper", forecast=True,
        device="cuda", networks_evaluated=3, widths=(4,),
    )  # fmt: skip
    experts, student, random = durations.cells_of(plan(request), {("mtt", "convnet"): 1e6})
    # Three convolutions of 3×3 with 3, 4 and 4 channels into 4, on 32², 16² and 8² pixels, and the linear layer. Going
    # back takes twice as many, except for the images, whose gradient nobody asks for.
    layers = [2 * 4 * 9 * 3 * 32**2, 2 * 4 * 9 * 4 * 16**2, 2 * 4 * 9 * 4 * 8**2, 2 * 4 * 4 * 4 * 10]
    tested, trained = sum(layers), 3 * sum(layers) - layers[0]
    assert (experts.count, experts.seconds) == (100, 50 * 50_000 * trained / 1e6)
    evaluated = 3 * (1001 * 10 * trained + 10_000 * tested)
    assert (student.count, student.after) == (2, experts.name)
    assert student.seconds == pytest.approx((5000 * 7e9 + evaluated) / 1e6)
    assert (random.count, random.after, random.seconds) == (2, "", pytest.approx(evaluated / 1e6))
    parameters = 4 * 3 * 9 + 4 * 4 * 9 * 2 + 3 * 4 + 3 * 2 * 4 + 64 * 10 + 10
    assert experts.disk_bytes == 4 * 51 * parameters


def test_flat_experts_take_two_passes_and_leave_the_snapshots_that_can_be_touched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At ipc 1 DATM starts from epochs 0 to 3 of 100, and looks two epochs ahead; MTT has 50, and keeps all."""
    monkeypatch.setattr(durations, "forecast_flops", lambda job: 7e9)
    request = Request(
        methods=("mtt", "datm"), datasets=("cifar10",), budget="paper", forecast=True, device="cuda", widths=(4,)
    )  # fmt: skip
    rates = {("mtt", "convnet"): 1e6, ("datm", "convnet"): 1e6}
    plain, _, flat, student = durations.cells_of(plan(request), rates)
    assert flat.name == f"flat {plain.name}, from epoch 0 to 4" == student.after
    assert flat.seconds == pytest.approx(2 * 100 / 50 * plain.seconds)
    assert flat.disk_bytes / plain.disk_bytes == pytest.approx(7 / 51)


def test_cells_of_a_set_time_take_that_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs have no evaluation, and no random images stand beside them."""
    records = [cost(method, 1.0) for method in ("frepo", "mtt", "dsa", "dm", "bptt")]
    for each in records:
        each.record["cost"]["flops_per_step"] = 1e9
    saved(tmp_path / "records", *records)
    monkeypatch.setattr(durations, "forecast_flops", lambda job: 7e9)
    path = tmp_path / "cells.csv"
    command = [str(path), "--experiment", "figure3_cost", "--measured", str(tmp_path / "records")]
    assert schedule.main(command) == 0
    cells = [each for each in schedule.read(path) if not each.name.startswith("experts")]
    assert len(cells) == 5 * 6 and {each.seconds for each in cells} == {BUDGETS[COST].seconds}
    assert all(each.alone for each in cells)


@pytest.mark.parametrize(("method", "options"), [("dc", "--dc.outer-loop 2 --dc.inner-loop 3"), ("dm", "")])
def test_the_operations_of_a_step_are_those_of_the_whole_forecast(
    method: str, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PUBLISHED, "two_classes", Shape(1, 8, 2, 60, 20))
    fields: dict[str, Any] = {"budget": "smoke", "forecast": True, "device": "cpu"}
    (job,) = plan(Request(methods=(method,), datasets=("mnist",), options={method: options.split()}, **fields))
    small = dataclasses.replace(job.distillation, dataset="two_classes", depth=1)
    job = dataclasses.replace(job, distillation=small, source="two_classes")
    assert durations._stepping(job) == pytest.approx(forecast(job).flops, rel=1e-12)


def test_a_rate_that_nobody_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durations, "forecast_flops", lambda job: 7e9)
    request = Request(methods=("dm",), datasets=("mnist",), budget="paper", forecast=True, device="cuda")
    with pytest.raises(UserError, match="how fast dm is on convnet: measure it with --budget cost"):
        durations.cells_of(plan(request), {("mtt", "convnet"): 1e6})
