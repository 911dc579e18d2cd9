"""Attacks on a trained network that tell members of its training set from others, and what their scores are worth.

The attackers are those of TensorFlow Privacy 0.8.5, by which FRePo's paper (Zhou et al., 2022, table 4) measures
leakage: a threshold on the loss, and four classifiers of logits and loss by scikit-learn. True-positive rates at low
false-positive rates follow Carlini et al., "Membership Inference Attacks From First Principles" (S&P 2022).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from benchmarks.task import generator_for
from benchmarks.training import double
from harness.evaluations.base import Quantity

Array = NDArray[Any]
Grid = Literal["short", "published"]

TRAINED = ("lr", "mlp", "rf", "knn")
"""Attackers that are trained: logistic regression, multilayer perceptron, random forest, k nearest neighbours."""
_PUBLISHED: Mapping[str, Mapping[str, list[Any]]] = {
    "lr": {"C": np.logspace(-4, 2, 10).tolist()},
    "mlp": {"hidden_layer_sizes": [(64,), (32, 32)], "alpha": [1e-4, 1e-3, 1e-2]},
    # The released grid has max_features "auto" too, which was another name for "sqrt".
    "rf": {"max_depth": [5, 10, 20, None], "min_samples_split": [2, 5, 10], "min_samples_leaf": [1, 2, 4]},
    "knn": {"n_neighbors": [3, 5, 7]},
}
GRIDS: Mapping[Grid, Mapping[str, Mapping[str, list[Any]]]] = {
    "published": _PUBLISHED,
    "short": {
        **_PUBLISHED,
        "mlp": {"hidden_layer_sizes": [(64,), (32, 32)], "alpha": [1e-3]},
        "rf": {"max_depth": [5, None], "min_samples_leaf": [1, 4]},
    },
}
"""Hyper-parameters among which each attacker chooses by cross-validation. The short grids take a tenth of the time."""
LEVEL = 0.95
"""Level of the intervals."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Observed:
    """What an attacker sees of a network's answers to N examples. It does not see the labels."""

    logits: Array
    """(N, C), float64."""
    loss: Array
    """(N,), float64."""

    @property
    def features(self) -> Array:
        """Logits, then the loss, not scaled: (N, C + 1)."""
        return np.column_stack([self.logits, self.loss])


def observed(logits: Tensor, labels: Tensor) -> Observed:
    """``logits`` (N, C) with the loss of every example: ½ Σ_c (logit − label)², for one-hot ``labels`` less 1/C.

    ``labels``: (N,) class indices.
    """
    logits = double(logits)
    targets = F.one_hot(labels.to(logits.device), logits.shape[1]) - 1 / logits.shape[1]
    loss = (logits - targets).square().sum(1) / 2
    return Observed(logits.cpu().numpy(), loss.cpu().numpy())


def random_for(*key: object) -> np.random.RandomState:
    """NumPy's generator of the kind that scikit-learn takes, which depends on ``key`` alone."""
    return np.random.RandomState(int(torch.randint(2**32, (), generator=generator_for(*key))))


# --- what scores are worth --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Roc:
    """The receiver operating characteristic: rates for a threshold at every score that occurs."""

    thresholds: Array
    """(K,), descending: "positive" means a score at or above it."""
    fpr: Array
    """(K,) false-positive rates, ascending."""
    tpr: Array
    """(K,) true-positive rates, ascending."""

    @property
    def auc(self) -> float:
        """The mean over pairs of [positive > negative] + ½ [equal]. Below ½ the attacker is worse than chance."""
        fpr, tpr = np.append(0.0, self.fpr), np.append(0.0, self.tpr)
        return float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1])) / 2)

    @property
    def advantage(self) -> float:
        """The largest difference of the two rates."""
        return float(np.abs(self.tpr - self.fpr).max())

    @property
    def accuracy(self) -> float:
        """The largest balanced accuracy, ½ (TPR + 1 − FPR)."""
        return float(max(0.5, (self.tpr + 1 - self.fpr).max() / 2))

    def tpr_at(self, level: float, *, strictly: bool = False) -> float:
        """The largest true-positive rate with a false-positive rate of at most ``level``, or ``strictly`` below it."""
        place = np.searchsorted(self.fpr, level, side="left" if strictly else "right")
        return float(self.tpr[place - 1]) if place else 0.0


def roc(positive: Array, negative: Array) -> Roc:
    """The curve for scores of positive and of negative examples, (P,) and (N,)."""
    thresholds, place = np.unique(-np.concatenate([positive, negative]), return_inverse=True)
    return _curve(-thresholds, place[: len(positive)], place[len(positive) :])


def _curve(thresholds: Array, positive: Array, negative: Array) -> Roc:
    """The curve for examples by the places of their scores in ``thresholds``."""

    def rates(places: Array) -> Array:
        return np.bincount(places, minlength=len(thresholds)).cumsum() / len(places)

    return Roc(thresholds, fpr=rates(negative), tpr=rates(positive))


