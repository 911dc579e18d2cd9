"""Intervals and paired tests: against enumeration, against closed forms, and the verdicts of the report."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness import report
from harness.records.record import Distilled
from harness.reports.comparisons import comparison_rows, comparison_tables, leaders, row_comparisons
from harness.reports.groups import grouped
from harness.reports.statistics import (
    RESAMPLES,
    _resampled,
    compare,
    holm,
    interval,
    interval_of_difference,
    sign_flip,
)
from tests.builders import made, saved

# --- the sign-flip test


@pytest.mark.parametrize(
    ("differences", "p", "smallest"),
    [
        ((1.0,), 1.0, 1.0),
        ((1.0, 2.0, 3.0), 0.25, 0.25),
        ((-1.0, -2.0, -3.0), 0.25, 0.25),
        ((1.0, 2.0, -3.0), 1.0, 0.25),
        ((5.0, 4.0, 3.0, 2.0, 1.0), 1 / 16, 1 / 16),
        ((5.0, 4.0, 3.0, 2.0, -1.0), 2 / 16, 1 / 16),
        ((0.1, 0.1, 0.1, -0.1), 10 / 16, 1 / 8),
        ((0.0, 0.0, 0.0), 1.0, 0.25),
    ],
)
def test_the_p_of_few_differences(differences: tuple[float, ...], p: float, smallest: float) -> None:
    assert sign_flip(differences) == (pytest.approx(p, abs=1e-12), smallest)


@pytest.mark.parametrize("count", [2, 5, 9])
def test_the_p_is_the_share_of_all_changes_of_sign(count: int) -> None:
    draw = random.Random(count)
    values = [draw.gauss(0.4, 1.0) for _ in range(count)]
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True)))
        for signs in itertools.product((1, -1), repeat=count)
    ]
    expected = statistics.fmean(total >= abs(sum(values)) - 1e-12 for total in sums)
    assert sign_flip(values) == (pytest.approx(expected, abs=1e-12), 2 / 2**count)


def test_many_seeds_are_tested_by_random_changes_of_sign() -> None:
    """Against the normal limit, of which 2¹⁵ changes of sign are within three standard errors."""
    draw = random.Random(0)
    values = [draw.gauss(0.3, 1.0) for _ in range(60)]
    ratio = abs(sum(values)) / math.sqrt(sum(value**2 for value in values))
    expected = math.erfc(ratio / math.sqrt(2))
    p, smallest = sign_flip(values)
    assert p == pytest.approx(expected, abs=0.01) and 0 < smallest == 2.0**-15
    assert sign_flip([1.0] * 60)[0] == smallest


def test_the_test_keeps_its_level() -> None:
    """Under its hypothesis a p of at most 1/8 comes in one of eight cases, whatever the distribution."""
    draw = random.Random(1)
    hits = [sign_flip([draw.gauss(0, 1) ** 3 for _ in range(6)])[0] <= 1 / 8 for _ in range(2000)]
    assert statistics.fmean(hits) == pytest.approx(1 / 8, abs=0.025)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


# --- intervals


def test_of_many_networks_of_one_seed_the_interval_is_that_of_the_normal_limit() -> None:
    draw = random.Random(2)
    values = [draw.gauss(0.7, 0.1) for _ in range(400)]
    known = interval([values])
    assert known is not None and known.over == "networks"
    half = 1.96 * statistics.pstdev(values) / math.sqrt(400)
    mean = statistics.fmean(values)
    assert (known.low, known.high) == (pytest.approx(mean - half, abs=0.001), pytest.approx(mean + half, abs=0.001))


def test_both_levels_are_drawn_again() -> None:
    """The variance of the resampled means is known: that of the seeds' means, and that within seeds over k·m."""
    draw = random.Random(3)
    centres = [draw.gauss(0, 1) for _ in range(8)]
    values = [[centre + draw.gauss(0, 2) for _ in range(5)] for centre in centres]
    between = statistics.pvariance([statistics.fmean(own) for own in values])
    within = statistics.fmean(statistics.pvariance(own) for own in values)
    means = _resampled(values, np.random.default_rng(4))
    assert len(means) == RESAMPLES
    assert float(means.var()) == pytest.approx(between / 8 + within / (8 * 5), rel=0.05)
    assert float(means.mean()) == pytest.approx(statistics.fmean(map(statistics.fmean, values)), abs=0.03)


def test_seeds_with_fewer_networks_weigh_the_same_and_draw_only_their_own() -> None:
    means = _resampled([[1.0], [0.0, 0.0, 0.0]], np.random.default_rng(0))
    assert {*means.tolist()} == {0.0, 0.5, 1.0}
    assert float(means.mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("values", "over"),
    [
        ([[0.1, 0.2]], "networks"),
        ([[0.1, 0.2], []], "networks"),
        ([[0.1], [0.2]], "seeds"),
        ([[0.1, 0.2], [0.2]], "seeds and networks"),
    ],
)
def test_an_interval_says_what_it_covers(values: list[list[float]], over: str) -> None:
    known = interval(values)
    assert known is not None and known.over == over and 0.1 <= known.low < known.high <= 0.2
    assert known == interval(values)


