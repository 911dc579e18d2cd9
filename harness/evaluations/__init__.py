"""The questions that are asked of a distilled set: a file here is one, and another package adds one by an entry point.

Listing names imports nothing, so that ``--help`` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.registry import Registry

if TYPE_CHECKING:
    from harness.evaluations.base import Evaluation

ENTRY_POINTS = "frepo_bench.evaluations"
"""Entry-point group for evaluations of other packages: ``name = "package.module:Class"``."""
_REGISTRY = Registry("evaluation", "harness.evaluations", others=("base", "training"), group=ENTRY_POINTS)


def names() -> list[str]:
    """The names of all evaluations, built-in and installed, sorted."""
    return _REGISTRY.names()


def get(name: str) -> type[Evaluation]:
    """The evaluation class called ``name``. Raises UserError as `Registry.get` and `check_class` do."""
    from harness.evaluations.base import Evaluation, check_class

    evaluation: type[Evaluation] = _REGISTRY.get(name, Evaluation, check_class)
    return evaluation
