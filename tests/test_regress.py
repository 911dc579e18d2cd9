"""What got worse between two sets of records: every kind of regression is planted and seen, and noise is not."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.errors import UserError
from harness.measure import memory
from harness.records.record import Distilled
from harness.regress import main
from harness.reports import regressions
from harness.reports.groups import Group, Member
from harness.reports.regressions import Bounds, Comparison, Finding, compare, markdown
from tests import builders
from tests.builders import MIB, evaluated, saved
from tests.dummies import dummy
from tests.test_cell import job, run

__all__ = ["dummy"]  # a fixture


def samples(rng: np.random.Generator, median: float = 0.010, spread: float = 0.05, count: int = 100) -> list[float]:
    """Seconds as they are measured: log-normal around ``median``, one in twenty twice as long."""
    drawn = median * np.exp(spread * rng.standard_normal(count))
    return list(np.where(rng.random(count) < 0.05, 2 * drawn, drawn))


def made(seed: int = 0, **changes: Any) -> Distilled:
    """A distillation with every number that is compared; the same for the same ``seed`` and ``changes``."""
    values = {"values": [0.90 + 0.002 * seed, 0.91, 0.92], "krr": [0.88, 0.89, 0.90]}
    distilled = builders.made(**{"config": {"lr": 0.1}, **values, "seed": seed, **changes})
    distilled.record["provenance"] |= {"threads": 1, "commit": "abc"}
    cost = distilled.record["cost"]
    cost["step_seconds"] = samples(np.random.default_rng(seed))
    cost["flops_per_step"], cost["saved_bytes_per_step"] = 6.2e9, 1.5e8
    cost["peak_live_bytes"], cost["parameters"] = 40 * MIB, 123456
    return distilled


def values(distilled: Distilled, quantity: str = "accuracy") -> list[float]:
    """The values of its evaluation, to be changed."""
    return distilled.evaluations[0]["values"][quantity]


def verdicts(comparison: Comparison) -> dict[str, str]:
    """Quantity → verdict, for a comparison of one cell."""
    assert len({finding.quantity for finding in comparison.findings}) == len(comparison.findings)
    return {finding.quantity: finding.verdict for finding in comparison.findings}


def only(comparison: Comparison, verdict: str) -> str:
    """The one quantity with this verdict; everything else is the same as before."""
    (quantity,) = (q for q, v in verdicts(comparison).items() if v == verdict)
    assert set(verdicts(comparison).values()) == {verdict, "insignificant"}
    return quantity


def slower(distilled: Distilled) -> None:
    distilled.record["cost"]["step_seconds"] = samples(np.random.default_rng(9), 0.0115)


def cost(**numbers: Any) -> Callable[[Distilled], None]:
    """A change of numbers of the cost."""
    return lambda distilled: distilled.record["cost"].update(numbers)  # type: ignore[typeddict-item]


def memory_of(**numbers: Any) -> Callable[[Distilled], None]:
    return lambda distilled: distilled.record["cost"]["memory"].update(numbers)  # type: ignore[typeddict-item]


def less_accurate(quantity: str = "accuracy") -> Callable[[Distilled], None]:
    def change(distilled: Distilled) -> None:
        values(distilled, quantity)[:] = [value - 0.08 for value in values(distilled, quantity)]

    return change


PLANTED = {
    "seconds per step": slower,
    "FLOPs per step": cost(flops_per_step=6.2e9 * 1.01),
    "peak live tensor bytes": cost(peak_live_bytes=41 * MIB),
    "bytes saved for backward per step": cost(saved_bytes_per_step=1.51e8),
    "parameters": cost(parameters=124000),
    "peak memory (host_rss)": memory_of(host_rss_bytes=115 * MIB),
    "test accuracy": less_accurate(),
    "KRR accuracy": less_accurate("krr_accuracy"),
}


@pytest.mark.parametrize("quantity", PLANTED)
def test_a_planted_regression_is_seen_and_the_other_way_round_it_is_an_improvement(quantity: str) -> None:
    before, after = made(), made()
    PLANTED[quantity](after)
    there, back = compare([before], [after]), compare([after], [before])
    assert only(there, "worse") == quantity and there.failed
    assert only(back, "improved") == quantity and not back.failed


def test_numbers_that_no_seed_of_the_other_side_has_are_not_hidden_by_its_status() -> None:
    """A success and an error became two time limits, which are as good on average."""
    before, after = [made(0), made(1)], [made(0), made(1)]
    before[1].record["status"] = "error"
    for slow in after:
        slow.record["status"] = "timeout"
    comparison = compare(before, after)
    assert verdicts(comparison)["status"] == "insignificant" and comparison.status == 3
    assert "no seed of NEW ended well" in markdown(comparison)


def test_every_kind_of_number_is_planted() -> None:
    assert {*PLANTED, "status", "status of the evaluation"} == set(verdicts(compare([made()], [made()])))


@pytest.mark.parametrize("status", ["oom", "timeout", "diverged", "error"])
def test_a_cell_that_no_longer_ends_well_is_worse(status: Any) -> None:
    after = [made(0), made(1)]
    after[1].record["status"] = status
    comparison = compare([made(0), made(1)], after)
    assert verdicts(comparison)["status"] == "worse" and comparison.failed
    assert verdicts(compare(after, [made(0), made(1)]))["status"] == "improved"
    after[0].record["status"] = status
    assert verdicts(compare([made(0), made(1)], after)) == {"status": "worse"}  # there is nothing else to compare


def test_an_error_is_worse_than_out_of_memory() -> None:
    before, after = made(), made()
    before.record["status"], after.record["status"] = "oom", "error"
    assert verdicts(compare([before], [after])) == {"status": "worse"}
    assert verdicts(compare([after], [before])) == {"status": "improved"}
    assert [m.seed for m in regressions._cells([before, before, made(1)]).popitem()[1].distilled.members] == [0, 1]


def test_missing_and_new_cells_are_told_apart() -> None:
    comparison = compare([made(), made(ipc=10)], [made(), made(ipc=50)])
    assert [finding.cell for finding in comparison.of("missing")] == ["frepo mnist ipc 10 convnet_doubling 32 quick"]
    assert [finding.cell for finding in comparison.of("new")] == ["frepo mnist ipc 50 convnet_doubling 32 quick"]
    assert comparison.failed
    assert not compare([made()], [made(), made(ipc=50)]).failed


# --- noise ------------------------------------------------------------------------------------------------------------


def run_samples(rng: np.random.Generator, between: float, within: float, count: int, memory: float) -> list[float]:
    """Seconds of one run: its own median, log-normal by ``between``; around it AR(1) that remembers ``memory``."""
    shocks = within * np.sqrt(1 - memory**2) * rng.standard_normal(count)
    state = within * rng.standard_normal()
    drawn = []
    for shock in shocks:
        state = memory * state + shock
        drawn.append(state)
    return list(0.010 * np.exp(between * rng.standard_normal() + np.array(drawn)))


def seconds_verdict(before: Group, after: Group) -> str:
    return regressions._seconds("", before, after, Bounds()).verdict


@pytest.mark.parametrize(("seeds", "between", "trials"), [(3, 0.04, 100), (5, 0.30, 100), (2, 0.02, 50)])
def test_noise_of_the_clock_is_not_a_regression(seeds: int, between: float, trials: int) -> None:
    """Runs that are slower or faster as a whole, and windows that resemble their neighbours: on a quiet machine a few
    runs suffice, on a noisy one five."""
    rng, blank = np.random.default_rng(0), made()
    flagged = 0
    for trial in range(trials):
        sides = []
        for _ in range(2):
            sides.append([copy.deepcopy(blank) for _ in range(seeds)])
            for each in sides[-1]:
                count, memory = ((200, 0.9), (50, 0.5), (20, 0.1))[trial % 3]
                each.record["cost"]["step_seconds"] = run_samples(rng, between, 0.1, count, memory)
        groups = [Group(tuple(Member(each.record) for each in side)) for side in sides]
        flagged += seconds_verdict(*groups) != "insignificant"
    assert flagged <= 2


def test_windows_that_resemble_their_neighbours_are_not_independent() -> None:
    """Single runs of equal speed, whose noise lasts for some ten windows."""
    rng, pair = np.random.default_rng(0), [made(), made()]
    flagged = 0
    for _ in range(100):
        for each in pair:
            each.record["cost"]["step_seconds"] = run_samples(rng, 0.0, 0.2, 300, 0.9)
        flagged += seconds_verdict(*(Group((Member(each.record),)) for each in pair)) != "insignificant"
    assert flagged <= 5


def test_blocks_are_medians_of_neighbours() -> None:
    assert regressions.blocks([1.0, 2.0, 9.0, 4.0, 5.0, 6.0], 2) == [2.0, 5.0]
    assert regressions.blocks([1.0, 2.0, 9.0], 20) == [1.0, 2.0, 9.0]
    assert len(regressions.blocks([1.0] * 999)) == regressions.BLOCKS


def test_repeated_runs_must_lie_apart() -> None:
    """The same difference of the pooled medians, once between runs that overlap; a single run cannot tell."""

    def side(*medians: float) -> list[Distilled]:
        records = [made(seed) for seed in range(len(medians))]
        for each, median in zip(records, medians, strict=True):
            rng = np.random.default_rng(each.record["distillation"]["seed"])
            each.record["cost"]["step_seconds"] = samples(rng, median, spread=0.01)
        return records

    def row(before: list[Distilled], after: list[Distilled]) -> Finding:
        (finding,) = (f for f in compare(before, after).findings if f.quantity == "seconds per step")
        return finding

    before = side(0.010, 0.0101, 0.0102)
    apart, overlapping = row(before, side(0.012, 0.0121, 0.0122)), row(before, side(0.01015, 0.0121, 0.0122))
    assert apart.verdict == "worse" and row(side(0.012, 0.0121, 0.0122), before).verdict == "improved"
    assert overlapping.verdict == "insignificant" and overlapping.change.endswith("runs overlap")
    single = row(before, side(0.012))
    assert single.verdict == "worse" and single.change.endswith("runs not repeated")
    assert "not repeated" not in apart.change


def test_windows_of_other_lengths_are_not_compared() -> None:
    before, after = made(), made()
    before.record["cost"]["steps_per_sample"], after.record["cost"]["steps_per_sample"] = 10, 20
    assert verdicts(compare([before], [after]))["seconds per step"] == "insignificant"
    after.record["cost"]["steps_per_sample"] = 21
    comparison = compare([before], [after])
    assert verdicts(comparison)["seconds per step"] == "not compared"
    assert "- seconds per step: windows of 10 to 21 steps (1 cell)" in markdown(comparison)


def test_a_change_must_be_large_and_significant() -> None:
    rng = np.random.default_rng(1)
    before, small, few = made(), made(), made()
    before.record["cost"]["step_seconds"] = samples(rng, count=1000)
    small.record["cost"]["step_seconds"] = samples(rng, 0.0105, count=1000)  # 5 %: certain, and small
    few.record["cost"]["step_seconds"] = [0.010, 0.014, 0.012, 0.011, 0.013, 0.012, 0.009, 0.015]  # 20 %, and uncertain
    assert not compare([before], [small]).failed
    assert compare([before], [small], Bounds(seconds=0.03)).failed
    few_before = copy.deepcopy(few)
    few_before.record["cost"]["step_seconds"] = [0.010, 0.012, 0.009, 0.011, 0.010, 0.013, 0.008, 0.010]
    assert not compare([few_before], [few]).failed
    assert compare([few_before], [few], Bounds(p_value=0.2)).failed


def test_so_few_samples_that_no_difference_is_significant_are_not_compared() -> None:
    before, after = made(), made(evaluation={"networks": 3})  # the count of networks is no recipe
    before.record["cost"]["step_seconds"], after.record["cost"]["step_seconds"] = [0.01] * 5, [0.1] * 5
    comparison = compare([before], [after])
    assert [finding.quantity for finding in comparison.of("not compared")] == ["seconds per step"]
    assert "too few samples for p < 0.002 in BASELINE (1 cell)" in markdown(comparison)
    assert comparison.status == comparison.strict().status == 0, "nothing that NEW could have measured is missing"
    before.record["cost"]["step_seconds"], after.record["cost"]["step_seconds"] = [0.01] * 20, [0.1]
    comparison = compare([before], [after])
    assert "too few samples for p < 0.002 (1 cell)" in markdown(comparison)
    assert (comparison.status, comparison.strict().status) == (3, 1)


def test_noise_of_the_accuracy_is_not_a_regression() -> None:
    """500 pairs of three seeds × three networks: seeds differ by a point, networks of one seed by a third of it."""
    rng = np.random.default_rng(2)

    def measured() -> list[list[float]]:
        return [list(0.9 + 0.01 * rng.standard_normal() + 0.003 * rng.standard_normal(3)) for _ in range(3)]

    outcomes = [regressions._accuracy("", "", measured(), measured(), Bounds()).verdict for _ in range(500)]
    assert outcomes.count("worse") <= 4 and outcomes.count("improved") <= 4


def test_a_fall_of_many_seeds_is_seen_although_each_of_them_scatters() -> None:
    """Three points at a spread of one: too little for four standard deviations, and beyond doubt with ten seeds."""

    def measured(middle: float, seeds: int) -> list[Distilled]:
        records = [made(seed) for seed in range(seeds)]
        for each, offset in zip(records, np.linspace(-0.0145, 0.0145, seeds), strict=True):
            values(each)[:] = [middle + offset - 0.001, middle + offset, middle + offset + 0.001]
        return records

    def verdict(seeds: int, bounds: Bounds | None = None) -> str:
        return verdicts(compare(measured(0.92, seeds), measured(0.89, seeds), bounds))["test accuracy"]

    assert verdict(10) == "worse" and verdict(10, Bounds(accuracy=0.05)) == "insignificant"
    assert verdict(3) == "insignificant" and verdict(3, Bounds(deviations=2)) == "worse"


def test_one_seed_must_fall_further() -> None:
    """Another run of the same seed may end a few points away: its networks cannot tell."""
    before, after = made(), made()
    values(before)[:], values(after)[:] = [0.901, 0.900, 0.899], [0.861, 0.860, 0.859]
    assert verdicts(compare([before], [after]))["test accuracy"] == "insignificant"
    assert verdicts(compare([before], [after], Bounds(one_seed=3)))["test accuracy"] == "worse"


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ([0.95], [0.10], "worse"),
        ([0.95, 0.95], [0.84, 0.84], "worse"),
        ([0.95, 0.95, 0.95], [0.10], "worse"),
        ([0.95], [0.86], "insignificant"),
        ([0.95], [0.99], "insignificant"),
        ([0.10], [0.95], "improved"),
    ],
)
@pytest.mark.parametrize("name", ["accuracy", "krr_accuracy"])
def test_accuracies_of_few_networks_have_a_bound_of_their_own(
    name: str, old: list[float], new: list[float], verdict: str
) -> None:
    before, after = made(), made()
    values(before, name)[:], values(after, name)[:] = old, new
    quantity = {"accuracy": "test accuracy", "krr_accuracy": "KRR accuracy"}[name]
    comparison = compare([before], [after])
    assert verdicts(comparison)[quantity] == verdict and comparison.status == (verdict == "worse")
    assert verdicts(compare([before], [after], Bounds(without_spread=0.9)))[quantity] == "insignificant"
    assert verdicts(compare([after], [before], Bounds(without_spread=0.0)))[quantity] in ("worse", "improved")


def test_memory_may_move_a_little() -> None:
    after = made()
    after.record["cost"]["memory"]["host_rss_bytes"] = 113 * MIB  # 10 % and 4 MiB
    assert not compare([made()], [after]).failed
    assert compare([made()], [after], Bounds(memory=0.05)).failed
    assert compare([made()], [after], Bounds(memory_bytes=0)).failed


# --- what is compared with what ---------------------------------------------------------------------------------------


def test_seeds_and_commits_do_not_tell_cells_apart() -> None:
    after = [made(3), made(4)]
    for each in after:
        each.record["provenance"] |= {"commit": "def", "torch": "2.12.0"}
    comparison = compare([made(0), made(1)], after)
    assert set(verdicts(comparison).values()) == {"insignificant"}
    assert "commit: abc → def." in comparison.notes and "torch: 2.13.0 → 2.12.0." in comparison.notes
    assert any("seeds 0, 1 in BASELINE, 3, 4 in NEW" in note for note in comparison.notes)


@pytest.mark.parametrize(
    "changes",
    [
        *({"width": 64}, {"data_fingerprint": "fedcba98"}, {"steps": 7}, {"seconds": 9.0}, {"config": {"lr": 0.2}}),
        *({"interleaved": "frepo, mtt"}, {"dataset": "a|b\x1b[31m\n<i>"}),
    ],
    ids=str,
)
def test_other_settings_are_other_cells(changes: dict[str, Any]) -> None:
    comparison = compare([made(), made(ipc=10)], [made(**changes), made(ipc=10)])
    assert len(comparison.of("missing")) == len(comparison.of("new")) == 1
    assert comparison.of("missing")[0].cell != comparison.of("new")[0].cell, "the two must have different names"
    assert "dataset" not in changes or r"a\|b\\x1b[31m\\n\<i>" in markdown(comparison)
    with pytest.raises(UserError, match="no cell in common"):
        compare([made()], [made(**changes)])


@pytest.mark.parametrize(
    ("part", "change"),
    [("provenance", {"device": "A GPU"}), ("provenance", {"threads": 2}), (None, {"protocol_version": "1"})],
)
def test_other_devices_are_not_compared(part: str | None, change: dict[str, Any]) -> None:
    before, after = made(), made()
    slower(after)
    written: Any = after.record
    (written[part] if part else written).update(change)
    with pytest.raises(UserError, match="nothing to compare: BASELINE was measured on A CPU"):
        compare([before], [after])
    comparison = compare([before], [after, made()])
    assert not comparison.failed and comparison.of("new") == []
    assert any(note.startswith("Left out") and "NEW" in note for note in comparison.notes)


def test_what_one_side_did_not_measure_is_said() -> None:
    before, after, neither = made(), made(), made()
    before.record["cost"]["flops_per_step"] = None
    comparison = compare([before], [after])
    assert verdicts(comparison)["FLOPs per step"] == "not compared" and not comparison.failed
    assert "- FLOPs per step: not measured in BASELINE (1 cell)" in markdown(comparison)
    assert "- FLOPs per step: not measured in NEW (1 cell)" in markdown(compare([after], [before]))
    neither.record["cost"]["flops_per_step"] = None
    assert "- FLOPs per step: not measured in either (1 cell)" in markdown(compare([before], [neither]))


@pytest.mark.parametrize(
    "change",
    [
        cost(step_seconds=[]),
        cost(step_seconds=[0.01]),
        cost(steps_per_sample=50),
        memory_of(meter="torch", allocated_bytes=900 * MIB),
        memory_of(host_rss_bytes=None),
        lambda distilled: values(distilled, "krr_accuracy").clear(),
    ],
    ids=["no seconds", "few samples", "long windows", "other meter", "no peak", "no accuracy"],
)
def test_what_was_measured_and_not_compared_is_no_success(change: Any) -> None:
    """It is printed with its cell, and an exit status of 0 does not hide it."""
    before, after = made(), made()
    before.record["cost"]["steps_per_sample"] = 10
    change(after)
    comparison = compare([before], [after])
    assert comparison.status == 3 and not comparison.failed
    shown = markdown(comparison)
    assert ", 1 not compared\n" in shown and "(1 cell): frepo mnist ipc 1 convnet_doubling 32 quick\n" in shown
    PLANTED["FLOPs per step"](after)
    assert compare([before], [after]).status == 1, "worse is worse"


@pytest.mark.parametrize("counter", ["peak_live_bytes", "joules_per_step"])
def test_what_the_baseline_did_not_measure_can_not_be_lost(counter: Any) -> None:
    before, after = made(), made()
    before.record["cost"][counter], after.record["cost"][counter] = None, 5
    assert compare([before], [after]).status == 0


def test_a_cell_of_another_device_was_not_compared() -> None:
    other = made(ipc=50)
    other.record["provenance"]["device"] = "A GPU"
    comparison = compare([made(), other], [made()])
    assert comparison.status == 3 and "- cell: NEW has nothing measured there (1 cell): frepo mnist ipc 50" in markdown(
        comparison
    )
    assert compare([made()], [made(), other]).status == 0, "nothing of BASELINE is lost"
    other.record["status"], other.record["cost"]["step_seconds"] = "oom", []
    failed = builders.replace(other, evaluations=())
    assert compare([made(), failed], [made()]).status == 0, "it has measured nothing"


@pytest.mark.parametrize(
    "change", [{"torch": "2.12.0"}, {"environment": {"OMP_WAIT_POLICY": "active"}}, {"something": "new"}], ids=str
)
def test_records_of_one_side_that_differ_are_not_pooled(change: dict[str, Any]) -> None:
    sides = [[made(0), made(1)], [made(0), made(1)]]
    sides[1][1].record["provenance"] |= change
    for each in sides[1]:
        slower(each)
    for old, new, side in ((*sides, "NEW"), (*sides[::-1], "BASELINE")):
        comparison = compare(old, new)
        assert verdicts(comparison) == {"cell": "not compared"} and comparison.status == 3
        assert f"- cell: the records of {side} differ in {next(iter(change))}" in markdown(comparison)
    for each in sides[1]:
        each.record["provenance"] |= change
    assert compare(*sides).status == 1, "between the two sides a difference is what is asked about"
    assert any(note.startswith(next(iter(change))) for note in compare(*sides).notes)


def test_accuracies_are_compared_by_recipe_and_the_cost_once() -> None:
    both = [evaluated(made(), {"accuracy": [0.5, 0.51, 0.52]}, steps=20) for _ in range(2)]
    both[1].evaluations[1]["values"]["accuracy"][:] = [0.3, 0.31, 0.32]
    verdict = verdicts(compare(both[:1], both[1:]))
    assert verdict["test accuracy (steps=None)"] == "insignificant" and verdict["test accuracy (steps=20)"] == "worse"
    assert [quantity for quantity in verdict if quantity.startswith("seconds")] == ["seconds per step"]
    without = compare(both[:1], [made()])
    assert verdicts(without)["test accuracy (steps=20)"] == "not compared" and without.status == 3
    assert compare([made()], both[:1]).status == 0, "nothing of BASELINE is lost"


def test_an_evaluation_that_no_longer_ends_well_is_worse() -> None:
    lost = evaluated(builders.replace(made(), evaluations=()), {}, status="oom", protocol="frepo")
    assert verdicts(compare([made()], [lost]))["status of the evaluation"] == "worse"
    assert verdicts(compare([lost], [made()]))["status of the evaluation"] == "improved"


def test_accuracies_of_other_devices_are_not_compared() -> None:
    other = evaluated(
        builders.replace(made(), evaluations=()),
        {"accuracy": [0.1, 0.1, 0.1]},
        protocol="frepo",
        provenance={"device": "A GPU", "threads": 1},
    )
    comparison = compare([made()], [other])
    assert comparison.status == 3 and not comparison.failed
    (lost,) = {finding.quantity for finding in comparison.findings if finding.lost and "test" in finding.quantity}
    assert lost.startswith("test accuracy (on=A CPU (1 thread)")


def test_other_work_on_the_device_is_said() -> None:
    after = made()
    after.record["cost"]["memory"]["busy"] = "another process"
    assert "Other work on the device in 1 of NEW: another process." in compare([made()], [after]).notes


# --- the command ------------------------------------------------------------------------------------------------------


def record_of(folder: str) -> str:
    (path,) = Path(folder).glob("*/record.json")
    return str(path)


def test_the_command_prints_what_is_worse_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worse = made()
    slower(worse)
    before, after = saved(tmp_path / "a", made(), made(ipc=10)), saved(tmp_path / "b", worse, made(ipc=50))
    assert main([before, after, "--output", str(tmp_path / "changes.md")]) == 1
    printed = capsys.readouterr().out
    assert (tmp_path / "changes.md").read_text(encoding="utf-8") == printed
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in lines[:4]] == ["verdict", "**worse**", "**missing**", "new"]
    assert "1 worse, 1 missing, 0 improved, 1 new, 9 insignificant" in printed
    assert printed.index("**worse**") < printed.index("<details><summary>9 insignificant") < printed.index("Notes:")


def test_the_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    better = made()
    slower(better)
    slow, fast = saved(tmp_path / "slow", better), saved(tmp_path / "fast", made())
    assert main([slow, fast]) == 0 and main([slow, slow]) == 0
    assert main([fast, slow]) == 1
    assert main([fast, slow, "--seconds", "0.5"]) == 0
    assert main([record_of(fast), record_of(slow)]) == 1
    few = made()
    few.record["cost"]["step_seconds"] = [0.01]
    assert main([fast, saved(tmp_path / "few", few)]) == 3
    assert capsys.readouterr().err == ""


def test_what_a_user_gets_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fine = saved(tmp_path / "fine", made())
    empty, damaged, other = saved(tmp_path / "empty"), saved(tmp_path / "damaged"), made()
    (tmp_path / "damaged" / "record.json").write_text("{")
    other.record["provenance"]["device"] = "A GPU"
    elsewhere = saved(tmp_path / "elsewhere", other)
    for arguments, words in (
        ([str(tmp_path / "nowhere"), fine], "no such folder or record"),
        ([fine, empty], "no records in"),
        ([fine, damaged], "damaged record"),
        ([damaged, fine], "damaged record"),
        ([fine, elsewhere], "nothing to compare"),
        ([fine, fine, "--seconds=-1"], "--seconds must be at least 0"),
        ([fine, fine, "--format", "xml"], "unknown format"),
        ([fine, fine, "--export", "benchr", "x"], "did you mean 'bencher'"),
        ([fine, fine, "--export", "bencher", " "], "the path is empty"),
        ([fine, fine, "--output", str(tmp_path / "no" / "such" / "file")], "cannot be written"),
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and words in line


def test_every_bound_is_a_flag_that_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for each in dataclasses.fields(Bounds):
        assert f"--{each.name.replace('_', '-')} NUMBER" in shown


FORMS = ("worse", "missing", "new", "not compared")


def four(tmp_path: Path) -> tuple[str, str]:
    """Two folders whose comparison has a finding of each of `FORMS`."""
    slow, few = made(), made(ipc=2)
    slower(slow)
    few.record["cost"]["step_seconds"] = [0.01]
    before = saved(tmp_path / "before", made(), made(ipc=2), made(ipc=10))
    return before, saved(tmp_path / "after", slow, few, made(ipc=50))


def test_programs_read_the_same_findings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = four(tmp_path)

    def printed(form: str, *more: str) -> str:
        assert main([before, after, "--format", form, *more]) == 1
        return capsys.readouterr().out

    said = json.loads(printed("json"))
    assert (said["schema"], said["status"]) == (1, 1) and {f["verdict"] for f in said["findings"]} >= {*FORMS}
    (worse,) = (f for f in said["findings"] if f["verdict"] == "worse")
    assert worse["quantity"] == "seconds per step" and worse["unit"] == "s" and worse["p"] < 0.002
    assert worse["ratio"] == worse["after"]["value"] / worse["before"]["value"] > 1.1
    assert worse["before"]["low"] < worse["before"]["value"] < worse["before"]["high"]
    assert worse["before"]["count"] == 1 and worse["device"] == "A CPU (1 thread), protocol version 4"
    assert all(f["device"] for f in said["findings"])
    (accuracy,) = (f for f in said["findings"] if f["quantity"] == "test accuracy" and "ipc 1 " in f["cell"])
    assert accuracy["after"]["value"] == pytest.approx(0.91) and accuracy["after"]["count"] == 3

    suite = ElementTree.fromstring(printed("junit"))[0]
    cases = {(case.get("classname"), case.get("name")): [each.tag for each in case] for case in suite}
    assert len(cases) == len(said["findings"]) == int(suite.get("tests", "")) and suite.get("failures") == "2"
    failed = {key for key, tags in cases.items() if tags == ["failure"]}
    assert failed == {(f["cell"], f["quantity"]) for f in said["findings"] if f["verdict"] in ("worse", "missing")}
    assert sum(tags == ["skipped"] for tags in cases.values()) == 1

    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    lines = printed("github", "--output", str(tmp_path / "table.md")).splitlines()
    assert [line.partition(" title=")[0] for line in lines] == ["::error", "::error", "::warning"]
    assert lines[0].startswith("::error title=worse%3A seconds per step::frepo mnist ipc 1 convnet_doubling 32 quick,")
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert summary == (tmp_path / "table.md").read_text(encoding="utf-8") == printed("markdown")


def test_strict_takes_what_was_lost_for_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = made()
    few.record["cost"]["step_seconds"] = [0.01]
    sides = [saved(tmp_path / name, each) for name, each in (("before", made()), ("after", few))]
    assert main(sides) == 3 and "Not compared:" in capsys.readouterr().out
    assert main([*sides, "--strict"]) == 1
    shown = capsys.readouterr().out
    assert "| **missing** | frepo mnist" in shown and ", 1 missing, " in shown and "ot compared" not in shown
    assert main([sides[0], sides[0], "--strict"]) == 0


def test_trackers_get_the_numbers_of_the_new_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = four(tmp_path)
    assert main([before, after, "--export", "bencher", str(tmp_path / "b.json")]) == 1
    cells = json.loads((tmp_path / "b.json").read_text())
    assert len(cells) == 3 and any("ipc 50" in name for name in cells), "also those that BASELINE does not have"
    measured = cells["frepo mnist ipc 1 convnet_doubling 32 quick"]
    assert measured["flops-per-step"] == {"value": 6.2e9} and measured["peak-memory-host-rss"]["value"] == 100 * MIB
    seconds = measured["seconds-per-step"]
    assert seconds.keys() == {"value", "lower_value", "upper_value"} and 0.011 < seconds["value"] < 0.012
    assert main([before, after, "--export", "github-action-benchmark", str(tmp_path / "g.json")]) == 1
    small, large = (json.loads((tmp_path / f"g-{which}.json").read_text()) for which in ("smaller", "bigger"))
    assert {entry["unit"] for entry in small} == {"s", "bytes", "FLOPs", "parameters"}
    assert {entry["unit"] for entry in large} == {"fraction"} and len(large) == 6
    assert all("A CPU (1 thread)" in entry["name"] and entry["value"] > 0 for entry in (*small, *large))
    assert len(small) + len(large) == sum(map(len, cells.values()))
    costs = saved(tmp_path / "costs", made(budget="cost", values=()))
    assert main([costs, costs, "--export", "github-action-benchmark", str(tmp_path / "c.json")]) == 0
    assert [path.name for path in tmp_path.glob("c-*")] == ["c-smaller.json"], "an empty file would be refused"
    assert capsys.readouterr().err == ""


# --- a real cell under a clock set by hand ----------------------------------------------------------------------------


class JitteryTicks:
    """A clock that moves about ``second`` seconds every time it is read, by chance 3 % more or less."""

    def __init__(self, second: float, seed: int) -> None:
        self.time, self.second, self.rng = 0.0, second, np.random.default_rng(seed)

    def __call__(self) -> float:
        self.time += float(self.second * np.exp(0.03 * self.rng.standard_normal()))
        return self.time


@pytest.mark.usefixtures("dummy")
def test_a_cell_under_a_slower_clock_is_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "release", lambda: None)
    sides = {}
    for name, second, seed in (("before", 1.0, 0), ("again", 1.0, 1), ("slow", 1.2, 2)):
        sides[name] = [run(job(tmp_path / name, steps=40), JitteryTicks(second, seed))]
        assert len(sides[name][0].record["cost"]["step_seconds"]) == 20
    before, again, slow = sides.values()
    assert verdicts(compare(before, again))["seconds per step"] == "insignificant"
    assert verdicts(compare(before, slow))["seconds per step"] == "worse"
    assert verdicts(compare(slow, before))["seconds per step"] == "improved"
    assert main([str(tmp_path / "before"), str(tmp_path / "slow"), "--memory-bytes", "1e9"]) == 1
    assert "| **worse**" in capsys.readouterr().out


def test_counters_alone_are_compared_between_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = made(), made()
    after.record["provenance"] |= {"device": "another processor", "threads": 8}
    after.record["cost"]["step_seconds"] = [9.0] * 100
    less_accurate()(after)
    sides = [saved(tmp_path / name, each) for name, each in (("before", before), ("after", after))]
    assert main(sides) == 2
    assert main([*sides, "--counters-only"]) == 0
    assert "peak live tensor bytes" in capsys.readouterr().out
    PLANTED["FLOPs per step"](after)
    assert main([sides[0], saved(tmp_path / "more", after), "--counters-only"]) == 1
    assert "**worse**" in capsys.readouterr().out
