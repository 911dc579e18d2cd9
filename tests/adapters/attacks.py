"""Membership inference: the attackers of TensorFlow Privacy 0.8.5, and LiRA as its authors released it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.evaluations import _attacks, _lira
from harness.evaluations._attacks import Array, Observed, Roc, Scores
from tests.adapters import Adapter, Case, Mistake

EXACT = 1e-12
LR_AUC, LR_SCORES = 2e-3, 5e-3
"""The reference stops its solver at 1e-4, wherever that is on a processor."""
SPREAD = 0.05
"""How far the multilayer perceptron and the random forest may be outside of the recorded runs, which are random."""
SIDES = ("member", "nonmember")


def membership_inference(case: Case) -> None:
    seen = {side: _seen(case.arrays, side) for side in SIDES}
    for side in SIDES:
        own = _attacks.observed(case[f"in.logits_{side}"], case[f"in.labels_{side}"])
        error = np.abs(own.loss - seen[side].loss).max()
        case.hold(f"in.loss_{side}", float(error), 2.0**-13 + 1e-5)  # recorded as multiples of 2⁻¹²

    check_curve(case, "threshold", _attacks.roc(seen["nonmember"].loss, seen["member"].loss))
    curve = _attacks.threshold_attack(seen["member"], seen["nonmember"]).roc()
    check_curve(case, "member_positive", curve)
    number(case, "threshold.auc", curve.auc)
    number(case, "threshold.advantage", curve.advantage)
    number(case, "member_positive.balanced_accuracy", curve.accuracy)
    for level in case.names("member_positive.tpr_at_fpr"):
        number(case, f"member_positive.tpr_at_fpr{level}", curve.tpr_at(float(level)))
    if case.dtype == torch.float32:  # rounded features have other neighbours, and the attackers work in float64
        return

    for name in case.names("folds.seed"):
        seed, part = name.split(".")
        sizes = [len(seen[side].loss) for side in SIDES]
        made = _attacks.balanced(*sizes, np.random.RandomState(int(seed)))
        expected = case.arrays[f"folds.seed{name}"]
        same = np.array_equal(made[("fold_indices", "left_out_indices").index(part)], expected)
        case.hold(f"folds.seed{name}", float(not same), 0.0)
    for attacker, auc, scores in (("knn", EXACT, EXACT), ("lr", LR_AUC, LR_SCORES)):
        for seed in sorted({name.split(".")[0] for name in case.names(f"{attacker}.seed")}):
            random = np.random.RandomState(int(seed))
            trained = _attacks.trained_attack(
                attacker, seen["member"], seen["nonmember"], random, _attacks.GRIDS["published"][attacker]
            )
            start = f"{attacker}.seed{seed}"
            best = json.loads(case.arrays[f"{start}.best"].item())
            same = all(
                own[key] == pytest.approx(value)
                for own, each in zip(trained.best, best, strict=True)
                for key, value in each.items()
            )
            case.hold(f"{start}.best", float(not same), 0.0)
            number(case, f"{start}.auc", trained.scores.roc().auc, auc)
            parts = np.split(-trained.scores.scores[0], [len(seen["member"].loss)])
            for side, own in zip(SIDES, parts, strict=True):
                error = np.abs(own - case.arrays[f"{start}.scores_{side}"]).max()
                case.hold(f"{start}.scores_{side}", float(error), scores)
    for attacker, auc in random_attackers(case.path).items():
        recorded = case.arrays[f"{attacker}.auc_by_seed"]
        outside = max(recorded.min() - auc, auc - recorded.max(), 0.0)
        case.hold(f"{attacker}.auc_by_seed", outside, SPREAD)


def _seen(arrays: dict[str, Any], side: str) -> Observed:
    return Observed(arrays[f"in.logits_{side}"], arrays[f"in.loss_{side}"])


@functools.cache
def random_attackers(path: Path) -> dict[str, float]:
    """AUC of the attackers that differ from seed to seed, of one seed and a few of the hyper-parameters."""
    with np.load(path) as arrays:
        members, others = (_seen(arrays, side) for side in SIDES)
    grids = {"mlp": {"alpha": [1e-3]}, "rf": {"min_samples_leaf": [2]}}
    return {
        name: _attacks.trained_attack(name, members, others, np.random.RandomState(0), grid).scores.roc().auc
        for name, grid in grids.items()
    }


def number(case: Case, name: str, actual: float, tolerance: float = EXACT) -> None:
    case.hold(name, abs(actual - float(case.arrays[name])), tolerance)


def check_curve(case: Case, name: str, curve: Roc) -> None:
    """The rates at the recorded thresholds, which leave out points between others on a line."""
    thresholds = case.arrays.get(f"{name}.thresholds")
    if thresholds is None:  # recorded as a curve alone: each of its points is one of ours
        ours = np.stack([np.append(0.0, curve.fpr), np.append(0.0, curve.tpr)], 1)
        recorded = np.stack([case.arrays[f"{name}.fpr"], case.arrays[f"{name}.tpr"]], 1)
        error = np.abs(recorded[:, None] - ours[None]).max(2).min(1).max()
        case.hold(f"{name}.fpr", float(error), EXACT)
        return
    finite = np.isfinite(thresholds)
    place = np.searchsorted(-curve.thresholds, -thresholds[finite])
    for rate in ("fpr", "tpr"):
        error = np.abs(getattr(curve, rate)[place] - case.arrays[f"{name}.{rate}"][finite]).max()
        case.hold(f"{name}.{rate}", float(error), EXACT)


def likelihood_ratio(case: Case) -> None:
    keep, labels = case.arrays["in.keep"], case["in.labels"]
    logits = case["in.logits"]
    scores = _lira.confidence(logits, labels[None, :, None].expand(logits.shape[:-1]))
    case.check("scores", scores, f64=1e-11, f32=2e-5)
    if case.dtype == torch.float32:  # the attacks work in float64
        return
    shadows = len(keep) - int(case.cfg["ntest"])
    for attack in _lira.ATTACKS:
        ratios = np.stack(
            [
                _lira.likelihood_ratio(attack, scores[:shadows].numpy(), keep[:shadows], own.numpy(), cut=True)
                for own in scores[shadows:]
            ]
        )
        case.check(f"{attack}.prediction", torch.from_numpy(-ratios.ravel()), f64=1e-11, f32=0.0)
        curve = Scores(ratios, keep[shadows:]).roc()
        number(case, f"{attack}.auc", curve.auc, 1e-11)
        number(case, f"{attack}.accuracy", curve.accuracy, 1e-11)
        for level in case.names(f"{attack}.tpr_at_fpr_below"):
            own = curve.tpr_at(float(level), strictly=True)
            number(case, f"{attack}.tpr_at_fpr_below{level}", own, 1e-11)


ADAPTERS: dict[str, Adapter] = {"mia": membership_inference, "lira": likelihood_ratio}


def _attribute(owner: object, name: str, value: object) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


_roc, _one_hot, _listed, _nanstd = _attacks.roc, _attacks.F.one_hot, _lira._listed, np.nanstd


def _in_order(members: int, others: int, random: np.random.RandomState) -> tuple[Array, Array]:
    """As many of both, the last ones, not shuffled."""
    every = np.arange(members + others)
    return every[abs(members - others) :], every[: abs(members - others)]


MIA, UNBALANCED, LIRA = "mia_leaky_c5.npz", "mia_mild_c4_unbalanced.npz", "lira_m18_n150_a2.npz"
MISTAKES = [
    Mistake("mia: ties count as won", MIA, _attribute(_attacks, "roc", lambda p, n: _roc(p + 1e-9, n))),
    Mistake(
        "mia: a high loss means a member",
        MIA,
        _attribute(_attacks, "threshold_attack", lambda m, o: _attacks.separate(m.loss, o.loss)),
    ),
    Mistake(
        "mia: labels that are not centred",
        MIA,
        _attribute(_attacks.F, "one_hot", lambda labels, classes: _one_hot(labels, classes) + 1 / classes),
    ),
    Mistake(
        "mia: attackers that do not see the loss", MIA, _attribute(Observed, "features", property(lambda o: o.logits))
    ),
    Mistake("mia: halves that are not shuffled", UNBALANCED, _attribute(_attacks, "balanced", _in_order)),
    Mistake("lira: means instead of medians", LIRA, _attribute(np, "nanmedian", np.nanmean)),
    Mistake(
        "lira: sample deviations", LIRA, _attribute(np, "nanstd", lambda own, axis: _nanstd(own, axis=axis, ddof=1))
    ),
    Mistake(
        "lira: lists that are not cut",
        LIRA,
        _attribute(_lira, "_listed", lambda s, c, *, cut: _listed(s, c, cut=0)),
    ),
]
