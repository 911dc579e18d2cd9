"""Where the window of truncated back-propagation lies: rules that look at the gradients of a plain inner training.

A window is (steps before it, steps that are differentiated).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.networks import Network

Window = tuple[int, int]

STAGES = {1: (0.015, 0.15), 2: (0.01, 0.125)}
"""Stage of AT-BPTT → the rise of the accuracy that is too small, and for how many passes on end, as a share of T."""


def gradient_norms(network: Network, batch: Callable[[int], Sequence[Tensor]], steps: int, lr: float) -> Tensor:
    """Norms (steps,) of the gradients in ``steps`` of Adam on ``batch(step)``; ``network`` is trained. CPU, float64.

    Waits for the device.
    """
    optimiser = torch.optim.Adam(network.parameters(), lr=lr)
    norms = []
    for step in range(steps):
        images, labels = batch(step)
        F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients))
        optimiser.step()
        optimiser.zero_grad()
    return torch.stack(norms).cpu().double()


def changes(norms: Tensor) -> Tensor:
    """How much each of the norms (T,) differs from the one before it; 0 for the first."""
    return torch.diff(norms, prepend=norms[:1]).abs()


def early_window(norms: Tensor, uniform: float, window: int, change: int) -> Window:
    """AT-BPTT's first stage: it begins at a step with a large gradient norm, wider where the norm changes much.

    The step is drawn with probabilities softmax(norms), by ``uniform`` in [0, 1). The width is between ``window`` −
    ``change`` and ``window`` + ``change``, by the rank of the change of the norm there.
    """
    start, unroll, differences = _drawn(norms, uniform), len(norms), changes(norms)
    rank = int((differences < differences[start]).sum())
    width = int(window - change + 2 * change * rank / unroll)
    return min(start, unroll - width), width


def late_window(norms: Tensor, uniform: float, window: int, change: int) -> Window:
    """AT-BPTT's third stage: as narrow as it may be, and as far from the end as the drawn step is from the start.

    It begins before the first step, at a negative number, where that step is among the last.
    """
    width = window - change
    return len(norms) - _drawn(norms, uniform) - width, width


def _drawn(norms: Tensor, uniform: float) -> int:
    return min(int(torch.searchsorted(norms.softmax(0).cumsum(0), uniform)), len(norms) - 1)


@dataclass
class Rule:
    """A rule for windows of W = ``window`` steps, or up to ``change`` fewer or more, in an unroll of T = ``unroll``."""

    unroll: int
    window: int
    change: int
    held: ClassVar[bool] = True
    """Whether a window stays for a whole pass over the real images."""

    def choose(self, norms: Callable[[], Tensor], generator: torch.Generator) -> Window:
        """A window. ``norms()``: gradient norms (T,) of the inner training of the network that comes next."""
        raise NotImplementedError


class Random(Rule):
    """It begins after 0 to T − W steps."""

    def choose(self, norms: Callable[[], Tensor], generator: torch.Generator) -> Window:
        return int(torch.randint(self.unroll - self.window + 1, (), generator=generator)), self.window


class End(Rule):
    """The last W steps."""

    def choose(self, norms: Callable[[], Tensor], generator: torch.Generator) -> Window:
        return self.unroll - self.window, self.window


class Middle(Rule):
    """It begins where random ones begin on average."""

    def choose(self, norms: Callable[[], Tensor], generator: torch.Generator) -> Window:
        return (self.unroll - self.window) // 2, self.window


@dataclass
class Stages(Rule):
    """AT-BPTT's windows ("Beyond Random: Automatic Inner-loop Optimization in Dataset Distillation", NeurIPS 2025).

    Early, random and late ones in three stages. The accuracy in training says when the next stage begins. The official
    code waits for a count to equal a product that is no integer for T = 300, and so never leaves the second stage
    there; here the count must reach it.
    """

    stage: int = 1
    waited: int = 0
    """Passes on end in which the accuracy rose too little."""
    accuracy: float | None = None
    """Accuracy of the last pass."""

    def choose(self, norms: Callable[[], Tensor], generator: torch.Generator) -> Window:
        if self.stage == 2:
            width = self.window + self.change
            return int(torch.randint(self.unroll - width + 1, (), generator=generator)), width
        rule = early_window if self.stage == 1 else late_window
        uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
        start, width = rule(norms(), uniform, self.window, self.change)
        return max(start, 0), width

    def end_pass(self, accuracy: float) -> None:
        """Take note of the mean accuracy on the real batches of a pass, a fraction."""
        if self.accuracy is not None and self.stage in STAGES:
            least, patience = STAGES[self.stage]
            self.waited = self.waited + 1 if accuracy - self.accuracy < least else 0
            if self.waited >= patience * self.unroll:
                self.stage, self.waited = self.stage + 1, 0
        self.accuracy = accuracy


@dataclass
class Policy(Rule):
    """AT-BPTT++'s windows (github.com/aether-hang/at-bptt-plus, commit aa48f30).

    A window ends at a step with a large gradient norm, or a small one where the norms of all steps are small. The
    draws stay near those of the steps before.
    """

    held: ClassVar[bool] = False
    reference: Tensor = field(init=False)
    """(T,): the moving average of the probabilities."""
    low: float = math.inf
    high: float = -math.inf
    """Least and largest mean norm so far."""

    def __post_init__(self) -> None:
        self.reference = torch.full((self.unroll,), 1 / self.unroll, dtype=torch.float64)

    def update(self, norms: Tensor, *, weight: float = 1.0, rate: float = 0.05) -> Tensor:
        """Probabilities (T,) of the last step of a window, given the ``norms`` (T,) of its network."""
        mean = float(norms.mean())
        self.low, self.high = min(self.low, mean), max(self.high, mean)
        policy = (self.reference.log() + self.favour(mean) * _standardised(norms) / weight).softmax(0)
        self.reference = (1 - rate) * self.reference + rate * policy
        return policy

    def favour(self, mean: float) -> float:
        """From −1, small norms, to 1, large ones, by where ``mean`` lies between the least and the largest."""
        return 2 * (mean - self.low) / (self.high - self.low) - 1 if self.high > self.low else 1.0

    def ending(self, norms: Tensor, last: int, *, temperature: float = 1.0) -> Window:
        """The window whose last step has index ``last``: wider where the norm changes much."""
        share = float(torch.sigmoid(_standardised(changes(norms))[last] / temperature))
        width = round(self.window - self.change + 2 * self.change * share)
        width = min(max(width, 1), self.unroll, last + 1)
        return last + 1 - width, width

    def choose(self, norms: Callable[[], Tensor], generator: torch.Generator) -> Window:
        found = norms()
        last = int(torch.multinomial(self.update(found), 1, generator=generator))
        return self.ending(found, last)


def _standardised(values: Tensor) -> Tensor:
    return (values - values.mean()) / (values.std(correction=0) + 1e-8)


RULES: dict[str, type[Rule]] = {
    "random": Random,
    "end": End,
    "middle": Middle,
    "stages": Stages,
    "policy": Policy,
}
