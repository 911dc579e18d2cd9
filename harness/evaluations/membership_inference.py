"""Membership inference: can an attacker tell which images a set was made from, by a network trained on the set?

Table 4 and figures 5 c, d of FRePo (Zhou, Nezhadarya and Ba, NeurIPS 2022). Differs from the released script:
- Networks are trained on the distilled set. The script distils, and then trains on the real images that the
  distillation started from.
- Non-members are drawn from the test images, as many as there are members. The first ones would not do: MNIST's first
  test images are easier than the others. The paper's members are as many as its test images, so it has no choice.
- Attackers are seeded.
- Beyond the paper: true-positive rates at low false-positive rates, which tell whether *any* member is identified with
  confidence. The AUC, an average over all images, does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from benchmarks.datasets import Benchmark
from benchmarks.errors import UserError
from benchmarks.networks import Network
from benchmarks.task import generator_for
from benchmarks.training import accuracy, predict
from harness.evaluations._attacked import Attacked, attacked_spec, train_attacked
from harness.evaluations._attacks import (
    GRIDS,
    TRAINED,
    Grid,
    Observed,
    attack_quantities,
    measured,
    observed,
    random_for,
    threshold_attack,
    trained_attack,
)
from harness.evaluations.base import Evaluation, Progress, Quantity, Untrainable
from methods.base import Synthetic

TITLES = {"threshold": "threshold", "lr": "LR", "mlp": "MLP", "rf": "RF", "knn": "kNN"}
AXIS: dict[str, Any] = {"against": "training steps", "at": "lengths"}


def _hidden(title: str) -> Quantity:
    return Quantity(title, percent=False, tabled=False, drawn=False, **AXIS)


@dataclass(frozen=True)
class MembershipInferenceConfig(Attacked):
    """Members, training and attackers. The defaults suit a CPU; the paper's values are named where they differ."""

    lengths: tuple[int, ...] = (100, 250, 500, 1000, 2000, 4000)
    """Training steps after which a network is attacked, ascending. The paper adds 8000 and 16000."""
    attacked: Literal["all", "last"] = "all"
    """Which of the networks of a length are attacked. The paper's code: only the last."""
    grid: Grid = "short"
    """Hyper-parameters among which the attackers choose. The paper's are ``published``, and take ten times as long."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lengths or self.lengths[0] < 1 or list(self.lengths) != sorted(set(self.lengths)):
            raise UserError(f"lengths are {' '.join(map(str, self.lengths))}; they must ascend from at least 1")


class MembershipInference(Evaluation):
    """How well five attackers tell members from others, against the steps for which a network was trained.

    Series have a value for each length, of one network after another.
    """

    Config = MembershipInferenceConfig
    BUDGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"members": 400, "lengths": (20,)},
        "paper": {
            "members": 10_000,
            "lengths": (100, 250, 500, 1000, 2000, 4000, 8000, 16_000),
            "repeats": 5,
            "attacked": "last",
            "grid": "published",
        },
    }
    quantities: ClassVar[Mapping[str, Quantity]] = {
        "accuracy": Quantity("accuracy under attack (%)", **AXIS),
        **attack_quantities("threshold", TITLES["threshold"], shown=True, **AXIS),
        "trained_auc": Quantity("best trained AUC", percent=False, **AXIS),
        **{f"{attacker}_auc": _hidden(f"{TITLES[attacker]} AUC") for attacker in TRAINED},
        **{f"{attacker}_advantage": _hidden(f"{title} advantage") for attacker, title in TITLES.items()},
    }
    each = "chunk"
    config: MembershipInferenceConfig

    def views(self) -> tuple[str, ...]:
        return (self.config.view,)

    def run(
        self, sets: Sequence[Synthetic], benchmarks: Sequence[Benchmark], seed: int, progress: Progress, begin: int = 0
    ) -> Mapping[str, list[float]]:
        """Train networks on the set, and attack them by the images of the task and as many test images.

        There is no true-positive rate at a false-positive rate that is less than one image.

        Raises Untrainable where a network's answers are not finite.
        """
        (synthetic,), (benchmark,) = sets, benchmarks
        config, task = self.config, benchmark.task
        count = min(len(task.images), len(benchmark.test_images))
        members = _drawn(len(task.images), count, "members").to(task.device)
        others = _drawn(len(benchmark.test_images), count, "others").to(task.device)
        found: dict[tuple[int, int], dict[str, float]] = {}
        for index in range(config.repeats):
            for key, kept in self.parts.get(_part(index), {}).items():
                length, name = key.split(" ")
                found.setdefault((index, int(length)), {})[name] = float(kept)
        missing = [index for index in range(config.repeats) if _part(index) not in self.parts]

        def test(index: int, length: int, network: Network) -> None:
            look(index, length, network)
            if length == config.lengths[-1]:
                self.parts[_part(index)] = {
                    f"{at} {name}": torch.tensor(value, dtype=torch.float64)
                    for at in config.lengths
                    for name, value in found[index, at].items()
                }

        def look(index: int, length: int, network: Network) -> None:
            logits = predict(network, benchmark.test_images)
            found[index, length] = {"accuracy": accuracy(logits, benchmark.test_labels)}
            if config.attacked == "last" and index < config.repeats - 1:
                return
            own = predict(network, task.images[members])
            if not bool(logits.isfinite().all() and own.isfinite().all()):
                raise Untrainable(f"after {length} steps a network's answers are not finite")
            inside = observed(own, task.labels[members])
            outside = observed(logits[others], benchmark.test_labels[others])
            found[index, length] |= _attacks(inside, outside, config.grid, (seed, index, length))

        train_attacked(config, synthetic, benchmark, seed, missing, config.lengths, test, progress)
        recipe = config.recipe(len(synthetic.images), len(task.images), config.lengths[-1])
        self.cost |= {
            "members": count,
            "batch_size": recipe.batch_size,
            "parameters": attacked_spec(benchmark).parameters(),
        }
        values: dict[str, list[float]] = {}
        for _, own in sorted(found.items()):
            for name, value in own.items():
                values.setdefault(name, []).append(value)
        return values


def _part(index: int) -> str:
    """The name of what survives of a network, of all lengths."""
    return f"network {index}"


def _attacks(members: Observed, others: Observed, grid: Grid, key: tuple[int, ...]) -> dict[str, float]:
    """What the five attackers reach, by name. ``key``: what their random numbers depend on."""
    threshold = threshold_attack(members, others)
    curves = {"threshold": threshold.roc()}
    for attacker in TRAINED:
        random = random_for("attacker", attacker, *key)
        curves[attacker] = trained_attack(attacker, members, others, random, GRIDS[grid][attacker]).scores.roc()
    return {
        **measured("threshold", threshold, random_for("intervals", *key)),
        **{f"{attacker}_auc": curve.auc for attacker, curve in curves.items()},
        **{f"{attacker}_advantage": curve.advantage for attacker, curve in curves.items()},
        "trained_auc": max(curves[attacker].auc for attacker in TRAINED),
    }


def _drawn(images: int, count: int, what: str) -> torch.Tensor:
    """``count`` of ``images`` rows without repetition, in ascending order, the same for every method and seed."""
    return torch.randperm(images, generator=generator_for(what, images, count))[:count].sort().values
