"""Test accuracy of networks of other architectures trained on the set, each with a step size of its own.

Table 2 of Zhou, Nezhadarya and Ba (FRePo, NeurIPS 2022) asks how a set transfers to networks that did not distil it.
Architectures differ in the step size that they need, so it is searched: for each candidate a network is trained on the
set and tested on real *training* images. The set was distilled from these images, hence this accuracy chooses among
step sizes and is no estimate of the accuracy on new images. The test images are not looked at before the step size is
fixed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from benchmarks import NETWORKS, NORMS
from benchmarks.datasets import Benchmark
from benchmarks.errors import UserError, choose
from benchmarks.networks import Network, NetworkSpec, get, usual_norm
from benchmarks.networks.layers import Norm
from benchmarks.protocols import PROTOCOLS, Recipe
from benchmarks.task import generator_for
from benchmarks.training import accuracy, predict
from harness.evaluations.base import Progress, Quantity, Untrainable
from harness.evaluations.training import NetworkEvaluation, Training, trained_networks
from methods.base import Synthetic

OWN = "own"
"""In place of a network's name: the one of the protocol, or that distilled, as ``network`` says."""
TABLE2 = ("own", "own:none", "resnet18", "resnet18:batch", "vgg11:batch", "alexnet:none")
"""The columns of FRePo's table 2: Conv, Conv-NN, ResNet-DN, ResNet-BN, VGG-BN, AlexNet."""


class Architecture(NamedTuple):
    """A network, its norm and the protocol by whose recipe it is trained; None: as the configuration says."""

    network: str
    norm: Norm | None
    protocol: str | None

    @classmethod
    def parsed(cls, text: str) -> Architecture:
        """``NETWORK``, ``NETWORK:NORM``, and either with ``@PROTOCOL``. Raises UserError for an unknown name."""
        name, at, protocol = text.partition("@")
        network, colon, norm = name.partition(":")
        choose("network", network, (OWN, *NETWORKS))
        if colon:
            choose("norm", norm, NORMS)
        if colon and network != OWN and norm not in (norms := get(network).norms):
            raise UserError(f"{network} has no form with norm {norm!r}; it has {', '.join(norms)}")
        if at:
            choose("protocol", protocol, PROTOCOLS)
        return cls(network, cast(Norm, norm) if colon else None, protocol if at else None)


