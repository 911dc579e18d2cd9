"""The claims of the paper: each has a measurement that confirms it, one that does not, and records that say nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness import report
from harness.records.record import Distilled
from harness.reports.groups import grouped
from harness.reports.verdicts import CLAIMS, Verdict, verdicts
from tests.builders import MIB, cost, curve, evaluated, made, saved

HIGH, LOW = (0.70, 0.71, 0.72, 0.70, 0.71), (0.60, 0.61, 0.62, 0.60, 0.61)


def verdict(begin: str, records: Sequence[Distilled]) -> Verdict:
    """That of the claim whose text begins so."""
    (found,) = (each for each in verdicts(grouped(records)) if each.claimed.startswith(begin))
    return found


def test_every_claim_says_what_decides_it() -> None:
    assert len({claim.text for claim in CLAIMS}) == len(CLAIMS) == 20
    assert all(claim.where and claim.text and claim.decided_by for claim in CLAIMS)


def test_without_records_nothing_is_tested() -> None:
    judged = verdicts(grouped([made((), budget="cost", method="random_real")]))
    assert {(each.word, each.measured, each.n, each.on) for each in judged} == {("not tested here", "–", "–", "–")}


@pytest.mark.parametrize(
    ("ours", "theirs", "word"),
    [
        (HIGH, LOW, "confirmed"),
        (LOW, HIGH, "not confirmed"),
        (LOW, LOW, "not confirmed"),
        (HIGH[:4], LOW[:4], "not tested here"),
    ],
)
def test_the_accuracy_is_compared_with_the_best_other_method(
    ours: Sequence[float], theirs: Sequence[float], word: str
) -> None:
    lower = [value - 0.2 for value in theirs]
    records = [
        made(ours),
        made(lower, method="dsa"),
        made(theirs, method="mtt"),
        made((0.99,) * 5, method="random_real"),
    ]
    found = verdict("Higher test accuracy", records)
    assert found.word == word and "against mtt" in found.measured
    assert found.on == "A CPU; budget quick; width 32" and found.n == str(2 * len(ours))
    assert ("undecided" in found.measured) == (word == "not tested here")


def test_methods_with_recipes_of_their_own_are_compared_without_pairs() -> None:
    found = verdict("Higher test accuracy", [made(HIGH), made(LOW, method="dm", protocol="vico")])
    assert found.word == "confirmed" and "+10.0 points" in found.measured


def test_most_settings_are_enough_where_most_are_claimed() -> None:
    pairs = [(HIGH, LOW), (HIGH, LOW), (LOW, HIGH)]
    records = [
        made(values, method=method, ipc=ipc)
        for ipc, both in enumerate(pairs, start=1)
        for method, values in zip(("frepo", "mtt"), both, strict=True)
    ]
    found = verdict("Higher test accuracy", records)
    assert found.word == "confirmed" and found.measured.startswith("in 2 of 3 settings: ")
    assert verdict("Higher test accuracy", records[2:]).word == "not confirmed"


def test_a_claim_about_many_classes_is_tested_on_them_alone() -> None:
    records = [made(HIGH), made(LOW, method="mtt")]
    assert verdict("Above all", records).word == "not tested here"
    there = [made(HIGH, dataset="cifar100"), made(LOW, method="mtt", dataset="cifar100")]
    assert verdict("Above all", there).word == "confirmed"
    part = [
        made(HIGH, dataset="folder:tiny-imagenet-32-100"),
        made(LOW, method="mtt", dataset="folder:tiny-imagenet-32-100"),
    ]
    assert verdict("Above all", part).word == "confirmed"
    assert verdict("Above all", [made(HIGH, dataset="cifar100", ipc=10)]).word == "not tested here"


def test_numbers_without_meaning_decide_nothing() -> None:
    records = [made(HIGH, budget="smoke"), made(LOW, method="mtt", budget="smoke")]
    assert verdict("Higher test accuracy", records).word == "not tested here"


def test_views_of_a_data_set_are_no_table_1() -> None:
    records = [made(HIGH, dataset="mnist@images:0-2000"), made(LOW, method="mtt", dataset="mnist@images:0-2000")]
    assert verdict("Higher test accuracy", records).word == "not tested here"


@pytest.mark.parametrize(
    ("seconds", "word", "ratios"),
    [
        (200.0, "confirmed", ("100×", "23.0×")),  # 200 / 2, and (200 + 30) / (2 + 8)
        (50.0, "not confirmed", ("25.0×", "8.0×")),
    ],
)
def test_the_time_to_equal_accuracy(seconds: float, word: str, ratios: tuple[str, str]) -> None:
    ours = curve("frepo", [(1.0, 0.2), (2.0, 0.5), (3.0, 0.6)], prepare=8.0, network="convnet")
    theirs = curve("mtt", [(seconds / 2, 0.3), (seconds, 0.5)], prepare=30.0, network="convnet")
    found = verdict("Two orders of magnitude", [ours, theirs])
    told = f"FRePo takes 2 s and mtt {seconds:.0f} s: {ratios[0]}, with preparation {ratios[1]}"
    assert found.word == word and told in found.measured
    slow = curve("frepo", [(1.0, 0.2), (2.0, 0.3), (3.0, 0.4)], network="convnet")
    found = verdict("Two orders of magnitude", [slow, theirs])
    assert found.word == "not confirmed" and "does not come" in found.measured


@pytest.mark.parametrize(
    ("ours", "theirs", "word", "told"),
    [  # the seconds of a first point that has the accuracy already are an upper bound
        ([(2.0, 0.5), (3.0, 0.6)], [(1.0, 0.3), (50.0, 0.5)], "not tested here", "at least 25.0×"),
        ([(2.0, 0.5), (3.0, 0.6)], [(1.0, 0.3), (400.0, 0.5)], "confirmed", "at least 200×"),
        ([(1.0, 0.2), (2.0, 0.5)], [(50.0, 0.5), (60.0, 0.5)], "not confirmed", "at most 25.0×"),
        ([(1.0, 0.2), (2.0, 0.5)], [(400.0, 0.5), (500.0, 0.5)], "not tested here", "at most 200×"),
        ([(2.0, 0.5), (3.0, 0.6)], [(50.0, 0.5), (60.0, 0.5)], "not tested here", "perhaps 25.0×"),
    ],
)
def test_a_time_that_is_only_a_bound_decides_one_way(
    ours: list[tuple[float, float]], theirs: list[tuple[float, float]], word: str, told: str
) -> None:
    records = [curve("frepo", ours, network="convnet"), curve("mtt", theirs, network="convnet")]
    found = verdict("Two orders of magnitude", records)
    assert found.word == word and told in found.measured


@pytest.mark.parametrize(
    "other",
    [
        *({"width": 64}, {"dataset": "digits"}, {"ipc": 10}, {"device": "B"}, {"status": "oom"}, {"image_size": 16}),
        *({"evaluation": {"steps": 10}}, {"network": "convnet"}, {"preprocess": "zca_frepo"}, {}),
    ],
    ids=str,
)
def test_times_are_compared_where_all_was_measured_and_evaluated_alike(other: dict[str, Any]) -> None:
    points = [(1.0, 0.2), (100.0, 0.4)]
    measured = verdict("Two orders of magnitude", [curve("frepo", points), curve("mtt", points, **other)]).measured
    assert (measured == "–") == bool(other)


@pytest.mark.parametrize(
    "other",
    [
        *({"evaluation": {"protocol": "mtt", "steps": 10}}, {"evaluation": {"protocol": "common"}}, {"ipc": 10}),
        *({"evaluation": {"protocol": "mtt", "width": 8}}, {"network": "convnet_doubling"}, {}),
    ],
    ids=str,
)
def test_times_are_compared_where_each_was_evaluated_as_its_paper_does(other: dict[str, Any]) -> None:
    points = [(1.0, 0.2), (100.0, 0.4)]
    ours = curve("frepo", points, network="convnet_doubling", evaluation={"protocol": "frepo"})
    theirs = curve("mtt", points, **{"network": "convnet", "evaluation": {"protocol": "mtt"}, **other})
    assert (verdict("Two orders of magnitude", [ours, theirs]).measured == "–") == bool(other)


def test_costs_are_those_of_the_largest_width() -> None:
    records = [
        cost(method, seconds, peak * MIB, width=width)
        for (method, seconds, peak), width in itertools.product((("frepo", 0.1, 10), ("mtt", 2.0, 120)), (16, 64))
    ]
    records[2] = cost("mtt", 0.01, 5 * MIB, width=16)  # smaller widths decide nothing
    memory, time = verdict("An order of magnitude", records), verdict("An iteration", records)
    assert (memory.word, time.word) == ("confirmed", "confirmed")
    assert "12.0× the peak memory" in memory.measured and "mtt takes 20.0× the time" in time.measured
    assert "width 64" in memory.on
    records[3] = cost("mtt", 0.05, 90 * MIB, width=64)
    assert {verdict(begin, records).word for begin in ("An order of magnitude", "An iteration")} == {"not confirmed"}


def test_kernel_regression_is_better_or_as_good() -> None:
    many = made(LOW, krr=HIGH, dataset="cifar100")
    assert verdict("On complex data sets", [many]).word == "confirmed"
    assert verdict("On complex data sets", [made(HIGH, krr=LOW, dataset="cifar100")]).word == "not confirmed"
    alike = [value + 0.005 for value in LOW]
    assert verdict("On MNIST", [made(LOW, krr=alike)]).word == "confirmed"
    assert verdict("On MNIST", [made(LOW, krr=HIGH)]).word == "not confirmed"
    assert verdict("On MNIST", [many]).word == "not tested here"


def test_learned_labels_are_compared_with_fixed_ones() -> None:
    def ours(values: Sequence[float], *, learned: bool, **config: Any) -> Distilled:
        return made(values, dataset="cifar100", config={"learn_label": learned, **config})

    assert verdict("Learned labels", [ours(HIGH, learned=True), ours(LOW, learned=False)]).word == "confirmed"
    assert verdict("Learned labels", [ours(LOW, learned=True), ours(HIGH, learned=False)]).word == "not confirmed"
    other = ours(LOW, learned=False, pool_size=3)
    assert verdict("Learned labels", [ours(HIGH, learned=True), other]).word == "not tested here"


def transferred(method: str, by: dict[str, Sequence[float]], **changes: Any) -> Distilled:
    """A set that was tested on the architectures of ``by``."""
    distilled = made(HIGH, method=method, **changes)
    for architecture, values in by.items():
        distilled = evaluated(
            distilled, {"accuracy": values}, "cross_architecture", architectures=[architecture], lr=None
        )
    return distilled


def test_transfer_is_judged_on_every_architecture_but_the_own_one() -> None:
    ours = transferred("frepo", {"own": LOW, "resnet18": HIGH, "alexnet:none": HIGH})
    theirs = transferred("mtt", {"own": HIGH, "resnet18": LOW, "alexnet:none": LOW})
    found = verdict("Better than DSA, DM, KIP and MTT on every", [ours, theirs])
    assert (
        found.word == "confirmed" and found.measured.startswith("in 2 of 2 settings: ") and "resnet18" in found.measured
    )
    worse = transferred("mtt", {"resnet18": LOW, "alexnet:none": HIGH})
    assert verdict("Better than DSA, DM, KIP and MTT on every", [ours, worse]).word == "not confirmed"


@pytest.mark.parametrize(("bare", "word"), [(LOW, "confirmed"), (HIGH, "not confirmed")])
def test_what_the_missing_norm_costs(bare: Sequence[float], word: str) -> None:
    records = [transferred("dsa", {"own": HIGH, "own:none": bare}, norm="instance")]
    assert verdict("Sets distilled with instance norm", records).word == word
    assert verdict("Sets distilled with instance norm", [transferred("frepo", {"own": HIGH})]).word == "not tested here"


def continual(method: str, last: Sequence[float], steps: int = 5, order: int = 0, ipc: int = 20) -> Distilled:
    """The set of the last step, and what networks have that were trained on all: low values on the way."""
    series = [value for end in last for value in (*[0.1] * (steps - 1), end)]
    view = f"cifar100@step:{steps - 1}-of-{steps}-order-{order}"
    distilled = made((), method=method, dataset=view, ipc=ipc)
    own = {"class_steps": steps, "order": order, "leak": False, "networks": len(last)}
    return evaluated(distilled, {"continual_accuracy": series}, "continual_learning", **own)


def test_continual_learning_is_judged_after_the_last_step() -> None:
    records = [
        continual(method, values, order=order)
        for method, values in (("frepo", HIGH[:3]), ("dm", LOW[:3]), ("random_real", LOW[:3]))
        for order in (0, 1)
    ]
    found = verdict("Continual learning", records)
    assert found.word == "confirmed" and "cifar100 at ipc 20 in 5 steps" in found.measured and found.n == "12"
    assert verdict("Continual learning", [continual("frepo", LOW), continual("herding", HIGH)]).word == "not confirmed"


def test_networks_that_were_asked_otherwise_do_not_meet() -> None:
    """Not with another search of the step size, not with another number of steps."""
    ours, theirs = transferred("frepo", {"resnet18": HIGH}), made(HIGH, method="mtt")
    alike = {"architectures": ["resnet18"], "lr": None}
    for other in ({**alike, "lr": 0.1}, {**alike, "steps": 500}):
        asked = evaluated(theirs, {"accuracy": LOW}, "cross_architecture", **other)
        assert verdict("Better than DSA, DM, KIP and MTT on every", [ours, asked]).word == "not tested here"
    # The same set asked twice: neither answer takes the place of the other.
    twice = evaluated(ours, {"accuracy": LOW}, "cross_architecture", architectures=["resnet18"], lr=0.1)
    asked = evaluated(theirs, {"accuracy": LOW}, "cross_architecture", **alike)
    assert verdict("Better than DSA, DM, KIP and MTT on every", [twice, asked]).word == "confirmed"


def test_more_steps_are_worse_and_all_classes_at_once_as_good() -> None:
    five, ten = continual("frepo", HIGH), continual("frepo", LOW, steps=10)
    assert verdict("The more steps", [five, ten]).word == "confirmed"
    assert verdict("The more steps", [five]).word == "not tested here"
    whole = made(HIGH, dataset="cifar100", ipc=10)
    assert verdict("Distilled step by step", [five, whole]).word == "confirmed"
    assert verdict("Distilled step by step", [five, made(LOW, dataset="cifar100", ipc=10)]).word == "not confirmed"
    assert verdict("Distilled step by step", [five, made(LOW, dataset="cifar100", ipc=20)]).word == "not tested here"
    few = [continual("frepo", HIGH[:1]), made(HIGH[:1], dataset="cifar100", ipc=10)]
    assert verdict("Distilled step by step", few).word == "not tested here"


def attacked(method: str, auc: Sequence[float], accuracy: float = 0.9, seed: int = 0, **changes: Any) -> Distilled:
    """A set whose networks were attacked after 100 and 4000 steps; ``auc`` of the threshold attack."""
    names = ("threshold_auc", "lr_auc", "mlp_auc", "rf_auc", "knn_auc")
    values = {name: [*auc[:-1], auc[-1] - 0.01 * place] for place, name in enumerate(names)}
    config = {"members": 2000, "augment": "none", "lengths": [100, 4000]}
    distilled = made((), method=method, dataset="mnist@images:0-2000", seed=seed, **changes)
    return evaluated(distilled, {"accuracy": [0.1, accuracy], **values}, "membership_inference", config=config)


@pytest.mark.parametrize(
    ("real", "ours", "leak", "growth"),
    [
        ((0.55, 0.95), (0.5, 0.52), "confirmed", "confirmed"),
        ((0.55, 0.70), (0.5, 0.52), "not confirmed", "confirmed"),
        ((0.55, 0.95), (0.5, 0.60), "not confirmed", "not confirmed"),
        ((0.93, 0.95), (0.5, 0.52), "confirmed", "not confirmed"),
    ],
)
def test_what_attackers_tell(real: Sequence[float], ours: Sequence[float], leak: str, growth: str) -> None:
    records = [
        attacked("whole_data", real, ipc=0),
        attacked("frepo", ours),
        attacked("random_real", (0.5, 0.51)),
    ]
    found = verdict("Attackers tell", records)
    assert found.word == leak and "a random subset of its size 0.51" in found.measured
    assert found.n == "10" and "augmentation none, 4000 steps" in found.measured
    assert verdict("AUC keeps rising", records).word == growth


def test_what_attackers_tell_is_counted_once_whatever_else_was_evaluated() -> None:
    ours = attacked("frepo", (0.5, 0.52))
    both = evaluated(evaluated(ours, {"accuracy": HIGH}), {"accuracy": LOW}, protocol="common")
    found = verdict("Attackers tell", [attacked("whole_data", (0.5, 0.95), ipc=0), both])
    assert found.word == "confirmed" and found.n == "10"


@pytest.mark.parametrize("other", [{"device": "Another CPU"}, {"budget": "paper"}, {"width": 16}])
def test_attacks_are_compared_on_one_device_at_one_width(other: dict[str, Any]) -> None:
    records = [attacked("whole_data", (0.5, 0.95), ipc=0, **other), attacked("frepo", (0.5, 0.52))]
    assert verdict("Attackers tell", records).word == "not tested here"
    assert verdict("AUC keeps rising", records).word == "not tested here"


def test_all_networks_under_attack_count() -> None:
    config = {"members": 2000, "augment": "none", "lengths": [100, 4000], "repeats": 2}
    names = ("threshold_auc", "lr_auc", "mlp_auc", "rf_auc", "knn_auc")
    real, ours = (
        evaluated(
            made((), method=method, dataset="mnist@images:0-2000", ipc=ipc),
            {"accuracy": [0.1, 0.9, 0.1, 0.9], **dict.fromkeys(names, auc)},
            "membership_inference",
            config=config,
        )
        for method, ipc, auc in (("whole_data", 0, [0.6, 0.9, 0.6, 1.0]), ("frepo", 1, [0.5, 0.5, 0.5, 0.52]))
    )
    found = verdict("Attackers tell", [real, ours])
    assert "on real data 0.95, on FRePo's set 0.51" in found.measured and found.n == "20"
    assert "from 0.60 to 0.95" in verdict("AUC keeps rising", [real, ours]).measured


def test_a_set_is_of_more_use_than_a_subset() -> None:
    records = [
        attacked(method, (0.5, 0.5), accuracy + seed / 100, seed=seed)
        for method, accuracy in (("frepo", 0.9), ("random_real", 0.8))
        for seed in range(5)
    ]
    assert verdict("Training on FRePo's set", records).word == "confirmed"
    assert verdict("Training on FRePo's set", records[:1] + records[5:6]).word == "not tested here"


def test_the_command_shows_every_claim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path, made(HIGH), made(LOW, method="mtt"))
    assert report.main([folder, "--claims"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.partition("CONFIRMED")[2].splitlines())) <= 100
    assert "CONFIRMED: Higher test accuracy" in shown and "NOT TESTED HERE: Continual learning" in shown
    table = pd.read_csv(tmp_path / "claims.csv")
    assert len(table) == len(CLAIMS) and [*table["word"]].count("confirmed") == 1
    text = (tmp_path / "claims.md").read_text()
    assert text.startswith("Claims of Zhou") and text.count("*confirmed*") == 1
    assert text.count("\n- **") == len(CLAIMS) and "A CPU; budget quick; width 32" in text
    assert r"\begin{tabular}" in (tmp_path / "claims.tex").read_text()


def test_a_page_has_the_claims_of_all_its_folders_once(tmp_path: Path) -> None:
    folders = [saved(tmp_path / "ours", made(HIGH)), saved(tmp_path / "theirs", made(LOW, method="mtt"))]
    assert report.main([*folders, "--claims", "--page", str(tmp_path / "README.md")]) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.count("## The claims of the paper") == text.count("*confirmed*") == 1
    assert [path.name for path in tmp_path.rglob("claims.md")] == ["claims.md"] and (tmp_path / "claims.csv").is_file()
