"""The interface of a dataset-distillation method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from benchmarks.task import Task

Store = MutableMapping[str, Mapping[str, Tensor]]
"""What outlives a run: name → tensors (CPU). The harness keeps it on disk, apart for each data set, preprocessing and
network; the name must tell everything else that determines the tensors."""


LabelSpace = Literal["probability", "centred"]
"""What labels are: one-hot or soft; or regression targets one-hot − 1/C, as FRePo and KIP learn."""


@dataclass(frozen=True)
class Synthetic:
    """A distilled set, in the space of the preprocessed images."""

    images: Tensor
    """(num_classes * ipc, channels, height, width), class-major."""
    labels: Tensor
    """(num_classes * ipc, num_classes). Before the first step the largest of every row is that of its class, and rows
    of centred labels sum to 0; labels that are learned may move from there."""
    label_space: LabelSpace
    """``probability``: one-hot or soft. ``centred``: regression targets one-hot − 1/C, as FRePo and KIP learn."""
    lr: Tensor | None = None
    """The learned step size, 0-d (or one per step), where the method learns it."""


class Method(ABC):
    """One method of dataset distillation; a file of this package holds exactly one.

    The harness resolves ``Config`` before construction, in this order: the field defaults, ``PAPER`` for the data set
    and ipc, ``BUDGETS`` for the budget, the command line. In ``PAPER`` and ``BUDGETS`` the key ``"steps"`` stands for
    the number of outer steps; all other keys are fields of ``Config``.
    """

    Config: ClassVar[type[Any]]
    """Frozen dataclass of hyper-parameters, named as in the paper."""
    PAPER: ClassVar[Mapping[tuple[str, int], Mapping[str, Any]]] = {}
    """(data set, ipc) → what the paper changes there. No entry: no published setting; ``--budget paper`` says so."""
    BUDGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """``smoke`` and ``quick`` → what they change. ``cost``: what shortens ``prepare`` and changes nothing of what a
    step costs; without an entry a cost cell prepares everything. ``forecast``: the same where nothing is computed, by
    default that of ``cost``."""
    PROTOCOL: ClassVar[str] = "vico"
    """The native evaluation protocol, a name of ``benchmarks.protocols.PROTOCOLS``."""
    iterative: ClassVar[bool] = True
    """False: ``prepare`` is all there is (selection baselines), and ``step`` is never called."""
    steps_per_cycle: int = 1
    """The cost repeats every so many steps; measuring windows hold whole cycles."""

    def __init__(self, task: Task, config: Any, total_steps: int) -> None:
        """``total_steps``: how often ``step`` will be called; schedules need it."""
        self.task = task
        self.config = config
        self.total_steps = total_steps

    def prepare(self, store: Store) -> None:  # noqa: B027  (many methods have nothing to prepare)
        """One-off work before the first step, timed apart. What it puts into ``store`` is found there the next time."""

    @abstractmethod
    def step(self) -> dict[str, Tensor]:
        """Exactly one optimiser update of the synthetic images.

        Returns one or more named losses as detached 0-d tensors on the device: nothing here may synchronise.
        """

    @abstractmethod
    def synthetic(self) -> Synthetic:
        """A detached copy of the synthetic set as it stands."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on, generator state included, but not the store."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``, bit for bit as if never interrupted. Called after ``prepare``."""
