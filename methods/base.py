"""The interface of a dataset-distillation method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from benchmarks.decoder import decode
from benchmarks.errors import UserError
from benchmarks.task import Task

Store = MutableMapping[str, Mapping[str, Tensor]]
"""Name → tensors (CPU) that outlive a run. The harness keeps them on disk, apart for each data set, preprocessing and
network. The name must tell everything else that determines the tensors."""


@runtime_checkable
class SharedStore(Protocol):
    """A store that other cells fill at the same time."""

    def claim(self, names: Sequence[str], at_most: int) -> list[str]:
        """As `missing`."""


def missing(store: Store, names: Sequence[str], at_most: int) -> list[str]:
    """At most so many of ``names`` that ``store`` does not hold, for the caller to make now; none: all are there.

    The entries are independent of each other. Cells that run at the same time make different ones, and wait where
    others make the last.
    """
    if isinstance(store, SharedStore):
        return store.claim(names, at_most)
    return [name for name in names if name not in store][:at_most]


@dataclass(frozen=True)
class Range:
    """Values of a hyper-parameter that are worth a trial, from ``low`` to ``high``; whole where both are ``int``."""

    low: float
    high: float
    log: bool = True
    """Whether trials are evenly spread over the logarithm of the value, or over the value itself."""

    def at(self, share: float) -> float:
        """The value at ``share`` of the way, 0 to 1, rounded to a whole number or to three digits."""
        value = self.low + share * (self.high - self.low)
        if self.log:
            value = self.low * (self.high / self.low) ** share
        return round(value) if isinstance(self.low, int) else float(f"{value:.3g}")


LabelSpace = Literal["probability", "weighted", "centred"]
"""Kinds of labels: one-hot or soft, with a sum of 1; soft with another sum, the weight of the image in a cross entropy;
or regression targets one-hot − 1/C, as FRePo and KIP learn."""


def check_ranges(config: Any, *, from_zero: Container[str] = (), above_zero: Container[str] = ()) -> None:
    """Check the numbers of the dataclass ``config``, whose class is named after its method: ``FRePoConfig``.

    Fields of type ``int`` must be above 0, or at least 0 where ``from_zero`` names them. Fields of type ``float`` must
    be at least 0, or above 0 where ``above_zero`` names them. Raises UserError where one is not.
    """
    method = type(config).__name__.removesuffix("Config").lower()
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        zero = field.name in from_zero or ("float" in str(field.type) and field.name not in above_zero)
        if not (value >= 0 if zero else value > 0):
            raise UserError(f"{method}: {field.name} is {value}; it must be {'at least' if zero else 'above'} 0")


@dataclass(frozen=True)
class Synthetic:
    """A distilled set, in the space of the preprocessed images."""

    images: Tensor
    """(n, channels, height, width): ipc images of each of the task's ``classes``, class-major."""
    labels: Tensor
    """(n, num_classes). Before the first step the largest entry of a row is that of its class, and rows
    of centred labels sum to 0; learned labels may move from there. Soft labels of a method without steps may name any
    class."""
    label_space: LabelSpace
    """The kind of ``labels``."""
    lr: Tensor | None = None
    """The learned step size, 0-d (or one per step), where the method learns it."""
    factor: int = 1
    """Each of ``images`` holds factor × factor smaller ones of its label: networks are trained on the set `decoded`."""
    sharing: int = 1
    """Images that share the pixels of a stored one: 1, or factor² once they are decoded."""

    def decoded(self) -> Synthetic:
        """The set that networks are trained on, class-major, by `benchmarks.decoder`; its own factor is 1."""
        images, count = decode(self.images, self.factor), self.factor**2
        return replace(self, images=images, labels=self.labels.repeat_interleave(count, 0), factor=1, sharing=count)

    @property
    def stored_bytes(self) -> int:
        """Bytes of images and labels as they are stored."""
        return sum(part.numel() * part.element_size() for part in (self.images, self.labels)) // self.sharing


class Method(ABC):
    """One method of dataset distillation; a file of this package holds exactly one.

    The harness resolves ``Config`` before construction, in this order: the field defaults, ``PAPER`` for the data set
    and ipc, ``BUDGETS`` for the budget, the command line. In ``PAPER`` and ``BUDGETS`` the key ``"steps"`` stands for
    the number of outer steps; all other keys are fields of ``Config``.
    """

    Config: ClassVar[type[Any]]
    """Frozen dataclass of hyper-parameters, named as in the paper."""
    PAPER: ClassVar[Mapping[tuple[str, int], Mapping[str, Any]]] = {}
    """(data set, ipc) → changes of ``Config`` that the paper makes there. No entry: no published setting."""
    BUDGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """``smoke`` and ``quick`` → changes of ``Config`` under that budget. ``long``: changes for hours of one CPU core,
    without steps; by default those of ``quick``. ``cost``: changes that shorten ``prepare`` and leave the cost of a
    step as it is; without an entry a cost cell prepares everything. ``forecast``: changes for counting a step without
    computing it; by default those of ``cost``."""
    TUNE: ClassVar[Mapping[str, Range]] = {}
    """Field of ``Config`` → the values between which ``harness.tune`` looks for better ``quick`` settings, which lie
    within: step sizes first, at most four. No entry: there is nothing to tune."""
    PROTOCOL: ClassVar[str] = "vico"
    """The native evaluation protocol, a name of ``benchmarks.protocols.PROTOCOLS``."""
    iterative: ClassVar[bool] = True
    """False: ``prepare`` is all there is (selection baselines), and ``step`` is never called."""
    hard_labels_beside: ClassVar[bool] = False
    """Whether tables show beside the accuracy that of hard labels on the same images, because the labels may be what a
    set is good for. Runs then ask for both, and evaluate twice as long."""
    float64: ClassVar[bool] = False
    """Whether it computes in float64 on the device, whatever the dtype of the task. Some devices have none."""
    steps_per_cycle: int = 1
    """The cost repeats every so many steps; measuring windows hold whole cycles."""

    def __init__(self, task: Task, config: Any, total_steps: int) -> None:
        """``total_steps``: how often ``step`` will be called; schedules need it."""
        self.task = task
        self.config = config
        self.total_steps = total_steps

    def prepare(self, store: Store) -> None:  # noqa: B027  (many methods have nothing to prepare)
        """One-off work before the first step, timed apart. Tensors put into ``store`` are there the next time."""

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