@pytest.mark.parametrize("values", [[], [[]], [[0.5]]])
def test_no_interval_of_a_single_value(values: list[list[float]]) -> None:
    assert interval(values) is None
    assert interval_of_difference(values, [[0.1, 0.2]]) is None


def test_the_interval_of_a_difference_has_the_variance_of_both() -> None:
    draw = random.Random(5)
    one, other = ([[draw.gauss(0, scale) for _ in range(300)]] for scale in (1.0, 2.0))
    known = interval_of_difference(one, other)
    assert known is not None
    half = 1.96 * math.sqrt(sum(statistics.pvariance(each[0]) / 300 for each in (one, other)))
    assert (known.high - known.low) / 2 == pytest.approx(half, rel=0.05)


# --- paired comparisons


def test_values_pair_by_seed_and_network() -> None:
    first, second = {0: [0.5, 0.7, 0.9], 1: [0.4], 2: [0.1]}, {1: [0.1], 0: [0.4, 0.5], 3: [0.9]}
    found = compare(first, second)
    assert found is not None and (found.pairs, found.seeds) == (3, 2)
    assert found.difference == pytest.approx(((0.1 + 0.2) / 2 + 0.3) / 2)
    assert compare({0: [0.5]}, {1: [0.5]}) is None and compare({0: []}, {0: [1.0]}) is None


def test_what_networks_share_is_no_noise_of_a_pair() -> None:
    """Values that go up and down together: intervals of the means overlap, and that of the difference excludes 0."""
    draw = random.Random(6)
    shared = {seed: [draw.gauss(0.5, 0.1) for _ in range(3)] for seed in range(4)}
    above = {seed: [value + 0.02 + draw.gauss(0, 0.002) for value in own] for seed, own in shared.items()}
    one, other = interval([*above.values()]), interval([*shared.values()])
    found = compare(above, shared)
    assert one and other and found and found.interval
    assert one.low < other.high and 0.01 < found.interval.low < found.interval.high < 0.03


def rows(values: Mapping[str, Mapping[int, Sequence[float]]]) -> list[Distilled]:
    return [made(own, method=method, seed=seed) for method, seeds in values.items() for seed, own in seeds.items()]


@pytest.mark.parametrize(
    ("seeds", "networks", "gap", "verdict"),
    [
        (6, 2, 0.1, "better"),
        (6, 1, 0.1, "better"),
        (6, 2, 0.0001, "not distinguishable"),
        (5, 1, 0.1, "better for these sets"),
        (3, 2, 0.1, "better for these sets"),
        (3, 2, 0.0001, "not distinguishable"),
        (1, 5, 0.1, "better for these sets"),
        (1, 5, 0.0001, "not distinguishable"),
        (1, 4, 0.1, "too few"),
        (3, 1, 0.1, "too few"),
    ],
)
def test_the_word_for_a_difference(seeds: int, networks: int, gap: float, verdict: str) -> None:
    draw = random.Random(7)
    noise = {seed: [0.01 * draw.choice((-1, 1)) * draw.random() for _ in range(networks)] for seed in range(seeds)}
    low = {seed: [0.5 + place / 100 for place in range(networks)] for seed in range(seeds)}
    high = {seed: [v + gap + n for v, n in zip(own, noise[seed], strict=True)] for seed, own in low.items()}
    (each,) = row_comparisons(grouped(rows({"dm": low, "frepo": high})))
    assert each.verdict == verdict and each.comparison is not None
    assert (each.comparison.pairs, each.comparison.seeds) == (seeds * networks, seeds)
    assert (each.p is None) == (seeds < 3)


def test_p_is_corrected_for_all_tests_of_the_table() -> None:
    """Six seeds give 1/32 at best: enough for one test, and not for three."""
    values = {
        name: {seed: (level + seed / 100,) for seed in range(6)}
        for name, level in (("dm", 0.1), ("frepo", 0.3), ("mtt", 0.2))
    }
    one = row_comparisons(grouped(rows({name: values[name] for name in ("dm", "frepo")})))
    three = row_comparisons(grouped(rows(values)))
    assert [(c.p, c.smallest_p, c.verdict) for c in one] == [(1 / 32, 1 / 32, "better")]
    assert [(c.p, c.smallest_p, c.verdict) for c in three] == [(3 / 32, 3 / 32, "better for these sets")] * 3