@dataclass(frozen=True)
class CrossArchitectureConfig(Training):
    """Which networks are trained on the set, and with which step size."""

    architectures: tuple[str, ...] = TABLE2
    """A network each, such as ``resnet18``, ``resnet18:batch`` with that norm, ``resnet18:batch@vico`` by the recipe of
    that protocol. ``own`` is the network by which the set is tested otherwise. Without a norm: the protocol's, or the
    usual one of a network that does not have it."""
    lr: float | None = None
    """Step size of the optimiser. None: searched."""
    lr_search: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    """Step sizes that are tried, in units of the recipe's own; the best on held-out training images is taken. A single
    one is taken as it is."""
    search_steps: int | None = None
    """At most so many optimiser steps for each step size that is tried. None: as many as are taken with the best."""
    held_out: int = 1000
    """Real training images, not in the set, on which step sizes are compared; at most half of all."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range, or a name that is unknown."""
        super().__post_init__()
        for architecture in self.architectures:
            Architecture.parsed(architecture)
        if not self.architectures:
            raise UserError("architectures is empty; name at least one")
        for name in ("search_steps", "held_out"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if self.lr is None and not self.lr_search:
            raise UserError("lr_search is empty; name at least one factor, or a step size by lr")
        for name, values in (("lr", (self.lr,)), ("lr_search", self.lr_search)):
            if any(value is not None and value <= 0 for value in values):
                raise UserError(f"{name} must be above 0")

    @property
    def architecture(self) -> Architecture:
        """The one that this configuration asks about. Raises UserError where it names several."""
        if len(self.architectures) != 1:
            raise UserError("cross_architecture: each of architectures is a question of its own")
        return Architecture.parsed(self.architectures[0])

    def spec(self, own: NetworkSpec) -> NetworkSpec:
        """The network that is trained. Raises UserError where it does not fit the images."""
        usual, asked = super().spec(own), self.architecture
        name = usual.name if asked.network == OWN else asked.network
        wanted = PROTOCOLS[asked.protocol or self.protocol].test_norm
        return dataclasses.replace(
            usual,
            name=name,
            depth=usual.depth if name == usual.name else None,
            norm=asked.norm or usual_norm(name, wanted),
        )

    def recipe(self, synthetic: Synthetic) -> Recipe:
        """How it is trained, with the step size ``lr`` where it is known. Raises Untrainable as for any evaluation."""
        protocol = self.architecture.protocol
        recipe = Training(protocol or self.protocol).recipe(synthetic)
        return recipe if self.lr is None else dataclasses.replace(recipe, lr=self.lr, learned_lr=False)


class CrossArchitecture(NetworkEvaluation):
    """Top-1 accuracy on the test images of one architecture after the last step of the recipe."""

    Config = CrossArchitectureConfig
    each = "architectures"
    quantities: ClassVar[Mapping[str, Quantity]] = {
        "accuracy": Quantity("accuracy (%)"),
        "held_out_accuracy": Quantity("on held-out training images (%)", drawn=False),
        "step_size": Quantity("step size", percent=False, drawn=False),
    }

    config: CrossArchitectureConfig

    def run(
        self, sets: Sequence[Synthetic], benchmarks: Sequence[Benchmark], seed: int, progress: Progress, begin: int = 0
    ) -> Mapping[str, list[float]]:
        """Find the step size where none is named, then train and test the networks with it.

        The cost in the record lists the held-out accuracy with every step size that was tried. Raises Untrainable where
        networks diverge with all of them, and UserError where no training image is left to compare them by.
        """
        (synthetic,), (benchmark,) = sets, benchmarks
        if self.config.lr is None:
            found = type(self)(dataclasses.replace(self.config, lr=self._best_lr(synthetic, benchmark, seed, progress)))
            found.cost, found.keep = self.cost, self.keep
            return found.run(sets, benchmarks, seed, progress, begin)
        self._held_out = held_out(synthetic, benchmark, self.config.held_out)
        return super().run(sets, benchmarks, seed, progress, begin)

    def test(self, network: Network, synthetic: Synthetic, benchmark: Benchmark) -> Mapping[str, float]:
        """``accuracy`` on the test images, ``held_out_accuracy`` where images are held out, and the ``step_size``."""
        images, labels = self._held_out
        left = {"held_out_accuracy": accuracy(predict(network, images), labels)} if len(labels) else {}
        tested = {"accuracy": accuracy(predict(network, benchmark.test_images), benchmark.test_labels)}
        return tested | left | {"step_size": self.config.recipe(synthetic).lr}

    def _best_lr(self, synthetic: Synthetic, benchmark: Benchmark, seed: int, progress: Progress) -> float:
        """The step size with the best accuracy on held-out training images; of equals, the nearest to the recipe's.

        A single one is taken without a trial.
        """
        config, own = self.config, self.config.recipe(synthetic).lr
        if len(config.lr_search) == 1:
            return own * config.lr_search[0]
        images, labels = held_out(synthetic, benchmark, config.held_out)
        if not len(labels):
            raise UserError("every training image is in the set, so none is held out to search by: name a step size lr")
        tried: dict[float, float] = {}
        for place, factor in enumerate(config.lr_search):

            def shown(done: int, steps: int, place: int = place) -> None:
                progress(place * steps + done, len(config.lr_search) * steps)

            name = f"step size times {factor}"
            if name in self.parts:
                reached = float(self.parts[name]["accuracy"])
            else:
                short = dataclasses.replace(config, lr=own * factor, steps=config.search_steps or config.steps)
                (network,) = trained_networks(short, synthetic, benchmark, f"step size {seed}", [0], shown)
                logits = predict(network, images)
                reached = accuracy(logits, labels) if bool(logits.isfinite().all()) else math.nan
                self.parts[name] = {"accuracy": torch.tensor(reached, dtype=torch.float64)}
            if math.isfinite(reached):
                tried[factor] = reached
            self.cost[f"held_out_accuracy_with_{factor:g}_times_the_step_size"] = tried.get(factor, 0.0)
        if not tried:
            raise Untrainable("networks diverge with every step size that was tried")
        return own * max(tried, key=lambda factor: (tried[factor], -abs(math.log(factor))))


def held_out(synthetic: Synthetic, benchmark: Benchmark, count: int) -> tuple[Tensor, Tensor]:
    """Real training images (n, C, H, W) that are not in the set, and their labels (n,): ``count``, at most half of all.

    The same for all sets of a data set, except that images which a set contains are passed over; none where it contains
    all.
    """
    task = benchmark.task
    count = min(count, len(task.labels) // 2)
    inside = {image.numpy().tobytes() for image in synthetic.images.cpu()}
    order = torch.randperm(len(task.labels), generator=generator_for("held out", benchmark.raw_fingerprint))
    rows = order[: count + len(inside)].to(task.device)
    outside = [place for place, image in enumerate(task.images[rows].cpu()) if image.numpy().tobytes() not in inside]
    rows = rows[outside[:count]]
    return task.images[rows], task.labels[rows]
