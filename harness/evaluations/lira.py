"""Was an example in the data that a set was made from? The likelihood-ratio attack, with shadow sets.

Carlini et al., "Membership Inference Attacks From First Principles" (S&P 2022), of networks trained on distilled sets:
a set is distilled from each of several random halves of the data, and the attacker knows how, so the sets of other
halves are its shadows. Differs from the released code: each set is the target once, with all others as shadows, and
examples use all of their shadows, where the released code cuts every list to the shortest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.data.views import half_mask
from benchmarks.datasets import Benchmark
from benchmarks.errors import UserError
from benchmarks.networks import Network
from benchmarks.training import accuracy, predict
from harness.evaluations._attacked import Attacked, attacked_spec, train_attacked
from harness.evaluations._attacks import Array, Scores, attack_quantities, measured, random_for
from harness.evaluations._lira import ATTACKS, LEAST, confidence, judged, likelihood_ratio
from harness.evaluations.base import MOST_SETS, Evaluation, Progress, Quantity, Untrainable
from methods.base import Synthetic

TITLES = {name: f"LiRA {name.replace('_', ' ')}" for name in ATTACKS} | {"global_threshold": "global threshold"}
SHOWN = ("online_fixed_variance", "global_threshold")
"""Attacks in the tables. With few shadows a deviation for each example is mostly noise, so the variance is fixed."""


@dataclass(frozen=True)
class LiraConfig(Attacked):
    """Halves of the data, training and queries."""

    members: int = 1000
    """Training images in a chunk, half of which are in each set's data."""
    shadows: int = 16
    """Sets, each distilled from a random half of the chunk."""
    targets: int | None = None
    """How many sets, the last ones, are attacked with the others as shadows. None: each, with all others as shadows."""
    training_steps: int = 1000
    """Training steps of each network."""
    queries: Literal["clean", "shifted"] = "clean"
    """Images that a network is asked about for an example: itself, or itself and shifted by one pixel in each of four
    directions, all mirrored as well where that leaves the class. Scores are averaged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training_steps < 1:
            raise UserError(f"training_steps is {self.training_steps}; it must be at least 1")
        if self.targets is not None and self.targets < 1:
            raise UserError(f"targets is {self.targets}; it must be at least 1")
        if self.shadows > MOST_SETS:
            raise UserError(f"shadows is {self.shadows}; it must be at most {MOST_SETS}")
        if (left := self.shadows - (self.targets or 1)) < 2 * LEAST:
            raise UserError(f"shadows are {left} beside the targets; there must be at least {2 * LEAST}")


class Lira(Evaluation):
    """How well likelihood ratios tell members from others, over all examples and attacked sets."""

    Config = LiraConfig
    BUDGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"members": 400, "shadows": 5, "training_steps": 20}}
    sets = "sequence"
    each = "chunk"
    quantities: ClassVar[Mapping[str, Quantity]] = {
        "accuracy": Quantity("accuracy under attack (%)"),
        **{
            name: quantity
            for attack in (*SHOWN, *(other for other in ATTACKS if other not in SHOWN))
            for name, quantity in attack_quantities(attack, TITLES[attack], shown=attack in SHOWN).items()
        },
    }
    config: LiraConfig

    def views(self) -> tuple[str, ...]:
        return tuple(f"{self.config.view}@half:{place}" for place in range(self.config.shadows))

    def run(
        self, sets: Sequence[Synthetic], benchmarks: Sequence[Benchmark], seed: int, progress: Progress, begin: int = 0
    ) -> Mapping[str, list[float]]:
        """Train networks on each set, and attack the targets by every example that has shadows of both kinds.

        ``accuracy`` has a value for each network, and everything else one over all targets.

        Raises Untrainable where a network's answers are not finite, and UserError where no example has enough shadows.
        """
        config = self.config
        members = torch.stack([half_mask(config.members, place) for place in range(len(sets))])
        pixels, labels = _whole(benchmarks, members)
        scores, accuracies = list[Tensor](), list[float]()

        for place, synthetic in enumerate(sets):

            def shown(done: int, total: int, place: int = place) -> None:
                progress(place * total + done, len(sets) * total)

            benchmark = benchmarks[place]
            indices = range(place * config.repeats, (place + 1) * config.repeats)
            own, tested = self._asked(synthetic, benchmark, pixels, labels, seed, indices, shown)
            scores.append(own)
            accuracies += tested
        self.cost |= {"parameters": attacked_spec(benchmarks[-1]).parameters()}
        return {"accuracy": accuracies, **self._attacked(torch.stack(scores).numpy(), members.numpy(), seed)}

    def _asked(
        self,
        synthetic: Synthetic,
        benchmark: Benchmark,
        pixels: Tensor,
        labels: Tensor,
        seed: int,
        indices: Sequence[int],
        progress: Progress,
    ) -> tuple[Tensor, list[float]]:
        """Scores φ of all examples by networks trained on the set, (examples, queries), and the networks' accuracies.

        Those of several networks stand side by side, as of more queries: whoever has the set can train as many.
        """

        def test(index: int, length: int, network: Network) -> None:
            tested = accuracy(predict(network, benchmark.test_images), benchmark.test_labels)
            scores = [
                confidence(predict(network, benchmark.preprocess.forward(asked)), labels).cpu()
                for asked in _queries(pixels, self.config.queries, flip=benchmark.flip)
            ]
            known[index] = self.parts[f"network {index}"] = {
                "scores": torch.stack(scores, 1),
                "accuracy": torch.tensor(tested, dtype=torch.float64),
            }

        known = {index: self.parts[f"network {index}"] for index in indices if f"network {index}" in self.parts}
        missing = [index for index in indices if index not in known]
        train_attacked(self.config, synthetic, benchmark, seed, missing, [self.config.training_steps], test, progress)
        parts = [known[index] for index in indices]
        together = torch.cat([part["scores"] for part in parts], 1)
        if not bool(together.isfinite().all()):
            raise Untrainable("a network's answers are not finite")
        return together, [float(part["accuracy"]) for part in parts]

    def _attacked(self, scores: Array, members: Array, seed: int) -> dict[str, list[float]]:
        """The values of all attacks. ``scores``: (sets, examples, queries); ``members``: (sets, examples) bool."""
        places, count = np.arange(len(scores)), self.config.targets
        targets = places if count is None else places[-count:]
        ratios = np.full((len(ATTACKS), len(targets), len(members[0])), np.nan)
        for place, target in enumerate(targets):
            shadows = places != target if count is None else places < targets[0]
            # By the shadows alone: what is left out must not depend on whether the target had it.
            enough = judged(members[shadows])
            if enough.any():
                chosen = np.ix_(shadows, enough)
                for row, name in zip(ratios, ATTACKS, strict=True):
                    row[place, enough] = likelihood_ratio(name, scores[chosen], members[chosen], scores[target, enough])
        pairs = int(np.isfinite(ratios[0]).sum())
        if not pairs:
            raise UserError("no example has enough shadows of both kinds: ask for more --lira.shadows")
        self.cost |= {"examples_of_a_target": pairs / len(targets)}
        values = dict[str, float]()
        for attack, own in zip(ATTACKS, ratios, strict=True):
            values |= measured(attack, Scores(own, members[targets]), random_for("intervals", attack, seed))
        return {name: [value] for name, value in values.items()}


def _whole(benchmarks: Sequence[Benchmark], members: Tensor) -> tuple[Tensor, Tensor]:
    """All images of which each of ``benchmarks`` has a half, uint8 (N, C, H, W), and their labels (N,).

    ``members``: which images each has, (sets, N) bool. Images that are in no half stay black; no example is judged
    that no shadow has.
    """
    pixels, labels = torch.empty(0), torch.empty(0)
    for place, own in enumerate(members):
        benchmark = benchmarks[place]
        # Back to the bytes of the file, so that every network sees them as its own preprocessing shows them.
        images = (benchmark.preprocess.inverse(benchmark.task.images) * 255).round().clamp(0, 255).to(torch.uint8)
        if place == 0:
            pixels = images.new_zeros(len(own), *images.shape[1:])
            labels = benchmark.task.labels.new_zeros(len(own))
        pixels[own.to(images.device)] = images
        labels[own.to(images.device)] = benchmark.task.labels
    return pixels, labels


def _queries(pixels: Tensor, kind: str, *, flip: bool) -> Iterator[Tensor]:
    """The images (N, C, H, W) to ask about, one for each query."""
    shifts = [(1, 1)] if kind == "clean" else [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    height, width = pixels.shape[2:]
    padded = F.pad(pixels.float(), (1, 1, 1, 1), mode="replicate").to(torch.uint8)
    for down, right in shifts:
        shifted = padded[:, :, down : down + height, right : right + width]
        yield shifted
        if kind != "clean" and flip:
            yield shifted.flip(-1)
