"""Attackers and what their scores are worth: against definitions, on cases with a known answer, and reproducible."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from harness.evaluations._attacks import (
    GRIDS,
    TRAINED,
    Observed,
    Scores,
    attack_quantities,
    balanced,
    measured,
    observed,
    random_for,
    roc,
    separate,
    threshold_attack,
    trained_attack,
)
from harness.evaluations._lira import ATTACKS, confidence, judged, likelihood_ratio

KNN = GRIDS["short"]["knn"]


def test_auc_is_the_chance_that_a_positive_example_has_the_higher_score() -> None:
    random = np.random.RandomState(0)
    positive, negative = random.randint(6, size=30).astype(float), random.randint(5, size=20).astype(float)
    pairs = [(p > n) + (p == n) / 2 for p, n in itertools.product(positive, negative)]
    curve = roc(positive, negative)
    assert curve.auc == pytest.approx(np.mean(pairs), abs=1e-12)
    assert roc(negative, positive).auc == pytest.approx(1 - curve.auc, abs=1e-12)
    assert curve.advantage == pytest.approx(2 * curve.accuracy - 1, abs=1e-12), "positive examples score higher here"
    assert roc(positive, positive).auc == 0.5 and roc(positive, positive).advantage == 0


def test_a_rate_is_the_largest_with_few_enough_false_positives() -> None:
    curve = roc(np.array([9.0, 7.0, 5.0, 3.0]), np.array([8.0, 4.0, 4.0, 1.0]))
    expected = {0.0: 0.25, 0.2: 0.25, 0.25: 0.75, 0.5: 0.75, 0.75: 1.0, 1.0: 1.0}
    assert {level: curve.tpr_at(level) for level in expected} == expected
    assert curve.tpr_at(0.25, strictly=True) == 0.25 and curve.tpr_at(0.0, strictly=True) == 0.0
    assert roc(np.array([1.0]), np.array([2.0])).tpr_at(0.5) == 0.0, "the highest score is that of a negative example"


def test_rates_are_reported_only_where_there_are_enough_non_members() -> None:
    random = np.random.RandomState(0)

    def names(others: int) -> set[str]:
        return set(measured("a", separate(random.rand(40), random.rand(others)), np.random.RandomState(0)))

    ends = {"", "_lower", "_upper"}
    percent = {f"a_tpr_at_0.01{end}" for end in ends}
    assert names(99) == {"a_auc"} and names(100) == names(999) == {"a_auc"} | percent
    assert names(1000) == {"a_auc"} | percent | {f"a_tpr_at_0.001{end}" for end in ends}
    assert names(1000) == set(attack_quantities("a", "A", shown=True)), "and each of them can be shown"


def test_the_interval_holds_the_rate_and_is_as_wide_as_examples_are_few() -> None:
    random = np.random.RandomState(3)

    def width(examples: int) -> float:
        scores = separate(random.normal(2.0, size=examples), random.normal(size=examples))
        lower, upper = scores.interval(0.1, np.random.RandomState(0))
        assert lower < scores.roc().tpr_at(0.1) < upper
        assert (lower, upper) == scores.interval(0.1, np.random.RandomState(0))
        return upper - lower

    few, many = width(100), width(1600)
    assert 2 < few / many < 8, "a sixteenth of the examples: four times as wide"


def test_examples_that_repeat_in_several_networks_are_no_further_evidence() -> None:
    random = np.random.RandomState(3)
    alone = separate(random.normal(2.0, size=200), random.normal(size=200))
    copies = Scores(np.repeat(alone.scores, 5, axis=0), np.repeat(alone.members, 5, axis=0))
    assert copies.interval(0.1, np.random.RandomState(0)) == alone.interval(0.1, np.random.RandomState(0))


def test_the_attacker_sees_logits_and_the_squared_error_of_a_centred_label() -> None:
    seen = observed(torch.tensor([[0.5, -0.5], [0.0, 0.0]]), torch.tensor([0, 1]))
    assert seen.loss.tolist() == [0.0, 0.25]
    assert seen.features.tolist() == [[0.5, -0.5, 0.0], [0.0, 0.0, 0.25]]


@pytest.mark.parametrize(("members", "others"), [(7, 7), (9, 4), (4, 9)])
def test_attackers_learn_from_as_many_members_as_others(members: int, others: int) -> None:
    seen, left_out = balanced(members, others, np.random.RandomState(1))
    assert sorted([*seen, *left_out]) == list(range(members + others))
    assert sum(seen < members) == sum(seen >= members) == min(members, others)
    assert not np.array_equal(balanced(members, others, np.random.RandomState(2))[0], seen)


def network_answers(examples: int, gap: float, seed: int = 0) -> tuple[Observed, Observed]:
    """What an attacker sees of members and others; ``gap``: by how much members are answered better."""
    random = np.random.RandomState(seed)
    sides = []
    for lift in (gap, 0.0):
        logits = torch.from_numpy(random.normal(0.0, 0.1, (examples, 3)))
        labels = torch.from_numpy(random.randint(3, size=examples))
        logits[torch.arange(examples), labels] += lift
        sides.append(observed(logits, labels))
    return sides[0], sides[1]


@pytest.mark.parametrize("attacker", TRAINED)
def test_an_attacker_finds_members_that_are_answered_otherwise(attacker: str) -> None:
    """And finds them again, to the bit."""
    grid = {field: values[:1] for field, values in GRIDS["published"][attacker].items()}
    state = np.random.get_state()[1]
    leaky, again = (trained_attack(attacker, *network_answers(50, 0.5), random_for("attack"), grid) for _ in range(2))
    assert leaky.scores.roc().auc > 0.8 and len(leaky.best) == 2
    assert np.array_equal(again.scores.scores, leaky.scores.scores)
    assert np.array_equal(np.random.get_state()[1], state), "global random numbers were drawn"


def test_there_is_nothing_to_find_where_members_are_answered_as_others() -> None:
    for seed in range(3):
        members, others = network_answers(60, 0.0, seed)
        assert 0.35 < trained_attack("knn", members, others, random_for("attack"), KNN).scores.roc().auc < 0.65
        assert 0.35 < threshold_attack(members, others).roc().auc < 0.65
    assert threshold_attack(*network_answers(60, 0.5)).roc().auc > 0.8


def test_examples_that_were_left_out_are_scored_as_well() -> None:
    members, others = network_answers(40, 0.5)
    fewer = Observed(others.logits[:25], others.loss[:25])
    scores = trained_attack("knn", members, fewer, random_for("attack"), KNN).scores
    assert scores.scores.shape == (1, 65) and np.isfinite(scores.scores).all()
    assert scores.members.sum() == 40 and scores.members[0, :40].all()


def test_the_short_grids_are_part_of_the_published_ones() -> None:
    for attacker in TRAINED:
        for field, values in GRIDS["short"][attacker].items():
            assert set(values) <= set(GRIDS["published"][attacker][field])


# --- LiRA


def test_confidence_is_the_log_odds_of_the_label() -> None:
    logits = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.tensor([0, 1, 4, 2])[:, None].expand(4, 2)
    own = logits.softmax(-1).gather(-1, labels[..., None])[..., 0]
    assert torch.allclose(confidence(logits, labels), (own / (1 - own)).log(), atol=1e-10)
    sure = confidence(torch.tensor([[200.0, 0.0, 0.0]]), torch.tensor([0]))
    assert float(sure) == pytest.approx(200 - np.log(2)), "where 1 − p is 0 to rounding"


def shadows(networks: int, examples: int, effect: float) -> tuple[np.ndarray, np.ndarray]:
    """φ of ``networks`` of which a random half has each example, and which have; members' is higher by ``effect``.

    How well an example is answered differs more from example to example than by having been seen.
    """
    random = np.random.RandomState(0)
    members = random.rand(networks, examples) < 0.5
    scores = random.normal(0, 3.0, (1, examples, 1)) + random.normal(0, 0.3, (networks, examples, 2))
    return scores + effect * members[..., None], members


def attacked(name: str, scores: np.ndarray, members: np.ndarray) -> float:
    ratio = likelihood_ratio(name, scores[1:], members[1:], scores[0])
    return separate(ratio[members[0]], ratio[~members[0]]).roc().auc


def test_shadows_find_members_that_a_global_threshold_does_not() -> None:
    scores, members = shadows(33, 300, 0.6)
    aucs = {name: attacked(name, scores, members) for name in ATTACKS}
    assert aucs["global_threshold"] < 0.6 < 0.8 < min(aucs["online"], aucs["online_fixed_variance"], aucs["offline"])
    assert aucs["online"] > aucs["offline"], "which knows less"
    nothing, members = shadows(33, 300, 0.0)
    assert all(0.4 < attacked(name, nothing, members) < 0.6 for name in ATTACKS)


def test_an_example_uses_all_its_shadows_unless_lists_are_cut() -> None:
    """Cut to the shortest, the first ones of each kind are kept."""
    scores, members = shadows(12, 40, 0.5)
    enough = judged(members[1:])
    assert 0 < enough.sum() <= 40
    scores, members = scores[:, enough], members[:, enough]
    kinds = (members[1:], ~members[1:])
    shortest = [int(kind.sum(0).min()) for kind in kinds]
    kept = [
        np.stack([np.flatnonzero(own)[:count] + 1 for own in kind.T])
        for kind, count in zip(kinds, shortest, strict=True)
    ]
    rows = np.arange(scores.shape[1])[:, None]
    few = np.concatenate([scores[each, rows] for each in kept], 1).swapaxes(0, 1)
    which = np.repeat([[True], [False]], shortest, axis=0).repeat(scores.shape[1], 1)
    for name in ATTACKS:
        whole = likelihood_ratio(name, scores[1:], members[1:], scores[0])
        cut = likelihood_ratio(name, scores[1:], members[1:], scores[0], cut=True)
        assert np.allclose(cut, likelihood_ratio(name, few, which, scores[0]))
        assert np.isfinite(whole).all() and (name == "global_threshold") == np.allclose(whole, cut)


def test_an_example_that_is_not_judged_counts_nowhere() -> None:
    scores, members = np.array([[3.0, np.nan, 1.0, 2.0]]), np.array([[True, True, False, False]])
    whole = Scores(scores, members)
    fewer = Scores(scores[:, [0, 2, 3]], members[:, [0, 2, 3]])
    assert whole.roc().auc == fewer.roc().auc == 1.0
    assert whole.measurable(0.5) and not Scores(scores, ~members).measurable(0.5)
    assert whole.interval(0.5, np.random.RandomState(0)) == (1.0, 1.0)
