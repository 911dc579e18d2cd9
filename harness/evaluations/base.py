"""The interface of an evaluation: one question asked of one distilled set, or of several."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from benchmarks.datasets import Benchmark
from benchmarks.errors import UserError
from methods.base import Synthetic
from methods.checks import config_of

Progress = Callable[[int, int], None]
"""``progress(done, total)``, in units of the evaluation's own."""
MOST_SETS = 10_000
"""The most sets that a question may be about: each is distilled."""


@dataclass(frozen=True)
class Quantity:
    """How tables and figures show the values of one name."""

    title: str
    """The column, with its unit: ``accuracy (%)``."""
    percent: bool = True
    """Whether values are fractions, shown times 100."""
    against: str | None = None
    """None: the values repeat one measurement, so a table shows mean ± sample standard deviation. Else they are a
    series, and this is the label of the axis that they are drawn against; a table shows the last one."""
    at: str | None = None
    """The field of ``Config`` with the places of the values on that axis; None: 1, 2, 3, …"""
    repeats: str | None = None
    """The field of ``Config`` that counts the series in the list of values, one after the other, such as one for each
    network. None: as many as there are lists of places in it; without places, one."""
    tabled: bool = True
    """Whether the tables of a run show it; the record and ``table.csv`` always have it."""
    drawn: bool = True
    """Whether a figure shows it, method beside method."""

    def series(self, values: Sequence[float], config: Mapping[str, Any]) -> list[list[float]]:
        """``values`` of one evaluation, asked with ``config``, as the series that they hold."""
        places = len(config.get(self.at or "", ())) or len(values)
        length = places if self.repeats is None else len(values) // int(config[self.repeats])
        return [list(values[begin : begin + length]) for begin in range(0, len(values), length or 1)]

    def repeated(self, values: Sequence[float], config: Mapping[str, Any]) -> list[float]:
        """The values of one evaluation that repeat one measurement: all, or the last one of each series."""
        return list(values) if self.against is None else [own[-1] for own in self.series(values, config)]


class _Nowhere(dict[str, Mapping[str, Tensor]]):
    """Keeps nothing, where nobody provides a place."""

    def __setitem__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        pass


class Evaluation(ABC):
    """One question; a file of this package holds exactly one.

    ``Config`` is resolved like that of a method: the defaults, the budget, the command line.
    """

    Config: ClassVar[type[Any]]
    """Frozen dataclass; its fields are options of the command line, ``--NAME.FIELD``. One that trains networks inherits
    from `harness.evaluations.training.Training`."""
    BUDGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Budget → the fields of ``Config`` that it changes."""
    quantities: ClassVar[Mapping[str, Quantity]]
    """Everything that ``run`` may return, in the order of the columns."""
    sets: ClassVar[Literal["one", "sequence"]] = "one"
    """Whether it asks about one set, or about one for each of its `views`."""
    grows: ClassVar[str | None] = None
    """The field of ``Config`` that counts the values, if there is one. It is no part of the identity: asking for more
    computes those that are missing."""
    each: ClassVar[str | None] = None
    """The field of ``Config`` for which a list makes several questions, one for each item, with an answer each. It has
    the type of an item, or is a tuple, of which the configuration of a question then holds one item."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.cost: dict[str, float] = {}
        """Numbers that ``run`` adds to the record's cost, beside the seconds."""
        self.class_accuracies: list[list[float | None]] = []
        """Accuracy on the test images of each class, which ``run`` of an evaluation that grows may add for each value;
        None for a class without test images."""
        self.keep: Callable[[Mapping[str, list[float]]], None] = lambda values: None
        """``run`` of an evaluation that grows may call it with its values so far: they survive an interruption."""
        self.parts: MutableMapping[str, Mapping[str, Tensor]] = _Nowhere()
        """Tensors by a name of the evaluation's own. What ``run`` puts here survives an interruption, and is here when
        it is run again for the same answer: the results of a network that was trained, for instance."""

    def views(self) -> tuple[str, ...]:
        """Views of the data set, such as ``@images:0-1000``, in order: a set is distilled from each.

        An empty string is the whole data set. An evaluation with ``sets = "sequence"`` is given the sets of all views,
        one with ``sets = "one"`` has one view.
        """
        return ("",)

    @abstractmethod
    def run(
        self, sets: Sequence[Synthetic], benchmarks: Sequence[Benchmark], seed: int, progress: Progress, begin: int = 0
    ) -> Mapping[str, list[float]]:
        """Raw values by name, one per network, attacker or step.

        ``sets``: each decoded, on the device and in the space of the images of its own benchmark, the one at the same
        place in ``benchmarks``, which loads them when they are asked for.
        ``seed``: of the distillation; what is drawn depends on it and on an index, never on the method, so that
        comparisons are paired. ``begin``: how many values are there already, where the evaluation grows; they are
        computed from that index on.

        Raises Untrainable where a set cannot answer the question.
        """


class Untrainable(Exception):
    """A set from which no network can be trained; the evaluation is recorded as diverged."""


def check_class(evaluation: type[Evaluation], shown: str) -> None:
    """Raises UserError where ``evaluation``, called ``shown``, does not keep to the interface."""
    from harness.evaluations.training import NetworkEvaluation, Training

    config = config_of(evaluation, shown)
    if issubclass(evaluation, NetworkEvaluation) and not issubclass(config, Training):
        raise UserError(f"{shown}: Config must inherit from harness.evaluations.training.Training, to train networks")
    quantities = getattr(evaluation, "quantities", None)
    named = isinstance(quantities, Mapping) and all(isinstance(quantity, Quantity) for quantity in quantities.values())
    if not (named and quantities):
        raise UserError(f"{shown}: quantities must map the name of each value to a Quantity")
    fields = {field.name for field in dataclasses.fields(config)}
    if evaluation.grows is not None and evaluation.grows not in fields:
        raise UserError(f"{shown}: grows is {evaluation.grows!r}, which is no field of its Config")
    if evaluation.each is not None and evaluation.each not in fields:
        raise UserError(f"{shown}: each is {evaluation.each!r}, which is no field of its Config")
    places = sorted({quantity.at for quantity in quantities.values() if quantity.at} - fields)
    if places:
        raise UserError(f"{shown}: a quantity is at {places[0]!r}, which is no field of its Config")
    if evaluation.sets not in ("one", "sequence"):
        raise UserError(f"{shown}: sets is {evaluation.sets!r}; it must be 'one' or 'sequence'")
