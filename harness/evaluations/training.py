"""Evaluations that train fresh networks on a distilled set by a protocol's recipe, and test each of them.

Which networks, and the order and augmentation of what they see, depend on the distillation's seed and the network's
index and never on the method, so that comparisons are paired. The network of the last step is tested, never the best on
the test set.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch.nn import functional as F

from benchmarks import NETWORKS
from benchmarks.datasets import Benchmark
from benchmarks.errors import UserError, choose
from benchmarks.networks import Network, NetworkSpec, usual_norm
from benchmarks.protocols import PROTOCOLS, Recipe
from benchmarks.task import Task, generator_for
from benchmarks.training import train_together
from harness.evaluations.base import Evaluation, Progress, Untrainable
from harness.measure.clock import Clock
from methods.base import Synthetic

TRIAL_WARMUP, TRIAL_STEPS = 2, 5
"""Steps before the clock is read, and steps that are timed, to choose how many networks train at a time."""
ONE_AT_A_TIME = ("cpu",)
"""Devices that one network fills: on two cores three networks together took longer than one after the other, except
with ten images (``benchmarks/speed`` compares)."""
TRIED_FROM = 200
"""Steps of a network from which the trial is a small part of the work."""


@dataclass(frozen=True)
class Training:
    """How networks are trained on a set."""

    protocol: str = "native"
    """The recipe: that of each method's paper (``native``), ``common``, or the name of any other."""
    network: str | None = None
    """None: the network that distilled under ``native``, else the protocol's."""
    width: int | None = None
    """128: as published. None: that of the network that distilled."""
    depth: int | None = None
    """Blocks. None: those of the network that distilled, or by image size for another network. Some networks have a
    depth of their own."""
    steps: int | None = None
    """At most so many optimiser steps for each network; the schedule shrinks with them. None: the recipe's."""
    networks: int = 5
    """Networks that are trained, each from its own initial weights."""
    networks_at_once: int | None = None
    """Networks that are trained at a time, which moves accuracies by rounding alone. None: as is fastest."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range."""
        for name in ("width", "depth", "steps", "networks", "networks_at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")

    def spec(self, own: NetworkSpec) -> NetworkSpec:
        """The network that is trained, of a resolved configuration, with the norm that its protocol tests with.

        ``own``: the network that distilled. Raises UserError for a network that does not fit the images.
        """
        name = self.network or own.name
        return dataclasses.replace(
            own,
            name=name,
            width=self.width or own.width,
            depth=self.depth,
            norm=usual_norm(name, PROTOCOLS[self.protocol].test_norm),
        )

    def recipe(self, synthetic: Synthetic) -> Recipe:
        """How it is trained, with the step size that was learned with the set where the recipe uses that.

        Raises Untrainable where that step size is below 0.
        """
        recipe = PROTOCOLS[self.protocol].recipe
        if not recipe.learned_lr or synthetic.lr is None:
            return recipe
        lr = float(synthetic.lr.detach().mean())
        if lr < 0:
            raise Untrainable(f"the learned step size is {lr:.3g}")
        return dataclasses.replace(recipe, lr=lr, learned_lr=False)


class NetworkEvaluation(Evaluation):
    """An evaluation that trains fresh networks on one set and tests each."""

    Config = Training
    sets: ClassVar[Literal["one", "sequence"]] = "one"
    grows: ClassVar[str | None] = "networks"

    config: Training

    @abstractmethod
    def test(self, network: Network, synthetic: Synthetic, benchmark: Benchmark) -> Mapping[str, float]:
        """Values of one trained ``network``, which is in evaluation mode, one for each quantity that applies."""

    def train(
        self, synthetic: Synthetic, benchmark: Benchmark, seed: int | str, indices: Sequence[int], progress: Progress
    ) -> list[Network]:
        """The networks ``indices``, trained together; ``progress(done, total)`` counts the steps of one."""
        return trained_networks(self.config, synthetic, benchmark, seed, indices, progress)

    def run(
        self, sets: Sequence[Synthetic], benchmarks: Sequence[Benchmark], seed: int, progress: Progress, begin: int = 0
    ) -> Mapping[str, list[float]]:
        """Train networks ``begin`` to ``config.networks`` − 1 on the set, and test each. Raises as `tested` does."""
        (synthetic,), (benchmark,) = sets, benchmarks
        return self.tested(synthetic, benchmark, seed, progress, begin, self.keep)

    def tested(
        self,
        synthetic: Synthetic,
        benchmark: Benchmark,
        seed: int | str,
        progress: Progress,
        begin: int = 0,
        keep: Callable[[Mapping[str, list[float]]], None] = lambda values: None,
    ) -> dict[str, list[float]]:
        """Train networks ``begin`` to ``config.networks`` − 1 of ``seed`` on ``synthetic``, and test each.

        ``keep``: called with the values so far, while networks are left. Those of an evaluation that does not grow
        are kept in its ``parts``. Raises Untrainable as `Training.recipe` does.
        """
        config, count = self.config, self.config.networks - begin
        at_once = config.networks_at_once or _networks_at_once(config, synthetic, benchmark, count)
        self.cost |= {"networks_at_once": at_once, "parameters": config.spec(benchmark.spec).parameters()}
        values: dict[str, list[float]] = {}
        for first in range(0, count, at_once):
            own = range(first, min(first + at_once, count))

            def shown(done: int, steps: int, own: range = own) -> None:
                progress(own.start * steps + len(own) * done, count * steps)

            indices = [begin + index for index in own]
            name = f"networks {indices[0]} to {indices[-1]} of {seed}"
            if name in self.parts:
                tested = {quantity: part.tolist() for quantity, part in self.parts[name].items()}
            else:
                tested = {}
                for network in self.train(synthetic, benchmark, seed, indices, shown):
                    for quantity, value in self.test(network.eval(), synthetic, benchmark).items():
                        tested.setdefault(quantity, []).append(float(value))
                if self.grows is None:
                    self.parts[name] = {q: torch.tensor(part, dtype=torch.float64) for q, part in tested.items()}
            for quantity, part in tested.items():
                values.setdefault(quantity, []).extend(part)
            if own.stop < count:
                keep(values)
        return values


