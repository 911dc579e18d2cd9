"""What got worse between two sets of records: every kind of regression is planted and seen, and noise is not."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.errors import UserError
from harness import regress
from harness.cell import run
from harness.measure import memory
from harness.records import record
from harness.records.record import Record
from harness.regress import Bounds, Comparison, compare, main, markdown
from harness.report import Group
from tests.dummies import Dummy, dummy
from tests.test_cell import job
from tests.test_report import CELL

__all__ = ["dummy"]  # a fixture

MIB = 2**20


def samples(rng: np.random.Generator, median: float = 0.010, spread: float = 0.05, count: int = 100) -> list[float]:
    """Seconds as they are measured: log-normal around ``median``, one in twenty twice as long."""
    drawn = median * np.exp(spread * rng.standard_normal(count))
    return list(np.where(rng.random(count) < 0.05, 2 * drawn, drawn))


def made(seed: int = 0, **cell: Any) -> Record:
    """A record with every number that is compared; the same for the same ``seed`` and ``cell``."""
    found = record.new(
        {**CELL, "seed": seed, **cell},
        {"lr": 0.1},
        {"device": "A CPU", "threads": 1, "torch": "2.13.0", "commit": "abc"},
    )
    found["status"] = "ok"
    found["accuracy"]["values"] = [0.90 + 0.002 * seed, 0.91, 0.92]
    found["accuracy"]["krr_values"] = [0.88, 0.89, 0.90]
    cost = found["cost"]
    cost["step_seconds"] = samples(np.random.default_rng(seed))
    cost["flops_per_step"], cost["saved_bytes_per_step"] = 6.2e9, 1.5e8
    cost["peak_live_bytes"], cost["parameters"] = 40 * MIB, 123456
    cost["memory"]["meter"], cost["memory"]["host_rss_bytes"] = "host_rss", 100 * MIB
    return found


def verdicts(found: Comparison) -> dict[str, str]:
    """Quantity → verdict, for a comparison of one cell."""
    assert len({finding.quantity for finding in found.findings}) == len(found.findings)
    return {finding.quantity: finding.verdict for finding in found.findings}


def only(found: Comparison, verdict: str) -> str:
    """The one quantity with this verdict; everything else is the same as before."""
    (quantity,) = (q for q, v in verdicts(found).items() if v == verdict)
    assert set(verdicts(found).values()) == {verdict, "insignificant"}
    return quantity


def slower(found: Record) -> None:
    found["cost"]["step_seconds"] = samples(np.random.default_rng(9), 0.0115)


def extra_forward(found: Record) -> None:
    found["cost"]["flops_per_step"] = 6.2e9 * 1.01


def graph_kept_alive(found: Record) -> None:
    found["cost"]["peak_live_bytes"] = 41 * MIB


def more_saved(found: Record) -> None:
    found["cost"]["saved_bytes_per_step"] = 1.51e8


def larger_network(found: Record) -> None:
    found["cost"]["parameters"] = 124000


def more_memory(found: Record) -> None:
    found["cost"]["memory"]["host_rss_bytes"] = 115 * MIB


def less_accurate(found: Record) -> None:
    found["accuracy"]["values"] = [value - 0.08 for value in found["accuracy"]["values"]]


def less_accurate_krr(found: Record) -> None:
    found["accuracy"]["krr_values"] = [value - 0.08 for value in found["accuracy"]["krr_values"]]


PLANTED = {
    "seconds per step": slower,
    "FLOPs per step": extra_forward,
    "peak live tensor bytes": graph_kept_alive,
    "bytes saved for backward per step": more_saved,
    "parameters": larger_network,
    "peak memory (host_rss)": more_memory,
    "test accuracy": less_accurate,
    "KRR accuracy": less_accurate_krr,
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
    before[1]["status"] = "error"
    for slow in after:
        slow["status"] = "timeout"
    found = compare(before, after)
    assert verdicts(found)["status"] == "insignificant" and found.status == 3
    assert "no seed of NEW ended well" in markdown(found)


def test_a_meter_without_a_number_is_not_compared() -> None:
    before, after = made(), made()
    after["cost"]["memory"]["host_rss_bytes"] = None
    found = compare([before], [after])
    assert verdicts(found)["peak memory"] == "not compared" and found.status == 3


def test_every_kind_of_number_is_planted() -> None:
    assert {*PLANTED, "status"} == set(verdicts(compare([made()], [made()])))


@pytest.mark.parametrize("status", ["oom", "timeout", "diverged", "error"])
def test_a_cell_that_no_longer_ends_well_is_worse(status: Any) -> None:
    after = [made(0), made(1)]
    after[1]["status"] = status
    found = compare([made(0), made(1)], after)
    assert verdicts(found)["status"] == "worse" and found.failed
    assert verdicts(compare(after, [made(0), made(1)]))["status"] == "improved"
    after[0]["status"] = status
    assert verdicts(compare([made(0), made(1)], after)) == {"status": "worse"}  # there is nothing else to compare


def test_an_error_is_worse_than_out_of_memory() -> None:
    before, after = made(), made()
    before["status"], after["status"] = "oom", "error"
    assert verdicts(compare([before], [after])) == {"status": "worse"}
    assert verdicts(compare([after], [before])) == {"status": "improved"}


def test_missing_and_new_cells_are_told_apart() -> None:
    found = compare([made(), made(ipc=10)], [made(), made(ipc=50)])
    assert [finding.cell for finding in found.of("missing")] == ["frepo mnist ipc 10 convnet_doubling 32 quick"]
    assert [finding.cell for finding in found.of("new")] == ["frepo mnist ipc 50 convnet_doubling 32 quick"]
    assert found.failed
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
            for one in sides[-1]:
                count, memory = ((200, 0.9), (50, 0.5), (20, 0.1))[trial % 3]
                one["cost"]["step_seconds"] = run_samples(rng, between, 0.1, count, memory)
        flagged += regress._seconds("", *(Group(tuple(side)) for side in sides), Bounds()).verdict != "insignificant"
    assert flagged <= 2


def test_windows_that_resemble_their_neighbours_are_not_independent() -> None:
    """Single runs of equal speed, whose noise lasts for some ten windows."""
    rng, pair = np.random.default_rng(0), [made(), made()]
    flagged = 0
    for _ in range(100):
        for one in pair:
            one["cost"]["step_seconds"] = run_samples(rng, 0.0, 0.2, 300, 0.9)
        flagged += regress._seconds("", Group((pair[0],)), Group((pair[1],)), Bounds()).verdict != "insignificant"
    assert flagged <= 5


def test_blocks_are_medians_of_neighbours() -> None:
    assert regress.blocks([1.0, 2.0, 9.0, 4.0, 5.0, 6.0], 2) == [2.0, 5.0]
    assert regress.blocks([1.0, 2.0, 9.0], 20) == [1.0, 2.0, 9.0]
    assert len(regress.blocks([1.0] * 999)) == regress.BLOCKS


def test_repeated_runs_must_lie_apart() -> None:
    """The same difference of the pooled medians, once between runs that overlap; a single run cannot tell."""

    def side(*medians: float) -> list[Record]:
        records = [made(seed) for seed in range(len(medians))]
        for one, median in zip(records, medians, strict=True):
            one["cost"]["step_seconds"] = samples(np.random.default_rng(one["cell"]["seed"]), median, spread=0.01)
        return records

    def row(before: list[Record], after: list[Record]) -> regress.Finding:
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
    before["cost"]["steps_per_sample"], after["cost"]["steps_per_sample"] = 10, 20
    assert verdicts(compare([before], [after]))["seconds per step"] == "insignificant"
    after["cost"]["steps_per_sample"] = 21
    found = compare([before], [after])
    assert verdicts(found)["seconds per step"] == "not compared"
    assert "- seconds per step: windows of 10 to 21 steps (1 cell)" in markdown(found)


def test_a_change_must_be_large_and_significant() -> None:
    rng = np.random.default_rng(1)
    before, small, few = made(), made(), made()
    before["cost"]["step_seconds"] = samples(rng, count=1000)
    small["cost"]["step_seconds"] = samples(rng, 0.0105, count=1000)  # 5 %: certain, and small
    few["cost"]["step_seconds"] = [0.010, 0.014, 0.012, 0.011, 0.013, 0.012, 0.009, 0.015]  # 20 %, and uncertain
    assert not compare([before], [small]).failed
    assert compare([before], [small], Bounds(seconds=0.03)).failed
    few_before = copy.deepcopy(few)
    few_before["cost"]["step_seconds"] = [0.010, 0.012, 0.009, 0.011, 0.010, 0.013, 0.008, 0.010]
    assert not compare([few_before], [few]).failed
    assert compare([few_before], [few], Bounds(p_value=0.2)).failed


def test_so_few_samples_that_no_difference_is_significant_are_not_compared() -> None:
    before, after = made(), made()
    before["cost"]["step_seconds"], after["cost"]["step_seconds"] = [0.01] * 5, [0.1] * 5
    found = compare([before], [after])
    assert verdicts(found)["seconds per step"] == "not compared" and not found.failed
    assert "seconds per step: too few samples for p < 0.002 (1 cell)" in markdown(found)


def test_noise_of_the_accuracy_is_not_a_regression() -> None:
    """500 pairs of three seeds × three networks: seeds differ by a point, networks of one seed by a third of it."""
    rng = np.random.default_rng(2)

    def measured() -> list[list[float]]:
        return [list(0.9 + 0.01 * rng.standard_normal() + 0.003 * rng.standard_normal(3)) for _ in range(3)]

    found = [regress._accuracy("", "", measured(), measured(), Bounds()).verdict for _ in range(500)]
    assert found.count("worse") <= 4 and found.count("improved") <= 4


def test_a_fall_of_many_seeds_is_seen_although_each_of_them_scatters() -> None:
    """Three points at a spread of one: too little for four standard deviations, and beyond doubt with ten seeds."""

    def measured(middle: float, seeds: int) -> list[Record]:
        records = [made(seed) for seed in range(seeds)]
        for one, offset in zip(records, np.linspace(-0.0145, 0.0145, seeds), strict=True):
            one["accuracy"]["values"] = [middle + offset - 0.001, middle + offset, middle + offset + 0.001]
        return records

    def verdict(seeds: int, bounds: Bounds | None = None) -> str:
        return verdicts(compare(measured(0.92, seeds), measured(0.89, seeds), bounds))["test accuracy"]

    assert verdict(10) == "worse" and verdict(10, Bounds(accuracy=0.05)) == "insignificant"
    assert verdict(3) == "insignificant" and verdict(3, Bounds(deviations=2)) == "worse"


def test_one_seed_must_fall_further() -> None:
    """Another run of the same seed may end a few points away: its networks cannot tell."""
    before, after = made(), made()
    before["accuracy"]["values"], after["accuracy"]["values"] = [0.901, 0.900, 0.899], [0.861, 0.860, 0.859]
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
@pytest.mark.parametrize("values", ["values", "krr_values"])
def test_accuracies_of_few_networks_have_a_bound_of_their_own(
    values: Any, old: list[float], new: list[float], verdict: str
) -> None:
    before, after = made(), made()
    before["accuracy"][values], after["accuracy"][values] = old, new
    quantity = {"values": "test accuracy", "krr_values": "KRR accuracy"}[values]
    found = compare([before], [after])
    assert verdicts(found)[quantity] == verdict and found.status == (verdict == "worse")
    assert verdicts(compare([before], [after], Bounds(without_spread=0.9)))[quantity] == "insignificant"
    assert verdicts(compare([after], [before], Bounds(without_spread=0.0)))[quantity] in ("worse", "improved")


def test_memory_may_move_a_little() -> None:
    after = made()
    after["cost"]["memory"]["host_rss_bytes"] = 113 * MIB  # 10 % and 4 MiB
    assert not compare([made()], [after]).failed
    assert compare([made()], [after], Bounds(memory=0.05)).failed
    assert compare([made()], [after], Bounds(memory_bytes=0)).failed


# --- what is compared with what ---------------------------------------------------------------------------------------


def test_seeds_and_commits_do_not_tell_cells_apart() -> None:
    after = [made(3), made(4)]
    for one in after:
        one["provenance"] |= {"commit": "def", "torch": "2.12.0"}
    found = compare([made(0), made(1)], after)
    assert set(verdicts(found).values()) == {"insignificant"}
    assert "commit: abc → def." in found.notes and "torch: 2.13.0 → 2.12.0." in found.notes
    assert any("seeds 0, 1 in BASELINE, 3, 4 in NEW" in note for note in found.notes)


@pytest.mark.parametrize(
    "changes", [{"width": 64}, {"data_fingerprint": "fedcba98"}, {"protocol": "common"}, {"budget": "paper"}]
)
def test_other_settings_are_other_cells(changes: dict[str, Any]) -> None:
    found = compare([made(), made(ipc=10)], [made(**changes), made(ipc=10)])
    assert len(found.of("missing")) == len(found.of("new")) == 1
    assert found.of("missing")[0].cell != found.of("new")[0].cell, "the two must have different names"
    with pytest.raises(UserError, match="no cell in common"):
        compare([made()], [made(**changes)])


def test_other_hyper_parameters_are_other_cells_and_null_is_none() -> None:
    after = made()
    after["config"]["lr"] = 0.2
    with pytest.raises(UserError, match="no cell in common"):
        compare([made()], [after])
    assert not compare([made()], [made(memory_limit_bytes=None)]).failed


@pytest.mark.parametrize(
    ("part", "change"),
    [("provenance", {"device": "A GPU"}), ("provenance", {"threads": 2}), (None, {"protocol_version": "1"})],
)
def test_other_devices_are_not_compared(part: str | None, change: dict[str, Any]) -> None:
    before, after = made(), made()
    slower(after)
    (dict(after)[part] if part else after).update(change)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="nothing to compare: BASELINE was measured on A CPU"):
        compare([before], [after])
    found = compare([before], [after, made()])
    assert not found.failed and found.of("new") == []
    assert any(note.startswith("Left out") and "NEW" in note for note in found.notes)


def test_what_one_side_did_not_measure_is_said() -> None:
    before, after, neither = made(), made(), made()
    before["cost"]["flops_per_step"] = None
    found = compare([before], [after])
    assert verdicts(found)["FLOPs per step"] == "not compared" and not found.failed
    assert "- FLOPs per step: not measured in BASELINE (1 cell)" in markdown(found)
    assert "- FLOPs per step: not measured in NEW (1 cell)" in markdown(compare([after], [before]))
    neither["cost"]["flops_per_step"] = None
    assert "- FLOPs per step: not measured in either (1 cell)" in markdown(compare([before], [neither]))


def test_other_meters_are_not_compared() -> None:
    after = made()
    after["cost"]["memory"] |= {"meter": "torch", "allocated_bytes": 900 * MIB}
    found = compare([made()], [after])
    assert verdicts(found)["peak memory"] == "not compared" and not found.failed


def drop_seconds(found: Record) -> None:
    found["cost"]["step_seconds"] = []


def few_samples(found: Record) -> None:
    found["cost"]["step_seconds"] = [0.01]


def long_windows(found: Record) -> None:
    found["cost"]["steps_per_sample"] = 50


def other_meter(found: Record) -> None:
    found["cost"]["memory"] |= {"meter": "torch", "allocated_bytes": 900 * MIB}


def no_accuracy(found: Record) -> None:
    found["accuracy"]["krr_values"] = []


@pytest.mark.parametrize("change", [drop_seconds, few_samples, long_windows, other_meter, no_accuracy])
def test_what_was_measured_and_not_compared_is_no_success(change: Any) -> None:
    """It is printed with its cell, and an exit status of 0 does not hide it."""
    before, after = made(), made()
    before["cost"]["steps_per_sample"] = 10
    change(after)
    found = compare([before], [after])
    assert found.status == 3 and not found.failed
    shown = markdown(found)
    assert ", 1 not compared\n" in shown and "(1 cell): frepo mnist ipc 1 convnet_doubling 32 quick\n" in shown
    PLANTED["FLOPs per step"](after)
    assert compare([before], [after]).status == 1, "worse is worse"


@pytest.mark.parametrize("counter", ["peak_live_bytes", "joules_per_step"])
def test_what_the_baseline_did_not_measure_can_not_be_lost(counter: Any) -> None:
    before, after = made(), made()
    before["cost"][counter], after["cost"][counter] = None, 5
    assert compare([before], [after]).status == 0


def test_a_cell_of_another_device_was_not_compared() -> None:
    other = made(ipc=50)
    other["provenance"]["device"] = "A GPU"
    found = compare([made(), other], [made()])
    assert found.status == 3 and "- cell: NEW has nothing measured there (1 cell): frepo mnist ipc 50" in markdown(
        found
    )
    assert compare([made()], [made(), other]).status == 0, "nothing of BASELINE is lost"


@pytest.mark.parametrize(
    "change", [{"torch": "2.12.0"}, {"environment": {"OMP_WAIT_POLICY": "active"}}, {"something": "new"}], ids=str
)
def test_records_of_one_side_that_differ_are_not_pooled(change: dict[str, Any]) -> None:
    sides = [[made(0), made(1)], [made(0), made(1)]]
    sides[1][1]["provenance"] |= change
    for one in sides[1]:
        slower(one)
    for old, new, side in ((*sides, "NEW"), (*sides[::-1], "BASELINE")):
        found = compare(old, new)
        assert verdicts(found) == {"cell": "not compared"} and found.status == 3
        assert f"- cell: the records of {side} differ in {next(iter(change))}" in markdown(found)
    for one in sides[1]:
        one["provenance"] |= change
    assert compare(*sides).status == 1, "between the two sides a difference is what is asked about"
    assert any(note.startswith(next(iter(change))) for note in compare(*sides).notes)


def test_names_reach_the_markdown_as_they_are() -> None:
    name = "a|b\x1b[31m\n<i>"
    shown = markdown(compare([made(dataset=name), made(ipc=10)], [made(ipc=10)]))
    assert r"a\|b\\x1b[31m\\n\<i>" in shown and "\x1b" not in shown


def test_other_work_on_the_device_is_said() -> None:
    after = made()
    after["cost"]["memory"]["busy"] = "another process"
    assert "Other work on the device in 1 of NEW: another process." in compare([made()], [after]).notes


# --- the command ------------------------------------------------------------------------------------------------------


def saved(folder: Path, *records: Record) -> str:
    folder.mkdir()
    for i, one in enumerate(records):
        record.write(one, folder / f"{i}.json")
    return str(folder)


def test_the_command_prints_what_is_worse_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worse = made()
    slower(worse)
    before, after = saved(tmp_path / "a", made(), made(ipc=10)), saved(tmp_path / "b", worse, made(ipc=50))
    assert main([before, after, "--output", str(tmp_path / "found.md")]) == 1
    printed = capsys.readouterr().out
    assert (tmp_path / "found.md").read_text(encoding="utf-8") == printed
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in lines[:4]] == ["verdict", "**worse**", "**missing**", "new"]
    assert "1 worse, 1 missing, 0 improved, 1 new, 8 insignificant" in printed
    assert printed.index("**worse**") < printed.index("<details><summary>8 insignificant") < printed.index("Notes:")


def test_the_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    better = made()
    slower(better)
    slow, fast = saved(tmp_path / "slow", better), saved(tmp_path / "fast", made())
    assert main([slow, fast]) == 0 and main([slow, slow]) == 0
    assert main([fast, slow]) == 1
    assert main([fast, slow, "--seconds", "0.5"]) == 0
    assert main([f"{fast}/0.json", f"{slow}/0.json"]) == 1
    few = made()
    few["cost"]["step_seconds"] = [0.01]
    assert main([fast, saved(tmp_path / "few", few)]) == 3
    assert capsys.readouterr().err == ""


def test_what_a_user_gets_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fine = saved(tmp_path / "fine", made())
    empty, damaged, other = saved(tmp_path / "empty"), saved(tmp_path / "damaged"), made()
    (tmp_path / "damaged" / "x.json").write_text("{")
    other["provenance"]["device"] = "A GPU"
    elsewhere = saved(tmp_path / "elsewhere", other)
    for arguments, words in (
        ([str(tmp_path / "nowhere"), fine], "no such folder or record"),
        ([fine, empty], "no records in"),
        ([fine, damaged], "damaged record"),
        ([damaged, fine], "damaged record"),
        ([fine, elsewhere], "nothing to compare"),
        ([fine, fine, "--seconds=-1"], "--seconds must be at least 0"),
        ([fine, fine, "--output", str(tmp_path / "no" / "such" / "file")], "cannot be written"),
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and words in line


# --- a real cell under a clock set by hand ----------------------------------------------------------------------------


class JitteryTicks:
    """A clock that moves about ``second`` seconds every time it is read, by chance 3 % more or less."""

    def __init__(self, second: float, seed: int) -> None:
        self.time, self.second, self.rng = 0.0, second, np.random.default_rng(seed)

    def __call__(self) -> float:
        self.time += float(self.second * np.exp(0.03 * self.rng.standard_normal()))
        return self.time


def test_a_cell_under_a_slower_clock_is_slower(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "release", lambda: None)
    for name, second, seed in (("before", 1.0, 0), ("again", 1.0, 1), ("slow", 1.2, 2)):
        made = job(tmp_path / name, steps=40)
        assert run(made, JitteryTicks(second, seed))["status"] == "ok"
        assert len(record.load(made.record_path)["cost"]["step_seconds"]) == 20
    before, again, slow = (regress._read(tmp_path / name) for name in ("before", "again", "slow"))
    assert verdicts(compare(before, again))["seconds per step"] == "insignificant"
    assert verdicts(compare(before, slow))["seconds per step"] == "worse"
    assert verdicts(compare(slow, before))["seconds per step"] == "improved"
    assert main([str(tmp_path / "before"), str(tmp_path / "slow"), "--memory-bytes", "1e9"]) == 1
    assert "| **worse**" in capsys.readouterr().out


def test_every_bound_is_a_flag_that_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for each in dataclasses.fields(Bounds):
        assert f"--{each.name.replace('_', '-')} NUMBER" in shown