def test_the_smallest_p_is_that_of_all_tests_at_their_smallest() -> None:
    """With 6 seeds of one method and 10 of the two others, the least p that Holm leaves of 2/64 is twice that."""
    values = {
        name: {seed: (level + seed / 100,) for seed in range(count)}
        for name, level, count in (("dm", 0.1, 6), ("frepo", 0.3, 10), ("mtt", 0.2, 10))
    }
    found = row_comparisons(grouped(rows(values)))
    assert sorted(c.smallest_p or 0.0 for c in found) == [3 * 2 / 2**10, 2 * 2 / 2**6, 2 * 2 / 2**6]
    assert all(c.p is not None and c.smallest_p is not None and c.p >= c.smallest_p for c in found)


def test_bold_are_the_best_and_what_is_not_told_from_it() -> None:
    values = {
        "frepo": {0: (0.90, 0.92, 0.94, 0.91, 0.93)},
        "mtt": {0: (0.91, 0.91, 0.93, 0.92, 0.925)},
        "dm": {0: (0.80, 0.82, 0.84, 0.81, 0.83)},
        "dsa": {0: (0.90,)},
    }
    groups = grouped(rows(values))
    assert {groups[place].method for place in leaders(groups)[0]} == {"frepo", "mtt"}
    tied = grouped(rows({"dm": {0: (0.5,)}, "frepo": {0: (0.5,)}, "mtt": {0: (0.4,)}}))
    assert {tied[place].method for place in leaders(tied)[0]} == {"dm", "frepo"}


def test_a_seed_that_was_distilled_twice_does_not_pair() -> None:
    twice = [made((0.8, 0.9), method="dm"), made((0.7, 0.8), method="dm", config={})]
    twice[1].record["provenance"] |= {"started": "later"}
    groups = grouped([*twice, made((0.6, 0.5))])
    assert [len(group.members) for group in groups] == [2, 1]
    (each,) = row_comparisons(groups)
    assert each.comparison is None and each.verdict == "too few"
    (table,) = comparison_tables(groups)
    assert table.rows[0][-1] == "too few"


def test_the_better_row_is_that_of_the_pairs() -> None:
    """Here not the one with the higher mean, which owes it to a seed that the other one has not."""
    pairs = {0: (0.50, 0.52, 0.54), 1: (0.51, 0.53, 0.55)}
    lower = {seed: tuple(value - 0.1 for value in own) for seed, own in pairs.items()}
    groups = grouped(rows({"dm": pairs, "frepo": {**lower, 2: (0.99, 0.99, 0.99)}}))
    (each,) = row_comparisons(groups)
    assert (groups[each.first].method, each.verdict) == ("dm", "better for these sets")
    assert {groups[place].method for place in leaders(groups)[0]} == {"frepo"}


def test_rows_that_were_evaluated_otherwise_are_not_compared() -> None:
    assert row_comparisons(grouped([made(), made(method="dm", width=64)])) == []
    assert comparison_tables(grouped([made(), made(method="dm", ipc=10)])) == []
    assert row_comparisons(grouped([made(), made(method="whole_data")])) == []


def test_the_command_writes_intervals_and_comparisons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(8)
    low = {seed: [draw.gauss(0.5, 0.01) for _ in range(2)] for seed in range(3)}
    high = {seed: [value + 0.1 for value in own] for seed, own in low.items()}
    folder = saved(tmp_path, *rows({"dm": low, "frepo": high}), made((0.4, 0.5), method="mtt"))
    assert report.main([folder]) == 0
    assert "95 %" not in (tmp_path / "table.md").read_text() and not (tmp_path / "comparisons.md").exists()
    assert report.main([folder, "--intervals", "--comparisons"]) == 0
    assert "better for these sets" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "table.csv").set_index("method")
    known = interval([*high.values()])
    assert known is not None
    assert (table.loc["frepo", "accuracy_low"], table.loc["frepo", "accuracy_high"]) == (known.low, known.high)
    assert [*table["accuracy_interval_over"]] == ["seeds and networks", "seeds and networks", "networks"]
    text = (tmp_path / "table.md").read_text()
    assert f"{100 * known.low:.1f} to {100 * known.high:.1f} |" in text and "networks alone |" in text
    found = pd.read_csv(tmp_path / "comparisons.csv")
    first = found.set_index(["method", "compared_with"]).loc[("frepo", "dm")]
    assert (
        first["difference"] == pytest.approx(0.1) and first["p"] == 0.25 and first["verdict"] == "better for these sets"
    )
    assert len(found) == len(
        comparison_rows(grouped([*rows({"dm": low, "frepo": high}), made((0.4, 0.5), method="mtt")]))
    )
    assert "| +10.0 " in (tmp_path / "comparisons.md").read_text()
    assert r"\begin{tabular}" in (tmp_path / "comparisons.tex").read_text()


def test_nothing_to_compare_is_an_empty_table(tmp_path: Path) -> None:
    assert report.main([saved(tmp_path, made()), "--comparisons"]) == 0
    assert (tmp_path / "comparisons.md").read_text().strip() == ""