@dataclass(frozen=True)
class Scores:
    """Scores that an attack gives N examples as members of T networks: larger means more likely a member."""

    scores: Array
    """(T, N). NaN: the example is not judged as a member of that network."""
    members: Array
    """(T, N) bool: whether the example is a member."""

    def roc(self) -> Roc:
        """One curve over all examples and networks, on which members are positive."""
        judged = np.isfinite(self.scores)
        return roc(self.scores[judged & self.members], self.scores[judged & ~self.members])

    def measurable(self, level: float) -> bool:
        """Whether there is a non-member to be wrong about at a false-positive rate of ``level``."""
        return int((np.isfinite(self.scores) & ~self.members).sum()) * level >= 1 - 1e-9

    def interval(self, level: float, random: np.random.RandomState) -> tuple[float, float]:
        """The ends of the 95 % percentile bootstrap interval of the true-positive rate at ``level``.

        Examples are drawn with repetition, each with its scores in all networks, because these are not independent.
        """
        thresholds, place = np.unique(-self.scores, return_inverse=True)
        place, judged, count = place.reshape(self.scores.shape), np.isfinite(self.scores), self.scores.shape[1]
        rates = []
        for _ in range(RESAMPLES):
            drawn = random.randint(count, size=count)
            own, members, kept = place[:, drawn], self.members[:, drawn], judged[:, drawn]
            positive, negative = own[kept & members], own[kept & ~members]
            if len(positive) and len(negative):  # not so of a handful of examples
                rates.append(_curve(thresholds, positive, negative).tpr_at(level))
        lower, upper = np.quantile(rates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(lower), float(upper)


LEVELS = (0.01, 0.001)
"""False-positive rates at which true-positive rates are reported."""


def rate_names(attack: str, level: float) -> tuple[str, str, str]:
    """Names of the true-positive rate of ``attack`` at ``level``, and of the lower and upper end of its interval."""
    name = f"{attack}_tpr_at_{level:g}"
    return name, f"{name}_lower", f"{name}_upper"


def attack_quantities(attack: str, title: str, *, shown: bool, **axis: Any) -> dict[str, Quantity]:
    """How tables and figures show what `measured` returns. ``shown``: whether they do; ``axis``: if it is a series."""
    made = {f"{attack}_auc": Quantity(f"{title} AUC", percent=False, tabled=shown, drawn=shown, **axis)}
    for level in LEVELS:
        for name, words in zip(rate_names(attack, level), ("", ", lower end", ", upper end"), strict=True):
            own = shown and not words
            words = f"{title} TPR at {100 * level:g} % FPR{words} (%)"
            made[name] = Quantity(words, tabled=own, drawn=own, **axis)
    return made


def measured(attack: str, scores: Scores, random: np.random.RandomState) -> dict[str, float]:
    """The AUC of ``attack`` by name, and its true-positive rates where they can be measured, with their intervals."""
    curve = scores.roc()
    values = {f"{attack}_auc": curve.auc}
    for level in filter(scores.measurable, LEVELS):
        numbers = (curve.tpr_at(level), *scores.interval(level, random))
        values |= dict(zip(rate_names(attack, level), numbers, strict=True))
    return values


# --- attackers --------------------------------------------------------------------------------------------------------


def separate(members: Array, others: Array) -> Scores:
    """``Scores`` of examples of one network, given those of its members and of others."""
    truth = np.repeat([True, False], [len(members), len(others)])
    return Scores(np.concatenate([members, others])[None], truth[None])


def threshold_attack(members: Observed, others: Observed) -> Scores:
    """The loss alone: the lower, the more likely a member. Nothing is trained."""
    return separate(-members.loss, -others.loss)


@dataclass(frozen=True)
class Trained:
    """Scores of an attacker that was trained, and the hyper-parameters of each fold."""

    scores: Scores
    """Minus the probability of a non-member."""
    best: tuple[Mapping[str, Any], ...]


def trained_attack(
    attacker: str, members: Observed, others: Observed, random: np.random.RandomState, grid: Mapping[str, list[Any]]
) -> Trained:
    """An attacker of ``TRAINED``, trained on one half of the examples to score the other, and the reverse.

    It sees as many members as non-members; examples that were left out for that are scored by the last half's. The
    hyper-parameters of ``grid`` are chosen on each half by three-fold cross-validation of the accuracy.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    features = np.concatenate([members.features, others.features])
    labels = np.repeat([0, 1], [len(members.loss), len(others.loss)])
    seen, left_out = balanced(len(members.loss), len(others.loss), random)
    scores, best = np.full(len(labels), math.nan), []
    # The published attackers stop early, whether they have converged or not.
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        for train, test in StratifiedKFold(2).split(features[seen], labels[seen]):
            search = GridSearchCV(_classifier(attacker, random), dict(grid), cv=3)
            search.fit(features[seen[train]], labels[seen[train]])
            scores[seen[test]] = search.predict_proba(features[seen[test]])[:, 1]
            best.append(search.best_params_)
    if len(left_out):
        scores[left_out] = search.predict_proba(features[left_out])[:, 1]
    return Trained(separate(*np.split(-scores, [len(members.loss)])), tuple(best))


def balanced(members: int, others: int, random: np.random.RandomState) -> tuple[Array, Array]:
    """Indices of as many members as others in a random order, and of the rest of the larger side.

    Members have the indices 0 to ``members`` − 1, the others follow.
    """
    larger, smaller = np.split(np.arange(members + others), [members])
    if members < others:
        larger, smaller = smaller, larger
    left_out = larger[:0]
    if members != others:
        left_out, larger = np.split(random.permutation(larger), [len(larger) - len(smaller)])
    return random.permutation(np.concatenate([larger, smaller])), left_out


def _classifier(attacker: str, random: np.random.RandomState) -> Any:
    """The classifier with the published settings that no grid varies."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier

    match attacker:
        case "lr":
            return LogisticRegression()
        case "knn":
            return KNeighborsClassifier()
        case "mlp":
            return MLPClassifier(random_state=random.randint(2**31 - 1))
        case "rf":
            return RandomForestClassifier(n_estimators=100, random_state=random.randint(2**31 - 1))
    raise ValueError(f"unknown attacker {attacker!r}")
