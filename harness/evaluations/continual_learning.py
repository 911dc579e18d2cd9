"""Continual learning: networks trained from scratch on the distilled sets of all classes that were seen so far.

The protocol is GDumb (Prabhu, Torr and Dokania, ECCV 2020) as Zhao and Bilen, "Dataset Condensation with Distribution
Matching", WACV 2023, and FRePo (Zhou, Nezhadarya and Ba, NeurIPS 2022, figure 5 a, b) use it. The classes of the data
set arrive in steps. A set is distilled from the classes of each step, with labels for all classes. After every step a
fresh network with an output for every class is trained on the *buffer*: all sets so far, never distilled again, never
shrunk. It is tested on the test images of all classes seen. Its prediction is the largest of all outputs: those of
classes that are yet to come are not masked.

Differences from the published protocol:
- The preprocessing of a step is fitted on the classes seen up to it. Earlier sets are brought to pixels by the inverse
  of their own preprocessing, and forward by that of the step. FRePo and DM fit theirs on all classes, which tells every
  step something about the future; ``leak`` does so too.
- The network of the last training step is tested. FRePo's sets are those with the best accuracy on the test images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from benchmarks.datasets import Benchmark
from benchmarks.errors import UserError
from benchmarks.networks import Network
from benchmarks.preprocess import Preprocess
from benchmarks.protocols import Recipe
from benchmarks.training import accuracy, predict
from harness.evaluations.base import MOST_SETS, Progress, Quantity
from harness.evaluations.training import NetworkEvaluation, Training
from methods.base import Synthetic

STEPS = 10_000
"""Optimiser steps of a network, whatever the size of the buffer, by recipes whose length depends on the number of
images. FRePo's ``eval_cl.py`` has it so. Recipes with a number of epochs keep it: DM's has 1000."""


@dataclass(frozen=True)
class ContinualLearningConfig(Training):
    """How the classes arrive, and how networks are trained on the sets."""

    class_steps: int = 5
    """Steps in which the classes arrive, in equal parts."""
    order: int = 0
    """The seed of the order of the classes; the papers average over 0 to 4."""
    leak: bool = False
    """Fit the preprocessing on all classes, as published, instead of those seen."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range."""
        super().__post_init__()
        if not 1 <= self.class_steps <= MOST_SETS:
            raise UserError(f"class_steps is {self.class_steps}; it must be from 1 to {MOST_SETS}")
        if not 0 <= self.order < 10**9:  # a seed that the name of a view can hold
            raise UserError(f"order is {self.order}; it must be at least 0 and below 10^9")

    def recipe(self, synthetic: Synthetic) -> Recipe:
        """That of the protocol; where its length depends on the number of images, with `STEPS` steps."""
        recipe = super().recipe(synthetic)
        return dataclasses.replace(recipe, steps_by_images=((1, STEPS),)) if recipe.steps_by_images else recipe


class ContinualLearning(NetworkEvaluation):
    """Accuracy on all classes seen, after every step."""

    Config = ContinualLearningConfig
    sets = "sequence"
    grows = None
    each = "order"
    quantities: ClassVar[Mapping[str, Quantity]] = {
        # Network after network, with a value for each step.
        "continual_accuracy": Quantity("accuracy on the classes seen (%)", against="step", repeats="networks"),
        # A value for each network: its mean over the steps.
        "average_incremental_accuracy": Quantity("average incremental accuracy (%)", drawn=False),
    }

    config: ContinualLearningConfig

    def views(self) -> tuple[str, ...]:
        """The training images of each step, with the test images of all classes seen."""
        count, leak = self.config.class_steps, "-leak" if self.config.leak else ""
        return tuple(f"@step:{step}-of-{count}-order-{self.config.order}{leak}" for step in range(count))

    def test(self, network: Network, synthetic: Synthetic, benchmark: Benchmark) -> Mapping[str, float]:
        """Top-1 accuracy over all outputs."""
        return {"continual_accuracy": accuracy(predict(network, benchmark.test_images), benchmark.test_labels)}

    def run(
        self, sets: Sequence[Synthetic], benchmarks: Sequence[Benchmark], seed: int, progress: Progress, begin: int = 0
    ) -> Mapping[str, list[float]]:
        """Train networks 0 to ``config.networks`` − 1 on the buffer after every step, and test each.

        Every step has networks of its own. ``benchmarks`` are taken one after the other, and none is kept.

        Raises Untrainable where the recipe uses a learned step size that is below 0.
        """
        images = [sum(len(own.images) for own in sets[: step + 1]) for step in range(len(sets))]
        recipe = self.config.recipe(dataclasses.replace(sets[0], lr=None))  # its length is that of every step
        lengths = [self.config.networks * min(n, self.config.steps or n) for n in map(recipe.steps, images)]
        earlier: list[Synthetic] = []

        def after(step: int) -> list[float]:
            """Accuracies of the networks; the set of this step is then one of the ``earlier`` ones."""
            benchmark, own = benchmarks[step], sets[step]
            buffer = union(earlier, own, benchmark.preprocess)
            earlier.append(dataclasses.replace(own, images=benchmark.preprocess.inverse(own.images)))
            self.cost["buffer_bytes"] = buffer.stored_bytes

            def shown(done: int, total: int) -> None:
                progress(sum(lengths[:step]) + done, sum(lengths))

            return self.tested(buffer, benchmark, f"{seed}, step {step}", shown)["continual_accuracy"]

        networks = list(zip(*(after(step) for step in range(len(sets))), strict=True))
        return {
            "continual_accuracy": [value for series in networks for value in series],
            "average_incremental_accuracy": [sum(series) / len(series) for series in networks],
        }


def union(earlier: Sequence[Synthetic], own: Synthetic, preprocess: Preprocess) -> Synthetic:
    """The buffer: the sets of the ``earlier`` steps in their order, then ``own``, in the space of ``own``.

    ``earlier``: sets whose images are pixels in [0, 1]; ``preprocess``: brings pixels to the space of ``own``.
    """
    sets = [*earlier, own]
    rates = [each.lr.mean() for each in sets if each.lr is not None]
    return dataclasses.replace(
        own,
        images=torch.cat([*(preprocess.forward(each.images) for each in earlier), own.images]),
        labels=torch.cat([each.labels for each in sets]),
        lr=torch.stack(rates) if rates else None,
    )