def resolved(config: Training, distillation: Mapping[str, Any], native: str) -> Training:
    """``config`` with protocol, network, width and depth named, for a set of ``distillation``.

    ``native``: the protocol of the method's paper. Raises UserError for a protocol or network that does not exist.
    """
    if config.network is not None:
        choose("network", config.network, NETWORKS)
    choose("protocol", config.protocol, ["native", *PROTOCOLS])
    own = str(distillation["network"])
    protocol = PROTOCOLS[native if config.protocol == "native" else config.protocol]
    network = config.network or (own if config.protocol == "native" else protocol.network)
    return dataclasses.replace(
        config,
        protocol=protocol.name,
        network=network,
        width=config.width or distillation["width"],
        depth=config.depth or (distillation["depth"] if network == own else None),
    )


def trained_networks(
    config: Training,
    synthetic: Synthetic,
    benchmark: Benchmark,
    seed: int | str,
    indices: Iterable[int],
    progress: Progress | None = None,
    *,
    recipe: Recipe | None = None,
    look: Callable[[Sequence[Network], int, int], None] | None = None,
) -> list[Network]:
    """The networks ``indices`` of ``seed``, trained together on the synthetic set as a resolved ``config`` says.

    ``progress(done, total)`` counts the training steps of one network. ``recipe``: in place of that of ``config``.
    ``look(networks, done, total)`` may test the networks after every step; it leaves them in training mode.

    Raises Untrainable as `Training.recipe` does.
    """

    def after(networks: Sequence[Network], done: int, steps: int) -> None:
        if progress is not None:
            progress(done, steps)
        if look is not None:
            look(networks, done, steps)

    spec, recipe = config.spec(benchmark.spec), recipe or config.recipe(synthetic)
    return train_new(spec, recipe, synthetic, benchmark, seed, indices, after, max_steps=config.steps)


def hardened(synthetic: Synthetic, task: Task) -> Synthetic:
    """The set of ``task`` with one-hot labels (n, C): the classes of the images, which are class-major."""
    classes = torch.tensor(task.classes, device=synthetic.images.device)
    classes = classes.repeat_interleave(len(synthetic.images) // len(classes))
    labels = F.one_hot(classes, task.num_classes).to(synthetic.labels.dtype)
    return dataclasses.replace(synthetic, labels=labels, label_space="probability")


def train_new(
    spec: NetworkSpec,
    recipe: Recipe,
    synthetic: Synthetic,
    benchmark: Benchmark,
    seed: int | str,
    indices: Iterable[int],
    look: Callable[[Sequence[Network], int, int], None],
    *,
    max_steps: int | None = None,
) -> list[Network]:
    """New networks ``indices`` of ``seed``, trained together on the synthetic set; ``look`` as `trained_networks`."""
    device, dtype, indices = synthetic.images.device, synthetic.images.dtype, list(indices)
    networks = [
        spec.build(generator_for("evaluated network", seed, index), device=device, dtype=dtype) for index in indices
    ]
    train_together(
        networks,
        synthetic.images,
        synthetic.labels,
        synthetic.label_space,
        recipe,
        flip=recipe.flip(benchmark.flip, benchmark.name),
        generators=[generator_for("evaluation", seed, index) for index in indices],
        max_steps=max_steps,
        progress=lambda done, steps: look(networks, done, steps),
    )
    return networks


def _networks_at_once(config: Training, synthetic: Synthetic, benchmark: Benchmark, networks: int) -> int:
    """How many of ``networks`` are best trained at a time: 1 or all, whichever takes less time on this device.

    On a GPU both ways are tried, with networks and generators that are thrown away. Nothing is tried on a CPU, which
    would lose the same bits from run to run for little, nor where there is little to gain: for one network, or few
    steps.
    """
    steps = config.recipe(synthetic).steps(len(synthetic.images))
    few = networks <= 1 or min(steps, config.steps or steps) < TRIED_FROM
    if few or synthetic.images.device.type in ONE_AT_A_TIME:
        return 1
    clock = Clock(synthetic.images.device)
    short = dataclasses.replace(config, steps=TRIAL_WARMUP + TRIAL_STEPS)

    def seconds(count: int) -> float:
        """Seconds of the timed steps with ``count`` networks at a time."""
        readings = []

        def progress(done: int, steps: int) -> None:
            if done in (TRIAL_WARMUP, steps):
                readings.append(clock.read())

        trained_networks(short, synthetic, benchmark, "trial", range(count), progress)
        return readings[1] - readings[0]

    try:
        return networks if seconds(networks) < networks * seconds(1) else 1
    except torch.OutOfMemoryError:  # of all together: a single one is what every evaluation needs
        return 1
